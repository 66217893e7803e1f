"""Panoptic files and label maps, read as annotations with a mask for each segment."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.data.panoptic import BACKGROUND, write_label_maps, write_panoptic
from workbench.config import load_config
from workbench.data.catalog import get_entry
from workbench.data.coco import load_dataset, open_dataset
from workbench.data.mapper import build_mapper
from workbench.data.masks import decode_mask, encode_labels, encode_mask, paint_labels
from workbench.errors import WorkbenchError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def panoptic(shapes_root: Path, tmp_path: Path) -> Path:
    """A panoptic file laid out as COCO's: annotations/panoptic_val2017.json, its PNG files beside it, and val2017/."""
    shutil.copytree(shapes_root / "shapes" / "val", tmp_path / "coco" / "val2017")
    source = shapes_root / "shapes" / "annotations" / "val.json"
    return write_panoptic(source, tmp_path / "coco" / "annotations" / "panoptic_val2017.json")


def _edit(path: Path, **changes: object) -> None:
    content = json.loads(path.read_text())
    content["annotations"][0] |= changes
    path.write_text(json.dumps(content))


def test_a_panoptic_file_has_an_annotation_for_each_segment(panoptic: Path, tmp_path: Path) -> None:
    data = load_dataset("coco_2017_val_panoptic", root=tmp_path)
    assert data.vocabulary.stuff == {"background"} and data.vocabulary.category_ids[-1] == BACKGROUND
    assert data.vocabulary.stuff_labels == {len(data.vocabulary.categories) - 1}
    entries = {each["image_id"]: each for each in json.loads(panoptic.read_text())["annotations"]}
    for item in data.dicts:
        entry = entries[item["image_id"]]
        pixels = np.asarray(Image.open(panoptic.with_suffix("") / entry["file_name"]), dtype=np.int64)
        ids = pixels[..., 0] + 256 * pixels[..., 1] + 65536 * pixels[..., 2]
        assert len(item["annotations"]) == len(entry["segments_info"]) >= 1
        for annotation, segment in zip(item["annotations"], entry["segments_info"], strict=True):
            mask = decode_mask(annotation["segmentation"], *ids.shape)
            assert np.array_equal(mask, ids == segment["id"]) and annotation["area"] == mask.sum()
            assert data.vocabulary.category_ids[annotation["category_id"]] == segment["category_id"]


def test_masks_for_training_are_those_of_the_segments(panoptic: Path, tmp_path: Path) -> None:
    keys = ["INPUT.DATASET_MAPPER_NAME", "mask_former_panoptic", "INPUT.MIN_SIZE_TRAIN", "[64]"]
    mapper = build_mapper(load_config(None, [*keys, "INPUT.RANDOM_FLIP", "none"]), is_train=True)
    for item in load_dataset(panoptic).dicts:
        targets = mapper(item, 0)["targets"]
        assert len(targets["labels"]) == sum(not each["iscrowd"] for each in item["annotations"])
        assert torch.equal(targets["masks"].sum(0) <= 1, torch.ones(64, 64, dtype=torch.bool))


def test_segments_are_read_from_png_files_once(panoptic: Path) -> None:
    first = open_dataset(panoptic)
    shutil.rmtree(panoptic.with_suffix(""))
    again = open_dataset(panoptic)
    assert again.content["annotations"] == first.content["annotations"] and again.entry == first.entry
    assert first.entry.images == panoptic.parents[1] / "val2017"
    _edit(panoptic, file_name="other.png")
    with pytest.raises(WorkbenchError, match=r"are PNG files in .*panoptic_val2017 or .*; neither is there"):
        open_dataset(panoptic)


def test_image_ids_that_are_names_are_numbered(panoptic: Path) -> None:
    """As in the panoptic file of ADE20K."""
    content = json.loads(panoptic.read_text())
    for each in (*content["images"], *content["annotations"]):
        key = "id" if "id" in each else "image_id"
        each[key] = f"ADE_val_{each[key]:08}"
    panoptic.write_text(json.dumps(content))
    data = load_dataset(panoptic)
    assert [item["image_id"] for item in data.dicts] == [1, 2, 3, 4, 5, 6]
    assert all(item["annotations"] for item in data.dicts)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"file_name": "none.png"}, "The PNG .*none.png cannot be read: No such file"),
        ({"file_name": "../../x.png"}, "the PNG '../../x.png' of image .* is outside of the folder"),
        ({"file_name": 5}, "Entry 0 of the annotations of .*panoptic_val2017.json is not an image_id, a file_name"),
        ({"segments_info": [{"id": "1"}]}, "Entry 0 of the annotations"),
        ({"segments_info": [{"id": 3, "category_id": 90}]}, "empty mask"),
        ({"segments_info": [{"id": 70000, "category_id": 77}]}, "unknown category"),
        ({"image_id": 999}, "unknown image"),
    ],
)
def test_what_is_wrong_with_a_panoptic_file_is_one_sentence(panoptic: Path, changes: dict, said: str) -> None:
    _edit(panoptic, **changes)
    with pytest.raises(WorkbenchError, match=said):
        load_dataset(panoptic)


def test_label_maps_have_an_annotation_for_each_class_of_an_image(shapes_root: Path, tmp_path: Path) -> None:
    source = shapes_root / "shapes"
    names = write_label_maps(source / "annotations" / "val.json", tmp_path / "maps" / "val")
    (tmp_path / "catalog.yaml").write_text(f"maps: {{annotations: maps/val, images: '{source / 'val'}'}}\n")
    data = load_dataset("maps", root=tmp_path)
    assert data.vocabulary.categories == tuple(names) and data.vocabulary.stuff == set(names)
    for item in data.dicts:
        labels = np.asarray(Image.open(tmp_path / "maps" / "val" / f"{Path(item['name']).stem}.png"))
        present = [each["category_id"] for each in item["annotations"]]
        assert present == sorted(set(labels.ravel().tolist()) - {255})
        rles = [each["segmentation"] for each in item["annotations"]]
        assert np.array_equal(paint_labels(rles, present, np.full_like(labels, 255)), labels)


def test_label_maps_need_names_and_values_among_them(tmp_path: Path) -> None:
    maps = tmp_path / "ADEChallengeData2016" / "annotations_detectron2" / "validation"
    with pytest.raises(WorkbenchError, match=r"no annotation file .*annotations_detectron2/validation"):
        open_dataset("ade20k_sem_seg_val", tmp_path)
    maps.mkdir(parents=True)
    with pytest.raises(WorkbenchError, match=r"need the names of their classes: classes.txt .* objectInfo150.txt"):
        open_dataset("ade20k_sem_seg_val", tmp_path)
    names = "Idx\tRatio\tTrain\tVal\tName\n1\t0.1\t1\t1\twall\n2\t0.1\t1\t1\tstep, stair\n3\t0.1\t1\t1\tstep, stage\n"
    (tmp_path / "ADEChallengeData2016" / "objectInfo150.txt").write_text(names)
    with pytest.raises(WorkbenchError, match="validation has no PNG files"):
        open_dataset("ade20k_sem_seg_val", tmp_path)
    Image.fromarray(np.array([[0, 7]], dtype=np.uint8)).save(maps / "a.png")
    with pytest.raises(WorkbenchError, match=r"a.png holds 7, and there are 3 classes"):
        open_dataset("ade20k_sem_seg_val", tmp_path)
    Image.fromarray(np.array([[[0, 7, 7]]], dtype=np.uint8)).save(maps / "a.png")
    with pytest.raises(WorkbenchError, match=r"a.png cannot be read: it is no image of one channel"):
        open_dataset("ade20k_sem_seg_val", tmp_path)
    Image.fromarray(np.array([[0, 2]], dtype=np.uint8)).save(maps / "a.png")
    assert open_dataset("ade20k_sem_seg_val", tmp_path).found.categories == ("wall", "step, stair", "step, stage")


@pytest.mark.parametrize(
    ("name", "annotations", "images"),
    [
        ("coco_2017_train_panoptic", "coco/annotations/panoptic_train2017.json", "coco/train2017"),
        ("coco_2017_val_panoptic_with_sem_seg", "coco/annotations/panoptic_val2017.json", "coco/val2017"),
        ("ade20k_panoptic_val", "ade20k_panoptic_val.json", "images/validation"),
        ("ade20k_sem_seg_train", "annotations_detectron2/training", "images/training"),
    ],
)
def test_names_of_published_recipes_are_known(name: str, annotations: str, images: str, tmp_path: Path) -> None:
    folder = tmp_path if "coco" in name else tmp_path / "ADEChallengeData2016"
    entry = get_entry(name, tmp_path)
    assert (entry.annotations, entry.images) == (folder / annotations, folder / images)
    with pytest.raises(WorkbenchError, match=f"There is no annotation file {entry.annotations}"):
        open_dataset(name, tmp_path)


def test_labels_become_run_lengths_and_come_back() -> None:
    rng = np.random.default_rng(0)
    for _ in range(30):
        labels = rng.integers(0, 4, rng.integers(1, 9, 2))
        rles = encode_labels(labels)
        assert rles == {value: encode_mask(labels == value) for value in np.unique(labels).tolist()}
        assert np.array_equal(paint_labels(list(rles.values()), list(rles), np.full(labels.shape, -1)), labels)
