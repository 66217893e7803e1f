"""Small datasets of one's own, as files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SQUARE = [2.0, 2.0, 10.0, 2.0, 10.0, 10.0, 2.0, 10.0]


def _annotation(number: int, image: int = 1, **changes: object) -> dict:
    """A faultless annotation, changed."""
    return {
        "id": number,
        "image_id": image,
        "category_id": 7,
        "segmentation": [list(SQUARE)],
        "area": 64,
        "bbox": [2, 2, 8, 8],
        "iscrowd": 0,
        "attributes": {"colour": "red", "ripe": True},
        **changes,
    }


def _content(**changes: object) -> dict:
    """A faultless dataset of two images, the second without objects."""
    return {
        "images": [
            {"id": 1, "file_name": "a.png", "height": 16, "width": 20},
            {"id": 2, "file_name": "b.png", "height": 16, "width": 20},
        ],
        "annotations": [_annotation(1)],
        "categories": [{"id": 7, "name": "apple"}, {"id": 3, "name": "pear"}],
        **changes,
    }


@pytest.fixture
def annotation() -> Callable[..., dict]:
    return _annotation


@pytest.fixture
def content() -> Callable[..., dict]:
    return _content


@pytest.fixture
def write(tmp_path: Path) -> Callable[[dict], Path]:
    """Writes a dataset: labels.json, and its pictures in images/ beside it."""

    def write_dataset(values: dict, *, pictures: bool = True) -> Path:
        path = tmp_path / "labels.json"
        path.write_text(json.dumps(values))
        folder = tmp_path / "images"
        folder.mkdir(exist_ok=True)
        if pictures:
            for name in ("a.png", "b.png"):
                Image.fromarray(np.full((16, 20, 3), 90, dtype=np.uint8)).save(folder / name)
        return path

    return write_dataset
