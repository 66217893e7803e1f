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
from workbench.data.loaders import build_test_loader
from workbench.data.mapper import build_mapper
from workbench.errors import WorkbenchError
from workbench.evaluation.evaluate import evaluate_results, save_metrics
from workbench.evaluation.ground_truth import ground_truth
from workbench.evaluation.predict import run_inference
from workbench.evaluation.results import save_predictions
from workbench.runs.checkpoint import checkpoint_config, load_model, load_vocabulary, resolve_checkpoint
from workbench.runs.directory import evaluation_directory, report_dataset, run_of, saved_metrics, selection_dataset
from workbench.training.distributed import Processes, rank, run_on_all, run_on_main, start_processes, world_size
from workbench.training.progress import log_machine, logging_to
from workbench.workflows.score import scoring_options


def evaluate(
    ckpt: str | Path,
    *,
    dataset: str | Path | None = None,
    output: str | Path | None = None,
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Score a checkpoint on a dataset and write metrics.json and predictions.json.

    Args:
        ckpt: a checkpoint directory, or a run (its best).
        dataset: catalog name or path of a COCO JSON; the first of the checkpoint's DATASETS.TEST by default.
        output: where the two files go; by default the checkpoint's run, and for another dataset than its first
            of DATASETS.TEST ``evaluations/<dataset>`` in the run, so that the run keeps its own scores.
        overrides: config keys and values in turn, over the checkpoint's config.

    Returns:
        what metrics.json holds.

    Raises:
        WorkbenchError: the checkpoint or the dataset cannot be read, or the results cannot be written.
    """
    path = resolve_checkpoint(ckpt)
    cfg = checkpoint_config(path, overrides)
    name = dataset or report_dataset(cfg)
    if name is None:
        raise WorkbenchError(f"checkpoint {path} names no dataset to evaluate on; name one")
    directory = Path(output) if output is not None else evaluation_directory(path, cfg, name)
    processes = start_processes(cfg)
    with logging_to(None):
        log_machine(cfg, processes)
        # Files are read in every process, each perhaps on a machine of its own.
        data = run_on_all(lambda: load_data(cfg, [name], load_vocabulary(path)))
        return evaluate_checkpoint(path, cfg, data, processes, directory)


def evaluate_checkpoint(
    path: Path, cfg: CfgNode, dataset: CocoDataset, processes: Processes, directory: Path
) -> dict[str, Any]:
    """Score the checkpoint ``path`` on a loaded dataset, in every process, and write the results to ``directory``."""
    model, _ = run_on_all(lambda: load_model(path, processes.device, config=cfg))
    evaluation = DatasetEvaluation(cfg, dataset, processes.accelerator)
    metrics = evaluation(model)
    run_on_main(lambda: evaluation.save(directory, path))
    return metrics


def evaluate_for_selection(ckpt: str | Path, *, overrides: Sequence[str] = ()) -> Path:
    """Return the folder with a checkpoint's metrics.json and predictions.json on the dataset to choose on.

    Thresholds and everything else that is chosen after training is chosen on these predictions: of the first of
    DATASETS.VAL, or of DATASETS.TEST where VAL is empty (:func:`workbench.runs.directory.selection_dataset` names
    it). Training leaves them for its best checkpoint in ``evaluations/<dataset>`` of the run, or in the run itself
    where VAL is empty. They are reused where they are current and no ``overrides`` are given; otherwise the
    checkpoint is evaluated.
    """
    path = resolve_checkpoint(ckpt)
    cfg = checkpoint_config(path, overrides)
    name = selection_dataset(cfg)
    if name is None:
        raise WorkbenchError(f"checkpoint {path} names no dataset to choose on; set DATASETS.VAL")
    directory = evaluation_directory(path, cfg, name)
    if overrides or saved_metrics(directory, path, name) is None:
        evaluate(path, dataset=name, overrides=overrides)
    return directory


def evaluate_on_training_images(ckpt: str | Path, *, most: int = 50) -> dict[str, Any]:
    """Score a checkpoint on a random sample, always the same, of at most ``most`` of the images it was trained on.

    The results are kept in ``evaluations/training_sample`` of the run, and reused while they are current.

    Returns:
        what metrics.json holds.

    Raises:
        WorkbenchError: the checkpoint or the data cannot be read, or the results cannot be written.
    """
    path = resolve_checkpoint(ckpt)
    cfg = checkpoint_config(path, [])
    directory = run_of(path) / "evaluations" / "training_sample"
    data = load_data(cfg, cfg.DATASETS.TRAIN, load_vocabulary(path), for_training=True)
    chosen = np.sort(np.random.default_rng(0).permutation(len(data))[:most])
    saved = saved_metrics(directory, path, data.entries[0].name)
    if saved is not None and saved["images"] == len(chosen):
        return saved
    sample = replace(data, dicts=[data.dicts[index] for index in chosen])
    return evaluate_checkpoint(path, cfg, sample, start_processes(cfg), directory)


class DatasetEvaluation:
    """Scores a model on one dataset: called in every process, each predicts its share, the main one scores.

    ``metrics`` and ``results`` are those of the last call, until :meth:`save` writes them.
    """

    def __init__(self, cfg: CfgNode, dataset: CocoDataset, accelerator: Accelerator, progress: bool = True) -> None:
        self.cfg, self.dataset, self.accelerator, self.progress = cfg, dataset, accelerator, progress
        self.truth = ground_truth(dataset)
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

    def save(self, directory: Path, checkpoint: Path) -> None:
        """Write predictions.json and then metrics.json, each whole or not at all.

        Raises:
            WorkbenchError: the disk is full or not writable.
        """
        try:
            save_predictions(directory / "predictions.json", self.results)
            save_metrics(directory / "metrics.json", {**self.metrics, "checkpoint": str(checkpoint)})
        except OSError as error:
            raise WorkbenchError(f"the results cannot be saved in {directory}: {error.strerror}") from None
