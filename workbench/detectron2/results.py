"""Predictions in detectron2: the workbench's metrics in its ``inference_on_dataset``, subcategories in its pictures."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import Instances
from detectron2.utils import comm
from detectron2.utils.visualizer import VisImage, Visualizer
from fvcore.common.config import CfgNode

from workbench.detectron2.config import workbench_config
from workbench.detectron2.data import loaded_dataset
from workbench.errors import WorkbenchError
from workbench.evaluation.evaluate import evaluate_results, save_metrics
from workbench.evaluation.ground_truth import ground_truth
from workbench.evaluation.predict import collect, image_results
from workbench.evaluation.results import save_predictions
from workbench.workflows.score import scoring_options


class WorkbenchEvaluator(DatasetEvaluator):
    """Score predictions as the workbench does: AP, AR, subcategories and joint AP, as the keys under TEST say.

    Models of detectron2 are scored without subcategories. ``metrics.json`` and ``predictions.json`` go to
    ``output_dir``, if there is one. WorkbenchError for a dataset that the workbench did not register.
    """

    def __init__(self, cfg: CfgNode, dataset_name: str, output_dir: str | Path | None = None):
        self.dataset = loaded_dataset(dataset_name)
        if self.dataset is None:
            raise WorkbenchError(f"dataset {dataset_name!r} is detectron2's: score it with its COCOEvaluator")
        self.options, self.output_dir = scoring_options(workbench_config(cfg, model=False)), output_dir
        self.reset()

    def reset(self) -> None:
        self._began, self._predicted = time.perf_counter(), {}

    def process(self, inputs: Sequence[dict], outputs: Sequence[dict]) -> None:
        for item, output in zip(inputs, outputs, strict=True):
            rows = output["instances"]
            own = {"scores": rows.scores, "labels": rows.pred_classes, "masks": rows.pred_masks, "subcategories": {}}
            predictions = output.get("predictions", own)
            self._predicted[item["image_id"]] = image_results(predictions, item["image_id"], self.dataset.vocabulary)

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """Return {"segm": {"AP": ..., ...}, "bbox": ..., "joint": ..., "<subcategory>": {"accuracy": ...}} in the main
        process, NaN where there is nothing to measure on, and None in the others."""
        parts = comm.gather(self._predicted, dst=0)
        if not comm.is_main_process():
            return None
        predicted = {image: value for part in parts for image, value in part.items()}
        results, stats = collect(predicted, time.perf_counter() - self._began)
        truth, vocabulary = ground_truth(self.dataset), self.dataset.vocabulary
        metrics = evaluate_results(truth, results, vocabulary, stats=stats, **self.options)
        if self.output_dir is not None:
            save_predictions(Path(self.output_dir) / "predictions.json", results)
            save_metrics(Path(self.output_dir) / "metrics.json", metrics)
        tables = {key: metrics.get(key) or {} for key in ("segm", "bbox", "joint", "panoptic", "semantic")}
        tables |= metrics.get("subcategories", {})
        return {k: {n: math.nan if v is None else float(v) for n, v in t.items()} for k, t in tables.items() if t}


class SubcategoryVisualizer(Visualizer):
    """detectron2's Visualizer, whose labels end in the classes of ``subcategory_classes`` in the metadata.

    An unlabelled or no-object class adds nothing.
    """

    _captions: Sequence[str] = ()

    def draw_instance_predictions(self, predictions: Instances, *args: Any, **options: Any) -> VisImage:
        names = [name for name in self.metadata.get("subcategory_classes", {}) if predictions.has(f"pred_{name}")]
        rows = zip(*(predictions.get(f"pred_{name}").tolist() for name in names), strict=True)
        self._captions = [self._caption(dict(zip(names, row, strict=True))) for row in rows]
        return super().draw_instance_predictions(predictions, *args, **options)

    def draw_dataset_dict(self, dic: dict[str, Any]) -> VisImage:
        self._captions = [self._caption(a.get("subcategories", {})) for a in dic.get("annotations", [])]
        return super().draw_dataset_dict(dic)

    def overlay_instances(self, *, labels: Sequence[str] | None = None, **options: Any) -> VisImage:
        captions, self._captions = self._captions, ()
        if labels is not None and captions:
            labels = [" ".join(filter(None, pair)) for pair in zip(labels, captions, strict=True)]
        return super().overlay_instances(labels=labels, **options)

    def _caption(self, numbers: Mapping[str, int]) -> str:
        return " ".join(self.metadata.subcategory_classes[name][k] for name, k in numbers.items() if k >= 0)
