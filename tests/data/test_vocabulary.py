"""Class lists: where they come from and how they are held together."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from workbench.config import get_cfg
from workbench.data.coco import Vocabulary, load_data, load_dataset
from workbench.data.validate import validate
from workbench.data.vocabulary import class_name, collected_subcategories
from workbench.errors import WorkbenchError


def _with(content: Callable[..., dict], annotation: Callable[..., dict], *attributes: dict, **changes: object) -> dict:
    return content(annotations=[annotation(n, attributes=a) for n, a in enumerate(attributes, 1)], **changes)


def test_categories_by_id_whatever_the_ids(write, content, annotation) -> None:
    categories = [{"id": 40, "name": "c"}, {"id": 0, "name": "a"}, {"id": 7, "name": "b"}]
    values = content(categories=categories, annotations=[annotation(0, category_id=0), annotation(1)])
    dataset = load_dataset(write(values))
    assert dataset.vocabulary.category_ids == (0, 7, 40)
    assert dataset.vocabulary.categories == ("a", "b", "c")
    assert dataset.vocabulary.num_classes == 3
    assert [a["category_id"] for a in dataset.dicts[0]["annotations"]] == [0, 1]


def test_class_lists_are_collected_from_a_cvat_export(write, content, annotation) -> None:
    """Booleans are classes; numbers and what CVAT adds of its own accord are not."""
    values = _with(
        content,
        annotation,
        {"colour": "red", "ripe": True, "occluded": False, "rotation": 12.5, "track_id": 3, "keyframe": True},
        {"colour": "blue", "ripe": False, "occluded": True, "rotation": 0.0, "weight": 12.0, "size": 3},
        {"colour": "", "weight": "heavy", "size": None, "occluded": False},
        {"colour": "__undefined__", "occluded": False, "keyframe": False},
        {},
    )
    dataset = load_dataset(write(values))
    assert dataset.vocabulary.subcategories == {"colour": ("blue", "red"), "ripe": ("false", "true")}
    assert dataset.vocabulary.num_subcategory_classes == {"colour": 2, "ripe": 2}
    found = [a["subcategories"] for a in dataset.dicts[0]["annotations"]]
    assert found == [
        {"colour": 1, "ripe": 1},
        {"colour": 0, "ripe": 0},
        {"colour": -1, "ripe": -1},
        {"colour": -1, "ripe": -1},
        {"colour": -1, "ripe": -1},
    ]
    assert dataset.dicts[0]["subcategories"] == dataset.dicts[1]["subcategories"] == ("colour", "ripe")


@pytest.mark.parametrize(
    ("name", "values", "own"),
    [
        ("occluded", [True, False], False),
        ("occluded", ["false", "True"], False),  # as some converters write it
        ("occluded", [True, False, None], False),
        ("occluded", ["none", "partly"], True),
        ("occluded", [True, False, "absent"], True),
        ("rotation", ["0.0", "90"], False),
        ("rotation", ["upright", "sideways"], True),
        ("source", ["manual", "auto"], False),
        ("source", ["forest", "nursery"], True),
    ],
)
def test_what_tools_add_and_what_has_the_same_name(
    content: Callable, annotation: Callable, name: str, values: list, own: bool
) -> None:
    given = [{"colour": "red"} if value == "absent" else {name: value} for value in values]
    made = _with(content, annotation, *given)
    assert (name in collected_subcategories(made)) is own
    assert name in collected_subcategories(made, exported=False)


def test_declared_lists_keep_their_order_and_take_numbers(write, content, annotation) -> None:
    declared = [
        {"name": "grade", "classes": [3, 2, 1]},
        {"name": "ripe", "classes": [True, False]},
        {"name": "never", "classes": ["a"]},
    ]
    values = _with(
        content,
        annotation,
        {"grade": 3, "ripe": False, "colour": "red"},
        {"grade": 1.0},
        subcategories=declared,
    )
    dataset = load_dataset(write(values))
    lists = {"grade": ("3", "2", "1"), "ripe": ("true", "false"), "never": ("a",)}
    assert dataset.vocabulary.subcategories == lists
    assert [a["subcategories"] for a in dataset.dicts[0]["annotations"]] == [
        {"grade": 0, "ripe": 1, "never": -1},
        {"grade": 2, "ripe": -1, "never": -1},
    ]


def test_chosen_subcategories(write, content) -> None:
    path = write(content())
    assert load_dataset(path, subcategories=()).vocabulary.subcategories == {}
    chosen = load_dataset(path, subcategories=("ripe",))
    assert list(chosen.vocabulary.subcategories) == ["ripe"]
    assert chosen.dicts[0]["annotations"][0]["subcategories"] == {"ripe": 0}
    with pytest.raises(WorkbenchError, match="did you mean 'colour'"):
        load_dataset(path, subcategories=("color",))


@pytest.mark.parametrize(
    "changes",
    [
        {"categories": []},
        {"categories": [{"id": 7, "name": "a"}, {"id": 7, "name": "b"}]},
        {"categories": [{"id": "7", "name": "a"}]},
        {"categories": ["a"]},
        {"subcategories": {"colour": ["red"]}},
        {"subcategories": [{"name": "colour", "classes": []}]},
        {"subcategories": [{"name": "colour", "classes": ["red", "red"]}]},
        {"subcategories": [{"name": "colour", "classes": [["red"]]}]},
        {"subcategories": [{"name": "colour"}]},
        {"subcategories": [{"name": "a", "classes": ["b"]}, {"name": "a", "classes": ["c"]}]},
    ],
)
def test_broken_class_lists_are_one_sentence(write, content, changes: dict) -> None:
    path = write(content(**changes))
    with pytest.raises(WorkbenchError, match="labels.json") as caught:
        load_dataset(path)
    assert "\n" not in str(caught.value)


def test_a_checkpoints_lists_rule(write, content, annotation) -> None:
    """By name: other ids and another order are the same dataset; its own classes keep their numbers."""
    lists = {"colour": ("green", "red", "blue"), "shape": ("round",)}
    trained = Vocabulary((1, 2), ("pear", "apple"), lists)
    dataset = load_dataset(write(content()), vocabulary=trained)
    assert dataset.vocabulary == Vocabulary((3, 7), ("pear", "apple"), lists)
    (found,) = dataset.dicts[0]["annotations"]
    assert found["category_id"] == 1
    assert found["subcategories"] == {"colour": 1, "shape": -1}


def test_differences_from_a_checkpoint_are_named(write, content) -> None:
    path = write(content())
    with pytest.raises(WorkbenchError, match="lacks plum; it also has apple"):
        load_dataset(path, vocabulary=Vocabulary((1, 2), ("pear", "plum")))
    with pytest.raises(WorkbenchError, match="colour: red"):
        load_dataset(path, vocabulary=Vocabulary((1, 2), ("pear", "apple"), {"colour": ("blue",)}))


def test_several_datasets(tmp_path: Path, write, content, annotation) -> None:
    first = write(_with(content, annotation, {"colour": "red"}))
    second = tmp_path / "more.json"
    categories = [{"id": 1, "name": "apple"}, {"id": 2, "name": "pear"}]
    values = content(
        annotations=[annotation(1, category_id=2, attributes={"colour": "blue", "ripe": True})],
        categories=categories,
    )
    second.write_text(json.dumps(values))
    dataset = load_dataset([first, second])
    assert len(dataset) == 4 and len(dataset.entries) == 2
    # Colour has one class in each file and two in both; ripe has one in both.
    assert dataset.vocabulary == Vocabulary((3, 7), ("pear", "apple"), {"colour": ("red", "blue")})
    one, two = dataset.dicts[0]["annotations"][0], dataset.dicts[2]["annotations"][0]
    assert (one["category_id"], one["subcategories"]) == (1, {"colour": 0})
    assert (two["category_id"], two["subcategories"]) == (0, {"colour": 1})
    values["categories"] = [{"id": 2, "name": "pear"}]
    second.write_text(json.dumps(values))
    with pytest.raises(WorkbenchError, match="lacks apple"):
        load_dataset([first, second])


def test_images_without_objects_can_be_left_out(write, content, annotation) -> None:
    values = content(annotations=[annotation(1, image=2, iscrowd=1)])
    values["annotations"].append(annotation(2))
    cfg, path = get_cfg(), write(values)
    assert len(load_data(cfg, [path], None)) == 2
    assert [d["image_id"] for d in load_data(cfg, [path], None, for_training=True).dicts] == [1]
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
    assert len(load_data(cfg, [path], None, for_training=True)) == 2


def test_nothing_to_load(write, content) -> None:
    with pytest.raises(WorkbenchError, match="DATASETS"):
        load_dataset([])
    values = content(annotations=[])
    with pytest.raises(WorkbenchError, match="no object to train on.*2 images, 0 objects"):
        load_data(get_cfg(), [write(values)], None, for_training=True)
    for image in values["images"]:
        image["height"] = 99
    with pytest.raises(WorkbenchError, match="no image left"):
        load_dataset(write(values), skip_faults=True)


def test_dataset_dicts_are_detectron2s(write, content) -> None:
    path = write(content())
    record = load_dataset(path).dicts[0]
    assert record["file_name"] == str(path.parent / "images" / "a.png")
    assert (record["height"], record["width"], record["image_id"]) == (16, 20, 1)
    (found,) = record["annotations"]
    assert (found["bbox_mode"], found["bbox"], found["iscrowd"], found["id"]) == (1, [2, 2, 8, 8], 0, 1)


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ("red", "red"),
        (True, "true"),
        (False, "false"),
        (3, "3"),
        (3.0, "3"),
        (2.5, "2.5"),
        (0, "0"),
        (None, None),
        ("", None),
    ],
)
def test_class_names(value: object, name: str | None) -> None:
    assert class_name(value) == name


@pytest.mark.parametrize("name", ["x" * 10_000, "a\ud800"])
def test_names_that_no_table_can_show_are_one_sentence(write, content, annotation, name: str) -> None:
    with pytest.raises(WorkbenchError, match=r"Category 1 of .*(10,000 characters|surrogate).*rename it\.") as caught:
        load_dataset(write(content(categories=[{"id": 1, "name": name}])))
    assert len(str(caught.value)) < 400
    for declared in ({"name": name, "classes": ["a", "b"]}, {"name": "b", "classes": ["a", name]}):
        with pytest.raises(WorkbenchError, match=r"A subcategory or class in .*rename it\."):
            load_dataset(write(content(subcategories=[declared])))


@pytest.mark.parametrize("text", ["x" * 10_000, "a\ud800"])
def test_attributes_that_no_table_can_show_are_left_out(write, content, annotation, text: str) -> None:
    values = _with(
        content, annotation, {"note": text, "colour": "red", text: "a"}, {"note": "b", "colour": "blue", text: "b"}
    )
    path = write(values)
    assert load_dataset(path).vocabulary.subcategories == {"colour": ("blue", "red")}
    (validation,) = validate([path], check_images=False)
    said = validation.text()
    assert said.count("no subcategory, as") == 2 and len(said) < 3000
    said.encode("utf-8")
