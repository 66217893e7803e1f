"""Reading a dataset file: other formats are named, numbers are shared."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from workbench import cli
from workbench.data.reading import collector_paused, read_coco_json
from workbench.errors import WorkbenchError

FOREIGN = {
    "LabelMe": {"version": "5", "shapes": [], "imagePath": "a.jpg"},
    "VIA": {"a.jpg1": {"filename": "a.jpg", "regions": []}},
    "Label Studio": [{"data": {"image": "a.jpg"}, "annotations": []}],
    "Supervisely": {"size": {"height": 1, "width": 1}, "objects": []},
    "CVAT XML": "<annotations><version>1.1</version></annotations>",
    "YOLO": "0 0.5 0.5 0.1 0.1",
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_file_of_another_format_is_named_with_the_command_that_reads_it(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / "labels.json"
    path.write_text(FOREIGN[name] if isinstance(FOREIGN[name], str) else json.dumps(FOREIGN[name]))
    with pytest.raises(WorkbenchError) as caught:
        read_coco_json(path)
    assert f"is a {name} file" in str(caught.value) and f"workbench import {path} OUT" in str(caught.value)
    for command in (["validate", str(path)], ["eval", "--predictions", str(path), "--annotations", str(path)]):
        assert cli.main(command) == 2
        assert f"is a {name} file" in capsys.readouterr().err


def test_predictions_are_told_from_annotations(tmp_path: Path) -> None:
    path = tmp_path / "predictions.json"
    path.write_text('[{"image_id": 1, "category_id": 1, "score": 0.5}]')
    with pytest.raises(WorkbenchError, match="COCO results file.*--predictions"):
        read_coco_json(path)


def test_equal_numbers_are_one_object(tmp_path: Path, content: Callable[..., dict]) -> None:
    path = tmp_path / "labels.json"
    values = content(more=[1.25, 1.25, 1e3, -0.0, 1e999])
    path.write_text(json.dumps(values))
    read = read_coco_json(path)
    assert read == values
    assert read["more"][0] is read["more"][1]


def test_the_collector_is_as_before() -> None:
    assert gc.isenabled()
    with pytest.raises(ValueError, match="inside"), collector_paused():
        assert not gc.isenabled()
        raise ValueError("inside")
    assert gc.isenabled()
