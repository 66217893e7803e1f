"""COCO's matching, opened for one image: which object each prediction is matched to, and why the others are false."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from workbench.data.coco import load_data
from workbench.data.image_files import ImageRules
from workbench.data.images import read_image
from workbench.data.loaders import build_test_loader
from workbench.data.mapper import build_mapper
from workbench.data.masks import decode_mask
from workbench.data.vocabulary import Vocabulary
from workbench.errors import WorkbenchError
from workbench.evaluation.coco import coco_curves
from workbench.evaluation.columns import EvaluationData, read_inputs
from workbench.evaluation.ground_truth import ground_truth
from workbench.evaluation.matching import Matches, match_predictions
from workbench.evaluation.predict import run_inference
from workbench.notebook.inside import Step
from workbench.notebook.scene import VERDICTS
from workbench.runs.directory import report_dataset
from workbench.visualization.drawing import contact_sheet, draw_masks, drawables_of_annotations
from workbench.visualization.step_charts import curves_by_threshold

THRESHOLDS = (0.5, 0.75, 0.95)
_DRAWN = 8  # predictions in a panel


@dataclass(frozen=True)
class OpenedMatching:
    """One image: its picture (H, W, 3), its ground truth as a COCO dict, and the results of a model."""

    picture: np.ndarray
    truth: dict[str, Any]
    results: list[dict[str, Any]]
    vocabulary: Vocabulary

    @cached_property
    def data(self) -> EvaluationData:
        """The same as columns."""
        return read_inputs(self.truth, self.results)

    def table(self, thresholds: Sequence[float] = THRESHOLDS) -> pd.DataFrame:
        """Return the predictions in order of score, a row each: "score", "category", and for each IoU threshold the
        object that it is matched to, or why it counts as false."""
        order = self.data.ranked.tolist()
        places = {row: place for place, row in enumerate(order, start=1)}
        names = self.data.category_names
        columns = {
            "score": [float(self.data.predictions.scores[row]) for row in order],
            "category": [names[self.data.predictions.category[row]] for row in order],
        }
        for threshold in thresholds:
            matches = match_predictions(self.data, iou=threshold)
            columns[f"at IoU {threshold:g}"] = [self._verdict(row, matches, threshold, places) for row in order]
        return pd.DataFrame(columns, index=pd.RangeIndex(1, len(order) + 1, name="row"))

    def _verdict(self, row: int, matches: Matches, threshold: float, places: dict[int, int]) -> str:
        objects, names = self.data.objects, self.data.category_names
        matched = int(matches.object_of[row])
        if matched >= 0:
            return f"right: object {matched}, IoU {matches.overlap[row]:.2f}"
        if matches.ignored[row]:
            return "not counted: on a crowd"
        d, g, ious = self.data.pairs()
        near = (d == row) & ~objects.crowd[g]
        same = objects.category[g] == self.data.predictions.category[row]
        for chosen, reason in ((near & same, "taken"), (near & ~same, "category")):
            if (ious[chosen] >= threshold).any():
                best = int(g[chosen][ious[chosen].argmax()])
                if reason == "category":
                    return f"false: object {best} is a {names[objects.category[best]]}"
                return (
                    f"false: object {best} is taken by row {places[int(np.flatnonzero(matches.object_of == best)[0])]}"
                )
        if not near.any():
            return "false: on no object"
        best = ious[near].argmax()
        return f"false: IoU {ious[near][best]:.2f} with object {int(g[near][best])}"

    def sheet(self, thresholds: Sequence[float] = THRESHOLDS) -> np.ndarray:
        """Draw the objects, and the best predictions by verdict at each threshold: right, wrong, or not counted."""
        height, width = self.picture.shape[:2]
        drawables = drawables_of_annotations(self.truth["annotations"], self.vocabulary, height, width)
        captions = [f"object {i}: {self.vocabulary.categories[each.label]}" for i, each in enumerate(drawables)]
        masks = [each.mask for each in drawables]
        shown = [draw_masks(self.picture, masks, captions=captions)]
        order = self.data.ranked.tolist()[:_DRAWN]
        masks = [decode_mask(self.data.predictions.rles[row], height, width) for row in order]
        for threshold in thresholds:
            matches = match_predictions(self.data, iou=threshold)
            kinds = [
                "right" if matches.object_of[row] >= 0 else "crowd" if matches.ignored[row] else "wrong"
                for row in order
            ]
            captions = [f"{place} {kind}" for place, kind in enumerate(kinds, start=1)]
            shown.append(draw_masks(self.picture, masks, captions=captions, colours=[VERDICTS[kind] for kind in kinds]))
        names = ["ground truth", *(f"best {len(order)} rows at IoU {threshold:g}" for threshold in thresholds)]
        return contact_sheet(shown, columns=2, titles=names)

    def curves(self, thresholds: Sequence[float] = THRESHOLDS) -> Figure:
        """Draw precision and recall of the image at each threshold; the mean of precision is its AP there."""
        found = {threshold: coco_curves(self.truth, self.results, iou=threshold) for threshold in thresholds}
        return curves_by_threshold({threshold: each["all"] for threshold, each in found.items() if each})


def open_matching(step: Step, image: int = 0) -> OpenedMatching:
    """Predict one image of the dataset that the step's model is reported on, and open its matching.

    Args:
        step: its model and config.
        image: position in the first of DATASETS.TEST, or of DATASETS.VAL.

    Raises:
        WorkbenchError: there is no such dataset or image.
    """
    name = report_dataset(step.cfg)
    if name is None:
        raise WorkbenchError(f"{step.source} names no dataset to evaluate on; set DATASETS.TEST")
    data = load_data(step.cfg, [name], step.vocabulary)
    if not 0 <= image < len(data):
        raise WorkbenchError(f"image {image} is not in {name}, whose images are 0 to {len(data) - 1}")
    one = replace(data, dicts=data.dicts[image : image + 1])
    loader = build_test_loader(one, build_mapper(step.cfg, is_train=False))
    results, _ = run_inference(step.model, loader, data.vocabulary, progress=False)
    picture = read_image(one.dicts[0]["file_name"], ImageRules.from_config(step.cfg))
    return OpenedMatching(picture, ground_truth(one), results, data.vocabulary)
