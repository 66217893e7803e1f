"""Which evaluation a result is of, where it goes, and when it is current."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from workbench.data.coco import load_dataset
from workbench.data.fingerprint import data_fingerprint
from workbench.errors import WorkbenchError
from workbench.notebook.evaluation import open_evaluation
from workbench.notebook.gallery import open_gallery
from workbench.runs.directory import list_evaluations
from workbench.runs.evaluations import (
    Evaluated,
    evaluation_directory,
    find_evaluated,
    fingerprint,
    saved_metrics,
)
from workbench.runs.table import describe_run, runs_frame, runs_text
from workbench.workflows.evaluate import evaluate


def export(root: Path, place: Path, most: int = 6) -> Path:
    """Write the val split as a tool exports it: a file name that all exports share, the images beside it."""
    content = json.loads((root / "shapes" / "annotations" / "val.json").read_text())
    kept = {image["id"] for image in content["images"][:most]}
    content["images"] = content["images"][:most]
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in kept]
    shutil.copytree(root / "shapes" / "val", place / "images")
    file = place / "instances_default.json"
    file.write_text(json.dumps(content))
    return file


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path) -> Path:
    # Notebooks that were tested before may have left evaluations of their own.
    return Path(shutil.copytree(tiny_run, tmp_path / "run", ignore=shutil.ignore_patterns("evaluations")))


def test_a_moved_dataset_has_the_same_fingerprint_and_a_corrected_one_another(
    shapes_root: Path, tmp_path: Path
) -> None:
    prints = []
    for place in ("a", "b"):
        prints.append(data_fingerprint(load_dataset(export(shapes_root, tmp_path / place))))
    assert prints[0] == prints[1]
    file = tmp_path / "b" / "instances_default.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["attributes"]["colour"] = "red"
    file.write_text(json.dumps(content))
    assert data_fingerprint(load_dataset(file))["annotations"] != prints[0]["annotations"]
    picture = next((tmp_path / "a" / "images").glob("*.png"))
    picture.write_bytes(picture.read_bytes() + b"\0")
    again = data_fingerprint(load_dataset(tmp_path / "a" / "instances_default.json"))
    assert again["annotations"] == prints[0]["annotations"] and again["pictures"] != prints[0]["pictures"]


def test_datasets_of_one_file_name_keep_their_results_apart(run: Path, shapes_root: Path, tmp_path: Path) -> None:
    first, second = (export(shapes_root, tmp_path / name, most) for name, most in (("a", 6), ("b", 2)))
    for file, images in ((first, 6), (second, 2), (first, 6)):
        opened = open_evaluation(run, dataset=file, again=False)
        assert opened.metrics["images"] == len(opened.data) == images
        assert {row["image_id"] for row in opened.results} <= {item["image_id"] for item in opened.data.dicts}
        assert "predictions.json" in open_gallery(run, file).note
    assert len(list_evaluations(run)) == 2


def test_the_same_folder_with_other_labels_or_weights_is_evaluated_again(
    run: Path, shapes_root: Path, tmp_path: Path
) -> None:
    file, output = export(shapes_root, tmp_path / "data"), tmp_path / "out"
    before = open_evaluation(run, dataset=file, output=output)
    assert open_evaluation(run, dataset=file, output=output, again=False).metrics == before.metrics
    content = json.loads(file.read_text())
    content["annotations"].pop()
    file.write_text(json.dumps(content))
    after = open_evaluation(run, dataset=file, output=output, again=False)
    assert after.metrics["instances"] == before.metrics["instances"] - 1
    current = {**after.metrics["evaluation"]["fingerprint"]}
    assert saved_metrics(output, current) and not saved_metrics(output, {**current, "weights": "0-1"})
    (output / "predictions.json").write_text("[]")
    assert saved_metrics(output, current) is None


def test_only_the_best_under_its_own_config_writes_into_the_run(run: Path) -> None:
    before = {name: (run / name).read_bytes() for name in ("metrics.json", "predictions.json")}
    last, keys = run / "checkpoints" / "last", ["TEST.RANK_BY", "sum"]
    evaluate(run, overrides=keys)
    evaluate(last)
    evaluate(run, dataset="shapes_test")
    assert {name: (run / name).read_bytes() for name in before} == before
    names = [folder.name for folder, _ in list_evaluations(run)]
    assert len(names) == 3 and {"shapes_val_last", "shapes_test"} < set(names)
    assert evaluation_directory(Evaluated(run / "checkpoints" / "best")) == run
    assert evaluation_directory(Evaluated(run / "checkpoints" / "best", None, ["MODEL.DEVICE", "auto"])) == run
    for output in (run, run / "checkpoints" / ".."):
        with pytest.raises(WorkbenchError, match="is a run, whose own scores"):
            evaluate(last, output=output)

    shown = describe_run(run)
    for words in ("shapes_val, checkpoint best, TEST.RANK_BY sum", "shapes_val, checkpoint last", "shapes_test, "):
        assert words in shown
    frame = runs_frame([run], evaluations=True)
    assert len(frame) == 4 and frame.evaluation.notna().sum() == 3 and len(runs_frame([run])) == 1


def test_an_evaluation_is_named_by_its_folder(run: Path, tmp_path: Path) -> None:
    keys = ["TEST.RANK_BY", "sum", "TEST.MAX_DETS", "[1, 5]"]
    evaluate(run / "checkpoints" / "last", dataset="shapes_test", overrides=keys)
    run = run.rename(tmp_path / "moved")
    ((folder, metrics),) = list_evaluations(run)
    evaluated, place = find_evaluated(folder)
    assert (evaluated.checkpoint, evaluated.dataset, place) == (run / "checkpoints" / "last", "shapes_test", folder)
    assert (evaluated.config.TEST.RANK_BY, list(evaluated.config.TEST.MAX_DETS)) == ("sum", [1, 5])
    opened = open_evaluation(folder, again=False)
    assert opened.metrics == metrics and opened.directory == folder
    assert str(folder) in open_gallery(folder).note
    assert "AR@5" in describe_run(folder)
    other = open_evaluation(folder, dataset="shapes_val", again=False)
    assert other.metrics["rank_by"] == "sum" and other.directory.parent == folder.parent != other.directory


def test_a_garbled_record_is_one_sentence(run: Path) -> None:
    folder = run / "evaluations" / "x"
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text('{"evaluation": {"changed": 3}}')
    with pytest.raises(WorkbenchError, match="metrics.json: the key evaluation.dataset is missing"):
        find_evaluated(folder)
    metrics = json.loads((run / "metrics.json").read_text())
    (folder / "metrics.json").write_text(json.dumps({**metrics, "evaluation": {**metrics["evaluation"], "changed": 3}}))
    with pytest.raises(WorkbenchError, match="metrics.json: evaluation.changed is 3; it must be keys and values"):
        find_evaluated(folder)
    (folder / "metrics.json").write_text("[")
    with pytest.raises(WorkbenchError, match="metrics.json is not valid JSON"):
        find_evaluated(folder)
    assert saved_metrics(folder, fingerprint(run / "checkpoints" / "best", Evaluated(run).config, {})) is None


def test_a_column_of_a_table_of_runs_has_one_precision() -> None:
    frame = pd.DataFrame({"run": ["a", "b", "c"], "lr": [0.002, 0.00025, 0.1], "AP": [71.06, 9.12345, float("nan")]})
    assert [line.split() for line in runs_text(frame).splitlines()[1:]] == [
        ["a", "0.002", "71.1"],
        ["b", "0.00025", "9.1"],
        ["c", "0.1", "-"],
    ]
