"""Datasets by name and by path."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from workbench.config import load_config
from workbench.data import catalog, coco
from workbench.data.catalog import find_images, get_entry, known_names, register
from workbench.data.coco import load_dataset
from workbench.data.reading import read_coco_json
from workbench.data.validate import validate
from workbench.errors import WorkbenchError


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "_REGISTERED", {})


def test_built_in_places(tmp_path: Path) -> None:
    entry = get_entry("coco_2017_val", tmp_path)
    assert entry.annotations == tmp_path / "coco/annotations/instances_val2017.json"
    assert entry.images == tmp_path / "coco/val2017"
    assert get_entry("ade20k_instance_train", tmp_path).images.parts[-2:] == ("images", "training")


def test_own_names_come_before_built_in_ones(tmp_path: Path) -> None:
    (tmp_path / "catalog.yaml").write_text(
        "orchard: {annotations: o/labels.json, images: o/pictures}\n"
        "coco_2017_val: {annotations: /elsewhere/v.json, images: /elsewhere/v}\n"
    )
    assert get_entry("orchard", tmp_path).images == tmp_path / "o/pictures"
    assert get_entry("coco_2017_val", tmp_path).annotations == Path("/elsewhere/v.json")
    register("orchard", tmp_path / "x.json", tmp_path / "x")
    assert get_entry("orchard", tmp_path).images == tmp_path / "x"
    assert {"orchard", "shapes_train", "coco_2014_val"} <= set(known_names(tmp_path))


def test_an_unknown_name_is_told_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(WorkbenchError, match=r"did you mean 'shapes_train'.*catalog\.yaml"):
        get_entry("shape_train", tmp_path)


@pytest.mark.parametrize(
    "text", ["a: [1, 2", "- a\n- b\n", "a: labels.json\n", "a: {annotations: b}\n", "!!python/object:os.x {}"]
)
def test_a_broken_catalog_is_one_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "catalog.yaml").write_text(text)
    with pytest.raises(WorkbenchError, match="catalog.yaml"):
        get_entry("a", tmp_path)


def _images(path: Path) -> Path:
    assert get_entry(path).images is None
    return find_images(path, read_coco_json(path))


LAYOUTS = [
    ("labels.json", "images"),
    ("labels.json", "."),
    ("labels.json", "labels"),
    ("annotations/instances_default.json", "images"),
    ("annotations/instances_default.json", "images/default"),
    ("annotations/instances_train2017.json", "train2017"),
    ("annotations/train.json", "train"),
]


@pytest.mark.parametrize(("annotations", "images"), LAYOUTS)
def test_images_are_found_near_the_json(tmp_path: Path, annotations: str, images: str) -> None:
    path, folder = tmp_path / annotations, tmp_path / images
    path.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    (tmp_path / "images").mkdir(exist_ok=True)  # an empty one must not be taken
    values = {"images": [{"id": 1, "file_name": "sub/a.png"}], "annotations": [], "categories": []}
    path.write_text(json.dumps(values))
    (folder / "sub").mkdir()
    (folder / "sub" / "a.png").write_bytes(b"")
    assert _images(path).resolve() == folder.resolve()


def test_images_that_are_nowhere(tmp_path: Path, write: Callable[..., Path]) -> None:
    image = {"id": 1, "file_name": "z.png", "height": 16, "width": 20}
    path = write({"images": [image], "annotations": [], "categories": [{"id": 1, "name": "apple"}]})
    with pytest.raises(WorkbenchError, match=r"'z\.png'.*images.*@images"):
        _images(path)
    (fault,) = validate([path])[0].faults
    assert fault.kind == "missing image" and "@images" in fault.message
    assert validate([path], check_images=False)[0].faults == []
    entry = get_entry(f"{path}@{tmp_path / 'far'}")
    assert (entry.name, entry.annotations, entry.images) == ("labels", path, tmp_path / "far")


def test_files_of_other_formats_and_folders_are_named(tmp_path: Path) -> None:
    (tmp_path / "annotations.xml").write_text("<annotations><version>1.1</version></annotations>")
    with pytest.raises(WorkbenchError, match=r"is a CVAT XML file.*workbench import .*annotations\.xml OUT"):
        get_entry(tmp_path / "annotations.xml")
    with pytest.raises(WorkbenchError, match="is a folder.*workbench import"):
        get_entry(tmp_path)
    (tmp_path / "notes.txt").write_text("apples")
    with pytest.raises(WorkbenchError, match="No dataset is called"):
        get_entry(tmp_path / "notes.txt")


def test_images_are_not_looked_for_outside(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(b"")
    path = tmp_path / "a" / "b" / "labels.json"
    path.parent.mkdir(parents=True)
    values = {"images": [{"id": 1, "file_name": "../../secret.png"}], "annotations": [], "categories": []}
    path.write_text(json.dumps(values))
    with pytest.raises(WorkbenchError, match="secret"):
        _images(path)


def test_a_json_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(WorkbenchError, match="There is no annotation file"):
        load_dataset(tmp_path / "none.json")


def test_readers_share_the_classes_of_the_data_to_train_on(shapes_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [
        "DATASETS.ROOT",
        str(shapes_root),
        "DATASETS.TRAIN",
        "('shapes_train',)",
        "DATASETS.TEST",
        "('shapes_val',)",
    ]
    reads: list[str] = []
    open_dataset = coco.open_dataset

    def counting(name: str, *args: object, **options: object) -> coco.Reading:
        reads.append(name)
        return open_dataset(name, *args, **options)

    monkeypatch.setattr(coco, "open_dataset", counting)
    readers = coco.dataset_readers(load_config(None, keys), ["shapes_train", "shapes_val"])
    assert reads == ["shapes_train"]
    train, val = readers["shapes_train"](), readers["shapes_val"]()
    assert readers["shapes_val"]() is val and reads == ["shapes_train", "shapes_val"]
    assert val.vocabulary == train.vocabulary and len(train) == 16
