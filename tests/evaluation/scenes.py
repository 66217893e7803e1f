"""Small ground truths and results for the evaluation tests."""

from __future__ import annotations

import numpy as np
from pycocotools import mask as coco_mask

from workbench.data.vocabulary import Vocabulary

COLOURS = ("red", "green", "blue")
TEXTURES = ("plain", "striped")
VOCABULARY = Vocabulary((3, 7), ("disc", "box"), {"colour": COLOURS, "texture": TEXTURES})


def rle(mask: np.ndarray) -> dict:
    encoded = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(mask.shape), "counts": encoded["counts"].decode()}


def square(x: int, y: int, side: int = 10, size: int = 64) -> np.ndarray:
    mask = np.zeros((size, size), dtype=bool)
    mask[y : y + side, x : x + side] = True
    return mask


def scene(images: int = 1, size: int = 64) -> dict:
    return {
        "images": [{"id": 10 + i, "file_name": f"{i}.png", "height": size, "width": size} for i in range(images)],
        "annotations": [],
        "categories": [{"id": 3, "name": "disc"}, {"id": 7, "name": "box"}],
    }


def add(gt: dict, mask: np.ndarray, category_id: int = 3, image_id: int = 10, **more) -> dict:
    x, y, w, h = coco_mask.toBbox(coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))).tolist()
    annotation = {
        "id": len(gt["annotations"]) + 1,
        "image_id": image_id,
        "category_id": category_id,
        "segmentation": rle(mask),
        "bbox": [x, y, w, h],
        "area": int(mask.sum()),
        "iscrowd": 0,
        **more,
    }
    gt["annotations"].append(annotation)
    return annotation


def row(mask: np.ndarray, score: float, category_id: int = 3, image_id: int = 10, **more) -> dict:
    return {
        "image_id": image_id,
        "category_id": category_id,
        "segmentation": rle(mask),
        "bbox": coco_mask.toBbox(coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))).tolist(),
        "score": score,
        **more,
    }


def one_hot(count: int, place: int, probability: float = 1.0) -> list[float]:
    rest = (1 - probability) / max(count - 1, 1)
    return [probability if k == place else rest for k in range(count)]


def random_case(seed: int, images: int = 6, size: int = 48) -> tuple[dict, list[dict]]:
    """Rectangles with crowd regions, missing attributes, images without objects or without predictions, equal
    scores, empty masks, wrong categories.
    """
    rng = np.random.default_rng(seed)
    gt, results = scene(images, size), []

    def rectangle() -> np.ndarray:
        mask = np.zeros((size, size), dtype=bool)
        x, y = rng.integers(0, size - 4, 2)
        w, h = rng.integers(3, 40, 2)
        mask[y : y + h, x : x + w] = True
        return mask

    def attributes() -> dict:
        chosen = {"colour": str(rng.choice(COLOURS)), "texture": str(rng.choice(TEXTURES))}
        return {name: value for name, value in chosen.items() if rng.random() < 0.8}

    for image in gt["images"]:
        masks = [rectangle() for _ in range(rng.integers(0, 7))]
        for mask in masks:
            more = {"iscrowd": int(rng.random() < 0.2), "attributes": attributes()}
            add(gt, mask, int(rng.choice([3, 7])), image["id"], **more)
        for number in range(int(rng.integers(0, 15))):
            mask = masks[rng.integers(len(masks))] if masks and rng.random() < 0.7 else rectangle()
            mask = np.roll(mask, rng.integers(-3, 4, 2), (0, 1)) & (rng.random() > 0.05)
            score = round(float(rng.random()), int(rng.integers(1, 3)))
            results.append(
                row(mask, score, int(rng.choice([3, 7])), image["id"], query=number, attributes=attributes())
            )
    return gt, results
