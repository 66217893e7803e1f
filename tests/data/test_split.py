"""Splits: shares, strata, groups, copies, and what is written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from workbench import cli
from workbench.data.coco import load_dataset
from workbench.data.split import group_of, split_dataset
from workbench.errors import WorkbenchError

CATEGORIES = ("apple", "pear", "plum")
COLOURS = ("red", "green", "blue", "black")


def _content(count: int, **image_keys: Callable[[int], object]) -> dict:
    """``count`` images with 0 to 5 objects each, categories of 60, 30 and 10 percent, colours likewise uneven."""
    rng = np.random.default_rng(1)
    images, annotations = [], []
    for i in range(count):
        more = {key: value(i) for key, value in image_keys.items()}
        images.append({"id": i, "file_name": f"clip{i // 5}_{i:04}.png", "height": 16, "width": 20, **more})
        for _ in range(rng.integers(0, 6)):
            annotations.append(
                {
                    "id": len(annotations),
                    "image_id": i,
                    "category_id": int(rng.choice(3, p=(0.6, 0.3, 0.1))),
                    "segmentation": [[2, 2, 10, 2, 10, 10, 2, 10]],
                    "iscrowd": 0,
                    "attributes": {"colour": str(rng.choice(COLOURS, p=(0.5, 0.3, 0.15, 0.05)))},
                }
            )
    categories = [{"id": i, "name": name} for i, name in enumerate(CATEGORIES)]
    return {"info": {"year": 2020}, "images": images, "annotations": annotations, "categories": categories}


@pytest.fixture
def dataset(tmp_path: Path) -> Callable[..., Path]:
    """Writes labels.json, and with ``pictures`` a different noisy image for each record."""

    def write(content: dict, *, pictures: bool = False) -> Path:
        path = tmp_path / "labels.json"
        path.write_text(json.dumps(content))
        for image in content["images"] if pictures else ():
            pixels = np.random.default_rng(image["id"]).integers(0, 255, (16, 20, 3), dtype=np.uint8)
            target = tmp_path / "images" / image["file_name"]
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(target)
        return path

    return write


def _names(path: str) -> set[str]:
    return {image["file_name"] for image in json.loads(Path(path).read_text())["images"]}


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_parts_are_stratified(dataset: Callable[..., Path], seed: int) -> None:
    """Every category and class has its share in every part: within 25 percent or one object, and 7 on average.

    A random division of these images is off by 16 percent on average."""
    content = _content(200)
    split = split_dataset(dataset(content), val=0.2, test=0.1, seed=seed, check_images=False)
    assert split.parts == {"train": 140, "val": 40, "test": 20}
    assert set(split.counts) == {("", name) for name in CATEGORIES} | {("colour", name) for name in COLOURS}
    off = []
    for label, counts in split.counts.items():
        total = sum(counts.values())
        for part, share in (("train", 0.7), ("val", 0.2), ("test", 0.1)):
            wanted = share * total
            assert abs(counts[part] - wanted) <= max(1, 0.25 * wanted), (label, counts)
            off.append(abs(counts[part] - wanted) / wanted)
    assert np.mean(off) < 0.07
    names = [_names(path) for path in split.files.values()]
    assert set.union(*names) == {image["file_name"] for image in content["images"]}
    assert sum(map(len, names)) == 200


def test_the_rarest_class_is_in_every_part(dataset: Callable[..., Path]) -> None:
    content = _content(60)
    for each in content["annotations"]:
        each["category_id"] = 0
    for number in (3, 50, 90):
        content["annotations"][number]["category_id"] = 2
    split = split_dataset(dataset(content), val=0.3, test=0.3, check_images=False)
    assert set(split.counts["", "plum"].values()) == {1}


def test_the_same_seed_gives_the_same_parts(dataset: Callable[..., Path], tmp_path: Path) -> None:
    path = dataset(_content(50))
    parts = [split_dataset(path, seed=s, out=tmp_path / str(i), check_images=False) for i, s in enumerate((0, 0, 1))]
    first, again, other = (_names(split.files["val"]) for split in parts)
    assert first == again != other


@pytest.mark.parametrize(("key", "of"), [("prefix", None), ("video", lambda i: i // 7), ("prefix:6", None)])
def test_groups_stay_together(dataset: Callable[..., Path], key: str, of: Callable[[int], object] | None) -> None:
    path = dataset(_content(90, **({key: of} if of else {})))
    split = split_dataset(path, group=key, check_images=False)
    groups = []
    for name in split.files.values():
        groups.append({group_of(image, key) for image in json.loads(Path(name).read_text())["images"]})
    assert groups[0] and groups[1] and not groups[0] & groups[1]
    assert split.groups == len(groups[0] | groups[1])
    assert 0.1 < split.parts["val"] / 90 < 0.3


@pytest.mark.parametrize(
    ("key", "image", "group"),
    [
        ("folder", {"file_name": "a/b/c_1.png"}, "a/b"),
        ("prefix", {"file_name": "a/clip-7_0012.jpg"}, ("a", "clip-7")),
        ("prefix", {"file_name": "photo_jpg.rf.0a1b2c.jpg"}, ("", "photo_jpg.rf")),
        ("prefix", {"file_name": "0012.jpg"}, ("", "0012")),
        ("prefix:3", {"file_name": "a/clip-7_0012.jpg"}, ("a", "cli")),
        ("site", {"file_name": "a.jpg", "site": 3}, 3),
        ("site", {"file_name": "a.jpg", "attributes": {"site": "north"}}, "north"),
        ("site", {"file_name": "a.jpg"}, None),
    ],
)
def test_what_a_group_is(key: str, image: dict, group: object) -> None:
    assert group_of(image, key) == group


def test_copies_stay_together_and_near_duplicates_are_said(
    dataset: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    content = _content(12)
    path = dataset(content, pictures=True)
    images = [tmp_path / "images" / image["file_name"] for image in content["images"]]
    for copy in images[1:6]:
        copy.write_bytes(images[0].read_bytes())
    for near in images[6:]:
        pixels = np.asarray(Image.open(images[6])).copy()
        pixels[0, 0, 0] = images.index(near)
        Image.fromarray(pixels).save(near)
    assert cli.main(["split", str(path), "--val", "0.3"]) == 0
    said = capsys.readouterr().out
    train, val = _names(str(tmp_path / "labels_train.json")), _names(str(tmp_path / "labels_val.json"))
    copies = {image.name for image in images[:6]}
    assert copies <= train or copies <= val
    assert "5 images are copies of others" in said
    others = {image.name for image in images[6:]}
    assert f"{len(others & train) * len(others & val)} pairs of images in different parts look nearly the same" in said
    assert others & train and others & val


def test_parts_are_datasets_of_the_same_classes(dataset: Callable[..., Path]) -> None:
    """A class that only one part has is known to both, and other keys of the file are kept."""
    content = _content(20)
    for each in content["annotations"]:
        each["attributes"]["colour"] = "red"
    content["annotations"][0]["attributes"]["colour"] = "green"
    split = split_dataset(dataset(content, pictures=True))
    for name in split.files.values():
        assert load_dataset(name).vocabulary.subcategories == {"colour": ("green", "red")}
        assert json.loads(Path(name).read_text())["info"] == {"year": 2020}


def test_categories_without_annotations_are_left_out_and_told(
    dataset: Callable[..., Path], capsys: pytest.CaptureFixture
) -> None:
    content = _content(20)
    content["categories"].append({"id": 9, "name": "sunny"})
    assert cli.main(["split", str(dataset(content)), "--no-images"]) == 0
    assert "which are left out: 'sunny' (id 9)" in capsys.readouterr().out
    named = json.loads(dataset(content).with_name("labels_val.json").read_text())["categories"]
    assert [each["name"] for each in named] == list(CATEGORIES)


def test_where_the_images_are_is_part_of_the_name(dataset: Callable[..., Path], tmp_path: Path) -> None:
    path = dataset(_content(10), pictures=True)
    assert split_dataset(path).files["val"] == str(tmp_path / "labels_val.json")
    elsewhere = split_dataset(path, out=tmp_path / "deep" / "down" / "parts").files["val"]
    assert elsewhere == f"{tmp_path / 'deep' / 'down' / 'parts' / 'labels_val.json'}@{tmp_path / 'images'}"
    assert len(load_dataset(elsewhere).dicts) == 2


def test_the_table(dataset: Callable[..., Path], capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["split", str(dataset(_content(50))), "--test", "0.2", "--no-images"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["train", "val", "test"]
    assert lines[1].split() == ["images", "30", "60.0%", "10", "20.0%", "10", "20.0%"]
    assert [line.split()[0] for line in lines[2:5]] == list(CATEGORIES)
    assert any(line.startswith("colour: black") for line in lines)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"val": 0.0}, "must be above 0"),
        ({"val": 0.6, "test": 0.4}, "leave some images for train"),
        ({"val": float("nan")}, "must be above 0"),
        ({"val": 0.01}, "too few to give 1% to val"),
        ({"group": "vido"}, "No image has 'vido' to group by; --group takes file_name, folder"),
        ({"group": "height"}, r"puts all 10 images into one group \(16\)"),
    ],
)
def test_what_cannot_be_split(dataset: Callable[..., Path], tmp_path: Path, settings: dict, says: str) -> None:
    with pytest.raises(WorkbenchError, match=says):
        split_dataset(dataset(_content(10)), **settings, check_images=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["labels.json"]


def test_files_are_not_replaced(dataset: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "labels_val.json").write_text("mine")
    with pytest.raises(WorkbenchError, match="labels_val.json exists already"):
        split_dataset(dataset(_content(10)), check_images=False)
    assert (tmp_path / "labels_val.json").read_text() == "mine"


def test_an_unreadable_image_stops_before_anything_is_written(dataset: Callable[..., Path], tmp_path: Path) -> None:
    path = dataset(_content(10), pictures=True)
    (tmp_path / "images" / "clip1_0007.png").write_text("no picture")
    with pytest.raises(WorkbenchError, match="clip1_0007.png cannot be read"):
        split_dataset(path)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["images", "labels.json"]


@pytest.mark.parametrize(
    ("place", "record", "says"),
    [
        ("images", {"id": 0, "file_name": "x.png"}, "Image 10 of .* has the id of another"),
        ("images", {"file_name": "x.png"}, "Image 10 of .* no whole number as id"),
        ("annotations", {"id": 1, "image_id": 99}, "belongs to no image"),
    ],
)
def test_a_broken_record_is_one_sentence(dataset: Callable[..., Path], place: str, record: dict, says: str) -> None:
    content = _content(10)
    content[place].append(record)
    with pytest.raises(WorkbenchError, match=says):
        split_dataset(dataset(content), check_images=False)
