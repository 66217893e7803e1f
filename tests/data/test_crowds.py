"""Brush masks that CVAT writes as crowds: recognised, told with the remedy, and taken as objects when asked."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable

import pytest

from workbench import cli
from workbench.config import get_cfg
from workbench.data.coco import load_data, load_dataset
from workbench.data.crowds import brush_masks
from workbench.errors import WorkbenchError
from workbench.workflows.score import evaluate_file

MASK = {"size": [16, 20], "counts": [100, 50, 170]}


@pytest.fixture
def brush(annotation: Callable[..., dict]) -> Callable[..., dict]:
    """An annotation as CVAT writes a brush mask."""

    def make(number: int, **changes: object) -> dict:
        values = {"segmentation": MASK, "iscrowd": 1, "attributes": {"occluded": False}, **changes}
        return annotation(number, **values)

    return make


def test_crowds_of_cvat_are_told_with_the_remedy(
    write: Callable, content: Callable, brush: Callable, capsys: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(content(annotations=[brush(1), brush(2), brush(3, category_id=3)]))
    assert cli.main(["validate", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "2 images, 0 objects, 3 crowds" in printed and "apple 0 and 2 crowds" in printed
    assert "2 of 2 apple, 1 of 1 pear" in printed and "--crowds-are-objects" in printed
    with caplog.at_level(logging.WARNING, logger="workbench"):
        assert load_dataset(path).counted() == "2 images, 0 objects, 3 crowds"
    assert "DATASETS.CROWDS_ARE_OBJECTS" in caplog.text


def test_a_training_without_objects_is_refused(write: Callable, content: Callable, brush: Callable) -> None:
    path, cfg = write(content(annotations=[brush(1), brush(2)])), get_cfg()
    with pytest.raises(WorkbenchError, match=r"no object to train on .*2 crowds.*CROWDS_ARE_OBJECTS True"):
        load_data(cfg, [path], None, for_training=True)
    cfg.DATASETS.CROWDS_ARE_OBJECTS = True
    assert load_data(cfg, [path], None, for_training=True).counted() == "1 image, 2 objects"


def test_a_training_without_objects_is_refused_after_skipping(
    write: Callable, content: Callable, brush: Callable, annotation: Callable
) -> None:
    cfg = get_cfg()
    cfg.DATASETS.SKIP_FAULTS = True
    path = write(content(annotations=[brush(1), annotation(2, category_id=99)]))
    with pytest.raises(WorkbenchError, match=r"no object to train on .*1 crowd.*1 annotation or image left out"):
        load_data(cfg, [path], None, for_training=True)


def test_crowds_as_objects_are_counted_and_written(
    write: Callable, content: Callable, brush: Callable, annotation: Callable, capsys: pytest.CaptureFixture
) -> None:
    path = write(content(annotations=[brush(1), annotation(2)]))
    mended = path.parent / "mended.json"
    assert cli.main(["validate", str(path), "--crowds-are-objects", "--fix", str(mended)]) == 0
    printed = capsys.readouterr().out
    assert (
        "1 mended fault: 1 crowd" in printed and "2 images, 2 objects\n" in printed and "caution: masks" not in printed
    )
    assert [a["iscrowd"] for a in json.loads(mended.read_text())["annotations"]] == [0, 0]


def test_scoring_a_file_takes_crowds_as_objects_too(write: Callable, content: Callable, brush: Callable) -> None:
    path = write(content(annotations=[brush(1)]))
    results = path.parent / "results.json"
    results.write_text("[]")
    assert evaluate_file(results, path)["instances"] == 0
    assert evaluate_file(results, path, overrides=["DATASETS.CROWDS_ARE_OBJECTS", "True"])["instances"] == 1


def test_the_crowds_of_coco_are_left_alone(content: Callable, annotation: Callable) -> None:
    few = [annotation(n) for n in range(1, 9)] + [annotation(9, segmentation=MASK, iscrowd=1)]
    assert brush_masks(content(annotations=few)) == []
    few[-1]["attributes"] = {"occluded": False}  # one brush mask among polygons, from CVAT
    assert "1 of 9 apple" in brush_masks(content(annotations=few))[0]
    most = [annotation(1), *(annotation(n, segmentation=MASK, iscrowd=1) for n in (2, 3))]
    assert "2 of 3 apple" in brush_masks(content(annotations=most))[0]
