"""How queries are used."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from tests.evaluation.scenes import add, row, scene, square
from workbench.errors import WorkbenchError
from workbench.evaluation.queries import (
    collect_queries,
    detection_limits,
    find_overlaps,
    objects_per_image,
    overlap_counts,
    right_and_wrong,
)


def test_a_model_without_queries_is_one_sentence() -> None:
    with pytest.raises(WorkbenchError, match="Linear has no queries to look at: .* needs a Mask2Former"):
        collect_queries(nn.Linear(1, 1), [])


class TwoQueries(nn.Module):
    """Query 0 sees the left half of every image, query 1 nothing."""

    size_divisibility = 32

    def __init__(self) -> None:
        super().__init__()
        self.transformer_decoder = Decoder()

    def forward(self, batch: list[dict]) -> list[dict]:
        self.transformer_decoder(len(batch))
        return [{} for _ in batch]


class Decoder(nn.Module):
    def forward(self, images: int) -> dict[str, torch.Tensor]:
        logits = torch.tensor([[2.0, 5.0, 0.0], [0.0, 1.0, 6.0]])  # the second category; no object
        masks = torch.full((2, 16, 16), -9.0)
        masks[0, :, :4] = 9.0  # of 64 padded pixels 0..15: the left half of an image 32 wide
        return {"pred_logits": logits.repeat(images, 1, 1), "pred_masks": masks.repeat(images, 1, 1, 1)}


def test_queries_are_collected_over_the_image_and_not_its_padding() -> None:
    model = TwoQueries().train()
    batch = [
        {"image": torch.zeros(3, 64, 32), "image_id": 7},
        {"image": torch.zeros(3, 64, 64), "image_id": 8},
    ]
    found = collect_queries(model, [batch], progress=False)
    assert model.training and not model.transformer_decoder._forward_hooks
    assert found.image_ids == (7, 8)
    assert found.claims.tolist() == [[True, False]] * 2
    assert found.label[:, 0].tolist() == [1, 1]
    assert found.area[:, 0] == pytest.approx([0.5, 0.25], abs=0.05)
    assert np.isnan(found.mean_masks[1]).all()
    assert found.mean_masks[0][:, :7].min() > 0.95 and found.mean_masks[0][:, 18:].max() < 0.05
    assert found.mean_masks[0][:, 12].mean() == pytest.approx(0.5, abs=0.05)  # in one image of two
    assert found.claims_per_image().to_dict() == {7: 1, 8: 1}
    table = found.table()
    assert table["claims"].tolist() == [100, 0] and table["main category"].tolist() == [1, -1]


def test_no_image_is_a_sentence() -> None:
    with pytest.raises(WorkbenchError, match="no image"):
        collect_queries(TwoQueries(), [], progress=False)


def test_overlaps_are_told_apart_by_query_and_category() -> None:
    mask, other = square(5, 5), square(40, 40)
    rows = [
        row(mask, 0.9, query=0),
        row(mask, 0.5, 7, query=0),
        row(mask, 0.8, query=1),
        row(mask, 0.4, 7, query=2),
        row(other, 0.3, query=3),
        row(mask, 0.7, query=4, image_id=11),
    ]
    found = find_overlaps(rows, iou=0.7)
    kinds = dict(zip(zip(found.image_id, found["query"], found.category_id, strict=True), found.overlaps, strict=True))
    assert kinds == {
        (10, 0, 3): "",
        (10, 1, 3): "other query, same category",
        (10, 0, 7): "same query",
        (10, 2, 7): "other query, other category",
        (10, 3, 3): "",
        (11, 4, 3): "",
    }
    counts = overlap_counts({"all": found, "none": find_overlaps(rows, score_threshold=2)})
    assert counts.loc["all", "same query"] == 1 and counts.loc["all", "overlapping in percent"] == 50
    assert counts.loc["none", "predictions"] == 0


def test_a_prediction_on_a_found_object_is_a_duplicate_and_not_wrong() -> None:
    truth = scene()
    add(truth, square(5, 5))
    add(truth, square(40, 40, 20), iscrowd=1)
    rows = [
        row(square(5, 5), 0.9),
        row(square(5, 5), 0.8),
        row(square(5, 5), 0.7, 7),
        row(square(42, 42), 0.6),
        row(square(20, 30), 0.5),
    ]
    assert right_and_wrong(truth, rows).outcome.tolist() == ["right", "duplicate", "wrong", "crowd", "wrong"]
    assert right_and_wrong(truth, []).empty


def test_limits_count_detections_and_empty_images_count_as_images() -> None:
    truth = scene(images=2)
    add(truth, square(5, 5))
    add(truth, square(30, 30))
    add(truth, square(0, 50), iscrowd=1)
    rows = [row(square(5, 5), 0.9), row(square(30, 30), 0.8)]
    assert objects_per_image(truth).to_dict() == {10: 2, 11: 0}
    table = detection_limits(truth, rows, [1, 2])
    assert table.loc[1, "AR"] == pytest.approx(50) and table.loc[2, "AR"] == pytest.approx(100)
    assert detection_limits({**truth, "annotations": []}, rows, [1]).isna().all(axis=None)
