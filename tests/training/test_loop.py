"""The training loop: what it leaves behind, how it stops, and that stopping changes nothing."""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.training import toy
from workbench.data.loaders import STOP_SIGNALS
from workbench.errors import WorkbenchError
from workbench.runs.checkpoint import load_checkpoint, load_state
from workbench.runs.directory import read_metrics
from workbench.training.interrupt import Interrupted

ROOT = Path(__file__).parents[2]
MEASURED = ("seconds", "data_seconds", "peak_memory_mb")


def rows(output: Path) -> list[dict[str, str]]:
    """metrics.csv without the times."""
    return [{k: v for k, v in row.items() if k not in MEASURED} for row in read_metrics(output / "metrics.csv")]


def train(output: Path, **changes: object) -> list[dict[str, str]]:
    toy.trainer(toy.config(output, **changes)).train()
    return rows(output)


def weights(output: Path, which: str = "last") -> dict[str, torch.Tensor]:
    return load_file(output / "checkpoints" / which / "model.safetensors")


def start(output: Path, *changes: str) -> subprocess.Popen:
    """The toy training in a process of its own, ``step N`` on its stdout before each step, which
    begins when a line comes in."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    script = str(ROOT / "tests" / "training" / "toy.py")
    return subprocess.Popen(
        [sys.executable, script, str(output), *changes],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=ROOT,
    )


def read_until(process: subprocess.Popen, line: str) -> None:
    for printed in process.stdout:
        if printed.strip() == line:
            return
        process.stdin.write("\n")
        process.stdin.flush()
    pytest.fail(f"the training ended before {line!r}: {process.stderr.read()}")


def test_a_run_leaves_what_the_design_says(tmp_path: Path) -> None:
    table = train(tmp_path)
    assert [row["step"] for row in table] == [str(n) for n in range(1, 9)]
    assert {"lr", "total_loss", "loss_ce", "loss_size", "grad_norm", "segm/AP"} <= set(table[0])
    total = float(table[0]["loss_ce"]) + float(table[0]["loss_size"])
    assert float(table[0]["total_loss"]) == pytest.approx(total, rel=1e-6)
    assert [row["step"] for row in table if row["segm/AP"]] == ["4", "8"]
    assert list(tmp_path.glob("events.out.tfevents.*"))
    assert (tmp_path / "config.yaml").is_file() and (tmp_path / "figures").is_dir()
    last, best = (load_checkpoint(tmp_path / "checkpoints" / name) for name in ("last", "best"))
    assert last.step == 8 and best.step in (4, 8) and last.vocabulary == toy.VOCABULARY
    assert best.metrics["segm"]["AP"] == max(float(row["segm/AP"]) for row in table if row["segm/AP"])


def test_tensorboard_reads_the_numbers_of_both_parts_of_a_run(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    class Killed(BaseException):
        pass

    def kill_after_five(first: int):
        for step in range(first, 5):
            yield toy.batch(step, range(4))
        raise Killed

    with pytest.raises(Killed):
        toy.trainer(toy.config(tmp_path), batches=kill_after_five).train()
    table = train(tmp_path)
    board = EventAccumulator(str(tmp_path)).Reload()
    for name in ("loss_ce", "total_loss", "lr", "segm/AP"):
        wanted = [(int(row["step"]), float(row[name])) for row in table if row[name]]
        found = [(e.step, e.value) for e in board.Scalars(f"losses/{name}" if "loss" in name else name)]
        assert [step for step, _ in found] == [step for step, _ in wanted], name
        assert [value for _, value in found] == pytest.approx([value for _, value in wanted], rel=1e-6)


def test_tensorboard_gets_settings_pictures_and_no_constants(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import metadata

    picture = np.full((6, 10, 3), 200, np.uint8)
    scores = {"images": 200, "instances": 565, "segm": {"AP": 12.0}}
    cfg = toy.config(tmp_path / "run", TEST_EVAL_PERIOD=4)
    toy.trainer(cfg, evaluate=lambda model: scores, picture=lambda: picture).train()
    board = EventAccumulator(str(tmp_path / "run")).Reload()
    assert {"segm/AP", "lr"} <= set(board.Tags()["scalars"]) and not {"images", "instances"} & set(
        board.Tags()["scalars"]
    )
    shown = board.Images("validation images")
    assert [(image.step, image.width, image.height) for image in shown] == [(4, 10, 6), (8, 10, 6)]
    content = board.SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content
    settings = metadata.parse_session_start_info_plugin_data(content).hparams
    assert settings["SOLVER.MAX_ITER"].number_value == cfg.SOLVER.MAX_ITER and "OUTPUT_DIR" not in settings


def test_a_disk_that_is_full_when_logging_is_told_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = toy.trainer(toy.config(tmp_path))

    def write(self, row):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("workbench.training.loop.EventFile.write", write)
    with pytest.raises(WorkbenchError, match=f"metrics of {tmp_path} cannot be written: No space left"):
        trainer.train()


def test_the_loss_falls(tmp_path: Path) -> None:
    table = train(tmp_path, SOLVER_MAX_ITER=60, TEST_EVAL_PERIOD=0)
    losses = [float(row["loss_ce"]) for row in table]
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])


def test_the_best_checkpoint_is_the_one_with_the_highest_ap(tmp_path: Path) -> None:
    scores = iter([10.0, 30.0, None, 20.0])
    saved: list[int] = []
    trainer = toy.trainer(
        toy.config(tmp_path, TEST_EVAL_PERIOD=2),
        evaluate=lambda model: {"segm": {"AP": next(scores)}},
        on_best=lambda: saved.append(load_checkpoint(tmp_path / "checkpoints" / "best").step),
    )
    trainer.train()
    assert saved == [2, 4]
    assert load_checkpoint(tmp_path / "checkpoints" / "best").metrics == {"segm": {"AP": 30.0}}


def test_without_an_evaluation_the_last_weights_are_the_best(tmp_path: Path) -> None:
    toy.trainer(toy.config(tmp_path), evaluate=None).train()
    assert all(torch.equal(v, weights(tmp_path)[k]) for k, v in weights(tmp_path, "best").items())


def test_a_run_killed_with_sigkill_continues_bit_for_bit(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", SOLVER_EMA_DECAY=0.9)
    killed = tmp_path / "killed"
    with start(killed, "SOLVER_EMA_DECAY", "0.9") as process:
        read_until(process, "step 5")  # five steps are logged, three of them are in the checkpoint
        process.send_signal(signal.SIGKILL)
    assert len(rows(killed)) == 5
    assert load_checkpoint(killed / "checkpoints" / "last").step == 3
    assert train(killed, SOLVER_EMA_DECAY=0.9) == whole
    for which in ("last", "best"):
        continued, uninterrupted = weights(killed, which), weights(tmp_path / "whole", which)
        assert all(torch.equal(continued[name], uninterrupted[name]) for name in uninterrupted)


@pytest.mark.parametrize("number", STOP_SIGNALS, ids=lambda number: number.name)
def test_a_stop_between_steps_saves_and_can_be_continued(tmp_path: Path, number: int) -> None:
    whole = train(tmp_path / "whole")
    output = tmp_path / "stopped"
    cfg = toy.config(output)
    plain = toy.batches_of(cfg)

    def batches(first: int):
        for step, batch in enumerate(plain(first), start=first):
            if step == 4:
                signal.raise_signal(number)
            yield batch

    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match="after step 5 of 8.*continues"):
        toy.trainer(cfg, batches=batches).train()
    assert signal.getsignal(number) is before
    assert load_checkpoint(output / "checkpoints" / "last").step == 5
    assert train(output) == whole


def test_a_stop_in_a_notebook_speaks_of_the_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workbench.console.in_notebook", lambda: True)
    stop = [signal.SIGINT]

    def batches(first: int):
        for step in range(first, 8):
            if stop:
                signal.raise_signal(stop.pop())
            yield toy.batch(step, range(4))

    with pytest.raises(Interrupted, match="was written, and running the notebook again continues from it"):
        toy.trainer(toy.config(tmp_path), batches=batches).train()


def test_nohup_keeps_a_training_through_a_hangup(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        toy.trainer(
            toy.config(tmp_path), evaluate=lambda model: signal.raise_signal(signal.SIGHUP) or {"segm": {"AP": 1.0}}
        ).train()
    finally:
        signal.signal(signal.SIGHUP, before)
    assert load_checkpoint(tmp_path / "checkpoints" / "last").step == 8


def test_an_image_that_cannot_be_read_saves_before_the_sentence(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole")
    output = tmp_path / "run"
    cfg = toy.config(output)

    def batches(first: int):
        for step, batch in enumerate(toy.batches_of(cfg)(first), start=first):
            if step == 5:
                raise WorkbenchError("The image a.png cannot be read.")
            yield batch

    with pytest.raises(WorkbenchError, match="a.png cannot be read; training stopped after step 5 of 8.*continues"):
        toy.trainer(cfg, batches=batches).train()
    assert load_checkpoint(output / "checkpoints" / "last").step == 5
    assert train(output) == whole


def test_a_stop_during_the_evaluation_saves_at_once_and_evaluates_later(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", SOLVER_EMA_DECAY=0.9)
    output = tmp_path / "stopped"

    def evaluate(model: torch.nn.Module) -> dict:
        signal.raise_signal(signal.SIGINT)
        pytest.fail("the evaluation went on")

    with pytest.raises(Interrupted, match="after step 4"):
        toy.trainer(toy.config(output, SOLVER_EMA_DECAY=0.9), evaluate=evaluate).train()
    assert [row["step"] for row in rows(output)] == ["1", "2", "3"]
    assert train(output, SOLVER_EMA_DECAY=0.9) == whole


def test_an_evaluation_made_up_for_is_logged_once_even_if_a_kill_follows(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole")
    cfg = toy.config(tmp_path / "run")

    def stop(model: torch.nn.Module) -> dict:
        signal.raise_signal(signal.SIGINT)
        return {}

    class Killed(BaseException):
        pass

    def kill(first: int):
        raise Killed
        yield

    with pytest.raises(Interrupted):
        toy.trainer(cfg, evaluate=stop).train()
    with pytest.raises(Killed):  # after the evaluation was made up for, before anything else is saved
        toy.trainer(cfg, batches=kill).train()
    assert [row["step"] for row in rows(tmp_path / "run")] == ["1", "2", "3", "4"]
    assert train(tmp_path / "run") == whole


def test_a_second_ctrl_c_stops_at_once(tmp_path: Path) -> None:
    def batches(first: int):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        yield toy.batch(0, range(4))

    with pytest.raises(KeyboardInterrupt):
        toy.trainer(toy.config(tmp_path), batches=batches).train()


def test_training_a_finished_run_again_changes_nothing(tmp_path: Path) -> None:
    first = train(tmp_path)
    before = weights(tmp_path)
    assert train(tmp_path) == first
    assert all(torch.equal(value, before[name]) for name, value in weights(tmp_path).items())


def test_two_runs_with_one_seed_are_equal_and_with_another_differ(tmp_path: Path) -> None:
    first, second = train(tmp_path / "a"), train(tmp_path / "b")
    assert first == second
    cfg = toy.config(tmp_path / "c").clone()
    cfg.defrost()
    cfg.SEED = 12
    toy.trainer(cfg).train()
    assert rows(tmp_path / "c")[0]["loss_ce"] != first[0]["loss_ce"]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_before_the_step_and_keeps_the_batch(tmp_path: Path, value: float) -> None:
    class Broken(toy.ToyModel):
        def forward(self, batched_inputs):
            losses = super().forward(batched_inputs)
            if self.training and batched_inputs[0]["image_id"] == 500:
                losses["loss_size"] = losses["loss_size"] * value
            return losses

    trainer = toy.trainer(toy.config(tmp_path), model=Broken())
    with pytest.raises(WorkbenchError, match=f"^loss_size became {value} in step 6.*checkpoints/last"):
        trainer.train()
    assert all(torch.isfinite(p).all() for p in trainer.module.parameters())
    assert load_checkpoint(tmp_path / "checkpoints" / "last").step == 3
    (kept,) = (tmp_path / "nonfinite").iterdir()
    assert str(kept) in str(pytest.raises(WorkbenchError, trainer.train).value)
    description = json.loads((kept / "batch.json").read_text())
    assert [image["image_id"] for image in description["images"]] == [500, 501, 502, 503]
    assert description["losses"]["loss_size"] == str(value)
    tensors = load_file(kept / "tensors.safetensors")
    assert torch.equal(tensors["02.image"], toy.batch(5, range(4))[2]["image"])
    assert (kept / "03.png").read_bytes().startswith(b"\x89PNG")


def test_a_gradient_that_is_no_number_stops_too(tmp_path: Path) -> None:
    class Broken(toy.ToyModel):
        def forward(self, batched_inputs):
            losses = super().forward(batched_inputs)
            zero = self.head.bias.sum() * 0.0
            losses["loss_size"] = losses["loss_size"] + torch.sqrt(zero)  # 0, with an infinite slope
            return losses

    with pytest.raises(WorkbenchError, match="^grad_norm became nan in step 1"):
        toy.trainer(toy.config(tmp_path), model=Broken()).train()


def test_accumulated_steps_equal_one_large_one(tmp_path: Path) -> None:
    class Plain(toy.ToyModel):  # batch norm and dropout see the parts, not the whole
        def __init__(self) -> None:
            super().__init__(dropout=0.0)
            self.backbone[1] = torch.nn.Identity()

    tables = []
    for parts in (1, 2):
        output = tmp_path / str(parts)
        torch.manual_seed(0)
        toy.trainer(toy.config(output, SOLVER_ACCUMULATION_STEPS=parts), model=Plain()).train()
        tables.append(rows(output))
    for one, two in zip(*tables, strict=True):
        assert float(one["total_loss"]) == pytest.approx(float(two["total_loss"]), rel=1e-5)


def test_a_batch_that_does_not_divide_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WorkbenchError, match="IMS_PER_BATCH 4 .* multiple of 3"):
        toy.trainer(toy.config(tmp_path, SOLVER_ACCUMULATION_STEPS=3))


def test_the_moving_average_is_what_is_saved_and_evaluated(tmp_path: Path) -> None:
    seen = []

    def evaluate(model: torch.nn.Module) -> dict:
        seen.append(model.head.weight.detach().clone())
        return {"segm": {"AP": 1.0}}

    trainer = toy.trainer(toy.config(tmp_path, SOLVER_EMA_DECAY=0.9), evaluate=evaluate)
    trainer.train()
    saved = weights(tmp_path)["head.weight"]
    raw = load_state(tmp_path / "checkpoints" / "last")["model"]["head.weight"]
    assert torch.equal(seen[-1], saved)
    assert torch.equal(trainer.module.head.weight, raw)
    assert not torch.equal(raw, saved)


def test_a_run_of_other_classes_is_not_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(tmp_path)
    other = toy.Vocabulary((3, 7, 9), ("disc", "box", "moon"), {"colour": ("red", "green")})
    monkeypatch.setattr(toy, "VOCABULARY", other)
    with pytest.raises(WorkbenchError, match="'star'.*'moon'"):
        toy.trainer(toy.config(tmp_path))


def test_mixed_precision_on_the_cpu_trains(tmp_path: Path) -> None:
    cfg = toy.config(tmp_path).clone()
    cfg.defrost()
    cfg.SOLVER.AMP.ENABLED = True
    toy.trainer(cfg).train()
    exact = train(tmp_path / "exact")
    first = [float(table[0]["loss_ce"]) for table in (rows(tmp_path), exact)]
    assert first[0] != first[1] and first[0] == pytest.approx(first[1], rel=0.05)
    assert all(value.dtype == torch.float32 for value in weights(tmp_path).values() if value.is_floating_point())
