"""metrics.json and its tables, running a model, scores of single images."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

from tests.evaluation.scenes import VOCABULARY, add, one_hot, random_case, row, scene, square
from workbench.data.vocabulary import Vocabulary
from workbench.evaluation.analysis import calibration_table, per_image_scores
from workbench.evaluation.evaluate import evaluate_results, metrics_frames, metrics_table, save_metrics
from workbench.evaluation.predict import run_inference

PLAIN = Vocabulary((3, 7), ("disc", "box"))


def test_metrics_have_the_keys_of_the_design():
    gt, results = random_case(2)
    stats = {"images": 6, "no_object_fraction": 0.75, "seconds": 2.0}
    metrics = evaluate_results(gt, results, VOCABULARY, max_dets=[1, 20], stats=stats)
    assert list(metrics) == [
        *("segm", "bbox", "per_category", "subcategories", "joint"),
        *("no_object_fraction", "images", "instances", "rank_by", "seconds"),
    ]
    columns = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR@1", "AR@20", "AP@1", "AP@20"]
    assert list(metrics["segm"]) == list(metrics["bbox"]) == columns
    assert list(metrics["per_category"]) == ["disc", "box"]
    assert (metrics["no_object_fraction"], metrics["images"], metrics["rank_by"]) == (0.75, 6, "main")
    assert metrics["instances"] == sum(not a["iscrowd"] for a in gt["annotations"])
    assert metrics["seconds"] >= 2.0


def test_results_without_attributes_or_masks_score_as_far_as_they_go():
    gt, results = random_case(2)
    for each in results:
        del each["attributes"]
    metrics = evaluate_results(gt, results, VOCABULARY)
    assert "joint" not in metrics
    assert "subcategories" not in metrics
    assert evaluate_results(gt, results, PLAIN)["segm"] == metrics["segm"]
    for each in results:
        del each["segmentation"]
    boxes = evaluate_results(gt, results, VOCABULARY)
    assert boxes["segm"] is None
    assert boxes["bbox"] == metrics["bbox"]
    assert "masks" not in metrics_table(boxes)


def test_nothing_at_all_still_makes_metrics_and_a_table(tmp_path):
    metrics = evaluate_results(scene(2), [], VOCABULARY)
    assert metrics["segm"]["AP"] is None
    assert metrics["joint"] == {"AP": None, "AP50": None}
    assert "-1" not in metrics_table(metrics)
    text = save_metrics(tmp_path / "metrics.json", metrics | {"seconds": float("nan")}).read_text()
    assert json.loads(text) == metrics | {"seconds": None}
    assert "NaN" not in text


def test_rank_by_decides_the_scores():
    """Two candidates for one object: main score prefers the wrong one, the subcategories the right one."""
    gt = scene()
    add(gt, square(0, 0), attributes={"colour": "red"})

    def candidate(mask, main, probability):
        scores = {"colour": one_hot(4, 0, probability)}
        more = {"attributes": {"colour": "red"}, "attribute_scores": scores}
        return row(mask, main, main_score=main, mask_score=1.0, **more)

    results = [candidate(square(30, 30), 0.9, 0.3), candidate(square(0, 0), 0.8, 0.9)]
    vocabulary = Vocabulary((3, 7), ("disc", "box"), {"colour": ("red", "green", "blue")})
    found = {by: evaluate_results(gt, results, vocabulary, rank_by=by) for by in ("main", "sum", "geometric_mean")}
    assert [metrics["segm"]["AP"] for metrics in found.values()] == pytest.approx([50, 100, 100])
    assert [metrics["rank_by"] for metrics in found.values()] == list(found)


def test_the_table_shows_every_number_a_person_asks_for():
    gt, results = random_case(4)
    metrics = evaluate_results(gt, results, VOCABULARY, stats={"no_object_fraction": 0.8})
    text = metrics_table(metrics)
    for word in ("masks", "boxes", "joint", "AP50", "AR@100", "colour", "accuracy", "disc", "80.0 %"):
        assert word in text
    assert f"{metrics['segm']['AP']:.1f}" in text
    frames = metrics_frames(metrics)
    assert frames["overall"].loc["masks", "AP"] == metrics["segm"]["AP"]
    assert math.isnan(frames["overall"].loc["joint", "AP75"])
    assert frames["subcategories"].loc["colour", "labelled"] == metrics["subcategories"]["colour"]["labelled"]


class Echo(nn.Module):
    """Predicts the image's id as its only mask's side; fails in training mode."""

    def forward(self, batch: list[dict]) -> list[dict]:
        assert not self.training
        assert torch.is_inference_mode_enabled()
        return [self.predict(item["image_id"]) for item in batch]

    def predict(self, image_id: int) -> dict:
        one = torch.ones(1)
        return {
            "scores": one * 0.5,
            "main_scores": one,
            "mask_scores": one * 0.5,
            "labels": torch.zeros(1, dtype=torch.int64),
            "masks": torch.from_numpy(square(0, 0, image_id))[None],
            "query": torch.zeros(1, dtype=torch.int64),
            "subcategories": {"colour": torch.eye(4)[:1], "texture": torch.eye(3)[2:]},
            "no_object_fraction": image_id / 100,
        }


@pytest.mark.parametrize("training", [True, False])
def test_run_inference_collects_by_image_and_restores_the_mode(training, capfd):
    model = Echo().train(training)
    loader = [[{"image_id": 30}, {"image_id": 10}], [{"image_id": 20}]]
    rows, stats = run_inference(model, loader, VOCABULARY, progress=False)
    assert [each["image_id"] for each in rows] == [10, 20, 30]
    assert [each["bbox"][2] for each in rows] == [10, 20, 30]
    assert rows[0]["attributes"] == {"colour": "red", "texture": None}
    assert (stats["images"], stats["no_object_fraction"]) == (3, pytest.approx(0.2))
    assert model.training == training
    assert capfd.readouterr() == ("", "")
    assert run_inference(model, [], VOCABULARY, progress=False)[1]["no_object_fraction"] is None


def test_run_inference_serves_a_model_without_queries():
    class Plain(Echo):
        def predict(self, image_id: int) -> dict:
            row = {key: torch.cat([v, v]) for key, v in super().predict(image_id).items() if torch.is_tensor(v)}
            del row["query"]
            return row | {"masks": row["masks"].roll(1, 2) | row["masks"], "subcategories": {}}

    rows, stats = run_inference(Plain(), [[{"image_id": 10}]], VOCABULARY, progress=False)
    assert len(rows) == 2 and not any("query" in each for each in rows)
    assert stats["no_object_fraction"] is None


def test_run_inference_restores_the_model_after_an_error():
    model = Echo().train()
    model.encode_masks = None
    with pytest.raises(KeyError):
        run_inference(model, [[{}]], VOCABULARY, progress=False)
    assert model.training and model.encode_masks is None


@pytest.mark.parametrize("wrapped", [False, True])
def test_run_inference_gives_the_same_rows_when_the_model_encodes_masks(wrapped):
    class Encoding(Echo):
        encode_masks = None

        def forward(self, batch):
            return [{**each, "masks": self.encode_masks(each["masks"])} for each in super().forward(batch)]

    class Wrapper(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, batch):
            return self.module(batch)

    model = Wrapper(Encoding()) if wrapped else Encoding()
    loader = [[{"image_id": 30}, {"image_id": 10}]]
    rows, _ = run_inference(model, loader, VOCABULARY, progress=False)
    assert rows == run_inference(Echo(), loader, VOCABULARY, progress=False)[0]


def test_per_image_scores_by_hand():
    gt = scene(4)
    add(gt, square(0, 0), image_id=10)
    add(gt, square(30, 30), image_id=10)
    add(gt, square(0, 0), image_id=11)
    add(gt, square(30, 30, 30), image_id=11, iscrowd=1)
    results = [
        row(square(0, 2), 0.9, image_id=10),  # IoU 2/3
        row(square(30, 30), 0.4, image_id=10),  # below the threshold
        row(square(50, 50), 0.8, image_id=10),  # nothing there
        row(square(0, 0), 0.8, image_id=11),
        row(square(40, 40), 0.8, image_id=11),  # on the crowd region
        row(square(40, 40), 0.8, image_id=13),
    ]
    table = per_image_scores(gt, results).set_index("image_id")
    assert list(table.index) == [13, 10, 12, 11]  # nothing to find is not the best of images
    assert table["f1"].tolist() == pytest.approx([0, 50, 100, 100])
    assert table.loc[10, ["n_gt", "n_pred", "matched", "missed", "false"]].tolist() == [2, 2, 1, 1, 1]
    assert table.loc[10, "mean_iou"] == pytest.approx(200 / 3)
    assert table.loc[11, ["n_gt", "n_pred", "missed", "false"]].tolist() == [1, 1, 0, 0]
    assert math.isnan(table.loc[12, "mean_iou"])
    assert table.loc[13, "false"] == 1
    assert per_image_scores(gt, results, score_threshold=0.3).set_index("image_id").loc[10, "matched"] == 2


def test_matching_follows_cocos_order():
    """The better scored prediction chooses first, the other takes what is left."""
    gt = scene()
    add(gt, square(0, 0))
    add(gt, square(0, 4))
    results = [row(square(0, 1), 0.9), row(square(0, 0), 0.8)]  # both overlap the first object more
    assert per_image_scores(gt, results).loc[0, "matched"] == 1  # the object left has IoU 6/14 with the second
    assert per_image_scores(gt, results, iou=0.42).loc[0, "matched"] == 2


def test_calibration_by_hand():
    gt = scene()
    add(gt, square(0, 0))
    add(gt, square(30, 30, 30), iscrowd=1)
    results = [
        row(square(0, 0), 0.95),
        row(square(15, 15), 0.91),
        row(square(40, 40), 0.99),
        row(square(0, 40), 0.1),
    ]
    table = calibration_table(gt, results)
    assert table["predictions"].tolist() == [0, 1, 0, 0, 0, 0, 0, 0, 0, 2]
    assert table.loc[9, ["mean_score", "precision"]].tolist() == pytest.approx([0.93, 0.5])
    assert table.attrs["expected_calibration_error"] == pytest.approx((2 * 0.43 + 0.1) / 3)
    assert calibration_table(gt, []).attrs["expected_calibration_error"] is None
