"""Every fault is found, all at once, with its image and annotation."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from workbench import cli
from workbench.data.coco import load_dataset
from workbench.data.faults import DatasetError, Fault, report
from workbench.data.masks import decode_mask
from workbench.data.reading import read_coco_json
from workbench.data.validate import validate
from workbench.errors import WorkbenchError
from workbench.training.progress import logging_to

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


MENDED = [
    ({"bbox": ["1", "1", "5.5", "4"]}, "box"),
    ({"bbox": [1, 1, NAN, 4]}, "box"),
    ({"bbox": [1, 1, 4]}, "box"),
    ({"bbox": None}, "box"),
    ({"area": "64"}, "area"),
    ({"area": NAN}, "area"),
    ({"area": None}, "area"),
    ({"segmentation": [1, 1, 8, 1, 8, 8]}, "polygon list"),
    ({"segmentation": [[1, 1, 8, 1, 8, 8], [3, 3, 4, 4]]}, "polygon part"),
    ({"segmentation": [[1, 1, 25, 1, 25, 9]]}, "polygon outside image"),
    ({"segmentation": [[-130, 1, 5, 1, 5, 9]]}, "polygon outside image"),
]


@pytest.mark.parametrize(("change", "kind"), MENDED)
def test_what_becomes_of_a_mendable_fault(
    write: Callable[..., Path],
    content: Callable[..., dict],
    annotation: Callable[..., dict],
    change: dict,
    kind: str,
    capsys: pytest.CaptureFixture,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is told, logged, and its object stays; what --fix writes has no fault, and a box and an area."""
    values = annotation(9, **change)
    for absent in [key for key, value in values.items() if value is None]:
        del values[absent]
    path = write(content(annotations=[annotation(4), values]))
    (fault,) = _validate(path)
    assert (fault.kind, fault.annotation_id, fault.mended) == (kind, 9, True)
    dataset = load_dataset(path)
    assert (
        dataset.objects == 2 and f"[{kind}]" in caplog.text and "mended: image 1 (a.png), annotation 9: " in caplog.text
    )
    fixed = path.with_name("fixed.json")
    assert cli.main(["validate", str(path), "--fix", str(fixed)]) == 0
    assert "1 fault mended" in capsys.readouterr().out
    assert _validate(fixed) == []
    (record,) = load_dataset(fixed).dicts[:1]
    read = dataset.dicts[0]["annotations"][1]["segmentation"], record["annotations"][1]["segmentation"]
    first, second = (decode_mask(mask, 16, 20) for mask in read)
    assert np.array_equal(first, second)
    columns, rows = np.flatnonzero(first.any(0)), np.flatnonzero(first.any(1))
    if kind == "box":
        corner, far = (columns[0], rows[0]), (columns[-1] + 1, rows[-1] + 1)
        assert record["annotations"][1]["bbox"] == [*corner, far[0] - corner[0], far[1] - corner[1]]
    if kind == "area":
        assert record["annotations"][1]["area"] == first.sum()


def test_boxes_without_masks_are_one_sentence(
    write: Callable[..., Path], content: Callable[..., dict], annotation: Callable[..., dict]
) -> None:
    path = write(content(annotations=[annotation(n, segmentation=[]) for n in range(1, 60)]))
    faults = _validate(path)
    assert len(faults) == 59 and not any(fault.mended for fault in faults)
    heading, line = report(faults).splitlines()
    assert heading == "59 faults: 59 box without a mask" and "image 1 (a.png), annotation 1;" in line
    assert "59 times" in line and "draw polygons" in line and "annotation 3; ..." in line


def test_the_report_says_how_to_train_without_what_is_broken(
    write: Callable[..., Path], content: Callable[..., dict], annotation: Callable[..., dict]
) -> None:
    box = annotation(1, segmentation=[])
    for others, some_left in (([], False), ([annotation(2)], True)):
        path = write(content(annotations=[box, *others]))
        with pytest.raises(DatasetError) as caught:
            load_dataset(path)
        (item,) = validate([path])
        for text in (str(caught.value), item.text()):
            assert ("SKIP_FAULTS True leaves out what is broken and keeps 2 images, 1 object;" in text) is some_left


def test_a_wrong_image_folder_is_one_line(
    write: Callable[..., Path], content: Callable[..., dict], tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    (item,) = validate([f"{write(content())}@{tmp_path / 'other'}"])
    lines = report(item.faults).splitlines()
    assert len(lines) == 2 and "2 times: there is no such file in" in lines[1] and str(tmp_path / "other") in lines[1]
    assert lines[1].endswith("[missing image]: image 1 (a.png); image 2 (b.png)")


def test_what_was_mended_is_said_once_and_logged_by_every_run(
    write: Callable[..., Path],
    content: Callable[..., dict],
    annotation: Callable[..., dict],
    capsys: pytest.CaptureFixture,
    tmp_path: Path,
) -> None:
    path = write(content(annotations=[annotation(4, area=None)]))
    for number in (1, 2):
        with logging_to(tmp_path / f"{number}.txt"):
            load_dataset(path)
    assert capsys.readouterr().out.count("mended: image 1 (a.png), annotation 4") == 1
    assert all("annotation 4" in (tmp_path / f"{number}.txt").read_text() for number in (1, 2))


ROBOFLOW = [
    {"id": 0, "name": "fruit", "supercategory": "none"},
    {"id": 7, "name": "apple", "supercategory": "fruit"},
    {"id": 3, "name": "pear", "supercategory": "fruit"},
]


def test_unused_parents_are_left_out(
    write: Callable[..., Path], content: Callable[..., dict], annotation: Callable[..., dict]
) -> None:
    values = content(categories=ROBOFLOW)
    path = write(values)
    (fault,) = _validate(path)
    assert fault.mended and "'fruit' (id 0)" in fault.detail
    trained = load_dataset(path).vocabulary
    assert trained.categories == ("pear", "apple")  # pear is unused, but no parent
    # The parent has the name of a class.
    renamed = [{**item, "name": "apple" if item["name"] == "fruit" else item["name"]} for item in ROBOFLOW]
    assert load_dataset(write(content(categories=renamed))).vocabulary == trained
    # A parent that is used is a class, also in a file where it is not used.
    used = load_dataset(write(content(categories=ROBOFLOW, annotations=[annotation(1, category_id=0)]))).vocabulary
    assert used.categories == ("fruit", "pear", "apple")
    assert load_dataset(write(values), vocabulary=used).vocabulary.categories == used.categories


def test_categories_that_only_an_evaluated_file_lists(
    write: Callable[..., Path], content: Callable[..., dict], annotation: Callable[..., dict]
) -> None:
    trained = load_dataset(write(content())).vocabulary
    more = [*content()["categories"], {"id": 9, "name": "plum"}]
    assert load_dataset(write(content(categories=more)), vocabulary=trained).vocabulary == trained
    path = write(content(categories=more, annotations=[annotation(1, category_id=9)]))
    with pytest.raises(WorkbenchError, match="also has plum"):
        load_dataset(path, vocabulary=trained)


def test_fix_keeps_what_is_broken_and_the_file_itself(
    write: Callable[..., Path],
    content: Callable[..., dict],
    annotation: Callable[..., dict],
    capsys: pytest.CaptureFixture,
) -> None:
    path = write(content(annotations=[annotation(1, area="3"), annotation(2, category_id=99)]))
    before = path.read_bytes()
    assert cli.main(["validate", str(path), "--fix", str(path)]) == 2
    for name in ("", str(path.with_suffix(".png"))):
        assert cli.main(["validate", str(path), "--fix", name]) == 2
    assert "would overwrite" in capsys.readouterr().err and path.read_bytes() == before
    fixed = path.with_name("fixed.json")
    assert cli.main(["validate", str(path), "--fix", str(fixed)]) == 2
    assert "1 broken fault still in it" in capsys.readouterr().out
    assert [fault.kind for fault in _validate(fixed)] == ["unknown category"]
    assert cli.main(["validate", str(path), str(path), "--fix", str(fixed)]) == 2
    assert "exactly one" in capsys.readouterr().err


def _with_noise(path: Path, name: str, **options: object) -> tuple[Path, Path]:
    """Make the second image of a dataset a file ``name`` of noise; return the dataset's path and the image's."""
    values = json.loads(path.read_text())
    values["images"][1]["file_name"] = name
    path.write_text(json.dumps(values))
    picture = path.parent / "images" / name
    noise = np.random.default_rng(0).integers(0, 255, (16, 20, 3), dtype=np.uint8)
    Image.fromarray(noise).save(picture, **options)
    return path, picture


def test_images_are_decoded_for_validation_where_that_shows_damage(
    write: Callable[..., Path], content: Callable[..., dict]
) -> None:
    path, picture = _with_noise(write(content()), "b.tif", compression="tiff_adobe_deflate")
    assert _validate(path) == []
    data = bytearray(picture.read_bytes())
    data[300:340] = bytes(40)
    picture.write_bytes(data)
    (fault,) = _validate(path)
    assert (fault.kind, fault.image_id) == ("unreadable image", 2)
    assert len(load_dataset(path)) == 2  # training opens it only


def test_a_jpeg_cut_short_is_found_and_one_with_more_after_its_end_is_read(
    write: Callable[..., Path], content: Callable[..., dict]
) -> None:
    path, picture = _with_noise(write(content()), "b.jpg")
    whole = picture.read_bytes()
    picture.write_bytes(whole + bytes(1000))  # phones put films there
    assert _validate(path) == []
    picture.write_bytes(whole[:-300])
    assert [fault.kind for fault in _validate(path)] == ["unreadable image"]
