"""Filters: what each rule drops, in which order, and settings that survive a file."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from workbench import cli
from workbench.errors import WorkbenchError
from workbench.evaluation.filters import Candidates, FilterSettings, SubcategoryFilter, apply_filters
from workbench.models.postprocess import instance_inference

spec = importlib.util.spec_from_file_location("candidates", Path(__file__).with_name("candidates.py"))
made = importlib.util.module_from_spec(spec)
spec.loader.exec_module(made)
VOCABULARY, row, subcategories = made.VOCABULARY, made.row, made.subcategories

ALL = FilterSettings(score=0.0)


def colour(**settings) -> FilterSettings:
    return replace(ALL, subcategories={"colour": SubcategoryFilter(**settings)})


UNSURE = subcategories(colour=(0.2, 0.5, 0.3), texture=(0.9, 0.05, 0.05))
COLOURLESS = subcategories(colour=(0.3, 0.1, 0.6), texture=(0.9, 0.05, 0.05))


@pytest.mark.parametrize(
    ("settings", "dropped", "rule", "why"),
    [
        (FilterSettings(score=0.5), row(40, 40, 0.49), "score", "score 0.490 < 0.5"),
        (replace(ALL, main_score=0.6), row(40, 40, 0.9, main_score=0.5), "main score", "main score 0.500 < 0.6"),
        (replace(ALL, categories=("disc",)), row(40, 40, 0.9, category="box"), "category", "box is not shown"),
        (colour(drop_no_object=True), row(40, 40, 0.9, **COLOURLESS), "colour no-object", "no colour"),
        (colour(threshold=0.6), row(40, 40, 0.9, **UNSURE), "colour probability", "colour probability 0.500 < 0.6"),
        # what is measured is the likeliest class, not no-object
        (colour(threshold=0.4), row(40, 40, 0.9, **COLOURLESS), "colour probability", "colour probability 0.300 < 0.4"),
        (colour(threshold=6, measure="logit"), row(40, 40, 0.9, **UNSURE), "colour logit", "colour logit 5.000 < 6"),
        (replace(ALL, min_area=26), row(40, 40, 0.9, side=5), "area", "25 pixels < 26"),
        (replace(ALL, nms="within"), row(5, 5, 0.9), "overlap", "IoU 1.00 with row 0, which scores 0.950"),
    ],
)
def test_each_rule_drops_what_it_is_for_and_says_why(settings, dropped, rule, why):
    filtered = apply_filters([row(5, 5, 0.95), dropped], settings, VOCABULARY)
    assert filtered.kept == [0]
    assert filtered.dropped == {1: rule}
    assert filtered.why(1) == why and filtered.why(0) == ""
    assert filtered.counts == {name: int(name == rule) for name in filtered.rules}
    assert filtered.asks(rule) != "-"


def test_what_lies_on_a_threshold_is_kept():
    settings = FilterSettings(score=0.5, main_score=0.5, min_area=100, subcategories={"colour": SubcategoryFilter(0.9)})
    assert apply_filters([row(5, 5, 0.5)], settings, VOCABULARY).kept == [0]


def test_overlaps_within_a_category_and_across():
    rows = [row(5, 5, 0.9), row(5, 5, 0.8, category="box"), row(7, 5, 0.7), row(40, 40, 0.6)]  # IoU 80 / 120
    for nms, iou, kept in (
        ("off", 0.5, [0, 1, 2, 3]),
        ("within", 0.5, [0, 1, 3]),
        ("across", 0.5, [0, 3]),
        ("across", 0.67, [0, 2, 3]),
        ("across", 80 / 120, [0, 3]),
        ("across", 0.0, [0, 3]),  # touching nothing is no overlap
    ):
        settings = replace(ALL, nms=nms, nms_iou=iou)
        assert apply_filters(rows, settings, VOCABULARY).kept == kept, (nms, iou)


def test_what_is_suppressed_suppresses_nothing_and_neither_does_what_is_not_drawn():
    chain = [row(5, 5, 0.9), row(8, 5, 0.8), row(11, 5, 0.7)]  # each overlaps the next by 70 / 130
    assert apply_filters(chain, replace(ALL, nms="within", nms_iou=0.5), VOCABULARY).kept == [0, 2]
    hidden = [row(5, 5, 0.9, **COLOURLESS), row(5, 5, 0.8)]
    settings = replace(colour(drop_no_object=True), nms="within")
    assert apply_filters(hidden, settings, VOCABULARY).kept == [1]


def test_overlaps_are_of_one_image():
    rows = [row(5, 5, 0.9), row(5, 5, 0.8, image_id=2)]
    assert apply_filters(rows, replace(ALL, nms="across"), VOCABULARY).kept == [0, 1]


def test_kept_are_listed_best_first_and_rows_as_given():
    rows = [row(5, 5, 0.6), row(20, 5, 0.9), row(40, 5, 0.6), row(40, 40, 0.1)]
    filtered = apply_filters(rows, FilterSettings(), VOCABULARY)
    assert filtered.kept == [1, 0, 2]
    assert filtered.rows == rows[:3]


@given(st.integers(0, 2**32 - 1))
def test_every_row_is_kept_or_dropped_once_by_the_first_rule_that_applies(seed):
    rng = np.random.default_rng(seed)
    rows = [
        row(
            *rng.integers(0, 50, 2).tolist(),
            round(float(rng.random()), 2),
            side=int(rng.integers(2, 14)),
            category=("disc", "box")[rng.integers(2)],
            image_id=int(rng.integers(2)),
            **subcategories(colour=tuple(rng.dirichlet([1] * 3)), texture=tuple(rng.dirichlet([1] * 3))),
        )
        for _ in range(12)
    ]
    settings = FilterSettings(
        score=0.3,
        categories=("disc",),
        min_area=20,
        nms="across",
        nms_iou=0.1,
        subcategories={"texture": SubcategoryFilter(0.5), "colour": SubcategoryFilter(drop_no_object=True)},
    )
    candidates = Candidates(rows, VOCABULARY)
    filtered = apply_filters(candidates, settings, VOCABULARY)
    assert sorted([*filtered.kept, *filtered.dropped]) == list(range(12))
    assert sum(filtered.counts.values()) == len(filtered.dropped)
    # rules one at a time, each on what the ones before it left, come to the same
    alone = {
        "score": replace(ALL, score=0.3),
        "category": replace(ALL, categories=("disc",)),
        "colour no-object": colour(drop_no_object=True),
        "texture probability": replace(ALL, subcategories={"texture": SubcategoryFilter(0.5)}),
        "area": replace(ALL, min_area=20),
        "overlap": replace(ALL, nms="across", nms_iou=0.1),
    }
    assert [rule for rule in filtered.rules if rule in alone] == list(alone)
    left = list(range(12))
    for rule, setting in alone.items():
        now = apply_filters([rows[i] for i in left], setting, VOCABULARY)
        assert {left[i] for i in now.dropped} == {i for i, why in filtered.dropped.items() if why == rule}
        left = [left[i] for i in sorted(now.kept)]
    # what was computed for other settings does no harm
    apply_filters(candidates, replace(settings, nms_iou=0.9, score=0.0), VOCABULARY)
    assert (apply_filters(candidates, settings, VOCABULARY).rule == filtered.rule).all()


def test_a_models_predictions_are_filtered_like_their_rows():
    draw = torch.Generator().manual_seed(0)
    predictions = instance_inference(
        torch.randn(6, 3, generator=draw),
        torch.randn(6, 8, 8, generator=draw),
        {"colour": torch.randn(6, 3, generator=draw), "texture": torch.randn(6, 3, generator=draw)},
        padded_size=(32, 32),
        image_size=(32, 32),
        output_size=(64, 64),
        top_k=9,
    )
    logits = predictions["subcategory_logits"]["colour"][:, :2].amax(1)
    limit = float(logits.median())
    filtered = apply_filters(predictions, colour(threshold=limit, measure="logit"), VOCABULARY)
    assert sorted(filtered.kept) == [i for i in range(9) if logits[i] >= limit - 1e-6]
    assert 0 < len(filtered.kept) < 9


def test_nothing_to_filter_is_fine():
    settings = FilterSettings(min_area=5, nms="across", subcategories={"colour": SubcategoryFilter(0.5)})
    filtered = apply_filters([], settings, VOCABULARY)
    assert filtered.kept == [] and set(filtered.counts.values()) == {0}
    assert filtered.table().empty


def test_the_table_tells_each_rows_fate():
    rows = [row(5, 5, 0.9), row(20, 5, 0.2, **COLOURLESS), row(5, 5, 0.8, image_id=2)]
    table = apply_filters(rows, FilterSettings(), VOCABULARY).table()
    assert table.row.tolist() == [0, 1, 2] and table.kept.tolist() == [True, False, True]
    assert table.loc[1, ["dropped by", "why"]].tolist() == ["score", "score 0.200 < 0.5"]
    assert table.colour.tolist() == ["red", "-", "red"]


def test_another_tools_rows_need_only_what_the_rules_in_use_read():
    plain = {key: row(5, 5, 0.9)[key] for key in ("image_id", "category_id", "segmentation", "score")}
    assert apply_filters([plain], replace(FilterSettings(), nms="across", min_area=1), VOCABULARY).kept == [0]
    assert apply_filters([plain], colour(drop_no_object=True), VOCABULARY).kept == []
    with pytest.raises(WorkbenchError, match=r"Row 0 .*image 1.* no attribute_scores for colour"):
        apply_filters([plain], colour(threshold=0.5), VOCABULARY)
    with pytest.raises(WorkbenchError, match="filter by probability instead"):
        apply_filters([plain], colour(threshold=0.5, measure="logit"), VOCABULARY)
    with pytest.raises(WorkbenchError, match=r"Row 0 .*no mask"):
        damaged = {**plain, "segmentation": {"size": [4, 4], "counts": "5"}}
        apply_filters([damaged], replace(ALL, min_area=1), VOCABULARY)
    with pytest.raises(WorkbenchError, match="category_id 99"):
        apply_filters([{**plain, "category_id": 99}], ALL, VOCABULARY)


FULL = FilterSettings(
    0.25,
    0.1,
    ("box",),
    {"colour": SubcategoryFilter(-1.5, "logit", True), "texture": SubcategoryFilter()},
    12.0,
    "across",
    0.4,
)


@pytest.mark.parametrize("settings", [FilterSettings(), FULL, replace(FULL, categories=())])
def test_settings_survive_a_file(settings, tmp_path):
    path = settings.save(tmp_path / "deep" / "settings.json")
    assert FilterSettings.load(path) == settings
    assert FilterSettings.choose(path, score=0.9) == settings
    assert [file.name for file in path.parent.iterdir()] == ["settings.json"]


def test_what_is_left_out_has_its_default_and_a_number_is_a_probability():
    assert FilterSettings.from_dict({}) == FilterSettings()
    assert FilterSettings.choose("", score=0.1, subcategories={"colour": 0.6}) == FilterSettings(
        0.1, subcategories={"colour": SubcategoryFilter(0.6)}
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"scor": 0.5}', r"unknown key 'scor' \(did you mean 'score'\?\)"),
        (
            '{"subcategories": {"colour": {"treshold": 1}}}',
            r"'treshold' in subcategories.colour \(did you mean 'threshold'\?\)",
        ),
        ('{"score": "0.5"}', "score is '0.5'; it must be a finite number"),
        ('{"score": 1.5}', "at most 1"),
        ('{"score": NaN}', "score is nan; it must be a finite number"),
        ('{"score": true, "min_area": []}', "a finite number .the first of 2 faults"),
        ('{"min_area": -1}', "at least 0"),
        ('{"nms": "on"}', "'off', 'within' or 'across'"),
        ('{"categories": "disc"}', "categories is 'disc'; it must be a list"),
        ('{"subcategories": ["colour"]}', "must be keys and values"),
        ('{"subcategories": {"colour": {"threshold": 3}}}', "a probability between 0 and 1"),
        ('{"subcategories": {"colour": {"measure": "odds"}}}', "'probability' or 'logit'"),
        ('{"subcategories": {"colour": {"drop_no_object": 1}}}', "must be true or false"),
        ("[]", "the content is .*; it must be keys and values"),
        ("{", "not valid JSON"),
    ],
)
def test_settings_that_are_wrong_are_named(text, message, tmp_path):
    path = tmp_path / "settings.json"
    path.write_text(text)
    with pytest.raises(WorkbenchError, match=message) as caught:
        FilterSettings.load(path)
    assert str(path) in str(caught.value)


def test_missing_settings_are_named(tmp_path):
    with pytest.raises(WorkbenchError, match=r"nowhere\.json cannot be read: No such file"):
        FilterSettings.load(tmp_path / "nowhere.json")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (FilterSettings(categories=("disk",)), r"category 'disk', which is unknown \(did you mean 'disc'?\)"),
        (FilterSettings(subcategories={"color": SubcategoryFilter()}), "did you mean 'colour'?"),
        (FilterSettings(subcategories={"weight": SubcategoryFilter()}), "there are colour, texture"),
    ],
)
def test_names_the_vocabulary_lacks_are_named(settings, message):
    with pytest.raises(WorkbenchError, match=message.replace("?", r"\?")):
        apply_filters([], settings, VOCABULARY)


def test_predict_keeps_what_saved_filters_keep(tiny_run: Path, shapes_root: Path, tmp_path: Path, capsys):
    image = sorted((shapes_root / "shapes" / "val").iterdir())[0]
    common = ["predict", "--ckpt", str(tiny_run), "--device", "cpu"]

    def predicted(name: str, *options: str) -> list[dict]:
        assert cli.main([*common, "--output", str(tmp_path / name), *options, str(image)]) == 0
        return json.loads((tmp_path / name / "predictions.json").read_text())["annotations"]

    everything = predicted("all", "--score-threshold", "0")
    settings = FilterSettings(score=0.0, min_area=sorted(each["area"] for each in everything)[3])
    path = settings.save(tmp_path / "settings.json")
    kept = predicted("kept", "--filters", str(path))
    assert [each["query"] for each in kept] == [
        each["query"] for each in everything if each["area"] >= settings.min_area
    ]
    assert 0 < len(kept) < len(everything)
    assert predicted("none", "--filters", str(path), "--score-threshold", "1") == []
    path.write_text('{"scores": 0.5}')
    capsys.readouterr()
    assert cli.main([*common, "--output", str(tmp_path / "x"), "--filters", str(path), str(image)]) == 2
    assert "did you mean 'score'?" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
