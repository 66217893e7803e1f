"""08_baselines: models side by side, and what is said of them."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from tests.notebooks.running import pictures, run, text
from tests.workflows.test_baselines import MODELS
from workbench.errors import WorkbenchError
from workbench.notebook import baseline_runs, baseline_summary, first_seeds, open_evaluations, seed_table


def test_08_compares_a_run_with_one_that_it_trains(tiny_config: Path, tiny_run: Path, tmp_path: Path) -> None:
    keys = {"MODEL.META_ARCHITECTURE": "GeneralizedRCNN", "OUTPUT_DIR": str(tmp_path / "boxes")}
    overrides = [part for pair in (keys | MODELS["GeneralizedRCNN"]).items() for part in pair]
    trained = baseline_runs([tiny_config], overrides=overrides)
    assert trained == [tmp_path / "boxes"]
    executed = run("08_baselines", tmp_path / "08.ipynb", runs=[tiny_run, *trained], output=tmp_path / "out", images=2)
    assert pictures(executed) == 1
    figures = tmp_path / "out" / "figures"
    table = pd.read_csv(figures / "models.csv", index_col="run")
    assert table.model.tolist() == ["MaskFormer", "GeneralizedRCNN"]
    metrics = [json.loads((each / "metrics.json").read_text()) for each in (tiny_run, *trained)]
    assert table.AP.tolist() == pytest.approx([each["segm"]["AP"] for each in metrics])
    assert (table[["M parameters", "GFLOPs", "seconds a step", "GB a step", "ms an image"]] > 0).all(axis=None)
    assert {"errors.csv", "differences.csv", "same_images.png"} <= {path.name for path in figures.iterdir()}
    assert "boxes loses most AP50 to" in text(executed)


def test_seeds_of_one_model_are_one_model(tiny_run: Path, tiny_config: Path, tmp_path: Path) -> None:
    keys = ["SEED", "11", "OUTPUT_DIR", str(tmp_path / "seed")]
    evaluations = open_evaluations([tiny_run, *baseline_runs([tiny_config], overrides=keys)], output=tmp_path)
    models = pd.DataFrame({"model": ["m", "m"], "AP": [4.0, 2.0]}, index=[each.label for each in evaluations])
    seeds = seed_table(evaluations, models)
    assert seeds.to_dict("index") == {evaluations[0].label: {"seeds": 2, "AP lowest": 2, "AP highest": 4, "AP": 3}}
    assert first_seeds(evaluations) == evaluations[:1]
    assert len(seed_table(evaluations[:1], models)) == 0


def test_nothing_to_compare_is_one_sentence() -> None:
    with pytest.raises(WorkbenchError, match="no model to compare"):
        baseline_runs([])


def test_the_words_follow_from_the_numbers() -> None:
    table = pd.DataFrame(
        {
            "AP": [50.0, 40.0],
            "ms an image": [30.0, 20.0],
            "seconds a step": [0.2, 0.3],
            "M parameters": [1.0, 2.0],
            "colour accuracy": [90.0, 95.0],
        },
        index=["a", "b"],
    )
    errors = pd.DataFrame({"a": [3.0, 1.0], "b": [2.0, 9.0]}, index=["missed", "background"])
    pair = {"one": "a", "other": "b", "difference": -10.0, "low": -12.0, "high": -8.0}
    said = baseline_summary(table, pd.DataFrame([pair]), errors)
    for sentence in (
        "a has the highest AP, 50.0.",
        "a is better than b by 10.0 AP (8.0 to 12.0).",
        "b is the fastest in use, 20 ms an image.",
        "b has the highest colour accuracy, 95.0.",
        "a loses most AP50 to missed: 3.0. b loses most AP50 to background: 9.0.",
    ):
        assert sentence in said
    unsure = baseline_summary(table, pd.DataFrame([pair | {"high": 1.0}]), errors)
    assert "a and b cannot be told apart on these images: the difference lies between -12.0 and 1.0." in unsure
