"""Train what a config describes, or continue the run that is there."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from fvcore.common.config import CfgNode

from workbench.config import keys_without_effect
from workbench.data.coco import CocoDataset
from workbench.data.loaders import build_train_loader
from workbench.data.mapper import build_mapper
from workbench.models import build_model
from workbench.runs.checkpoint import has_checkpoint, load_checkpoint
from workbench.runs.directory import open_run
from workbench.training.distributed import rank, run_on_all, run_on_main, start_processes, world_size
from workbench.training.loop import Trainer, check_batch_size
from workbench.training.progress import log, log_machine, logging_to
from workbench.training.schedule import lr_arithmetic
from workbench.training.weights import load_weights
from workbench.workflows.data import load_data
from workbench.workflows.evaluate import DatasetEvaluation, evaluate


def train(cfg: CfgNode, *, resume: bool = True) -> Path:
    """Train what ``cfg`` describes into OUTPUT_DIR, or continue the run that is there.

    The datasets are checked before the first step. The best checkpoint by mask AP on the first of
    DATASETS.TEST is kept in ``checkpoints/best``, with its metrics.json and predictions.json in the run
    directory.

    Args:
        resume: False refuses an OUTPUT_DIR that holds a run.

    Returns:
        the run directory.

    Raises:
        WorkbenchError: as the sentence says; ``Interrupted`` when it was stopped and has saved.
    """

    processes = start_processes(cfg)
    run, cfg = run_on_main(lambda: open_run(cfg, resume=resume, seed=secrets.randbelow(2**31)))
    with logging_to(run.log):
        _train(cfg, run, processes)
    return run.path


def _train(cfg: CfgNode, run: Any, processes: tuple[Accelerator, torch.device]) -> None:
    check_batch_size(cfg)
    log_machine(cfg, processes)
    continued = has_checkpoint(run.last)
    vocabulary = run_on_all(lambda: load_checkpoint(run.last).vocabulary) if continued else None
    train_set = run_on_all(lambda: load_data(cfg, cfg.DATASETS.TRAIN, vocabulary, for_training=True))
    evaluation = None
    if cfg.DATASETS.TEST:
        test_set = run_on_all(lambda: load_data(cfg, cfg.DATASETS.TEST[:1], train_set.vocabulary))
        evaluation = DatasetEvaluation(cfg, test_set, processes[0], progress=False)
    _log_data(cfg, train_set, evaluation and evaluation.dataset)

    torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK
    torch.manual_seed(cfg.SEED)
    model = run_on_all(lambda: build_model(cfg, train_set.vocabulary, pretrained=not continued))
    if cfg.MODEL.WEIGHTS and not continued:
        log.info(f"weights {cfg.MODEL.WEIGHTS}: {run_on_all(lambda: load_weights(model, cfg.MODEL.WEIGHTS))}")
    log.info(f"model: {sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters")
    mapper = build_mapper(cfg, is_train=True)
    trainer = Trainer(
        cfg,
        model,
        train_set.vocabulary,
        run,
        lambda start_step: build_train_loader(
            train_set,
            mapper,
            batch_size=cfg.SOLVER.IMS_PER_BATCH,
            seed=cfg.SEED,
            num_workers=cfg.DATALOADER.NUM_WORKERS,
            start_step=start_step,
            rank=rank(),
            world_size=world_size(),
        ),
        evaluate=evaluation,
        on_best=evaluation and (lambda: evaluation.save(run.path, run.best)),
        processes=processes,
    )
    trainer.train()
    if evaluation is not None and not run.scores.exists():  # somebody deleted it, or a kill came in between
        evaluate(run.best, output=run.path, overrides=["MODEL.DEVICE", cfg.MODEL.DEVICE])
    log.info(f"run {run.path}, best checkpoint {run.best}, metrics {run.scores if evaluation else run.metrics}")


def _log_data(cfg: CfgNode, train_set: CocoDataset, test_set: CocoDataset | None) -> None:
    for purpose, dataset in (("train", train_set), ("evaluate", test_set)):
        if dataset is not None:
            objects = sum(len(d["annotations"]) for d in dataset.dicts)
            left_out = f", {dataset.skipped} annotations and images left out for faults" if dataset.skipped else ""
            names = ", ".join(entry.name for entry in dataset.entries)
            log.info(f"{purpose} on {names}: {len(dataset)} images, {objects} objects{left_out}")
    classes = [f"{n} ({len(c)})" for n, c in train_set.vocabulary.subcategories.items()]
    log.info(f"{train_set.vocabulary.num_classes} categories, subcategories {', '.join(classes) or 'none'}")
    split = f", split over {world_size()} processes" if world_size() > 1 else ""
    if cfg.SOLVER.ACCUMULATION_STEPS > 1:
        split += f", accumulated in {cfg.SOLVER.ACCUMULATION_STEPS} parts"
    log.info(f"seed {cfg.SEED}; {cfg.SOLVER.MAX_ITER} steps of {cfg.SOLVER.IMS_PER_BATCH} images{split}")
    log.info(lr_arithmetic(cfg))
    unused = keys_without_effect(cfg)
    if unused:
        log.warning(f"config keys without effect here: {', '.join(unused)}")
