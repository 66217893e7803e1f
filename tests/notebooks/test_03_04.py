"""03_train and 04_eval under papermill, on a tiny run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from papermill.exceptions import PapermillExecutionError

from tests.notebooks.running import pictures, run, text


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
    assert (output / "checkpoints" / "best" / "model.safetensors").exists()

    before = (output / "metrics.csv").read_bytes(), (output / "checkpoints" / "best").stat().st_mtime_ns
    again = run("03_train", tmp_path / "03.ipynb", **parameters)
    assert before == (
        (output / "metrics.csv").read_bytes(),
        (output / "checkpoints" / "best").stat().st_mtime_ns,
    )
    assert pictures(again) == 4

    with pytest.raises(PapermillExecutionError, match="holds a run already") as failure:
        run("03_train", tmp_path / "03.ipynb", **parameters, resume=False)
    assert "Traceback" not in failure.value.traceback[0]


def test_04_shows_and_keeps_figures_and_tables(tiny_run: Path, tmp_path: Path) -> None:
    output = tmp_path / "evaluation"
    executed = run(
        "04_eval", tmp_path / "04.ipynb", ckpt=tiny_run / "checkpoints" / "best", output=output, images=2,
        score_threshold=0.0,
    )  # fmt: skip
    for name in ("precision_recall_50", "ap_by_category", "ap_by_size", "confusion_colour", "confusion_texture",
                 "worst", "best", "ranking", "calibration"):  # fmt: skip
        assert (output / "figures" / f"{name}.png").stat().st_size > 3000, name
    for name in ("overall", "categories", "subcategories", "images", "ranking", "calibration"):
        assert (output / "figures" / f"{name}.csv").exists(), name
    assert pictures(executed) == 10
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["images"] == 6
    assert f"On 6 images with {metrics['instances']} objects" in text(executed)


def test_04_with_one_image_and_nothing_predicted(tiny_run: Path, shapes_root: Path, tmp_path: Path) -> None:
    content = json.loads((shapes_root / "shapes" / "annotations" / "val.json").read_text())
    image = content["images"][0]
    content["images"] = [image]
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] == image["id"]]
    file = _write(tmp_path, content, shapes_root)
    run(
        "04_eval",
        tmp_path / "04.ipynb",
        ckpt=tiny_run,
        dataset=file,
        output=tmp_path / "out",
        score_threshold=1.1,
    )


def test_04_without_ground_truth(tiny_run: Path, shapes_root: Path, tmp_path: Path) -> None:
    content = json.loads((shapes_root / "shapes" / "annotations" / "val.json").read_text())
    file = _write(tmp_path, {**content, "annotations": []}, shapes_root)
    executed = run("04_eval", tmp_path / "04.ipynb", ckpt=tiny_run, dataset=file, output=tmp_path / "out")
    assert "hold no object, so there is nothing to measure" in text(executed)


def _write(folder: Path, content: dict, shapes_root: Path) -> Path:
    shutil.copytree(shapes_root / "shapes" / "val", folder / "images")
    file = folder / "annotations.json"
    file.write_text(json.dumps(content))
    return file


def test_04_keeps_a_runs_own_scores_when_asked_about_other_data(
    tiny_run: Path, shapes_root: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(tiny_run, tmp_path / "run")
    before = (copy / "metrics.json").read_bytes()
    run("04_eval", tmp_path / "04.ipynb", ckpt=copy / "checkpoints" / "best", dataset="shapes_test", images=1)
    assert (copy / "metrics.json").read_bytes() == before
    assert (
        json.loads((copy / "evaluations" / "shapes_test" / "metrics.json").read_text())["dataset"]
        == "shapes_test"
    )


def test_04_says_in_a_sentence_that_there_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(PapermillExecutionError) as failure:
        run("04_eval", tmp_path / "04.ipynb", ckpt=tmp_path / "nothing")
    assert len(failure.value.traceback) == 1
    assert failure.value.traceback[0].startswith("WorkbenchError: ")
    assert str(tmp_path / "nothing") in failure.value.traceback[0]
