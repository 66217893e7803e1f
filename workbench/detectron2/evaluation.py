"""The workbench's metrics in detectron2's ``inference_on_dataset``."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path

from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from fvcore.common.config import CfgNode

from workbench.detectron2.config import workbench_config
from workbench.detectron2.datasets import loaded_dataset
from workbench.errors import WorkbenchError
from workbench.evaluation.evaluate import evaluate_results, save_metrics
from workbench.evaluation.ground_truth import ground_truth
from workbench.evaluation.predict import collect, to_coco_results
from workbench.evaluation.results import save_predictions


class WorkbenchEvaluator(DatasetEvaluator):
    """Score predictions as the workbench does: AP, AR, subcategories and joint AP, as the keys under TEST say.

    Models of detectron2, which have no subcategories, are scored without them.

    Args:
        cfg: detectron2's config, with the workbench's keys.
        dataset_name: a dataset that the workbench registered.
        output_dir: where ``metrics.json`` and ``predictions.json`` go; None writes nothing.

    Raises:
        WorkbenchError: detectron2 alone knows the dataset; its own ``COCOEvaluator`` scores that one.
    """

    def __init__(self, cfg: CfgNode, dataset_name: str, output_dir: str | Path | None = None):
        self.dataset = loaded_dataset(dataset_name)
        if self.dataset is None:
            raise WorkbenchError(f"dataset {dataset_name!r} is detectron2's: score it with its COCOEvaluator")
        self.keys, self.output_dir = workbench_config(cfg, model=False).TEST, output_dir and Path(output_dir)
        self.reset()

    def reset(self) -> None:
        self._began, self._predicted = time.perf_counter(), {}

    def process(self, inputs: Sequence[dict], outputs: Sequence[dict]) -> None:
        for item, output in zip(inputs, outputs, strict=True):
            rows = output["instances"]
            own = {"scores": rows.scores, "labels": rows.pred_classes, "masks": rows.pred_masks, "subcategories": {}}
            predictions = output.get("predictions", own)
            results = to_coco_results(predictions, item["image_id"], self.dataset.vocabulary)
            self._predicted[item["image_id"]] = results, predictions.get("no_object_fraction")

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """Return {"segm": {"AP": ..., ...}, "bbox": ..., "joint": ..., "<subcategory>": {"accuracy": ...}} in the main
        process, NaN where there is nothing to measure on, and None in the others."""
        parts = comm.gather(self._predicted, dst=0)
        if not comm.is_main_process():
            return None
        predicted = {image: value for part in parts for image, value in part.items()}
        results, stats = self.results, _ = collect(predicted, time.perf_counter() - self._began)
        metrics = self.metrics = evaluate_results(
            ground_truth(self.dataset),
            results,
            self.dataset.vocabulary,
            max_dets=self.keys.MAX_DETS,
            rank_by=self.keys.RANK_BY,
            scorer=self.keys.SCORER,
            stats=stats,
        )
        if self.output_dir is not None:
            self.output_dir.mkdir(parents=True, exist_ok=True)
            save_predictions(self.output_dir / "predictions.json", results)
            save_metrics(self.output_dir / "metrics.json", metrics)
        tables = {key: metrics.get(key) for key in ("segm", "bbox", "joint")} | metrics.get("subcategories", {})
        return {
            name: {key: math.nan if value is None else float(value) for key, value in scores.items()}
            for name, scores in tables.items()
            if scores is not None
        }
