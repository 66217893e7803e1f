"""Score a results file against annotations, without a model: nothing here imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fvcore.common.config import CfgNode

from workbench.config import load_config
from workbench.data.crowds import crowds_to_objects
from workbench.data.reading import read_coco_json
from workbench.data.vocabulary import read_vocabulary
from workbench.errors import WorkbenchError
from workbench.evaluation.evaluate import evaluate_results, save_metrics
from workbench.evaluation.results import load_predictions


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
        annotations: the COCO instances JSON.
        output: folder for metrics.json; None writes nothing.
        overrides: config keys and values in turn; TEST.MAX_DETS, TEST.RANK_BY, TEST.SCORER and
            DATASETS.CROWDS_ARE_OBJECTS are read.

    Returns:
        what metrics.json holds.

    Raises:
        WorkbenchError: a file cannot be read, or the results do not fit the annotations.
    """
    cfg = load_config(None, overrides)
    content = read_coco_json(annotations)
    if cfg.DATASETS.CROWDS_ARE_OBJECTS:
        crowds_to_objects(content["annotations"])
    vocabulary = read_vocabulary(content, annotations)
    predictions = load_predictions(results)
    try:
        metrics = evaluate_results(content, predictions, vocabulary, **scoring_options(cfg))
    except WorkbenchError as error:
        raise WorkbenchError(f"{results} against {annotations}: {error}") from None
    if output is not None:
        save_metrics(Path(output) / "metrics.json", metrics)
    return metrics


def scoring_options(cfg: CfgNode) -> dict[str, Any]:
    """Return the keyword arguments of ``evaluate_results`` that a config chooses."""
    return {"max_dets": list(cfg.TEST.MAX_DETS), "rank_by": cfg.TEST.RANK_BY, "scorer": cfg.TEST.SCORER}
