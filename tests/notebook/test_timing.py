"""How long a notebook says it will take, and samples where all images would take minutes."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from workbench.notebook import timing
from workbench.notebook.evaluation import open_evaluation
from workbench.notebook.timing import affordable, surgery_time, time_needed


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(timing, "image_seconds", lambda *_: 20.0)
    return Path(shutil.copytree(tiny_run, tmp_path / "run"))


@pytest.mark.parametrize(
    ("seconds", "images", "most", "count"),
    [(0.1, 300, None, 300), (0.1, 5000, None, 2000), (4.0, 5000, None, 50), (90.0, 5000, None, 5), (90.0, 3, None, 3)]
    + [(60.0, 5000, 700, 700), (0.1, 300, 700, 300)],
)
def test_all_images_or_as_many_as_five_minutes_allow(seconds: float, images: int, most: int, count: int) -> None:
    assert affordable(seconds, images, most) == count


def test_the_time_is_that_of_what_is_not_predicted_yet(run: Path) -> None:
    done = time_needed(run, dataset="shapes_val")
    assert done.startswith("About 10 s on this machine: all predictions are there already")
    said = time_needed(run, dataset="shapes_train", max_images=9, training=True)
    assert "9 images of shapes_train (a random sample of 16; all would take 5.3 minutes), 10 training images" in said
    assert said.startswith(f"About {(10 + 19 * 20) / 60:.1f} minutes")
    assert "6 pictures of the saturation experiment" in time_needed(run, "shapes_val", counts=[1, 2, 3], repeats=1)
    assert time_needed(run / "nothing").startswith("How long this will take is unknown: ")


def test_a_sample_is_evaluated_apart_from_the_runs_own_scores(run: Path) -> None:
    before = (run / "metrics.json").read_bytes()
    sample = open_evaluation(run, dataset="shapes_train", max_images=5)
    assert sample.directory == run / "evaluations" / "shapes_train_5_images"
    assert sample.metrics["images"] == len(sample.truth["images"]) == len(sample.data) == 5
    own = open_evaluation(run, output=run, max_images=5)
    assert own.directory == run / "evaluations" / "shapes_val_5_images"
    assert (run / "metrics.json").read_bytes() == before
    written = own.directory / "metrics.json"
    time = written.stat().st_mtime_ns
    (run / "metrics.json").unlink()  # else the whole evaluation is taken, which is better
    assert open_evaluation(run, max_images=5, again=False).metrics == own.metrics
    assert written.stat().st_mtime_ns == time


def test_the_queries_of_a_model_are_looked_at_once(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr("workbench.notebook.evaluation.collect_queries", lambda *_: calls.append(1) or object())
    evaluation = open_evaluation(run, again=False)
    assert evaluation.query_outputs(2) is evaluation.query_outputs(2) is not evaluation.query_outputs(3)
    assert len(calls) == 2


def test_the_time_of_the_surgery() -> None:
    assert re.fullmatch(r"About [\d.]+ (s|minutes) on this machine: a network takes [\d.]+ s\.", surgery_time(32))
