"""Train what a config describes, or continue the run that is there."""

from __future__ import annotations

import secrets
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from fvcore.common.config import CfgNode
from torch import nn

from workbench.config import keys_without_effect
from workbench.data.coco import CocoDataset, load_data
from workbench.data.fingerprint import data_fingerprint
from workbench.data.loaders import build_train_loader
from workbench.data.mapper import build_mapper
from workbench.data.vocabulary import Vocabulary
from workbench.environment.memory import check_memory
from workbench.errors import WorkbenchError, counted, errors_as
from workbench.evaluation.ground_truth import check_ground_truth, ground_truth
from workbench.evaluation.results import load_predictions
from workbench.evaluation.summary import little_found, main_score, warn_of_nothing_found
from workbench.models import build_model
from workbench.registry import imported_parts
from workbench.runs.checkpoint import has_checkpoint, load_vocabulary
from workbench.runs.continuing import check_checkpoints, check_data, choice_digest
from workbench.runs.directory import (
    RunDirectory,
    open_run,
    read_metrics,
    report_dataset,
    selection_dataset,
)
from workbench.runs.evaluations import Evaluated, fingerprint, saved_metrics
from workbench.runs.lock import RunLock
from workbench.training.distributed import Processes, rank, run_on_all, run_on_main, start_processes, world_size
from workbench.training.estimate import log_cost
from workbench.training.loop import Trainer, check_batch_size
from workbench.training.progress import log, log_machine, logging_to
from workbench.training.schedule import lr_arithmetic, scale_to_processes, schedule_arithmetic
from workbench.training.weights import load_weights, starting_weights
from workbench.weights.download import local_weights
from workbench.workflows.evaluate import DatasetEvaluation, evaluate_checkpoint


def train(cfg: CfgNode, *, resume: bool = True, restart: bool = False, accept_data: bool = False) -> Path:
    """Train what ``cfg`` describes into OUTPUT_DIR, or continue the run that is there.

    The datasets are checked before the first step. During training, and at its end, the model is evaluated on the
    first of DATASETS.VAL. The best checkpoint there, by mask AP or, of a model that predicts no instances, by PQ or
    mIoU, is kept in ``checkpoints/best``, its results in ``evaluations/<dataset>``. After training the best checkpoint
    is evaluated on the first of DATASETS.TEST, which writes metrics.json and predictions.json of the run. TEST has no
    part in the choice. Where one of the two is empty the other serves for both, and the log says that the score is
    flattering.

    Args:
        cfg: the config; SEED -1 draws a seed.
        resume: False refuses an OUTPUT_DIR that holds a run.
        restart: train again from step 0; earlier checkpoints are kept under another name.
        accept_data: continue a run although its data has changed; the best checkpoint is then chosen anew.

    Returns:
        the run directory.

    Raises:
        WorkbenchError: as the sentence says; ``Interrupted`` when it was stopped and has saved.
    """
    processes = start_processes(cfg)
    cfg = scale_to_processes(cfg, world_size())
    check_memory(cfg, processes=world_size())
    run = RunDirectory(cfg.OUTPUT_DIR)
    lock = RunLock(run.path)
    run_on_main(lambda: lock.acquire() and None)
    try:
        run, cfg = run_on_main(lambda: open_run(cfg, resume=resume, seed=secrets.randbelow(2**31)))
        run_on_main(lambda: check_checkpoints(run, restart))
        _train(run, cfg, processes, accept_data)
    finally:
        lock.release()
    return run.path


def _train(run: RunDirectory, cfg: CfgNode, processes: Processes, accept_data: bool) -> None:
    with logging_to(run.log):
        check_batch_size(cfg)
        log_machine(cfg, processes)
        continued = run_on_main(lambda: has_checkpoint(run.last))
        # Files are read in every process, each perhaps on a machine of its own.
        data = run_on_all(lambda: _load_splits(cfg, load_vocabulary(run.last) if continued else None))
        _log_data(cfg, data)
        prints = run_on_main(lambda: _check_data(run, data, accept_data))
        torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK
        torch.manual_seed(cfg.SEED)
        if cfg.MODEL.WEIGHTS and not continued:  # downloaded once, and found in the cache by the other processes
            with errors_as("MODEL.WEIGHTS", WorkbenchError):
                run_on_main(lambda: local_weights(cfg.MODEL.WEIGHTS) and None)
        model = run_on_all(lambda: initial_model(cfg, data.train.vocabulary, continued))
        log.info(f"model: {sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters")
        for part in imported_parts():
            log.info(f"parts of {part.name}, sha256 {part.sha256}")
        steps = cfg.SOLVER.MAX_ITER - run_on_main(lambda: int((read_metrics(run.metrics) or [{"step": 0}])[-1]["step"]))
        if steps > 0:
            run_on_all(lambda: log_cost(cfg, model, data.train, processes, steps))
        _run_steps(cfg, run, model, data, choice_digest(prints), processes)
        if data.report is not None:
            _report(cfg, run, data.report, processes)
        log.info(f"run {run.path}, best checkpoint {run.best}, metrics {run.scores if data.report else run.metrics}")


class _Splits(NamedTuple):
    """The datasets of a run; ``selection`` and ``report`` are one object where they are one dataset."""

    train: CocoDataset
    selection: CocoDataset | None
    report: CocoDataset | None


def _load_splits(cfg: CfgNode, vocabulary: Vocabulary | None) -> _Splits:
    train_set = load_data(cfg, cfg.DATASETS.TRAIN, vocabulary, for_training=True)
    names = selection_dataset(cfg), report_dataset(cfg)
    loaded = {name: load_data(cfg, [name], train_set.vocabulary) for name in dict.fromkeys(names) if name is not None}
    for dataset in loaded.values():
        check_ground_truth(dataset)
    return _Splits(train_set, *(loaded.get(name) for name in names))


def _check_data(run: RunDirectory, data: _Splits, accept: bool) -> dict[str, Any]:
    """Return the fingerprints of the data, once they are those of the run's start or ``accept`` is given."""
    prints = {name: None if part is None else data_fingerprint(part) for name, part in data._asdict().items()}
    for difference in check_data(run, prints, accept):
        log.warning(f"the run goes on with other data, as accepted: {difference}")
    return prints


def initial_model(cfg: CfgNode, vocabulary: Vocabulary, continued: bool = False) -> nn.Module:
    """Build the model, with the weights that the config names unless a checkpoint brings them."""
    model = build_model(cfg, vocabulary, pretrained=not continued)
    if cfg.MODEL.WEIGHTS and not continued:
        with errors_as("MODEL.WEIGHTS", WorkbenchError):
            report = load_weights(model, cfg.MODEL.WEIGHTS)
        log.info(f"weights {cfg.MODEL.WEIGHTS}: {report}")
    return model


def _run_steps(
    cfg: CfgNode, run: RunDirectory, model: nn.Module, data: _Splits, chosen_on: str, processes: Processes
) -> None:
    mapper = build_mapper(cfg, is_train=True)
    evaluation = save_evaluation = None
    if data.selection is not None:
        evaluation = DatasetEvaluation(cfg, data.selection, processes.accelerator, progress=False)
        name = selection_dataset(cfg)
        directory = run.path if name == report_dataset(cfg) else run.evaluations / data.selection.entries[0].name
        save_evaluation = partial(evaluation.save, directory, Evaluated(run.best, name))
    trainer = Trainer(
        cfg,
        model,
        data.train.vocabulary,
        run,
        lambda start_step: build_train_loader(
            data.train,
            mapper,
            batch_size=cfg.SOLVER.IMS_PER_BATCH,
            seed=cfg.SEED,
            num_workers=cfg.DATALOADER.NUM_WORKERS,
            start_step=start_step,
            rank=rank(),
            world_size=world_size(),
        ),
        evaluate=evaluation,
        on_best=save_evaluation,
        picture=evaluation and evaluation.picture,
        chosen_on=chosen_on,
        processes=processes,
    )
    trainer.train()


def _report(cfg: CfgNode, run: RunDirectory, dataset: CocoDataset, processes: Processes) -> None:
    """Evaluate the best checkpoint on the dataset to report, unless its current metrics.json is there already.

    It is there where the same dataset chose the best checkpoint, or where the run was finished before; a kill
    between the last step and the end of this evaluation leaves it to the next start of the same command.
    """
    name = report_dataset(cfg)
    current = run_on_main(lambda: saved_metrics(run.path, fingerprint(run.best, cfg, data_fingerprint(dataset))))
    if current is not None:
        if rank() == 0 and little_found(current):
            warn_of_nothing_found(current, ground_truth(dataset), load_predictions(run.predictions))
        return
    log.info(f"evaluating the best checkpoint on {name}")
    metrics = evaluate_checkpoint(Evaluated(run.best, name), cfg, dataset, processes, run.path)
    score, value = main_score(metrics)
    log.info(f"{name}: {score} {'-' if value is None else f'{value:.2f}'} of the best checkpoint")


def _log_data(cfg: CfgNode, data: _Splits) -> None:
    for purpose, dataset in zip(("train", "evaluate", "report"), data, strict=True):
        if dataset is None or (purpose == "report" and dataset is data.selection):
            continue
        names = ", ".join(entry.name for entry in dataset.entries)
        log.info(f"{purpose} on {names}: {dataset.counted()}{dataset.left_out()}")
    if data.selection is not None and data.selection is data.report:
        log.warning(
            f"{selection_dataset(cfg)} both chooses the best checkpoint and reports its score, so the score is "
            "flattering; name another dataset in DATASETS.VAL to choose on"
        )
    classes = [f"{n} ({len(c)})" for n, c in data.train.vocabulary.subcategories.items()]
    categories = counted(data.train.vocabulary.num_classes, "category", "categories")
    log.info(f"{categories}, subcategories {', '.join(classes) or 'none'}")
    split = f", split over {world_size()} processes" if world_size() > 1 else ""
    if cfg.SOLVER.ACCUMULATION_STEPS > 1:
        split += f", accumulated in {cfg.SOLVER.ACCUMULATION_STEPS} parts"
    log.info(f"seed {cfg.SEED}; {schedule_arithmetic(cfg)}{split}")
    log.info(lr_arithmetic(cfg))
    log.info(f"training starts from {starting_weights(cfg)}")
    rows, largest = cfg.TEST.DETECTIONS_PER_IMAGE, max(cfg.TEST.MAX_DETS)
    if rows < largest:
        log.warning(
            f"TEST.DETECTIONS_PER_IMAGE keeps {counted(rows, 'row')} of an image, fewer than the largest of "
            f"TEST.MAX_DETS: AR@{largest} counts {counted(rows, 'row')} too"
        )
    unused = keys_without_effect(cfg)
    if unused:
        log.warning(f"config keys without effect here: {', '.join(unused)}")
