"""Rows of predictions.json: what is in them, how they rank, reading and writing."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.evaluation.scenes import VOCABULARY, row, square
from workbench.data.masks import decode_mask, encode_masks
from workbench.errors import WorkbenchError
from workbench.evaluation.predict import to_coco_results
from workbench.evaluation.results import load_predictions, rank_results, save_predictions
from workbench.models.postprocess import instance_inference


def model_predictions(seed: int = 0, rank_by: str = "main") -> dict:
    draw = torch.Generator().manual_seed(seed)
    return instance_inference(
        torch.randn(6, 3, generator=draw),
        torch.randn(6, 8, 8, generator=draw),
        {"colour": torch.randn(6, 4, generator=draw), "texture": torch.randn(6, 3, generator=draw)},
        padded_size=(32, 32),
        image_size=(32, 24),
        output_size=(40, 30),
        top_k=9,
        rank_by=rank_by,
    )


@given(st.integers(0, 5), st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_encoded_masks_decode_to_themselves(count, height, width, seed):
    masks = torch.from_numpy(np.random.default_rng(seed).random((count, height, width)) < 0.5)
    rles = encode_masks(masks.numpy())
    assert len(rles) == count
    for mask, rle in zip(masks, rles, strict=True):
        assert json.loads(json.dumps(rle)) == rle
        assert (decode_mask(rle, height, width) == mask.numpy()).all()


def test_rows_hold_what_the_model_predicted():
    predictions = model_predictions()
    rows = to_coco_results(predictions, 42, VOCABULARY)
    keys = ["image_id", "category_id", "segmentation", "bbox", "score", "main_score", "mask_score", "query"]
    assert list(rows[0]) == [*keys, "attributes", "attribute_scores", "attribute_logits"]
    assert len(rows) == len(predictions["scores"]) == 9
    for i, each in enumerate(rows):
        assert each["image_id"] == 42
        assert each["category_id"] == (3, 7)[predictions["labels"][i]]
        assert each["score"] == pytest.approx(predictions["scores"][i].item(), abs=1e-7)
        assert each["query"] == predictions["query"][i].item()
        mask = predictions["masks"][i].numpy()
        assert (decode_mask(each["segmentation"], 40, 30) == mask).all()
        ys, xs = np.nonzero(mask)
        assert each["bbox"] == [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1]
        for name, classes in VOCABULARY.subcategories.items():
            values = predictions["subcategories"][name][i]
            assert each["attribute_scores"][name] == pytest.approx(values.tolist(), abs=1e-7)
            best = values.argmax().item()
            assert each["attributes"][name] == (None if best == len(classes) else classes[best])
            logits = predictions["subcategory_logits"][name][i, :-1]
            assert each["attribute_logits"][name] == pytest.approx(logits.max().item(), abs=1e-7)
    assert any(None in each["attributes"].values() for each in rows)  # the case was met


def test_no_predictions_give_no_rows():
    predictions = {key: value[:0] for key, value in model_predictions().items() if torch.is_tensor(value)}
    assert to_coco_results(predictions | {"subcategories": {}}, 1, VOCABULARY) == []


@pytest.mark.parametrize("rank_by", ["main", "sum", "geometric_mean"])
def test_invariant_11_ranking_a_file_gives_the_scores_the_model_gives(rank_by):
    rows = rank_results(to_coco_results(model_predictions(), 1, VOCABULARY), rank_by)
    model = to_coco_results(model_predictions(rank_by=rank_by), 1, VOCABULARY)
    by_key = {(each["query"], each["category_id"]): each["score"] for each in model}
    common = [each for each in rows if (each["query"], each["category_id"]) in by_key]
    assert len(common) >= 5
    for each in common:
        assert each["score"] == pytest.approx(by_key[each["query"], each["category_id"]], abs=1e-6)


def test_ranking_by_hand():
    each = row(
        square(0, 0),
        0.3,
        main_score=0.6,
        mask_score=0.5,
        attribute_scores={"colour": [0.1, 0.4, 0.1, 0.4], "texture": [0.9, 0.0, 0.1]},
    )
    scores = {by: rank_results([each], by)[0]["score"] for by in ("main", "sum", "geometric_mean")}
    assert scores["main"] == pytest.approx(0.6 * 0.5)
    assert scores["sum"] == pytest.approx((0.6 + 0.4 + 0.9) / 3 * 0.5)  # no-object's 0.4 is no class
    assert scores["geometric_mean"] == pytest.approx((0.6 * 0.4 * 0.9) ** (1 / 3) * 0.5)
    assert each["score"] == 0.3


def test_another_tools_rows_rank_by_their_own_score_only():
    rows = [row(square(0, 0), 0.3)]
    assert rank_results(rows, "main") == rows
    with pytest.raises(WorkbenchError, match="Row 0 .*main_score"):
        rank_results(rows, "sum")
    with pytest.raises(WorkbenchError, match="best.*geometric_mean"):
        rank_results(rows, "best")


def test_saved_predictions_load_as_they_were(tmp_path):
    rows = to_coco_results(model_predictions(), 1, VOCABULARY)
    path = save_predictions(tmp_path / "run" / "predictions.json", rows)
    assert load_predictions(path) == rows
    assert len(path.read_text().splitlines()) == len(rows) + 2
    assert load_predictions(save_predictions(path, [])) == []
    assert [p.name for p in path.parent.iterdir()] == ["predictions.json"]


def test_a_failed_save_leaves_the_old_file(tmp_path):
    path = save_predictions(tmp_path / "predictions.json", [{"score": 0.5}])
    with pytest.raises(ValueError, match="JSON"):
        save_predictions(path, [{"score": float("nan")}])
    assert load_predictions(path) == [{"score": 0.5}]
    assert [p.name for p in tmp_path.iterdir()] == ["predictions.json"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not valid JSON"),
        (b'[{"score": 0.5}', "not valid JSON"),
        (b"{}", "no list"),
        (b"\xff\xfe\x00", "cannot be read"),
        (b"[" * 100_000, "not valid JSON"),
    ],
)
def test_a_broken_file_is_one_sentence(tmp_path, content, message):
    path = tmp_path / "r.json"
    path.write_bytes(content)
    with pytest.raises(WorkbenchError, match=message) as caught:
        load_predictions(path)
    assert str(path) in str(caught.value)


def test_an_absent_file_is_one_sentence(tmp_path):
    with pytest.raises(WorkbenchError, match="does not exist"):
        load_predictions(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("main_score", value) for value in (None, [0.5], "0.5", True, float("nan"), 10**400)),
        ("mask_score", [0.5]),
        *(("query", value) for value in ([3], 1.5, "3", True, 2**64)),
        *(("attributes", value) for value in (["red"], "red", {"colour": ["red"]}, {"colour": {}})),
        *(("attribute_scores", value) for value in ([0.5], 0.5, {"colour": 0.5}, {"colour": [0.5, None, 0.1, 0.2]})),
        *(("attribute_scores", {"colour": value}) for value in ([], [0.5, float("inf")], [0.5, True], [[0.5], 0.5])),
        *(
            ("attribute_logits", value)
            for value in (1.5, {"colour": [1.5]}, {"colour": None}, {"colour": float("nan")})
        ),
    ],
)
@pytest.mark.parametrize("rank_by", ["main", "sum"])
def test_a_field_of_a_wrong_type_names_its_row(key: str, value: object, rank_by: str) -> None:
    sound = row(square(0, 0), 0.3, main_score=0.6, mask_score=0.5)
    with pytest.raises(
        WorkbenchError, match=rf"^Row 1 of the results \(image 10\) has the {key} .*, not an? \w+"
    ) as error:
        rank_results([sound, {**sound, key: value}], rank_by)
    assert len(str(error.value)) < 300


def test_a_row_that_is_no_object_is_named() -> None:
    with pytest.raises(WorkbenchError, match=r"^Row 1 of the results is \[1\], not an object"):
        rank_results([row(square(0, 0), 0.3), [1]], "main")
