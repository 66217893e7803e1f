"""Labels of detectron2's Visualizer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances
from detectron2.utils.visualizer import ColorMode, Visualizer

from workbench.detectron2.results import SubcategoryVisualizer


@pytest.fixture()
def labels(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts that a Visualizer draws."""
    drawn: list[str] = []
    draw = Visualizer.draw_text

    def record(self: Visualizer, text: str, *args: object, **options: object) -> object:
        drawn.append(text)
        return draw(self, text, *args, **options)

    monkeypatch.setattr(Visualizer, "draw_text", record)
    return drawn


def test_predictions_name_their_subcategories(host_config: CfgNode, labels: list[str]) -> None:
    DatasetCatalog.get("shapes_val")
    metadata = MetadataCatalog.get("shapes_val")
    masks = torch.zeros(2, 64, 64, dtype=torch.bool)
    masks[0, 5:30, 5:30] = masks[1, 35:60, 35:60] = True
    rows = Instances(
        (64, 64),
        scores=torch.tensor([0.9, 0.8]),
        pred_classes=torch.tensor([0, 1]),
        pred_masks=masks,
        pred_boxes=Boxes(torch.tensor([[5.0, 5, 30, 30], [35, 35, 60, 60]])),
        pred_colour=torch.tensor([2, -1]),
    )
    canvas = np.zeros((64, 64, 3), np.uint8)
    drawing = SubcategoryVisualizer(canvas, metadata, instance_mode=ColorMode.SEGMENTATION)
    picture = drawing.draw_instance_predictions(rows).get_image()
    colour = metadata.subcategory_classes["colour"][2]
    assert sorted(labels) == sorted([f"{metadata.thing_classes[0]} 90% {colour}", f"{metadata.thing_classes[1]} 80%"])
    assert picture.shape == (64, 64, 3) and picture.any()


def test_ground_truth_names_its_subcategories(host_config: CfgNode, labels: list[str]) -> None:
    item = DatasetCatalog.get("shapes_val")[0]
    metadata = MetadataCatalog.get("shapes_val")
    drawing = SubcategoryVisualizer(np.zeros((64, 64, 3), np.uint8), metadata)
    drawing.draw_dataset_dict(item)
    thing = item["annotations"][0]
    colour = metadata.subcategory_classes["colour"][thing["subcategories"]["colour"]]
    assert any(text.startswith(metadata.thing_classes[thing["category_id"]]) and colour in text for text in labels)
