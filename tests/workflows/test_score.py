"""Scoring a results file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.evaluation.scenes import VOCABULARY, random_case
from workbench.data.faults import DatasetError
from workbench.workflows.score import evaluate_file


def test_scoring_a_file_imports_neither_torch_nor_pandas(tmp_path: Path) -> None:
    """Each takes longer to import than tens of thousands of masks to score."""
    truth, results = random_case(4)
    truth["subcategories"] = [{"name": name, "classes": list(c)} for name, c in VOCABULARY.subcategories.items()]
    files = [tmp_path / "annotations.json", tmp_path / "predictions.json"]
    for file, content in zip(files, (truth, results), strict=True):
        file.write_text(json.dumps(content))
    command = ["eval", "--annotations", str(files[0]), "--predictions", str(files[1])]
    code = (
        f"import sys; from workbench import cli; cli.main({command}); print(*{{'torch', 'pandas'}} & {{*sys.modules}})"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "joint" in printed
    assert printed.splitlines()[-1] == ""


SQUARE = [[2, 2, 12, 2, 12, 12, 2, 12]]


def _score(
    folder: Path, *annotations: dict, result: dict | None = None, overrides: tuple = (), **content: object
) -> dict:
    """Score one prediction of the square against annotations that differ from it as said."""
    whole = {"image_id": 1, "category_id": 1, "segmentation": SQUARE, "bbox": [2, 2, 10, 10], "area": 100, "iscrowd": 0}
    truth = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": 20, "width": 30}],
        "categories": [{"id": 1, "name": "apple", "supercategory": "fruit"}],
        "annotations": [{"id": n, **whole, **changes} for n, changes in enumerate(annotations, 1)],
    }
    files = [folder / "annotations.json", folder / "results.json"]
    row = result or {"image_id": 1, "category_id": 1, "segmentation": SQUARE, "score": 0.9}
    for file, written in zip(files, (truth | content, [row]), strict=True):
        file.write_text(json.dumps(written))
    return evaluate_file(files[1], files[0], overrides=overrides)


def test_annotations_are_mended_as_for_training(tmp_path: Path) -> None:
    beyond = [[2, 2, 12, 2, 12, 12, 2, 12], [-40, 2, -20, 2, -20, 9]]
    metrics = _score(tmp_path, {"bbox": ["2", "2", "10", "10"], "area": None, "segmentation": beyond})
    assert metrics["segm"]["AP"] == pytest.approx(100) == metrics["bbox"]["AP"]


def test_broken_annotations_are_named_as_for_training_and_left_out_when_asked(tmp_path: Path) -> None:
    broken = {"segmentation": [], "bbox": [0, 0, 5, 5]}
    with pytest.raises(DatasetError, match=r"image 1 \(a\.jpg\), annotation 2: .*draw polygons"):
        _score(tmp_path, {}, broken)
    metrics = _score(tmp_path, {}, broken, overrides=("DATASETS.SKIP_FAULTS", "True"))
    assert (metrics["instances"], metrics["segm"]["AP"]) == (1, pytest.approx(100))


def test_boxes_are_scored_against_boxes(tmp_path: Path) -> None:
    row = {"image_id": 1, "category_id": 1, "bbox": [2, 2, 10, 10], "score": 0.9}
    metrics = _score(tmp_path, {"segmentation": []}, result=row)
    assert metrics["segm"] is None and metrics["bbox"]["AP"] == pytest.approx(100)


def test_a_parent_category_that_is_predicted_stays(tmp_path: Path) -> None:
    """Roboflow's unused parent is a class to whoever trained elsewhere on all categories of the file."""
    categories = [{"id": 0, "name": "fruit"}, {"id": 1, "name": "apple", "supercategory": "fruit"}]
    row = {"image_id": 1, "category_id": 0, "segmentation": SQUARE, "score": 0.9}
    assert _score(tmp_path, {}, categories=categories)["per_category"].keys() == {"apple"}
    assert _score(tmp_path, {}, categories=categories, result=row)["segm"]["AP"] == 0
