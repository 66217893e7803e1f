"""The training loop: forward, backward, clip, step, log, evaluate, save. Read :meth:`Trainer.train` first."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from workbench.config import changes, config_to_dict, flatten
from workbench.console import again
from workbench.data.loaders import step_seed
from workbench.data.vocabulary import Vocabulary
from workbench.environment.memory import peak_memory
from workbench.errors import WorkbenchError, errors_as
from workbench.evaluation.summary import main_score
from workbench.runs.checkpoint import (
    STATE,
    check_vocabulary,
    has_checkpoint,
    load_checkpoint,
    load_state,
    save_checkpoint,
)
from workbench.runs.directory import MetricsTable, RunDirectory
from workbench.training.batch_norm import share_batch_norms
from workbench.training.distributed import (
    Processes,
    lost_processes_reported,
    printed_once,
    rank,
    run_on_all,
    run_on_main,
    start_processes,
    world_size,
)
from workbench.training.ema import moving_average
from workbench.training.events import EventFile
from workbench.training.interrupt import Interrupted, StopRequest
from workbench.training.nonfinite import save_batch
from workbench.training.optimizer import build_optimizer, clip_gradients, set_lr
from workbench.training.progress import Progress, log
from workbench.training.schedule import lr_factor, scaled_lr
from workbench.typed_files import Count, Number, Text, Whole, check_type

Batch = list[dict[str, Any]]
_LOGGED_ROWS = 5000  # metrics.csv holds about this many rows at most


@dataclass(frozen=True)
class _State:
    """What resuming needs beside the weights to use; ``model`` are the trained ones where those are an average."""

    step: Count
    best: dict[Literal["AP", "step"], Whole | Number | None]
    pending: dict[Text, Whole | Number] | None
    optimizer: dict[Text, Any]
    scaler: dict[Text, Any] | None
    average: dict[Literal["updates"], Count] | None
    model: dict[Text, Any] | None
    chosen_on: Text | None = ""  # empty in the checkpoints of earlier versions, which do not say


class Trainer:
    """Trains ``model`` for SOLVER.MAX_ITER steps inside a run directory, continuing from its last checkpoint.

    Args:
        cfg: SOLVER, TEST.EVAL_PERIOD and SEED are read here; SEED must be drawn already (>= 0).
        model: ``model(batched_inputs)`` gives a dict of weighted losses in training mode.
        vocabulary: written into the checkpoints.
        run: the run directory.
        batches: ``batches(start_step)`` yields this process's share of the global batch of that step and of
            all later ones.
        evaluate: ``evaluate(model)``, called in every process with the model in eval mode, returns metrics
            whose :func:`~workbench.evaluation.summary.main_score` selects the best checkpoint; None never evaluates.
        on_best: called in the main process after a new best checkpoint was written.
        picture: called in the main process after each evaluation; returns what TensorBoard shows of it, (H, W, 3)
            uint8.
        chosen_on: digest of the data; the best checkpoint is chosen anew where it differs from the checkpoint's.
        processes: the result of ``start_processes(cfg)``, if that was called already.

    IMS_PER_BATCH images make one optimiser step, whatever the number of processes and ACCUMULATION_STEPS.
    """

    def __init__(
        self,
        cfg: CfgNode,
        model: nn.Module,
        vocabulary: Vocabulary,
        run: RunDirectory,
        batches: Callable[[int], Iterator[Batch]],
        *,
        evaluate: Callable[[nn.Module], dict[str, Any]] | None = None,
        on_best: Callable[[], object] | None = None,
        picture: Callable[[], np.ndarray] | None = None,
        chosen_on: str | None = None,
        processes: Processes | None = None,
    ) -> None:
        self.cfg, self.vocabulary, self.run = cfg, vocabulary, run
        self.batches, self.evaluate, self.on_best, self.picture = batches, evaluate, on_best, picture
        self.accelerator, self.device = processes or start_processes(cfg)
        check_batch_size(cfg)
        self.max_steps, self.chunks = cfg.SOLVER.MAX_ITER, cfg.SOLVER.ACCUMULATION_STEPS
        self.step = 0
        self.best: dict[str, Any] = {"AP": None, "step": None}
        self.chosen_on = chosen_on
        self.pending: dict[str, float] | None = None  # the row of a step that was not evaluated yet
        self.metrics: dict[str, Any] = {}

        model.to(self.device)
        # The average is copied before batch norms take a process group, which cannot be copied.
        self.average = moving_average(model, cfg.SOLVER.EMA_DECAY) if cfg.SOLVER.EMA_DECAY > 0 else None
        if world_size() > 1 and share_batch_norms(model):
            log.info("batch norms share their statistics between the processes")
        self.module = model
        optimizer = build_optimizer(model, cfg)
        # Every process reads the checkpoint, before DDP sends the weights of process 0 to all. One machine of
        # several may fail to read what another can.
        state = run_on_all(self._resume_weights) if run_on_main(lambda: has_checkpoint(run.last)) else None
        self.model = self.accelerator.prepare_model(model)
        self.optimizer = self.accelerator.prepare_optimizer(optimizer)
        if state is not None:
            self._resume_optimizer(state)

    def train(self) -> None:
        """Run the steps that are left, then evaluate and save.

        Raises:
            Interrupted: a signal of ``STOP_SIGNALS``; a checkpoint was written.
            WorkbenchError: a batch could not be read, and a checkpoint was written; a loss was not finite, another
            process was lost, or something could not be saved.
        """
        self.writers = _Writers(self.cfg, self.run, self.step - bool(self.pending)) if rank() == 0 else None
        progress = Progress(self.step, self.max_steps)
        try:
            with StopRequest() as stop, lost_processes_reported(self._resumption):
                if self.pending:
                    self._finish_step(self.pending, stop, stopping=False)
                batches = iter(self.batches(self.step))
                for step in range(self.step, self.max_steps):
                    began = time.perf_counter()
                    batch = self._next(batches)
                    waited = time.perf_counter() - began
                    factor = lr_factor(self.cfg, step)
                    set_lr(self.optimizer, factor)
                    # Random numbers of the model, such as dropout's, are the same when a step is repeated.
                    torch.manual_seed(step_seed(self.cfg.SEED, step, -1 - rank()))
                    losses = self._backward(batch)
                    norm = clip_gradients(self._unscaled_parameters(), self.cfg)
                    values, stopping = self._read(losses, norm, stop.name is not None)
                    self._check_finite(step, values, losses, batch)
                    self.optimizer.step()
                    self.optimizer.zero_grad()
                    if self.average is not None:
                        self.average.update_parameters(self.module)
                    self.step = step + 1

                    lr, seconds = scaled_lr(self.cfg) * factor, time.perf_counter() - began
                    memory = peak_memory(self.device)
                    progress.update(self.step, values, lr, memory)
                    row = {"step": self.step, "lr": lr, "seconds": seconds, "data_seconds": waited}
                    row |= {"peak_memory_mb": memory / 1e6, **values}
                    self._finish_step(row, stop, stopping)
        finally:
            progress.close()
            if self.writers:
                self.writers.close()

    def _finish_step(self, row: dict[str, float], stop: StopRequest, stopping: bool) -> None:
        """Evaluate, log and save what is due after a step.

        Where a stop comes before the evaluation is finished, the row is kept in the checkpoint until it is.
        """
        evaluated: dict[str, float] | None = {}
        if self._due(self.cfg.TEST.EVAL_PERIOD):
            evaluated = None if stopping else self._evaluate(stop)
        self.pending = row if evaluated is None else None
        stopping = stopping or evaluated is None
        due = self._due(max(1, self.max_steps // _LOGGED_ROWS))
        if self.writers and evaluated is not None and (evaluated or due):
            self.writers.write({**row, **evaluated})
        if self.writers and evaluated and self.picture is not None:
            self.writers.write_picture(self.picture(), self.step)
        if stopping or self._due(self.cfg.SOLVER.CHECKPOINT_PERIOD):
            self._save_last()
        if stopping and (self.pending or self.step < self.max_steps):
            raise printed_once(Interrupted(f"{stop.name or 'another process'} stopped training {self._saved()}"))

    def _saved(self) -> str:
        return (
            f"after step {self.step} of {self.max_steps}; the checkpoint {self.run.last} was written, and {again()} "
            "continues from it"
        )

    def _resumption(self) -> str:
        if not has_checkpoint(self.run.last):
            return "there is no checkpoint yet"
        return f"{again()} continues from the checkpoint {self.run.last}"

    def _next(self, batches: Iterator[Batch]) -> Batch:
        """Return this process's part of the next batch; where one process cannot read its part, all save and raise."""
        batch, error = [], None
        try:
            batch = next(batches)
        except WorkbenchError as caught:
            error = caught
        if world_size() > 1:
            failed = torch.tensor(float(error is not None), device=self.device)
            failed = bool(self.accelerator.reduce(failed, "sum") > 0)
        else:
            failed = error is not None
        if failed:
            if self.step:
                self._save_last()
                if error is not None:
                    error = WorkbenchError(f"{str(error).rstrip('.')}; training stopped {self._saved()}")
            run_on_all(lambda: _raise(error))
        return batch

    def _backward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the losses of this process's part of the global batch; leave gradients in the parameters."""
        losses: dict[str, Tensor] = {}
        size = math.ceil(len(batch) / self.chunks)
        chunks = [batch[start : start + size] for start in range(0, len(batch), size)]
        self.model.train()
        for index, chunk in enumerate(chunks):
            last = index == len(chunks) - 1
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                chunk_losses = self.model(chunk)
                share = len(chunk) / len(batch)
                self.accelerator.backward(sum(chunk_losses.values()) * share)
            for name, value in chunk_losses.items():
                losses[name] = losses.get(name, 0.0) + value.detach() * share
        return losses

    def _unscaled_parameters(self) -> list[nn.Parameter]:
        if self.accelerator.scaler is not None:
            self.accelerator.unscale_gradients(self.optimizer)
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def _read(self, losses: dict[str, Tensor], norm: Tensor, stop: bool) -> tuple[dict[str, float], bool]:
        """Return the losses averaged over the processes, as numbers, and whether any process was asked to stop.

        There is one transfer between the processes and one from the device.
        """
        flag = torch.tensor(float(stop), device=norm.device)
        numbers = torch.stack([flag, *(value.float() for value in losses.values())])
        numbers = torch.cat([self.accelerator.reduce(numbers, "mean"), norm.detach().float()[None]]).tolist()
        values = dict(zip(losses, numbers[1:-1], strict=True))
        return {"total_loss": sum(values.values()), **values, "grad_norm": numbers[-1]}, numbers[0] > 0

    def _check_finite(self, step: int, values: dict[str, float], losses: dict[str, Tensor], batch: Batch) -> None:
        """Raise WorkbenchError for a loss or gradient that is not finite, in every process, and keep the batch."""
        wrong = [name for name in losses if not math.isfinite(values[name])]
        # Loss scaling provokes infinite gradients and then skips the step.
        if not wrong and self.accelerator.scaler is None and not math.isfinite(values["grad_norm"]):
            wrong = ["grad_norm"]
        if not wrong:
            return
        kept = self.run.path / "nonfinite" / f"step_{step + 1:07d}_process_{rank()}"
        batch_note = f"the batch is kept in {kept}"
        try:
            save_batch(kept, batch, {name: float(value) for name, value in losses.items()})
        except OSError as error:
            batch_note = f"the batch cannot be kept in {kept}: {error.strerror}"
        names = ", ".join(wrong[:3]) + (f" and {len(wrong) - 3} more" if len(wrong) > 3 else "")
        last = f"; the last checkpoint is {self.run.last}" if has_checkpoint(self.run.last) else ""
        raise WorkbenchError(
            f"{names} became {values[wrong[0]]} in step {step + 1}, and training stopped before the weights were "
            f"changed; {batch_note}{last} (a lower SOLVER.BASE_LR or a longer SOLVER.WARMUP_ITERS helps most often)"
        )

    def _result(self) -> nn.Module:
        """Return the model with the weights that are evaluated and saved: the moving average's, if one is kept."""
        return self.module if self.average is None else self.average.module

    def _due(self, period: int) -> bool:
        return self.step == self.max_steps or (period > 0 and self.step % period == 0)

    def _evaluate(self, stop: StopRequest) -> dict[str, float] | None:
        """Evaluate the weights that a checkpoint would hold, and save them if they are the best.

        Returns:
            the metrics as numbers under names such as ``segm/AP``; None where a stop ended the evaluation.
        """
        if self.evaluate is None:
            if self.step == self.max_steps:
                run_on_main(lambda: self._save(self.run.best))
            return {}
        try:
            with stop.at_once():
                self.metrics = self.evaluate(self._result().eval())
        except KeyboardInterrupt:
            if stop.name is None:
                raise
            return None
        name, ap = main_score(self.metrics)
        ap = None if ap is None or not math.isfinite(ap) else float(ap)
        best = self.best["AP"]
        if self.best["step"] is None or (ap is not None and (best is None or ap >= best)):
            self.best = {"AP": ap, "step": self.step}
            run_on_main(lambda: self._save(self.run.best))
        shown = ["-" if value is None else f"{value:.2f}" for value in (ap, self.best["AP"])]
        log.info(f"step {self.step}: {name} {shown[0]}; best {shown[1]}, of step {self.best['step']}")
        values = flatten(self.metrics, "/").items()
        return {name: v for name, v in values if isinstance(v, (int, float)) and not isinstance(v, bool)}

    def _save_last(self) -> None:
        state = _State(
            step=self.step,
            best=self.best,
            pending=self.pending,
            optimizer=self.optimizer.state_dict(),
            scaler=self.accelerator.scaler.state_dict() if self.accelerator.scaler is not None else None,
            average={"updates": int(self.average.n_averaged) - 1} if self.average is not None else None,
            model=self.module.state_dict() if self.average is not None else None,
            chosen_on=self.chosen_on,
        )
        run_on_main(lambda: self._save(self.run.last, vars(state)))

    def _save(self, directory: Path, state: dict[str, Any] | None = None) -> None:
        save_checkpoint(
            directory,
            self._result(),
            config=config_to_dict(self.cfg),
            vocabulary=self.vocabulary,
            step=self.step,
            state=state,
            extra={"metrics": self.metrics},
        )
        if directory == self.run.best and self.on_best is not None:
            self.on_best()

    def _resume_weights(self) -> _State:
        """Take weights, best and step from the run's last checkpoint; return its training state."""
        checkpoint = load_checkpoint(self.run.last)
        state = check_type(_State, load_state(self.run.last), f"checkpoint file {self.run.last / STATE}")
        check_vocabulary(self.run.last, checkpoint.vocabulary, self.vocabulary)
        with self._fitting():
            self.module.load_state_dict(checkpoint.state_dict if state.model is None else state.model)
            if self.average is not None:
                self.average.module.load_state_dict(checkpoint.state_dict)
                self.average.n_averaged.fill_(state.average["updates"] + 1)
            self.step, self.best, self.pending = state.step, state.best, state.pending
            self.metrics = checkpoint.metrics
        if state.chosen_on not in ("", self.chosen_on):
            self.best = {"AP": None, "step": None}
            log.warning("the best checkpoint is chosen anew: scores on other data cannot be compared")
        return state

    def _resume_optimizer(self, state: _State) -> None:
        with self._fitting():
            self.optimizer.load_state_dict(state.optimizer)
            if self.accelerator.scaler is not None and state.scaler is not None:
                self.accelerator.scaler.load_state_dict(state.scaler)
        log.info(f"continuing from {self.run.last}, step {self.step} of {self.max_steps}")

    def _fitting(self) -> AbstractContextManager[None]:
        sentence = f"checkpoint {self.run.last} does not fit this model and optimiser"
        return errors_as(sentence, KeyError, RuntimeError, TypeError, ValueError)


def _raise(error: Exception | None) -> None:
    if error is not None:
        raise error


class _Writers:
    """metrics.csv and TensorBoard's events; WorkbenchError where they cannot be written."""

    def __init__(self, cfg: CfgNode, run: RunDirectory, step: int) -> None:
        self.failure = f"the metrics of {run.path} cannot be written"
        settings = {key: value for key, (value, _) in changes(cfg).items() if key != "OUTPUT_DIR"}
        settings = {k: v if isinstance(v, (bool, int, float, str)) else str(v) for k, v in settings.items()}
        with errors_as(self.failure, OSError):
            self.table, self.events = MetricsTable(run.metrics, step), EventFile(run.path, step)
            self.events.write_settings(settings, str(run.path))

    def write(self, row: dict[str, Any]) -> None:
        with errors_as(self.failure, OSError):
            self.table.write(row)
            self.events.write(row)

    def write_picture(self, picture: np.ndarray, step: int) -> None:
        with errors_as(self.failure, OSError):
            self.events.write_picture("validation images", picture, step)

    def close(self) -> None:
        for file in (self.table, self.events):
            with suppress(OSError):  # of a full disk, which write() has reported
                file.close()


def check_batch_size(cfg: CfgNode) -> None:
    """Raise WorkbenchError unless a step's images divide among processes and accumulation steps."""
    images, chunks = cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.ACCUMULATION_STEPS
    if images % (world_size() * chunks):
        raise WorkbenchError(
            f"SOLVER.IMS_PER_BATCH {images} is the number of images in a step, over all {world_size()} processes and "
            f"SOLVER.ACCUMULATION_STEPS {chunks}, so it must be a multiple of {world_size() * chunks}"
        )
