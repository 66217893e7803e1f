"""A drawn image whose objects are known pixel by pixel, to be written in every format and read back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from workbench.data.formats.builder import Imported
from workbench.data.formats.importing import READERS, detect_source
from workbench.data.formats.source import Source
from workbench.data.masks import decode_mask

HEIGHT, WIDTH = 60, 80


class Scene:
    """A disc and a ring on an image of 60x80 pixels: their masks, and the outline of the disc in 40 points."""

    size = (HEIGHT, WIDTH)

    def __init__(self) -> None:
        y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
        self.disc = (x - 25) ** 2 + (y - 22) ** 2 < 15**2
        self.ring = ((x - 60) ** 2 + (y - 30) ** 2 < 14**2) & ((x - 60) ** 2 + (y - 30) ** 2 > 6**2)
        self.outline = self.circle(25, 22, 15)

    @staticmethod
    def circle(x: float, y: float, radius: float) -> list[list[float]]:
        """The corners of a polygon of 40 points on a circle."""
        t = np.arange(40) * 2 * np.pi / 40
        return np.stack([x + radius * np.cos(t), y + radius * np.sin(t)], axis=1).round(3).tolist()


@pytest.fixture
def scene() -> Scene:
    return Scene()


@pytest.fixture
def picture() -> Callable[..., Path]:
    """Writes an image file, of 60x80 pixels before ``orientation`` (EXIF) turns it."""

    def write(path: Path, *, orientation: int = 1, size: tuple[int, int] = (HEIGHT, WIDTH)) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(np.full((*size, 3), 90, dtype=np.uint8)).save(path, exif=exif)
        return path

    return write


@pytest.fixture
def write_json() -> Callable[..., Path]:
    def write(path: Path, content: object) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
        return path

    return write


@pytest.fixture
def read() -> Callable[..., Imported]:
    """Recognises and reads a source."""

    def read_source(path: Path, images: Path | None = None, category: str | None = None) -> Imported:
        source = Source(path, images, category)
        return READERS[detect_source(source)](source)

    return read_source


@pytest.fixture
def masks_of() -> Callable[[Imported], list[np.ndarray]]:
    """Decodes all masks, in the order of the annotations."""

    def decode(imported: Imported) -> list[np.ndarray]:
        images = {image["id"]: image for image in imported.content["images"]}
        shapes = [(images[each["image_id"]], each["segmentation"]) for each in imported.content["annotations"]]
        return [decode_mask(mask, image["height"], image["width"]) for image, mask in shapes]

    return decode


@pytest.fixture
def iou() -> Callable[[np.ndarray, np.ndarray], float]:
    return lambda first, second: float((first & second).sum() / (first | second).sum())


@pytest.fixture
def names_of() -> Callable[[Imported], list[str]]:
    """The category names of all annotations, in their order."""

    def names(imported: Imported) -> list[str]:
        known = {item["id"]: item["name"] for item in imported.content["categories"]}
        return [known[each["category_id"]] for each in imported.content["annotations"]]

    return names
