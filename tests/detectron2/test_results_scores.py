"""The same predictions get the same scores in both hosts and from detectron2's COCOEvaluator."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, build_detection_test_loader
from detectron2.evaluation import COCOEvaluator, inference_on_dataset
from torch import nn

from workbench.data.coco import CocoDataset, load_data
from workbench.data.loaders import build_test_loader
from workbench.data.mapper import build_mapper
from workbench.data.masks import decode_mask
from workbench.detectron2.data import WorkbenchMapper
from workbench.detectron2.modeling import host_model
from workbench.detectron2.results import WorkbenchEvaluator
from workbench.errors import WorkbenchError
from workbench.evaluation.evaluate import evaluate_results
from workbench.evaluation.ground_truth import ground_truth
from workbench.evaluation.predict import run_inference
from workbench.models.postprocess import boxes_of_masks


class Guesses(nn.Module):
    """Predicts the objects of a dataset with masks shifted by a pixel or two and some wrong classes."""

    def __init__(self, dataset: CocoDataset):
        super().__init__()
        self.items = {item["image_id"]: item for item in dataset.dicts}
        self.vocabulary = dataset.vocabulary

    def forward(self, batch: list[dict]) -> list[dict[str, Any]]:
        return [self.predict(self.items[inputs["image_id"]]) for inputs in batch]

    def predict(self, item: dict) -> dict[str, Any]:
        things = item["annotations"]
        rng = torch.Generator().manual_seed(item["image_id"])
        masks = [decode_mask(a["segmentation"], item["height"], item["width"]) for a in things]
        masks = torch.stack([torch.from_numpy(m).roll(k % 3, 1) for k, m in enumerate(masks)])
        n = len(things)
        labels = torch.tensor([a["category_id"] for a in things])
        labels[::4] = (labels[::4] + 1) % self.vocabulary.num_classes
        scores = torch.rand(n, generator=rng)
        heads = {
            name: torch.rand(n, k + 1, generator=rng).softmax(-1)
            for name, k in self.vocabulary.num_subcategory_classes.items()
        }
        return {
            "scores": scores,
            "main_scores": scores,
            "mask_scores": torch.ones(n),
            "labels": labels,
            "masks": masks,
            "boxes": boxes_of_masks(masks),
            "query": torch.arange(n),
            "subcategories": heads,
            "subcategory_logits": {name: p.log() for name, p in heads.items()},
            "no_object_fraction": 0.25,
        }


@pytest.fixture()
def dataset(own_config: Any) -> CocoDataset:
    vocabulary = load_data(own_config, ["shapes_train"], None).vocabulary
    return load_data(own_config, ["shapes_val"], vocabulary)


def test_scores_are_equal(host_config: CfgNode, own_config: Any, dataset: CocoDataset, tmp_path: Path) -> None:
    model = Guesses(dataset)
    loader = build_test_loader(dataset, build_mapper(own_config, is_train=False))
    results, stats = run_inference(model, loader, dataset.vocabulary, progress=False)
    expected = evaluate_results(ground_truth(dataset), results, dataset.vocabulary, stats=stats)
    assert 10 < expected["segm"]["AP"] < 90

    hosted = host_model(Guesses(dataset), dataset.vocabulary.subcategories)
    loader = build_detection_test_loader(host_config, "shapes_val", mapper=WorkbenchMapper(host_config, is_train=False))
    scores = inference_on_dataset(hosted, loader, WorkbenchEvaluator(host_config, "shapes_val", tmp_path))
    for name in ("segm", "bbox", "joint"):
        assert scores[name] == {key: math.nan if v is None else v for key, v in expected[name].items()}
    for name, values in expected["subcategories"].items():
        assert scores[name] == values
    saved = json.loads((tmp_path / "metrics.json").read_text())
    assert {k: v for k, v in saved.items() if k != "seconds"} == {k: v for k, v in expected.items() if k != "seconds"}
    assert json.loads((tmp_path / "predictions.json").read_text()) == results

    DatasetCatalog.get("shapes_val")  # sets the metadata
    judge = COCOEvaluator("shapes_val", ("bbox", "segm"), distributed=False, output_dir=str(tmp_path / "coco"))
    coco = inference_on_dataset(hosted, loader, judge)
    for kind in ("segm", "bbox"):
        for name in ("AP", "AP50", "AP75", "APs", "APm"):
            reference = expected[kind][name]
            assert (reference is None and math.isnan(coco[kind][name])) or coco[kind][name] == pytest.approx(
                reference, abs=1e-9
            )


def test_instances_without_subcategories_are_scored_too(host_config: CfgNode, dataset: CocoDataset) -> None:
    hosted = host_model(Guesses(dataset), {})
    evaluator = WorkbenchEvaluator(host_config, "shapes_val")
    for item in dataset.dicts:
        with torch.no_grad():
            outputs = hosted([{"image": torch.zeros(3, 64, 64), "image_id": item["image_id"]}])
        evaluator.process([item], [{"instances": output["instances"]} for output in outputs])
    scores = evaluator.evaluate()
    assert set(scores) == {"segm", "bbox"} and scores["segm"]["AP"] > 10


def test_a_dataset_of_detectron2_s_is_named(host_config: CfgNode) -> None:
    with pytest.raises(WorkbenchError, match="'lvis_v1_val' is detectron2's.*COCOEvaluator"):
        WorkbenchEvaluator(host_config, "lvis_v1_val")
