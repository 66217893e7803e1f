"""Train or evaluate as detectron2's own ``tools/train_net.py`` does, with the workbench's models and data.

``python -m workbench.detectron2.train_net --config-file YAML --num-gpus N [--resume] [--eval-only] KEY VALUE ...``
"""

from __future__ import annotations

import logging
import os
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.data import build_detection_test_loader, build_detection_train_loader
from detectron2.engine import DefaultTrainer, default_argument_parser, default_setup, default_writers, hooks, launch
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator, inference_on_dataset, verify_results
from detectron2.utils import comm
from detectron2.utils.events import EventWriter, get_event_storage
from fvcore.common.config import CfgNode
from torch import nn

from workbench.config import config_to_dict, flatten, to_yaml
from workbench.data.fingerprint import data_fingerprint
from workbench.detectron2.config import add_workbench_config, detectron2_config, workbench_config
from workbench.detectron2.datasets import loaded_dataset, register_datasets, vocabulary_of
from workbench.detectron2.evaluation import WorkbenchEvaluator
from workbench.detectron2.mapper import WorkbenchMapper
from workbench.detectron2.modeling import is_workbench_model, register_parts
from workbench.environment.device import choose_device
from workbench.errors import WorkbenchError
from workbench.files import write_text
from workbench.registry import import_parts
from workbench.runs.checkpoint import has_checkpoint, load_vocabulary, read_description, save_checkpoint
from workbench.runs.directory import MetricsTable, RunDirectory, report_dataset
from workbench.runs.evaluations import Evaluated, fingerprint, save_evaluation
from workbench.training.optimizer import build_optimizer, clip_gradients
from workbench.training.schedule import lr_arithmetic, lr_factor
from workbench.training.weights import load_weights

_log = logging.getLogger("detectron2.workbench")
_IGNORED = {
    "SOLVER.EMA_DECAY": 0.0,
    "SOLVER.ACCUMULATION_STEPS": 1,
}  # by this host, and the values that ask for nothing


class WorkbenchCheckpointer(DetectionCheckpointer):
    """detectron2's checkpointer; it loads all that MODEL.WEIGHTS names in the workbench.

    Beside each ``<name>.pth`` it saves ``checkpoints/best`` (for ``model_best``) or else ``checkpoints/last``.
    """

    def __init__(self, model: nn.Module, save_dir: str = "", *, cfg: CfgNode, **checkpointables: Any):
        super().__init__(model, save_dir, **checkpointables)
        self.config, self.vocabulary = workbench_config(cfg), vocabulary_of(cfg)

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        if not path or checkpointables is None:  # None: a run is resumed
            return super().load(path, checkpointables)
        _log.info("weights %s: %s", path, load_weights(self.model, path))
        return {}

    def save(self, name: str, **extra: Any) -> None:
        super().save(name, **extra)
        if self.save_dir and self.save_to_disk:
            run, done = RunDirectory(self.save_dir), extra.get("iteration", -1) + 1
            save_checkpoint(
                run.best if name == "model_best" else run.last,
                self.model,
                config=config_to_dict(self.config),
                vocabulary=self.vocabulary,
                step=min(done, self.config.SOLVER.MAX_ITER),
                extra={"metrics": {"segm": {"AP": get_event_storage().latest().get("segm/AP", (None,))[0]}}},
            )


class BestCheckpointer(hooks.BestCheckpointer):
    """detectron2's hook, which in a resumed run knows the score of the best checkpoint that is there."""

    def before_train(self) -> None:
        best = RunDirectory(self._checkpointer.save_dir).best
        if self.trainer.start_iter > 0 and has_checkpoint(best):
            segm = (read_description(best).metrics or {}).get("segm") or {}
            self.best_metric = segm.get("AP")


class MetricsWriter(EventWriter):
    """Writes detectron2's scalars into the run's metrics.csv, which charts and tables read."""

    def __init__(self, path: Path, last_step: int) -> None:
        self.path, self.last_step, self.table, self.written = path, last_step, None, -1

    def write(self) -> None:
        rows: dict[int, dict[str, float]] = {}
        names = {"time": "seconds", "data_time": "data_seconds"}
        for name, (value, iteration) in get_event_storage().latest().items():
            if iteration > self.written:
                rows.setdefault(iteration, {})[names.get(name, name)] = value
        for iteration in sorted(rows):
            # Opening the table drops the rows after the checkpoint that a run is resumed from.
            self.table = self.table or MetricsTable(self.path, iteration)
            self.table.write({"step": min(iteration + 1, self.last_step), **rows[iteration]})
            self.written = iteration


class Trainer(DefaultTrainer):
    """detectron2's DefaultTrainer; models of the workbench get the workbench's mapper, optimiser, schedule and scores.

    Other models are trained as detectron2 trains them. Where DATASETS.VAL is not empty it stands for DATASETS.TEST
    during training, as it chooses the best checkpoint.
    """

    def __init__(self, cfg: CfgNode):
        super().__init__(cfg)
        if not is_workbench_model(cfg):
            return
        self.cfg = cfg.clone()  # which hooks evaluate by
        self.cfg.defrost()
        self.cfg.DATASETS.TEST = tuple(cfg.DATASETS.VAL or cfg.DATASETS.TEST)
        if cfg.SOLVER.AMP.ENABLED:
            self._trainer.precision = getattr(torch, cfg.SOLVER.AMP.DTYPE)
            # AdamW's fused kernel would take gradients that are still scaled, after they were clipped.
            self.optimizer._step_supports_amp_scaling = False
        self.checkpointer = WorkbenchCheckpointer(
            self.model, cfg.OUTPUT_DIR, cfg=cfg, **self.checkpointer.checkpointables
        )
        for hook in self._hooks:
            if isinstance(hook, hooks.PeriodicCheckpointer):
                hook.checkpointer = self.checkpointer
        if comm.is_main_process() and self.cfg.DATASETS.TEST:
            metric = "segm/AP" if len(self.cfg.DATASETS.TEST) < 2 else f"{self.cfg.DATASETS.TEST[0]}/segm/AP"
            best = BestCheckpointer(cfg.TEST.EVAL_PERIOD, self.checkpointer, metric)
            self.register_hooks([best])
            self._hooks.insert(-1, self._hooks.pop())  # before the writers

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        if not is_workbench_model(cfg):
            return super().build_optimizer(cfg, model)
        config = workbench_config(cfg)
        optimizer = build_optimizer(model, config)
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        optimizer.register_step_pre_hook(lambda *_: clip_gradients(parameters, config) and None)
        _log.info(lr_arithmetic(config))
        return optimizer

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        if not is_workbench_model(cfg):
            return super().build_lr_scheduler(cfg, optimizer)
        config = workbench_config(cfg)
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: lr_factor(config, step))

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Any:
        mapper = WorkbenchMapper(cfg, is_train=True) if is_workbench_model(cfg) else None
        return build_detection_train_loader(cfg, mapper=mapper)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Any:
        mapper = WorkbenchMapper(cfg, is_train=False) if is_workbench_model(cfg) else None
        return build_detection_test_loader(cfg, dataset_name, mapper=mapper)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        folder = os.path.join(cfg.OUTPUT_DIR, "inference")
        if loaded_dataset(dataset_name) is None:
            return COCOEvaluator(dataset_name, output_dir=folder)
        return WorkbenchEvaluator(cfg, dataset_name, folder)

    def build_writers(self) -> list[EventWriter]:
        if not is_workbench_model(self.cfg):
            return super().build_writers()
        run = RunDirectory(self.cfg.OUTPUT_DIR)  # whose metrics.json holds scores
        return [
            *default_writers(str(run.path / "detectron2"), self.max_iter),
            MetricsWriter(run.metrics, self.max_iter),
        ]

    def report(self) -> None:
        """Score the best checkpoint on the first of DATASETS.TEST into the run's metrics.json and predictions.json."""
        run, config = RunDirectory(self.cfg.OUTPUT_DIR), self.checkpointer.config
        name = report_dataset(config)
        if name is None or loaded_dataset(name) is None or not has_checkpoint(run.best):
            return
        self.checkpointer.load(str(run.best), checkpointables=[])
        evaluator = WorkbenchEvaluator(self.cfg, name)
        inference_on_dataset(self.model, self.build_test_loader(self.cfg, name), evaluator)
        if comm.is_main_process():
            current = fingerprint(run.best, config, data_fingerprint(evaluator.dataset))
            metrics = {**evaluator.metrics, "dataset": evaluator.dataset.entries[0].name}
            save_evaluation(run.path, Evaluated(run.best, name), metrics, evaluator.results, current)


def setup(args: Namespace) -> CfgNode:
    """Return the config of a command line, its datasets registered."""
    import_parts(args.imports)
    register_parts()
    for defaults in (True, False):
        cfg = get_cfg()
        add_workbench_config(cfg, defaults=defaults)
        cfg.merge_from_file(args.config_file)
        cfg.merge_from_list(args.opts)
        if is_workbench_model(cfg):
            break
    return prepare(cfg, args)


def prepare(cfg: CfgNode, args: Namespace) -> CfgNode:
    """Register a config's datasets, choose its device and begin its OUTPUT_DIR; return it frozen."""
    hosted = is_workbench_model(cfg)
    if args.num_gpus == 0:
        cfg.MODEL.DEVICE = "cpu"
    elif cfg.MODEL.DEVICE == "auto":
        cfg.MODEL.DEVICE = str(choose_device("auto").type)
    if hosted:
        run, config = RunDirectory(cfg.OUTPUT_DIR), workbench_config(cfg)
        trained = args.eval_only and Path(cfg.MODEL.WEIGHTS).is_dir()
        register_datasets(config, load_vocabulary(cfg.MODEL.WEIGHTS) if trained else None)
        if not args.eval_only and has_checkpoint(run.last) and not (run.path / "last_checkpoint").exists():
            raise WorkbenchError(f"OUTPUT_DIR {run.path} holds a run of the workbench's own trainer; choose another")
    cfg.freeze()
    default_setup(cfg, args)
    if hosted and comm.is_main_process() and not args.eval_only:
        write_text(run.path / "detectron2" / "config.yaml", cfg.dump())
        write_text(run.config, to_yaml(config))
    unread = [name for name, value in _IGNORED.items() if hosted and flatten(config)[name] != value]
    if unread:
        _log.warning("config keys without effect in detectron2: %s", ", ".join(unread))
    return cfg


def run(cfg: CfgNode, args: Namespace) -> dict[str, Any] | None:
    """Train, or with ``--eval-only`` evaluate, and return the last results."""
    hosted = is_workbench_model(cfg)
    if args.eval_only:
        model = Trainer.build_model(cfg)
        checkpointer = (
            WorkbenchCheckpointer(model, cfg.OUTPUT_DIR, cfg=cfg)
            if hosted
            else DetectionCheckpointer(model, cfg.OUTPUT_DIR)
        )
        checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
        results = Trainer.test(cfg, model)
        if comm.is_main_process():
            verify_results(cfg, results)
        return results
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    results = trainer.train()
    if hosted:
        trainer.report()
    return results


def train(config: CfgNode, *, resume: bool = True) -> Path:
    """Train what a workbench config describes with detectron2's trainer in this process; return the run directory.

    A run that is there is continued, a finished one left as it is; WorkbenchError where ``resume`` is False.
    """
    directory = RunDirectory(config.OUTPUT_DIR)
    if has_checkpoint(directory.last):
        if not resume:
            raise WorkbenchError(f"OUTPUT_DIR {directory.path} holds a run already; resume it, or choose another")
        finished = read_description(directory.last).step == config.SOLVER.MAX_ITER and directory.scores.exists()
        if finished and (directory.path / "last_checkpoint").exists():
            return directory.path
    args = parser().parse_args(["--resume"])
    run(prepare(detectron2_config(config), args), args)
    return directory.path


def parser() -> Any:
    """Return detectron2's argument parser, with ``--import`` for the user's own parts."""
    arguments = default_argument_parser()
    arguments.add_argument(
        "--import", dest="imports", action="append", default=[], help="a file or module of your own parts"
    )
    return arguments


def main(args: Namespace) -> dict[str, Any] | None:
    return run(setup(args), args)


if __name__ == "__main__":
    given = parser().parse_args()
    try:
        launch(main, given.num_gpus, given.num_machines, given.machine_rank, given.dist_url, args=(given,))
    except WorkbenchError as error:
        print(f"workbench: {error}", file=sys.stderr)
        sys.exit(2)
