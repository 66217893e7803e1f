"""Score a checkpoint on a dataset, or a results file against annotations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from fvcore.common.config import CfgNode
from torch import nn

from workbench.config import load_config
from workbench.data.coco import CocoDataset
from workbench.data.loaders import build_test_loader
from workbench.data.mapper import build_mapper
from workbench.data.reading import read_coco_json
from workbench.data.vocabulary import read_vocabulary
from workbench.errors import WorkbenchError
from workbench.evaluation.evaluate import evaluate_results, save_metrics
from workbench.evaluation.ground_truth import ground_truth
from workbench.evaluation.predict import run_inference
from workbench.evaluation.results import load_predictions, save_predictions
from workbench.runs.checkpoint import checkpoint_config, load_model, resolve_checkpoint
from workbench.runs.directory import run_of
from workbench.training.distributed import rank, run_on_all, run_on_main, start_processes, world_size
from workbench.training.progress import log_machine, logging_to
from workbench.workflows.data import load_data


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
        output: where the two files go; the checkpoint's run by default.
        overrides: config keys and values in turn, over the checkpoint's config.

    Returns:
        what metrics.json holds.
    """

    path = resolve_checkpoint(ckpt)
    cfg = checkpoint_config(path, overrides)
    names = [dataset] if dataset is not None else list(cfg.DATASETS.TEST[:1])
    if not names:
        raise WorkbenchError(f"checkpoint {path} names no dataset to evaluate on; name one")
    processes = start_processes(cfg)
    with logging_to(None):
        log_machine(cfg, processes)
        model, checkpoint = run_on_all(lambda: load_model(path, processes[1], config=cfg))
        test_set = run_on_all(lambda: load_data(cfg, names, checkpoint.vocabulary))
        evaluation = DatasetEvaluation(cfg, test_set, processes[0])
        metrics = evaluation(model)
        place = Path(output) if output is not None else run_of(path)
        run_on_main(lambda: evaluation.save(place, path))
    return metrics


def evaluate_file(
    results: str | Path,
    annotations: str | Path,
    *,
    output: str | Path | None = None,
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Score a COCO results file, anybody's, against annotations; ``output`` is a folder for metrics.json.

    The TEST keys among ``overrides`` (MAX_DETS, RANK_BY, SCORER) say how.
    """

    cfg = load_config(None, overrides)
    content = read_coco_json(annotations)
    vocabulary = read_vocabulary(content, annotations)
    predictions = load_predictions(results)
    try:
        metrics = evaluate_results(content, predictions, vocabulary, **_how(cfg))
    except WorkbenchError as error:
        raise WorkbenchError(f"{results} against {annotations}: {error}") from None
    if output is not None:
        save_metrics(Path(output) / "metrics.json", metrics)
    return metrics


@dataclass
class DatasetEvaluation:
    """Scores a model on one dataset; called in every process, computed once. Keeps what it found last, to be
    saved."""

    cfg: CfgNode
    dataset: CocoDataset
    accelerator: Accelerator
    progress: bool = True
    metrics: dict[str, Any] = field(default_factory=dict)
    results: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.truth = ground_truth(self.dataset)

    def __call__(self, model: nn.Module) -> dict[str, Any]:
        mapper = build_mapper(self.cfg, is_train=False)
        sizes = {mapper.output_size(d["height"], d["width"]) for d in self.dataset.dicts}
        loader = build_test_loader(
            self.dataset,
            mapper,
            num_workers=self.cfg.DATALOADER.NUM_WORKERS,
            rank=rank(),
            world_size=world_size(),
            batch_size=8 if len(sizes) == 1 else 1,  # images of one size need no padding, so batches change nothing
        )
        vocabulary = self.dataset.vocabulary
        self.results, stats = run_inference(
            model, loader, vocabulary, progress=self.progress, accelerator=self.accelerator
        )
        self.metrics = run_on_main(
            lambda: evaluate_results(self.truth, self.results, vocabulary, stats=stats, **_how(self.cfg))
        )
        return self.metrics

    def save(self, directory: Path, checkpoint: Path) -> None:
        """Write predictions.json and then metrics.json, each whole or not at all."""

        self.metrics |= {"dataset": self.dataset.entries[0].name, "checkpoint": str(checkpoint)}
        try:
            save_predictions(directory / "predictions.json", self.results)
            save_metrics(directory / "metrics.json", self.metrics)
        except OSError as error:
            raise WorkbenchError(f"the results cannot be saved in {directory}: {error.strerror}") from None


def _how(cfg: CfgNode) -> dict[str, Any]:
    return {"max_dets": list(cfg.TEST.MAX_DETS), "rank_by": cfg.TEST.RANK_BY, "scorer": cfg.TEST.SCORER}
