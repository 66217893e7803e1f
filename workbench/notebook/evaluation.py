"""A checkpoint's evaluation, opened to be looked at: predictions beside ground truth, and the model itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from torch import nn

from workbench.data.images import read_image
from workbench.data.loaders import build_test_loader
from workbench.data.mapper import build_mapper
from workbench.environment.device import choose_device
from workbench.evaluation.evaluate import evaluate_results
from workbench.evaluation.ground_truth import ground_truth
from workbench.evaluation.queries import QueryOutputs, collect_queries, find_duplicates
from workbench.evaluation.results import load_predictions
from workbench.evaluation.saturation import Tile, choose_objects, cut_tile, saturation
from workbench.evaluation.thresholds import suggest_thresholds
from workbench.models.postprocess import RANK_BY
from workbench.runs.checkpoint import (
    check_vocabulary,
    checkpoint_config,
    load_model,
    load_vocabulary,
    resolve_checkpoint,
)
from workbench.runs.directory import evaluation_directory, report_dataset, run_of, saved_metrics
from workbench.visualization.drawing import (
    ground_truth_panel,
    prediction_panel,
    side_by_side,
)
from workbench.workflows.evaluate import evaluate

if TYPE_CHECKING:
    from fvcore.common.config import CfgNode

    from workbench.data.coco import CocoDataset, load_data
    from workbench.data.vocabulary import Vocabulary


@dataclass(frozen=True)
class Evaluation:
    """A checkpoint's predictions on a dataset beside the ground truth, and where its results belong.

    directory: with metrics.json, predictions.json and figures/. truth: a COCO dict; results: COCO results;
    files: the image file of each image id; data: the dataset.
    """

    checkpoint: Path
    directory: Path
    config: CfgNode
    vocabulary: Vocabulary
    truth: dict[str, Any]
    results: list[dict[str, Any]]
    metrics: dict[str, Any]
    data: CocoDataset

    @cached_property
    def files(self) -> dict[int, str]:
        return {item["image_id"]: item["file_name"] for item in self.data.dicts}

    @cached_property
    def model(self) -> nn.Module:
        """The checkpoint's model, on the device that its config asks for."""
        return load_model(self.checkpoint, choose_device(self.config.MODEL.DEVICE), config=self.config)[0]

    @property
    def label(self) -> str:
        """A short name: the run's, or the checkpoint's."""
        run = run_of(self.checkpoint)
        return run.name if run != self.checkpoint else self.checkpoint.name

    @property
    def queries(self) -> int:
        """How many queries the model has."""
        return self.config.MODEL.MASK_FORMER.NUM_OBJECT_QUERIES

    @property
    def figures(self) -> Path:
        return self.directory / "figures"

    def picture(self, image_id: int) -> np.ndarray:
        """(H, W, 3) uint8."""
        return read_image(self.files[image_id])

    def annotations(self, image_id: int) -> list[dict]:
        return [a for a in self.truth["annotations"] if a["image_id"] == image_id]

    def predictions(self, image_id: int) -> list[dict]:
        return [r for r in self.results if r["image_id"] == image_id]

    def compare(self, image_id: int, *, score_threshold: float = 0.5, title: str = "") -> np.ndarray:
        """Ground truth and prediction of one image beside each other."""
        image = self.picture(image_id)
        name = f"image {image_id}{f': {title}' if title else ''}"
        return side_by_side(
            [
                ground_truth_panel(image, self.annotations(image_id), self.vocabulary, title=f"{name} · truth"),
                prediction_panel(
                    image,
                    self.predictions(image_id),
                    self.vocabulary,
                    score_threshold=score_threshold,
                    title=f"predicted (score ≥ {score_threshold:.3g})",
                ),
            ]
        )

    def query_outputs(self, most: int = 200) -> QueryOutputs:
        """What every query does in the first ``most`` images."""
        some = replace(self.data, dicts=self.data.dicts[:most])
        mapper = build_mapper(self.config, is_train=False)
        return collect_queries(self.model, build_test_loader(some, mapper))

    def best_found(self, most: int = 20) -> list[Tile]:
        """The objects found best, cut out for the saturation experiment; empty where no object is whole."""
        sizes = {item["image_id"]: (item["height"], item["width"]) for item in self.data.dicts}
        tiles = []
        for chosen in choose_objects(self.truth, self.results, sizes, most):
            image_id = chosen["image_id"]
            label = self.vocabulary.category_ids.index(chosen["category_id"])
            tiles.append(cut_tile(self.picture(image_id), chosen, label, self.annotations(image_id)))
        return tiles

    def saturation(self, tiles: Sequence[Tile], **how: Any) -> pd.DataFrame:
        """`evaluation.saturation.saturation` of this model, at the size that evaluation shows it images in.

        Every query may be reported, once.
        """
        height, width = tiles[0].image_size
        scale = build_mapper(self.config, is_train=False).output_size(height, width)[0] / height
        kept = self.model.top_k, self.model.one_class_per_query
        self.model.top_k, self.model.one_class_per_query = max(kept[0], self.queries), True
        try:
            return saturation(self.model, tiles, scale=scale, **how)
        finally:
            self.model.top_k, self.model.one_class_per_query = kept

    def best_threshold(self) -> float:
        """The score with the best F1 here; 0.5 where that cannot be known."""
        plain = replace(self.vocabulary, subcategories={})
        suggestion = suggest_thresholds(self.truth, self.results, plain)
        return suggestion.settings.score if suggestion.curves else 0.5

    def compare_all(self, ranking: pd.DataFrame, score_threshold: float = 0.5) -> list[np.ndarray]:
        """:meth:`compare` of the images of a table that `per_image_scores` made, with their scores."""
        return [
            self.compare(
                row.image_id,
                score_threshold=score_threshold,
                title=f"{row.matched} of {row.n_gt} found, {row.false} false",
            )
            for row in ranking.itertuples()
        ]

    def ranked(self) -> pd.DataFrame:
        """The key scores, in percent, of the same predictions in each order of TEST.RANK_BY: one row each."""
        how = {"max_dets": list(self.config.TEST.MAX_DETS), "scorer": self.config.TEST.SCORER}
        rows = {}
        for rank_by in RANK_BY:
            found = evaluate_results(self.truth, self.results, self.vocabulary, rank_by=rank_by, **how)
            segm, joint = found["segm"] or {}, found.get("joint") or {}
            rows[rank_by] = {
                "AP": segm.get("AP"),
                "AP50": segm.get("AP50"),
                "AP75": segm.get("AP75"),
                "joint AP": joint.get("AP"),
                "joint AP50": joint.get("AP50"),
            }
        return pd.DataFrame.from_dict(rows, orient="index", dtype=float).rename_axis("ranked by")


def query_summary(objects: pd.Series, claims: pd.Series, queries: int) -> str:
    """What the numbers of objects and of claiming queries in each image say about the number of queries."""
    most, high = int(objects.max()), float(objects.quantile(0.99))
    said = (
        f"An image holds {objects.mean():.1f} objects on average and {most} at most. Of the {queries} queries "
        f"{claims.mean():.1f} claim an object on average and {int(claims.max())} at most; "
        f"{100 * (1 - claims.mean() / queries):.0f} % say no object."
    )
    if not most:
        return f"{said} Without ground truth nothing can be said about how many are needed."
    if most > queries:
        return f"{said} {int((objects > queries).sum())} images hold more objects than there are queries: take more."
    if queries < 1.5 * high:
        return f"{said} The fullest images leave little room: try {int(np.ceil(2 * high))} queries."
    if queries > 6 * high:
        return f"{said} That is many more than the fullest images need: try {int(np.ceil(3 * high))}."
    return f"{said} The number fits the dataset."


def query_comparison(
    evaluations: Mapping[str, Evaluation], most: int = 200, duplicate_iou: float = 0.7
) -> pd.DataFrame:
    """One row an evaluation, by its name: number of queries, key scores, how many queries claim an object in an
    image, and the share of real duplicates (percent) among the predictions that the best F1 draws."""
    rows = {}
    for name, each in evaluations.items():
        drawn = find_duplicates(each.results, iou=duplicate_iou, score_threshold=each.best_threshold())
        twice = (drawn.duplicate == "other query, same category").mean() if len(drawn) else float("nan")
        segm = each.metrics["segm"] or {}
        rows[name] = {
            "queries": each.queries,
            "AP": segm.get("AP"),
            "AP50": segm.get("AP50"),
            "AR": segm.get(f"AR@{max(each.config.TEST.MAX_DETS)}"),
            "claims in an image": each.query_outputs(most).claims.sum(axis=1).mean(),
            "duplicates in percent": 100 * twice,
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("run")


def open_evaluation(
    ckpt: str | Path,
    *,
    dataset: str | Path | None = None,
    output: str | Path | None = None,
    overrides: Sequence[str] = (),
    again: bool = True,
) -> Evaluation:
    """Evaluate a checkpoint, as `workflows.evaluate` does, and open what came out beside the ground truth.

    Args:
        ckpt: a checkpoint directory, or a run (its best).
        dataset: catalog name or path of a COCO JSON; by default the first of the checkpoint's DATASETS.TEST.
        output: where metrics.json, predictions.json and figures/ go. By default the checkpoint's run; for
            another than the checkpoint's own dataset ``evaluations/<dataset>`` in it, so that the run keeps
            its own scores.
        again: False takes metrics.json and predictions.json from there where they are this checkpoint's, on
            this dataset, and newer than it; overrides always evaluate.
    """
    path = resolve_checkpoint(ckpt)
    cfg = checkpoint_config(path, overrides)
    wanted = dataset or report_dataset(cfg)
    directory = Path(output) if output is not None else evaluation_directory(path, cfg, wanted)
    metrics = None if again or overrides else saved_metrics(directory, path, wanted)
    if metrics is None:
        metrics = evaluate(path, dataset=wanted, output=directory, overrides=overrides)
    vocabulary = load_vocabulary(path)
    data = load_data(cfg, [wanted], vocabulary)
    check_vocabulary(path, vocabulary, data.vocabulary)
    results = load_predictions(directory / "predictions.json")
    return Evaluation(path, directory, cfg, data.vocabulary, ground_truth(data), results, metrics, data)
