"""The shapes dataset as COCO's panoptic files and as a folder of label maps, with its background as stuff."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from workbench.data.masks import decode_mask

BACKGROUND = 90  # its category id


def write_panoptic(annotations: Path, target: Path) -> Path:
    """Write ``target``, a panoptic JSON, and a folder of PNG files beside it; the larger object is below."""
    content = json.loads(annotations.read_text())
    folder = target.with_suffix("")
    folder.mkdir(parents=True)
    entries = []
    for image in content["images"]:
        ids = np.full((image["height"], image["width"]), 70000, dtype=np.int64)  # takes all three channels
        segments = [{"id": 70000, "category_id": BACKGROUND, "iscrowd": 0}]
        objects = [each for each in content["annotations"] if each["image_id"] == image["id"]]
        for number, each in enumerate(sorted(objects, key=lambda each: -each["area"]), start=256):
            ids[decode_mask(each["segmentation"], *ids.shape)] = number
            segments.append({"id": number, "category_id": each["category_id"], "iscrowd": each["iscrowd"]})
        name = f"{Path(image['file_name']).stem}.png"
        channels = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)
        Image.fromarray(channels).save(folder / name)
        kept = [segment for segment in segments if (ids == segment["id"]).any()]
        entries.append({"image_id": image["id"], "file_name": name, "segments_info": kept})
    categories = [{**each, "isthing": 1} for each in content["categories"]]
    categories.append({"id": BACKGROUND, "name": "background", "isthing": 0})
    target.write_text(json.dumps({"images": content["images"], "annotations": entries, "categories": categories}))
    return target


def write_label_maps(annotations: Path, folder: Path) -> list[str]:
    """Write a label map for each image, 255 where there is no object, and classes.txt; return the classes."""
    content = json.loads(annotations.read_text())
    numbers = {each["id"]: number for number, each in enumerate(content["categories"])}
    folder.mkdir(parents=True)
    for image in content["images"]:
        labels = np.full((image["height"], image["width"]), 255, dtype=np.uint8)
        for each in content["annotations"]:
            if each["image_id"] == image["id"]:
                labels[decode_mask(each["segmentation"], *labels.shape)] = numbers[each["category_id"]]
        Image.fromarray(labels).save(folder / f"{Path(image['file_name']).stem}.png")
    names = [each["name"] for each in content["categories"]]
    (folder.parent / "classes.txt").write_text("\n".join(names) + "\n")
    return names
