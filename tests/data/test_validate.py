"""Every fault is found, all at once, with its image and annotation."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from workbench.data.coco import load_dataset
from workbench.data.faults import DatasetError, Fault, report
from workbench.data.reading import read_coco_json
from workbench.data.validate import validate
from workbench.errors import WorkbenchError

NAN = float("nan")
COLOURS = [{"name": "colour", "classes": ["red", "green"]}]
EMPTY = {"size": [16, 20], "counts": [320]}


def _validate(path: Path, check_images: bool = True) -> list[Fault]:
    return validate([f"{path}@{path.parent / 'images'}"], check_images=check_images)[0].faults


def test_a_faultless_dataset(write: Callable[..., Path], content: Callable[..., dict]) -> None:
    assert _validate(write(content())) == []
    assert report([]) == "No faults found."


ANNOTATION_FAULTS = [
    ({"category_id": 1}, "unknown category"),
    ({"category_id": "7"}, "unknown category"),
    ({"category_id": True}, "unknown category"),
    ({"iscrowd": 2}, "annotation record"),
    ({"segmentation": [[1, 1, 5, 1]]}, "degenerate polygon"),
    ({"segmentation": [[1, 1, 5, 1, 1, 1]]}, "degenerate polygon"),
    ({"segmentation": [[1, 1, 5, 1, 5, NAN]]}, "not a number"),
    ({"segmentation": [[1, 1, 900, 1, 900, 9]]}, "mask outside image"),
    ({"segmentation": {"size": [20, 16], "counts": [320]}}, "mask size"),
    ({"segmentation": EMPTY}, "empty mask"),
    ({"segmentation": [[1.1, 1.1, 1.2, 1.1, 1.2, 1.2]]}, "empty mask"),
    ({"segmentation": [[30, 30, 40, 30, 40, 40]]}, "empty mask"),
    ({"segmentation": []}, "box without a mask"),
    ({"segmentation": None}, "box without a mask"),
    ({"segmentation": [], "bbox": None}, "empty mask"),
    ({"segmentation": "a.png"}, "segmentation"),
    ({"attributes": {"colour": "blue"}}, "subcategory value"),
    ({"attributes": {"colour": ["red"]}}, "subcategory value"),
    ({"attributes": {"colour": NAN}}, "subcategory value"),
    ({"attributes": ["red"]}, "attributes"),
    ({"image_id": 5}, "unknown image"),
    ({"image_id": None}, "unknown image"),
]


@pytest.mark.parametrize(("change", "kind"), ANNOTATION_FAULTS)
def test_one_fault_of_an_annotation(
    write: Callable[..., Path],
    change: dict,
    kind: str,
    content: Callable[..., dict],
    annotation: Callable[..., dict],
) -> None:
    path = write(content(annotations=[annotation(4), annotation(9, **change)], subcategories=COLOURS))
    (fault,) = _validate(path)
    assert (fault.kind, fault.annotation_id) == (kind, 9)
    assert fault.image_id == change.get("image_id", 1)
    assert "annotation 9" in report([fault])


@pytest.mark.parametrize(
    "change",
    [
        {"segmentation": [[0, 0, 20, 0, 20, 16, 0, 16]]},
        {"segmentation": [[-0.5, 0, 20.4, 0, 20, 16]]},
        {"segmentation": {"size": [16, 20], "counts": [0, 320]}},
        {"iscrowd": 1, "segmentation": {"size": [16, 20], "counts": [100, 220]}},
        {"attributes": {}},
        {"attributes": None},
        {"attributes": {"colour": None, "occluded": False, "rotation": 3.5}},
        {"attributes": {"colour": "__undefined__"}},
        {"bbox": [2, 2, 8, 0]},
    ],
)
def test_what_is_legal(
    write: Callable[..., Path], change: dict, content: Callable[..., dict], annotation: Callable[..., dict]
) -> None:
    values = annotation(0, **change)
    for absent in [key for key, value in values.items() if value is None]:
        del values[absent]
    assert _validate(write(content(annotations=[values], subcategories=COLOURS))) == []


IMAGE_FAULTS = [
    ({"file_name": "none.png"}, "missing image"),
    ({"file_name": "../labels.json"}, "file name"),
    ({"file_name": "/etc/hostname"}, "file name"),
    ({"file_name": "a\0.png"}, "file name"),
    ({"height": 20, "width": 16}, "image size"),
    ({"height": 0}, "image record"),
    ({"height": 16.0}, "image record"),
    ({"height": 10**9, "width": 10**9}, "image record"),
    ({"file_name": 3}, "image record"),
    ({"file_name": "text.png"}, "unreadable image"),
    ({"file_name": "cut.png"}, "unreadable image"),
    ({"file_name": "turned.jpg"}, "image size"),
]


@pytest.mark.parametrize(("change", "kind"), IMAGE_FAULTS)
def test_one_fault_of_an_image(
    write: Callable[..., Path], change: dict, kind: str, content: Callable[..., dict]
) -> None:
    values = content()
    values["images"][1].update(change)
    path = write(values)
    folder = path.parent / "images"
    (folder / "text.png").write_text("no picture")
    noise = np.random.default_rng(0).integers(0, 255, (16, 20, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "cut.png")
    (folder / "cut.png").write_bytes((folder / "cut.png").read_bytes()[:-300])
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise).save(folder / "turned.jpg", exif=exif)
    (fault,) = _validate(path)
    assert (fault.kind, fault.image_id, fault.annotation_id) == (kind, 2, None)
    if change.get("file_name") == "turned.jpg":
        assert "EXIF" in fault.detail


def test_ids_that_appear_twice(
    write: Callable[..., Path], content: Callable[..., dict], annotation: Callable[..., dict]
) -> None:
    values = content(annotations=[annotation(3), annotation(3), annotation(4)])
    values["images"][1]["id"] = 1
    faults = _validate(write(values))
    assert [(f.kind, f.image_id, f.annotation_id) for f in faults] == [
        ("duplicate id", 1, None),
        ("duplicate id", 1, 3),
    ]


def test_every_fault_at_once(
    write: Callable[..., Path], content: Callable[..., dict], annotation: Callable[..., dict]
) -> None:
    """All of them in one dataset: each is found beside the others."""
    bad = [annotation(10 + n, **change) for n, (change, _) in enumerate(ANNOTATION_FAULTS)]
    images = content()["images"]
    images += [{"id": 10 + n, "height": 16, "width": 20, **change} for n, (change, _) in enumerate(IMAGE_FAULTS[:9])]
    path = write(content(images=images, annotations=[annotation(1), *bad, "x"], subcategories=COLOURS))
    faults = _validate(path)
    found = {(f.kind, f.annotation_id) for f in faults}
    assert {(kind, 10 + n) for n, (_, kind) in enumerate(ANNOTATION_FAULTS)} <= found
    assert {f.image_id for f in faults if f.annotation_id is None} >= set(range(10, 19))
    assert report(faults).startswith(f"{len(faults)} faults: ")
    assert len(report(faults, every_place=True).splitlines()) == len(faults) + 1


def test_faults_that_have_no_image(write: Callable[..., Path], content: Callable[..., dict]) -> None:
    path = write(content(images=[], annotations=[]))
    (fault,) = _validate(path)
    assert fault.kind == "no images" and str(path) in fault.message


def test_training_stops_with_the_report(
    write: Callable[..., Path], content: Callable[..., dict], annotation: Callable[..., dict]
) -> None:
    path = write(content(annotations=[annotation(1), annotation(2, category_id=99), annotation(3, segmentation=[])]))
    with pytest.raises(DatasetError) as caught:
        load_dataset(path)
    assert [f.annotation_id for f in caught.value.faults] == [2, 3]
    for part in (str(path), "annotation 2", "annotation 3", "99"):
        assert part in str(caught.value)


def test_faults_can_be_skipped(
    write: Callable[..., Path], content: Callable[..., dict], annotation: Callable[..., dict]
) -> None:
    values = content(
        annotations=[
            annotation(1),
            annotation(2, category_id=99),
            annotation(3, image=2),
            "x",
            annotation(4, iscrowd=7),
            annotation(5),
            annotation(5),
        ]
    )
    values["images"][1]["file_name"] = "none.png"
    dataset = load_dataset(write(values), skip_faults=True)
    assert [d["image_id"] for d in dataset.dicts] == [1]
    assert [a["id"] for a in dataset.dicts[0]["annotations"]] == [1]
    assert dataset.skipped == 1 + 6  # an image; its annotation, four broken ones, the two of one id


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "empty"),
        ("  \n", "empty"),
        ("{", "not valid JSON"),
        ("[" * 100000, "not valid JSON"),
        ("[]", "top level"),
        ("{}", "images or annotations or categories"),
        ('{"images": [], "annotations": {}, "categories": []}', "no list of annotations"),
    ],
)
def test_a_malformed_json_is_one_sentence(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "labels.json"
    path.write_text(text)
    with pytest.raises(WorkbenchError, match=says) as caught:
        read_coco_json(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_bytes_that_are_no_text(tmp_path: Path, content: Callable[..., dict]) -> None:
    path = tmp_path / "labels.json"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(WorkbenchError, match="not UTF-8"):
        read_coco_json(path)
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(content()).encode())
    assert len(read_coco_json(path)["images"]) == 2


def test_a_folder_in_place_of_a_json(tmp_path: Path) -> None:
    with pytest.raises(WorkbenchError, match="cannot be read"):
        read_coco_json(tmp_path)
