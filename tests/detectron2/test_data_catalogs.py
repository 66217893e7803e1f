"""Datasets of the workbench in detectron2's catalogs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog, get_detection_dataset_dicts

from workbench.config import get_cfg as workbench_defaults
from workbench.data.masks import decode_mask, encode_uncompressed
from workbench.detectron2 import register_datasets
from workbench.detectron2.data import vocabulary_of
from workbench.errors import WorkbenchError


def test_a_dataset_brings_its_names_and_colours(host_config: CfgNode, shapes_root: Path) -> None:
    dicts = get_detection_dataset_dicts(["shapes_train"])
    metadata, content = (
        MetadataCatalog.get("shapes_train"),
        json.loads((shapes_root / "shapes/annotations/train.json").read_text()),
    )
    assert len(dicts) == 16
    assert metadata.thing_classes == [c["name"] for c in content["categories"]]
    assert metadata.subcategory_classes == {s["name"]: s["classes"] for s in content["subcategories"]}
    assert len(metadata.thing_colors) == len(metadata.thing_classes)
    assert vocabulary_of(host_config).to_coco()["categories"] == [
        {"id": c["id"], "name": c["name"]} for c in content["categories"]
    ]


def test_named_datasets_are_registered_on_import() -> None:
    assert {"shapes_train", "ade20k_instance_val", "coco_2017_val"} <= set(DatasetCatalog.keys())


def test_an_unknown_name_is_named(host_config: CfgNode, shapes_root: Path) -> None:
    cfg = workbench_defaults()
    cfg.DATASETS.ROOT, cfg.DATASETS.TRAIN = str(shapes_root), ("shapes_trian",)
    with pytest.raises(WorkbenchError, match="shapes_trian.*did you mean 'shapes_train'"):
        register_datasets(cfg)


def test_a_name_that_only_detectron2_knows_is_left_to_it() -> None:
    load = list  # noqa: E731
    DatasetCatalog.register("somebody_s", load)
    try:
        cfg = workbench_defaults()
        cfg.DATASETS.TRAIN = ("somebody_s",)
        register_datasets(cfg)
        assert DatasetCatalog["somebody_s"] is load
    finally:
        DatasetCatalog.remove("somebody_s")


def test_detectron2_s_own_mapper_takes_every_coco_file(host_config: CfgNode, shapes_root: Path, tmp_path: Path) -> None:
    """It needs boxes and compressed run lengths, which a COCO file may lack."""
    content = json.loads((shapes_root / "shapes/annotations/val.json").read_text())
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    for annotation in content["annotations"]:
        del annotation["bbox"]
        mask = decode_mask(annotation["segmentation"], *sizes[annotation["image_id"]])
        annotation["segmentation"] = encode_uncompressed(mask)
    path = tmp_path / "plain.json"
    path.write_text(json.dumps(content))
    host_config.INPUT.MASK_FORMAT = "bitmask"
    name = f"{path}@{shapes_root / 'shapes/val'}"
    cfg = workbench_defaults()
    cfg.DATASETS.TRAIN = (name,)
    register_datasets(cfg)
    item = DatasetCatalog.get(name)[0]
    mapped = DatasetMapper(host_config, is_train=True, augmentations=[])(item)["instances"]
    things = [a for a in item["annotations"] if not a["iscrowd"]]
    expected = np.stack([decode_mask(a["segmentation"], item["height"], item["width"]) for a in things])
    assert np.array_equal(mapped.gt_masks.tensor.numpy(), expected)
