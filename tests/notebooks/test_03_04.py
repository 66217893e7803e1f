"""03_train and 04_eval on a tiny run: under papermill once each, and with bad input in this process."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from tests.notebooks.running import pictures, run, run_here, text
from workbench.errors import WorkbenchError


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def test_03_trains_shows_and_does_not_train_again(tiny_config: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    parameters = {
        "config": tiny_config,
        "output": output,
        "overrides": ["SOLVER.MAX_ITER", "3"],
        "samples": 2,
    }
    executed = run("03_train", tmp_path / "03.ipynb", **parameters)
    assert pictures(executed) == 4  # classes, samples, schedule, curves
    for name in ("classes", "training_samples", "schedule", "learning_curves"):
        assert (output / "figures" / f"{name}.png").stat().st_size > 5000
    assert "learning rate 0.001 = BASE_LR 0.001" in text(executed)
    assert "The training started from random weights." in text(executed)
    assert pd.read_csv(output / "figures" / "training_and_validation.csv")["images"].tolist() == [16, 6]
    best = output / "checkpoints" / "best" / "model.safetensors"
    before = (output / "metrics.csv").read_bytes(), best.stat().st_mtime_ns

    assert "SOLVER.MAX_ITER" in run_here("03_train", **parameters)
    assert before == ((output / "metrics.csv").read_bytes(), best.stat().st_mtime_ns)
    with pytest.raises(WorkbenchError, match="holds a run already"):
        run_here("03_train", **parameters, resume=False)


def test_04_shows_and_keeps_figures_and_tables(tiny_run: Path, tmp_path: Path) -> None:
    output = tmp_path / "evaluation"
    executed = run(
        "04_eval",
        tmp_path / "04.ipynb",
        ckpt=tiny_run / "checkpoints" / "best",
        output=output,
        compare=tiny_run,
        images=2,
    )
    for name in (
        "precision_recall_50",
        "ap_by_category",
        "ap_by_size",
        "confusion_colour",
        "confusion_texture",
        "worst",
        "best",
        "ranking",
        "calibration",
    ):
        assert (output / "figures" / f"{name}.png").stat().st_size > 3000, name
    for name in ("overall", "categories", "errors", "subcategories", "images", "ranking", "calibration", "comparison"):
        assert (output / "figures" / f"{name}.csv").exists(), name
    assert pictures(executed) == 11
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["images"] == 6
    assert f"On 6 images with {metrics['instances']} objects" in text(executed)
    assert set(pd.read_csv(output / "figures" / "comparison.csv")["difference"]) == {0}  # it is the same checkpoint


def test_04_with_one_image_and_nothing_above_the_threshold(tiny_run: Path, shapes_root: Path, tmp_path: Path) -> None:
    content = _validation(shapes_root)
    image = next(i for i in content["images"] if any(a["image_id"] == i["id"] for a in content["annotations"]))
    content["images"] = [image]
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] == image["id"]]
    file = _write(tmp_path, content, shapes_root)
    said = run_here("04_eval", ckpt=tiny_run, dataset=file, output=tmp_path / "out", score_threshold=1.0)
    assert "On 1 image with" in said
    assert "No prediction contradicts the annotations." in said
    assert "No other run to compare with" in said
    assert (tmp_path / "out" / "figures" / "worst.png").exists()


def test_04_without_ground_truth(tiny_run: Path, shapes_root: Path, tmp_path: Path) -> None:
    file = _write(tmp_path, {**_validation(shapes_root), "annotations": []}, shapes_root)
    said = run_here("04_eval", ckpt=tiny_run, dataset=file, output=tmp_path / "out")
    assert "There is no object in 6 images, so there is nothing to measure" in said


def test_04_keeps_a_runs_own_scores_when_asked_about_other_data(tiny_run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_run, tmp_path / "run")
    run_here("04_eval", ckpt=copy, images=1)
    before = (copy / "metrics.json").read_bytes()
    run_here("04_eval", ckpt=copy / "checkpoints" / "best", dataset="shapes_test", images=1)
    assert (copy / "metrics.json").read_bytes() == before
    assert json.loads((copy / "evaluations" / "shapes_test" / "metrics.json").read_text())["dataset"] == "shapes_test"


def test_04_names_what_the_model_and_a_dataset_disagree_about(
    tiny_run: Path, shapes_root: Path, tmp_path: Path
) -> None:
    content = _validation(shapes_root)
    content["categories"][0]["name"] = "tomato"
    with pytest.raises(WorkbenchError, match="tomato"):
        run_here("04_eval", ckpt=tiny_run, dataset=_write(tmp_path, content, shapes_root))


def test_04_says_that_there_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(WorkbenchError, match="nothing"):
        run_here("04_eval", ckpt=tmp_path / "nothing")


def _validation(shapes_root: Path) -> dict:
    return json.loads((shapes_root / "shapes" / "annotations" / "val.json").read_text())


def _write(folder: Path, content: dict, shapes_root: Path) -> Path:
    shutil.copytree(shapes_root / "shapes" / "val", folder / "images")
    file = folder / "annotations.json"
    file.write_text(json.dumps(content))
    return file
