"""Score a results file against annotations, without a model: nothing here imports torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fvcore.common.config import CfgNode

from workbench.config import load_config, reads
from workbench.data.coco import Reading, open_dataset
from workbench.data.reading import is_integer
from workbench.errors import WorkbenchError
from workbench.evaluation.evaluate import evaluate_results, save_metrics
from workbench.evaluation.results import load_predictions
from workbench.evaluation.summary import warn_of_nothing_found


def evaluate_file(
    results: str | Path,
    annotations: str | Path,
    *,
    output: str | Path | None = None,
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Score a COCO results file against annotations.

    Args:
        results: the results, of any program.
        annotations: the COCO instances JSON, or a dataset's name. It is read as for training: what can be mended is.
            Where the results are boxes, it may have boxes without masks. Image files are not looked for.
        output: folder for metrics.json; None writes nothing.
        overrides: config keys and values in turn; TEST.MAX_DETS, TEST.RANK_BY, TEST.SCORER, DATASETS.ROOT,
            DATASETS.CROWDS_ARE_OBJECTS and DATASETS.SKIP_FAULTS are read.

    Returns:
        what metrics.json holds.

    Raises:
        DatasetError: the annotations have faults that cannot be mended, and DATASETS.SKIP_FAULTS is False.
        WorkbenchError: a file cannot be read, or the results do not fit the annotations.
    """
    cfg = load_config(None, overrides)
    predictions = load_predictions(results)
    reading = _read_annotations(annotations, predictions, cfg)
    try:
        truth = reading.sound_content()
        metrics = evaluate_results(truth, predictions, reading.vocabulary, **scoring_options(cfg))
    except WorkbenchError as error:
        raise WorkbenchError(f"{results} against {annotations}: {error}") from None
    warn_of_nothing_found(metrics, truth, predictions)
    if output is not None:
        save_metrics(Path(output) / "metrics.json", metrics)
    return metrics


def _read_annotations(annotations: str | Path, predictions: Sequence[Mapping], cfg: CfgNode) -> Reading:
    rows = [row for row in predictions if isinstance(row, dict)]  # of any other, scoring says what is wrong
    predicted = {row.get("category_id") for row in rows if is_integer(row.get("category_id"))}
    reading = open_dataset(
        annotations, cfg.DATASETS.ROOT, used=predicted, crowds_are_objects=cfg.DATASETS.CROWDS_ARE_OBJECTS
    )
    reading.entry = replace(reading.entry, images=reading.entry.images or reading.entry.annotations.parent)
    reading.check(reading.found, check_images=False)
    if rows and not any("segmentation" in row for row in rows):
        reading.faults = [fault for fault in reading.faults if fault.kind != "box without a mask"]
    reading.settle(cfg.DATASETS.SKIP_FAULTS)
    return reading


def scoring_options(cfg: CfgNode) -> dict[str, Any]:
    """Return the keyword arguments of ``evaluate_results`` that a config chooses."""
    key = "MODEL.MASK_FORMER.TEST.INSTANCE_ON"
    instances = not reads(cfg, key) or cfg.MODEL.MASK_FORMER.TEST.INSTANCE_ON
    how = {"max_dets": list(cfg.TEST.MAX_DETS), "rank_by": cfg.TEST.RANK_BY, "scorer": cfg.TEST.SCORER}
    return how | {"instances": instances}
