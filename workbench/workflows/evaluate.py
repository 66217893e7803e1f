"""Score a checkpoint on a dataset."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from fvcore.common.config import CfgNode
from torch import nn

from workbench.data.coco import CocoDataset, load_data
from workbench.data.fingerprint import data_fingerprint
from workbench.data.image_files import ImageRules
from workbench.data.images import read_at_most
from workbench.data.loaders import build_test_loader
from workbench.data.mapper import build_mapper
from workbench.errors import WorkbenchError
from workbench.evaluation.evaluate import evaluate_results
from workbench.evaluation.ground_truth import ground_truth
from workbench.evaluation.predict import run_inference
from workbench.evaluation.summary import warn_of_nothing_found
from workbench.runs.checkpoint import load_model, load_vocabulary, resolve_checkpoint
from workbench.runs.directory import report_dataset, run_of
from workbench.runs.evaluations import (
    Evaluated,
    check_output,
    evaluation_directory,
    find_evaluated,
    fingerprint,
    save_evaluation,
    saved_metrics,
)
from workbench.training.distributed import Processes, rank, run_on_all, run_on_main, start_processes, world_size
from workbench.training.progress import log, log_machine, logging_to
from workbench.visualization.drawing import (
    LEAST_SIDE,
    contact_sheet,
    draw_instances,
    drawables_of_annotations,
    drawables_of_predictions,
)
from workbench.workflows.convert import local_checkpoint
from workbench.workflows.score import scoring_options

TRAINING_SAMPLE = 50  # training images that are scored beside the validation images


def evaluate(
    ckpt: str | Path,
    *,
    dataset: str | Path | None = None,
    output: str | Path | None = None,
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Score a checkpoint on a dataset and write metrics.json and predictions.json.

    Args:
        ckpt: a checkpoint directory, a run (its best), the folder of an evaluation, which is then repeated, or another
            program's model.
        dataset: catalog name or path of a COCO JSON; the first of the checkpoint's DATASETS.TEST by default.
        output: where the two files go; :func:`workbench.runs.evaluations.evaluation_directory` by default, or
            ``outputs/<name>`` for another program's model.
        overrides: config keys and values in turn, over the checkpoint's config.

    Returns:
        what metrics.json holds.

    Raises:
        WorkbenchError: the checkpoint or the dataset cannot be read, the results cannot be written, or ``output`` is a
            run that this is not the own evaluation of.
    """
    opened = local_checkpoint(ckpt, dataset)
    evaluated, place = find_evaluated(opened, dataset, overrides)
    path, cfg = evaluated.checkpoint, evaluated.config
    name = evaluated.dataset or report_dataset(cfg)
    if name is None:
        raise WorkbenchError(f"checkpoint {path} names no dataset to evaluate on; name one")
    evaluated = replace(evaluated, dataset=name)
    if output is None and opened != Path(ckpt):  # converted into the cache, where nobody looks for results
        output = Path("outputs") / opened.name
    directory = Path(output) if output is not None else place or evaluation_directory(evaluated)
    check_output(directory, evaluated)
    processes = start_processes(cfg)
    with logging_to(None):
        log_machine(cfg, processes)
        if opened != Path(ckpt):
            log.info(f"the results go to {directory}")
        # Files are read in every process, each perhaps on a machine of its own.
        data = run_on_all(lambda: load_data(cfg, [name], load_vocabulary(path)))
        return evaluate_checkpoint(evaluated, cfg, data, processes, directory)


def evaluate_checkpoint(
    evaluated: Evaluated, cfg: CfgNode, dataset: CocoDataset, processes: Processes, directory: Path
) -> dict[str, Any]:
    """Score a checkpoint on a loaded dataset, in every process, and write the results to ``directory``."""
    model, checkpoint = run_on_all(lambda: load_model(evaluated.checkpoint, processes.device, config=cfg))
    evaluation = DatasetEvaluation(cfg, dataset, processes.accelerator)
    metrics = evaluation(model)
    if rank() == 0:
        warn_of_nothing_found(metrics, evaluation.truth, evaluation.results)
    return run_on_main(lambda: evaluation.save(directory, evaluated, checkpoint.digest))


def training_sample_directory(checkpoint: Path) -> Path:
    """Return where :func:`evaluate_on_training_images` keeps its results."""
    return run_of(checkpoint) / "evaluations" / "training_sample"


def random_sample(data: CocoDataset, most: int) -> CocoDataset:
    """Return at most ``most`` of the images, drawn at random and always the same, in their order."""
    chosen = np.sort(np.random.default_rng(0).permutation(len(data))[:most])
    return replace(data, dicts=[data.dicts[index] for index in chosen])


def evaluate_on_training_images(ckpt: str | Path, *, most: int = TRAINING_SAMPLE) -> dict[str, Any]:
    """Score a checkpoint on a random sample, always the same, of at most ``most`` of the images it was trained on.

    The results are kept in ``evaluations/training_sample`` of the run, and reused while they are current.

    Returns:
        what metrics.json holds.

    Raises:
        WorkbenchError: the checkpoint or the data cannot be read, or the results cannot be written.
    """
    path = resolve_checkpoint(ckpt)
    evaluated = Evaluated(path)
    cfg = evaluated.config
    directory = training_sample_directory(path)
    data = load_data(cfg, cfg.DATASETS.TRAIN, load_vocabulary(path), for_training=True)
    sample = random_sample(data, most)
    saved = saved_metrics(directory, fingerprint(path, cfg, data_fingerprint(sample)))
    if saved is not None:
        return saved
    evaluated = replace(evaluated, dataset=cfg.DATASETS.TRAIN[0])
    return evaluate_checkpoint(evaluated, cfg, sample, start_processes(cfg), directory)


class DatasetEvaluation:
    """Scores a model on one dataset: called in every process, each predicts its share, the main one scores.

    ``metrics`` and ``results`` are those of the last call, until :meth:`save` writes them.
    """

    def __init__(self, cfg: CfgNode, dataset: CocoDataset, accelerator: Accelerator, progress: bool = True) -> None:
        self.cfg, self.dataset, self.accelerator, self.progress = cfg, dataset, accelerator, progress
        self.truth, self.data = ground_truth(dataset), data_fingerprint(dataset)
        self.metrics: dict[str, Any] = {}
        self.results: list[dict[str, Any]] = []

    def __call__(self, model: nn.Module) -> dict[str, Any]:
        """Return what metrics.json holds for ``model``, the same in every process."""
        vocabulary = self.dataset.vocabulary
        self.results, stats = run_inference(
            model, self._loader(), vocabulary, progress=self.progress, accelerator=self.accelerator
        )
        # Nothing is sent to the other processes but the metrics; scoring in each would repeat the work.
        metrics = run_on_main(
            lambda: evaluate_results(self.truth, self.results, vocabulary, stats=stats, **scoring_options(self.cfg))
        )
        self.metrics = {**metrics, "dataset": self.dataset.entries[0].name}
        return self.metrics

    def _loader(self) -> Iterable[list[dict[str, Any]]]:
        mapper = build_mapper(self.cfg, is_train=False)
        sizes = {mapper.output_size(d["height"], d["width"]) for d in self.dataset.dicts}
        return build_test_loader(
            self.dataset,
            mapper,
            num_workers=self.cfg.DATALOADER.NUM_WORKERS,
            rank=rank(),
            world_size=world_size(),
            batch_size=8 if len(sizes) == 1 else 1,  # images of one size need no padding, so batches change nothing
        )

    def picture(self, most: int = 8) -> np.ndarray:
        """Draw the first images, ground truth beside what scores a half or more, two in a row: (H, W, 3) uint8."""
        words, rules = self.dataset.vocabulary, ImageRules.from_config(self.cfg)
        some = self.dataset.dicts[:most]
        results: dict[int, list] = {item["image_id"]: [] for item in some}
        for row in self.results:
            results.get(row["image_id"], []).append(row)
        panels = []
        for item in some:
            image, size, reduction = read_at_most(item["file_name"], LEAST_SIDE, rules)
            rows = results[item["image_id"]]
            truth = drawables_of_annotations(item["annotations"], words, *size, reduction)
            predicted = drawables_of_predictions(rows, words, reduction=reduction)
            panels += [draw_instances(image, drawn, words) for drawn in (truth, predicted)]
        return contact_sheet(panels)

    def save(self, directory: Path, evaluated: Evaluated, weights: str | None = None) -> dict[str, Any]:
        """Write predictions.json and metrics.json and return the latter: :func:`save_evaluation`."""
        current = fingerprint(evaluated.checkpoint, self.cfg, self.data, weights)
        return save_evaluation(directory, evaluated, self.metrics, self.results, current)
