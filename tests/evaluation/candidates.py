"""Rows to be filtered: squares with a score, a category and two subcategories."""

from __future__ import annotations

import numpy as np

from workbench.data.masks import encode_mask
from workbench.data.vocabulary import Vocabulary

VOCABULARY = Vocabulary((3, 7), ("disc", "box"), {"colour": ("red", "green"), "texture": ("plain", "dots")})
SIZE = 64


def square(x: int, y: int, side: int = 10) -> np.ndarray:
    mask = np.zeros((SIZE, SIZE), dtype=bool)
    mask[y : y + side, x : x + side] = True
    return mask


def row(x: int, y: int, score: float, *, side: int = 10, category: str = "disc", image_id: int = 1, **more) -> dict:
    """By default a plain red square, of both of which the model is sure."""
    return {
        "image_id": image_id,
        "category_id": VOCABULARY.category_ids[VOCABULARY.categories.index(category)],
        "segmentation": encode_mask(square(x, y, side)),
        "score": score,
        "main_score": score,
        "mask_score": 1.0,
        **subcategories(colour=(0.9, 0.05, 0.05), texture=(0.8, 0.1, 0.1)),
        **more,
    }


def subcategories(**probabilities: tuple[float, ...]) -> dict:
    """What a row says of its subcategories; the logits are ten times the probabilities."""
    classes = {name: (*VOCABULARY.subcategories[name], None) for name in probabilities}
    return {
        "attributes": {name: classes[name][int(np.argmax(p))] for name, p in probabilities.items()},
        "attribute_scores": {name: list(p) for name, p in probabilities.items()},
        "attribute_logits": {name: 10 * max(p[:-1]) for name, p in probabilities.items()},
    }


def annotation(number: int, x: int, y: int, *, side: int = 10, category: str = "disc", **more) -> dict:
    return {
        "id": number,
        "image_id": 1,
        "category_id": VOCABULARY.category_ids[VOCABULARY.categories.index(category)],
        "segmentation": encode_mask(square(x, y, side)),
        "bbox": [x, y, side, side],
        "area": side * side,
        "iscrowd": 0,
        **more,
    }


def truth(*annotations: dict, images: int = 1) -> dict:
    return {
        "images": [{"id": i + 1, "file_name": f"{i}.png", "height": SIZE, "width": SIZE} for i in range(images)],
        "annotations": list(annotations),
        "categories": [
            {"id": i, "name": name} for i, name in zip(VOCABULARY.category_ids, VOCABULARY.categories, strict=True)
        ],
    }
