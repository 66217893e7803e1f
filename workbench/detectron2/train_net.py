"""Train or evaluate as detectron2's own ``tools/train_net.py`` does, with the workbench's models and data.

``python -m workbench.detectron2.train_net --config-file YAML --num-gpus N [--resume] [--eval-only] KEY VALUE ...``
"""

from __future__ import annotations

import logging
import os
import sys
from argparse import Namespace
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.data import build_detection_test_loader, build_detection_train_loader
from detectron2.engine import DefaultTrainer, default_argument_parser, default_setup, default_writers, hooks, launch
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator, verify_results
from detectron2.utils import comm
from detectron2.utils.events import EventWriter, get_event_storage
from fvcore.common.config import CfgNode
from torch import nn

from workbench.config import changes, load_config, to_yaml
from workbench.detectron2.config import add_workbench_config, workbench_config
from workbench.detectron2.data import WorkbenchMapper, is_own, loaded_dataset, register_datasets, vocabulary_of
from workbench.detectron2.modeling import hosted_model, register_parts
from workbench.detectron2.results import WorkbenchEvaluator
from workbench.errors import WorkbenchError
from workbench.files import write_text
from workbench.registry import import_parts
from workbench.runs.checkpoint import has_checkpoint, load_vocabulary
from workbench.runs.directory import RunDirectory, report_dataset, selection_dataset
from workbench.runs.hosted import HostedRun
from workbench.training.optimizer import build_optimizer, clip_before_steps
from workbench.training.schedule import lr_arithmetic, lr_factor, scale_to_processes
from workbench.training.weights import load_weights
from workbench.workflows.evaluate import evaluate

_log = logging.getLogger("detectron2.workbench")
_IGNORED = {"SOLVER.EMA_DECAY", "SOLVER.ACCUMULATION_STEPS"}  # of detectron2's loop


class WorkbenchCheckpointer(DetectionCheckpointer):
    """detectron2's checkpointer; it loads all that MODEL.WEIGHTS names in the workbench.

    Beside each ``<name>.pth`` it saves ``checkpoints/best`` (for ``model_best``) or else ``checkpoints/last``.
    """

    def __init__(self, model: nn.Module, save_dir: str = "", *, cfg: CfgNode, **checkpointables: Any):
        super().__init__(model, save_dir, **checkpointables)
        self.run = HostedRun(workbench_config(cfg), vocabulary_of(cfg))

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        if not path or path == self.get_checkpoint_file():  # a run is resumed
            return super().load(path, checkpointables)
        _log.info("weights %s: %s", path, load_weights(self.model, path))
        return {}

    def save(self, name: str, **extra: Any) -> None:
        super().save(name, **extra)
        if self.save_dir and self.save_to_disk:
            ap, _ = get_event_storage().latest().get("segm/AP", (None, None))
            self.run.save(self.model, extra.get("iteration", -1) + 1, ap, best=name == "model_best")


class Trainer(DefaultTrainer):
    """detectron2's DefaultTrainer with a model of the workbench, and the workbench's mapper, optimiser and scores.

    MODEL.META_ARCHITECTURE is a name of the workbench's, also where detectron2 has a model of that name. Training
    evaluates on the dataset that chooses the best checkpoint, the first of DATASETS.VAL or else of DATASETS.TEST.
    """

    build_model = staticmethod(hosted_model)

    def __init__(self, cfg: CfgNode):
        config = scale_to_processes(workbench_config(cfg), comm.get_world_size())
        cfg = cfg.clone()
        cfg.defrost()
        add_workbench_config(cfg, config)
        cfg.SOLVER.AMP.ENABLED &= cfg.MODEL.DEVICE.startswith("cuda")  # detectron2's mixed precision needs a GPU
        if unread := _IGNORED & changes(config).keys() | changes(workbench_config(cfg), config).keys():
            _log.warning("config keys without effect here: %s", ", ".join(sorted(unread)))
        super().__init__(cfg)

    def build_hooks(self) -> list[hooks.HookBase]:
        """Return DefaultTrainer's hooks, and two that keep the best checkpoint and metrics.csv, which charts read."""
        states = self.checkpointer.checkpointables
        self.checkpointer = WorkbenchCheckpointer(self.model, self.cfg.OUTPUT_DIR, cfg=self.cfg, **states)
        run, chosen_on = self.checkpointer.run, selection_dataset(workbench_config(self.cfg))
        self.cfg.DATASETS.TEST = () if chosen_on is None else (chosen_on,)
        self._trainer.precision = getattr(torch, self.cfg.SOLVER.AMP.DTYPE)  # without AMP it is not read
        best = hooks.BestCheckpointer(self.cfg.TEST.EVAL_PERIOD, self.checkpointer, "segm/AP")

        def begin(trainer: DefaultTrainer) -> None:
            best.best_metric = run.best_ap() if trainer.start_iter > 0 else None

        def record(trainer: DefaultTrainer) -> None:
            if trainer.iter % 20 == 19 or trainer.iter + 1 >= trainer.max_iter:  # as often as detectron2's writers
                run.write(trainer.storage.latest())

        own = [*[best] * bool(chosen_on), hooks.CallbackHook(before_train=begin, after_step=record, after_train=record)]
        return [*super().build_hooks(), *own * comm.is_main_process()]

    def build_writers(self) -> list[EventWriter]:
        # The run's own metrics.json holds scores.
        return default_writers(os.path.join(self.cfg.OUTPUT_DIR, "detectron2"), self.max_iter)

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        config = workbench_config(cfg)
        optimizer = build_optimizer(model, config)
        clip_before_steps(optimizer, config)
        _log.info(lr_arithmetic(config))
        return optimizer

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        return torch.optim.lr_scheduler.LambdaLR(optimizer, partial(lr_factor, workbench_config(cfg)))

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Any:
        return build_detection_train_loader(cfg, mapper=WorkbenchMapper(cfg, is_train=True))

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Any:
        return build_detection_test_loader(cfg, dataset_name, mapper=WorkbenchMapper(cfg, is_train=False))

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        evaluator = COCOEvaluator if loaded_dataset(dataset_name) is None else partial(WorkbenchEvaluator, cfg)
        return evaluator(dataset_name, output_dir=os.path.join(cfg.OUTPUT_DIR, "inference"))


def run(config: CfgNode, args: Namespace) -> dict[str, Any] | None:
    """Train, or with ``--eval-only`` evaluate, what a workbench config describes, in one of the processes."""
    directory, weights = RunDirectory(config.OUTPUT_DIR), config.MODEL.WEIGHTS
    if not args.eval_only and has_checkpoint(directory.last) and not (directory.path / "last_checkpoint").exists():
        raise WorkbenchError(f"OUTPUT_DIR {directory.path} holds a run of the workbench's own trainer; choose another")
    import_parts(args.imports)
    register_parts()
    register_datasets(config, load_vocabulary(weights) if args.eval_only and os.path.isdir(weights) else None)
    cfg = get_cfg()
    add_workbench_config(cfg, config)
    if args.num_gpus == 0:
        cfg.MODEL.DEVICE = "cpu"
    kept = directory.config.read_text("utf-8") if args.eval_only and directory.config.exists() else to_yaml(config)
    default_setup(cfg, args)  # which writes its whole config into config.yaml
    if comm.is_main_process():
        write_text(directory.path / "detectron2" / "config.yaml", cfg.dump())
        write_text(directory.config, kept)
    if not args.eval_only:
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=args.resume)
        return trainer.train()
    model = Trainer.build_model(cfg)
    WorkbenchCheckpointer(model, cfg.OUTPUT_DIR, cfg=cfg).resume_or_load(weights, resume=args.resume)
    results = Trainer.test(cfg, model)
    if comm.is_main_process():
        verify_results(cfg, results)
    return results


def main(words: Sequence[str] | None = None, config: CfgNode | None = None) -> None:
    """Do what a command line asks for, with ``config`` or its own; score a run's best checkpoint, as all are scored."""
    parser, about = default_argument_parser(), "a file or module of your own parts"
    parser.add_argument("--import", dest="imports", action="append", default=[], help=about)
    args = parser.parse_args(words)
    import_parts(args.imports)
    config = config or load_config(args.config_file or None, args.opts, saved=True)
    launch(run, args.num_gpus, args.num_machines, args.machine_rank, args.dist_url, args=(config, args))
    name = report_dataset(config)
    if not args.eval_only and args.machine_rank == 0 and name is not None and is_own(name, config.DATASETS.ROOT):
        evaluate(config.OUTPUT_DIR)


if __name__ == "__main__":
    try:
        main()
    except WorkbenchError as error:
        print(f"workbench: {error}", file=sys.stderr)
        sys.exit(2)
