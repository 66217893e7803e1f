"""The shapes dataset: a generated COCO dataset that stands in for one's own.

Main category: shape. Subcategories: colour and texture. Every picture depends on (seed, split, index)
alone, so the same settings give the same bytes, however many pictures are made and in whatever order.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from workbench.data.masks import encode_mask, encode_polygons, encode_uncompressed
from workbench.data.shapes.rendering import (
    COLOURS,
    SHAPES,
    TEXTURES,
    apply_light,
    outline_area,
    palette_rgb,
    render_background,
    render_object,
)
from workbench.errors import WorkbenchError
from workbench.files import write_json

TRAIN_IMAGES, VAL_IMAGES, TEST_IMAGES = 2000, 200, 300
IMAGE_SIZE, CROWDED_IMAGE_SIZE = 128, 256
OBJECTS, CROWDED_OBJECTS = (1, 5), (40, 100)
SIZES, CROWDED_SIZES = (26.0, 72.0), (12.0, 26.0)  # nominal diameter, pixels
LEAST_VISIBLE = 0.5  # of an object's area, for it to be placed at all
TILT = 30.0  # degrees, either way
EMPTY_SHARE, CROWD_SHARE, UNLABELLED_SHARE = 0.03, 0.04, 0.05

META_FILE = "shapes.json"
# Raise it when pictures or annotations change, so that a folder made before is not mistaken for one made now.
_VERSION = 3
_SPLITS = ("train", "val", "test")


class _Scene:
    """One picture while it is being drawn: the canvas and which object owns each pixel."""

    def __init__(self, rng: np.random.Generator, size: int, sizes: tuple[float, float]):
        self.rng = rng
        self.size = size
        self.sizes = sizes
        self.canvas = render_background(rng, size, size)
        self.owner = np.full((size, size), -1, dtype=np.int16)
        self.areas: list[float] = []  # of each whole object, what lies off the canvas included
        self.objects: list[dict] = []

    def place(self, *, occlude: bool) -> bool:
        """Try a few places for one more object; False when none leaves every object visible enough."""
        rng = self.rng
        low, high = self.sizes
        size = low * (high / low) ** rng.uniform()
        shape, colour, texture = (str(rng.choice(names)) for names in (SHAPES, COLOURS, TEXTURES))
        angle = rng.uniform(-TILT, TILT)
        rgb = palette_rgb(
            colour, hue_shift=rng.uniform(-8, 8), saturation=rng.uniform(0.72, 1), value=rng.uniform(0.7, 1)
        )
        look = {"size": size, "angle": angle, "rgb": rgb, "phase": tuple(rng.uniform(0, 1, 2))}
        whole = outline_area(shape, size)
        least = LEAST_VISIBLE if occlude else 0.85
        for _ in range(12):
            centre = tuple(rng.uniform(0.1 * size, self.size - 0.1 * size, 2))
            trial = self.canvas.copy()
            mask = render_object(trial, shape, colour, texture, centre=centre, **look)
            hidden = np.bincount(self.owner[mask & (self.owner >= 0)], minlength=len(self.areas))
            left = np.bincount(self.owner[self.owner >= 0], minlength=len(self.areas)) - hidden
            if mask.sum() < least * whole or any(
                n < least * area for n, area, gone in zip(left, self.areas, hidden, strict=True) if gone
            ):
                continue
            self.canvas = trial
            self.owner[mask] = len(self.areas)
            self.areas.append(whole)
            self.objects.append({"category": shape, "colour": colour, "texture": texture, "iscrowd": 0})
            return True
        return False

    def place_crowd(self) -> None:
        """A swarm of small objects of one shape, annotated as one crowd region."""
        rng = self.rng
        shape = str(rng.choice(SHAPES))
        middle = rng.uniform(0.2 * self.size, 0.8 * self.size, 2)
        spread = rng.uniform(10, 16)
        number = len(self.areas)
        for _ in range(int(rng.integers(8, 16))):
            colour, texture = str(rng.choice(COLOURS)), "plain"
            centre = tuple(middle + rng.normal(0, spread, 2))
            mask = render_object(
                self.canvas,
                shape,
                colour,
                texture,
                centre=centre,
                size=rng.uniform(7, 11),
                angle=rng.uniform(0, 360),
            )
            self.owner[mask] = number
        self.areas.append(0.0)
        self.objects.append({"category": shape, "iscrowd": 1})

    def annotations(self) -> list[dict]:
        """COCO annotations of what can be seen, in drawing order, without ids. The form of the mask is
        drawn too."""
        rng, found = self.rng, []
        for number, thing in enumerate(self.objects):
            mask = self.owner == number
            area = int(mask.sum())
            form, unlabelled = rng.uniform(), rng.uniform(size=2) < UNLABELLED_SHARE
            if area == 0:
                continue
            attributes = {
                name: thing[name]
                for name, missing in zip(("colour", "texture"), unlabelled, strict=True)
                if name in thing and not missing
            }
            ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            found.append(
                {
                    "category_id": SHAPES.index(thing["category"]) + 1,
                    "segmentation": _segmentation(mask, form, bool(thing["iscrowd"])),
                    "area": area,
                    "bbox": [int(xs[0]), int(ys[0]), int(xs[-1] - xs[0] + 1), int(ys[-1] - ys[0] + 1)],
                    "iscrowd": thing["iscrowd"],
                    "attributes": attributes,
                }
            )
        return found


def _segmentation(mask: np.ndarray, form: float, crowd: bool) -> list | dict:
    """Return the mask as polygons (70 of 100), compressed or uncompressed RLE, each exact to the pixel.

    A mask with a hole is an RLE too; crowds are uncompressed RLEs, as in COCO.
    """
    if crowd:
        return encode_uncompressed(mask)
    polygons = encode_polygons(mask) if form < 0.7 else None
    if polygons:
        return polygons
    return encode_uncompressed(mask) if form > 0.85 else encode_mask(mask)


def draw_scene(seed: int, split: str, index: int, *, image_size: int, crowded: bool) -> tuple[np.ndarray, list[dict]]:
    """Picture number ``index`` of a split: (image_size, image_size, 3) uint8 RGB and its annotations
    without ids."""
    rng = np.random.default_rng([seed, _SPLITS.index(split), int(crowded), index])
    smallest, largest = CROWDED_SIZES if crowded else SIZES
    scene = _Scene(rng, image_size, (smallest, max(smallest, min(largest, image_size / 2))))
    if rng.uniform() >= EMPTY_SHARE:
        low, high = CROWDED_OBJECTS if crowded else OBJECTS
        if rng.uniform() < CROWD_SHARE:
            scene.place_crowd()
        for _ in range(int(rng.integers(low, high + 1))):
            scene.place(occlude=bool(rng.uniform() < 0.3))
    annotations = scene.annotations()
    return apply_light(scene.canvas, rng), annotations


def _write_split(folder: Path, split: str, count: int, *, seed: int, image_size: int, crowded: bool) -> None:
    (folder / split).mkdir(parents=True)
    images, annotations = [], []
    for index in range(count):
        picture, found = draw_scene(seed, split, index, image_size=image_size, crowded=crowded)
        name = f"{index + 1:06d}.png"
        Image.fromarray(picture).save(folder / split / name, compress_level=1)
        images.append({"id": index + 1, "file_name": name, "height": image_size, "width": image_size})
        for annotation in found:
            annotations.append({"id": len(annotations) + 1, "image_id": index + 1, **annotation})
    content = {
        "info": {"description": f"Generated shapes, split {split}, seed {seed}"},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": n, "name": shape, "supercategory": "shape"} for n, shape in enumerate(SHAPES, 1)],
        "subcategories": [
            {"name": "colour", "classes": list(COLOURS)},
            {"name": "texture", "classes": list(TEXTURES)},
        ],
    }
    write_json(folder / "annotations" / f"{split}.json", content, separators=(",", ":"))


def generate_shapes(
    output: Path | str,
    *,
    seed: int = 0,
    train: int = TRAIN_IMAGES,
    val: int = VAL_IMAGES,
    test: int = TEST_IMAGES,
    image_size: int | None = None,
    crowded: bool = False,
) -> bool:
    """Write the dataset into the folder ``output``: ``{train,val,test}/*.png``,
    ``annotations/{split}.json`` and ``shapes.json``, the settings it was made with.

    ``image_size`` is the side in pixels, 128 or, when ``crowded`` (up to 100 small objects a picture), 256.
    Returns True when it was written, False when the folder holds the same dataset already. WorkbenchError
    when the folder holds anything else. A folder is complete or absent: the work is done beside it and
    moved in at the end.
    """
    output = Path(output)
    if image_size is None:
        image_size = CROWDED_IMAGE_SIZE if crowded else IMAGE_SIZE
    settings = {"version": _VERSION, "seed": seed, "train": train, "val": val, "test": test}
    settings |= {"image_size": image_size, "crowded": crowded}
    if seed < 0 or min(train, val, test) < 0 or image_size < 32:
        raise WorkbenchError("The seed and the numbers of images must be 0 or more, the image size 32 or more.")
    if _holds_same(output, settings):
        return False
    partial = output.with_name(output.name + ".partial")
    try:
        if partial.exists():  # left by a run that was killed
            shutil.rmtree(partial)
        for split, count in zip(_SPLITS, (train, val, test), strict=True):
            _write_split(partial, split, count, seed=seed, image_size=image_size, crowded=crowded)
        write_json(partial / META_FILE, settings, indent=2)
        partial.replace(output)
    except OSError as error:
        raise WorkbenchError(f"The shapes dataset cannot be written to {output}: {error.strerror or error}.") from error
    return True


def _holds_same(output: Path, settings: dict) -> bool:
    """True when ``output`` holds this dataset, False when it is free to be written, else a WorkbenchError."""
    if not output.exists():
        return False
    if not output.is_dir():
        raise WorkbenchError(f"{output} is a file, not a folder for the shapes dataset.")
    if not any(output.iterdir()):
        output.rmdir()
        return False
    try:
        there = json.loads((output / META_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        there = None
    if not isinstance(there, dict):
        raise WorkbenchError(f"{output} holds other files; name an empty or new folder for the shapes dataset.")
    if there == settings:
        return True
    differ = [
        f"{key} {there.get(key)} there, {settings[key]} asked" for key in settings if there.get(key) != settings[key]
    ]
    raise WorkbenchError(
        f"{output} holds a shapes dataset of other settings ({'; '.join(differ)}); delete it or name another folder."
    )
