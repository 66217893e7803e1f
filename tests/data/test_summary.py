"""What validation sums up, and what it says to think about."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from workbench import cli
from workbench.config import get_cfg
from workbench.data.coco import load_dataset
from workbench.data.summary import cautions, shared_images
from workbench.data.validate import validate

ATTRIBUTES = [
    {"colour": "red", "ripe": True, "needs_fix": False, "weight": 3.5, "occluded": False, "note": None, "size": [1]},
    {"colour": "blue", "ripe": True, "needs_fix": True, "weight": 4, "occluded": True, "note": ""},
    {"colour": "blue", "occluded": False},
]


@pytest.fixture
def labels(write: Callable, content: Callable, annotation: Callable) -> Path:
    """Three objects and a crowd, with attributes of every role."""
    annotations = [annotation(n, attributes=values) for n, values in enumerate(ATTRIBUTES, 1)]
    annotations.append(annotation(4, image=2, category_id=3, iscrowd=1, attributes=None))
    return write(content(annotations=annotations))


def test_the_summary(labels: Path) -> None:
    (item,) = validate([labels])
    lines = item.text().splitlines()
    assert lines[0] == f"{labels}: No faults found."
    assert lines[1] == f"{labels}: 2 images, 3 objects, 1 crowd"
    assert [" ".join(line.split()) for line in lines[2:12]] == [
        "sizes all 20x16",
        "an image has 1.5 objects in the median, 3 at most (image 1, a.png); 1 image has none",
        "categories pear 0 and 1 crowd, apple 3",
        "attribute colour: a subcategory; blue 2, red 1",
        "attribute needs_fix: no subcategory, as it is a reminder of the annotators; false 1, true 1",
        "attribute note: no subcategory, as it has no value anywhere; no value",
        "attribute occluded: no subcategory, as annotation tools add it of their own accord; list it under "
        '"subcategories" if it is your own; false 2, true 1',
        "attribute ripe: no subcategory, as it has one value only; true 2",
        "attribute size: no subcategory, as it holds lists or objects; no value",
        "attribute weight: no subcategory, as it holds numbers; 2 numbers",
    ]
    assert list(load_dataset(labels).vocabulary.subcategories) == ["colour"]  # training reads the same
    queries, size = lines[12:14]
    assert "NUM_OBJECT_QUERIES 12 leaves room: an image holds 1.5 objects on average and 3 at most" in queries
    assert size == "  image size  INPUT.IMAGE_SIZE 128: nine of ten objects are then at least 51 pixels across"


def test_unlabelled_objects_are_counted(write: Callable, content: Callable, annotation: Callable) -> None:
    some = [annotation(1), annotation(2, attributes={"colour": "blue"}), annotation(3, attributes={})]
    text = validate([write(content(annotations=some))])[0].text()
    assert "colour: a subcategory; red 1, blue 1; unlabelled 1 (33.3%)" in text


def test_only_the_training_data_say_what_training_needs(write: Callable, content: Callable, tmp_path: Path) -> None:
    path = write(content())
    other = path.with_name("val.json")
    shutil.copy(path, other)
    first, second = validate([path], held_out=[other])
    assert len(first.needs) == 2 and second.needs == []


def test_sizes_and_declared_lists(write: Callable, content: Callable) -> None:
    values = content(subcategories=[{"name": "ripe", "classes": ["true", "false"]}])
    values["images"].append({"id": 3, "file_name": "c.png", "height": 40, "width": 30})
    (item,) = validate([write(values)], check_images=False)
    text = item.text()
    assert "smallest 20x16, median 20x16, largest 30x40" in text
    assert "ripe: a subcategory, as the file lists it" in text
    assert 'colour: no subcategory, as the file\'s "subcategories" do not list it' in text


def test_numbers_written_as_text_are_a_measurement_where_there_are_many(
    write: Callable, content: Callable, annotation: Callable
) -> None:
    many = [annotation(n, attributes={"weight": f"{n / 2}", "grade": str(n % 3)}) for n in range(1, 30)]
    assert list(load_dataset(write(content(annotations=many))).vocabulary.subcategories) == ["grade"]


def test_few_objects_and_subcategories_that_hardly_vary(
    write: Callable, content: Callable, annotation: Callable
) -> None:
    colours = ["red"] * 39 + ["blue"]
    values = [annotation(n, attributes={"colour": colour}) for n, colour in enumerate(colours, 1)]
    none, same = cautions(load_dataset(write(content(annotations=values))))
    assert "no object is of the category: pear;" in none
    assert "colour hardly varies: 97.5% of 40 objects are red" in same
    values[0]["attributes"]["colour"] = values[1]["attributes"]["colour"] = "blue"
    values[0]["category_id"] = 3
    (few,) = cautions(load_dataset(write(content(annotations=values))))
    assert "fewer than 10 objects: pear (1);" in few
    values[0]["iscrowd"] = 1  # crowds have a sentence of their own
    assert cautions(load_dataset(write(content(annotations=values)))) == []


def test_objects_are_compared_with_a_config(write: Callable, content: Callable, annotation: Callable) -> None:
    values = [annotation(n, category_id=number) for n, number in enumerate([3, 7] * 12, 1)]
    values[0]["area"] = 1
    del values[1]["area"]
    dataset, cfg = load_dataset(write(content(annotations=values))), get_cfg()
    cfg.INPUT.IMAGE_SIZE, cfg.MODEL.MASK_FORMER.NUM_OBJECT_QUERIES = 40, 24
    assert cautions(dataset) == []
    (small,) = cautions(dataset, cfg)  # 8 of 20 pixels across, but for one object
    assert small == "1 of 24 objects are less than 8 pixels across at INPUT.IMAGE_SIZE 40"
    cfg.INPUT.IMAGE_SIZE, cfg.MODEL.MASK_FORMER.NUM_OBJECT_QUERIES = 16, 23
    queries, small = cautions(dataset, cfg)
    assert "holds 24 objects" in queries and "NUM_OBJECT_QUERIES is 23" in queries
    assert small.startswith("24 of 24 objects") and small.endswith("at 32 it would be one in twenty")


def test_images_of_the_training_data_are_told(
    tmp_path: Path, write: Callable, content: Callable, capsys: pytest.CaptureFixture
) -> None:
    train = write(content())
    pictures = tmp_path / "images"
    shutil.copy(pictures / "a.png", pictures / "copy.png")
    roboflow = ["x_jpg.rf.0a1b.png", "x_jpg.rf.99ff.png"]
    for shade, name in enumerate(roboflow):
        (pictures / name).write_bytes((pictures / "a.png").read_bytes() + bytes([shade]) * (shade + 1))
    for name, files in (("train", ["a.png", roboflow[0]]), ("val", ["copy.png", roboflow[1]])):
        values = content()
        for image, file in zip(values["images"], files, strict=True):
            image["file_name"] = file
        train.with_name(f"{name}.json").write_text(json.dumps(values))
    first, second = (load_dataset(train.with_name(f"{name}.json")) for name in ("train", "val"))
    same, versions = shared_images([first], second)
    assert "1 image is in the training data too" in same and "copy.png = a.png" in same
    assert "1 image is a version of photos in the training data" in versions and roboflow[1] in versions
    assert shared_images([], second) == []
    assert cli.main(["validate", *map(str, (train.with_name("train.json"), train.with_name("val.json")))]) == 0
    assert "caution: 1 image is in the training data too" in capsys.readouterr().out


def test_a_value_that_only_the_validation_set_has_is_named_with_its_remedy(
    tmp_path: Path, write: Callable, content: Callable, annotation: Callable, capsys: pytest.CaptureFixture
) -> None:
    def values(*colours: str) -> dict:
        return content(annotations=[annotation(n, attributes={"colour": c}) for n, c in enumerate(colours, 1)])

    train, val = write(values("red", "blue")), tmp_path / "val.json"
    val.write_text(json.dumps(values("red", "green")))
    assert cli.main(["validate", str(train), str(val)]) == 2
    printed = capsys.readouterr()
    assert "conflict: " in printed.out and "colour: green" in printed.out and '"subcategories"' in printed.out
    assert str(val) in printed.err and str(train) not in printed.err
    val.write_text(json.dumps(values("red")))  # one value only, but the training data's are what counts
    assert cli.main(["validate", str(train), str(val)]) == 0
    assert "colour: a subcategory; red 1" in capsys.readouterr().out


def test_the_datasets_of_a_config(tiny_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    config = tmp_path / "small.yaml"
    config.write_text(f"_BASE_: {tiny_config}\nINPUT: {{IMAGE_SIZE: 16}}\n")
    assert cli.main(["validate", "--config", str(config)]) == 0
    printed = capsys.readouterr().out
    assert "16 images" in printed and "6 images" in printed
    assert "pixels across at INPUT.IMAGE_SIZE 16" in printed
    assert cli.main(["validate"]) == 2
    assert "DATASETS.TRAIN" in capsys.readouterr().err
