"""Annotations that look wrong: what was marked while looking, and predictions that contradict what is annotated."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from pycocotools import mask as coco_mask
from scipy import ndimage

from workbench.data.masks import encode_polygons, mask_areas, to_rle
from workbench.errors import errors_as
from workbench.files import write_json, write_text
from workbench.notebook.scene import shown_name

if TYPE_CHECKING:
    from workbench.notebook.gallery import Gallery

SUSPECTED = "suspected"  # the attribute that says why a prediction is among the annotations of review.json


class Review:
    """The images of a gallery that were marked, each with a note; :meth:`save` writes them."""

    def __init__(self, gallery: Gallery) -> None:
        self._gallery = gallery
        self._notes: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._notes)

    def is_marked(self, image_id: int) -> bool:
        return image_id in self._notes

    def note(self, image_id: int) -> str:
        return self._notes.get(image_id, "")

    def mark(self, image_id: int, marked: bool, note: str = "") -> None:
        """Mark an image, with a note, or take its mark away; a note marks it too."""
        if marked or (note and image_id not in self._notes):
            self._notes[image_id] = note
        else:
            self._notes.pop(image_id, None)

    def save(self, suspected: pd.DataFrame | None = None) -> list[Path]:
        """Write review.csv and review.json into the gallery's directory, and return their paths.

        Args:
            suspected: a table of :func:`workbench.evaluation.analysis.suspected_label_errors`, whose images are added.

        The JSON holds the images as a COCO file with their annotations, which CVAT and Label Studio import: each has a
        box, an area and polygons, since Label Studio reads no run lengths. A prediction that contradicts them is added
        as an annotation whose attribute ``suspected`` says why.

        Raises:
            WorkbenchError: the files cannot be written.
        """
        lines = [(image_id, "marked", note) for image_id, note in self._notes.items()]
        rows = [] if suspected is None else suspected.to_dict("records")
        lines += [(row["image_id"], row["suspicion"], _in_words(row)) for row in rows]
        named = [(key, shown_name(self._gallery.files[key]), why, note) for key, why, note in lines]
        table = pd.DataFrame(named, columns=["image_id", "file_name", "why", "note"])
        paths = [self._gallery.directory / name for name in ("review.csv", "review.json")]
        with errors_as(f"The review cannot be saved in {self._gallery.directory}", OSError):
            write_text(paths[0], table.to_csv(index=False))
            write_json(paths[1], self._coco({key for key, _, _ in lines}, rows))
        return paths

    def _coco(self, image_ids: set[int], suspected: list[dict[str, Any]]) -> dict[str, Any]:
        truth = self._gallery.truth or {"images": [], "categories": [], "annotations": []}
        annotations = [row for key in sorted(image_ids) for row in self._gallery.annotations.get(key, ())]
        number = max((row["id"] for row in truth["annotations"]), default=0)
        for row in suspected:
            predicted = self._gallery.prediction(row["image_id"], row["predicted"], row["score"])
            if predicted is not None:
                number += 1
                kept = {key: predicted[key] for key in ("image_id", "category_id", "segmentation")}
                attributes = {name: value for name, value in (predicted.get("attributes") or {}).items() if value}
                attributes[SUSPECTED] = row["suspicion"]
                annotations.append({**kept, "id": number, "iscrowd": 0, "attributes": attributes})
        images = {image["id"]: image for image in truth["images"] if image["id"] in image_ids}
        return {
            "images": list(images.values()),
            "categories": list(truth["categories"]),
            "annotations": [_importable(row, images[row["image_id"]]) for row in annotations],
        }


def _in_words(row: dict[str, Any]) -> str:
    annotated = f", annotated {row['annotated']} (annotation {row['annotation_id']})" if row["annotated"] else ""
    return f"{row['predicted']} {row['score']:.2f}{annotated}"


def _importable(annotation: Mapping[str, Any], image: Mapping[str, Any]) -> dict[str, Any]:
    """Return an annotation with a box, an area and polygons."""
    segmentation = annotation["segmentation"]
    rle = to_rle(segmentation, image["height"], image["width"])
    measured = {"bbox": coco_mask.toBbox(rle).tolist(), "area": float(mask_areas([rle])[0]), "iscrowd": 0}
    polygons = segmentation if isinstance(segmentation, list) else _polygons(rle)
    return {**measured, **annotation, "segmentation": polygons}


def _polygons(rle: Mapping[str, Any]) -> list[list[float]]:
    """Return polygons that decode to exactly this mask; a part with holes is cut into several through them."""
    x, y, width, height = (int(side) for side in coco_mask.toBbox(rle))
    if not width:
        return []
    mask = coco_mask.decode(rle)[y : y + height, x : x + width].astype(bool)
    shift = np.array([x, y])
    return [(np.reshape(each, (-1, 2)) + shift).ravel().tolist() for each in _pieces(mask)]


def _pieces(mask: np.ndarray) -> list[list[float]]:
    polygons = encode_polygons(mask)
    if polygons is not None or not mask.any():
        return polygons or []
    holes = np.flatnonzero((ndimage.binary_fill_holes(mask) & ~mask).any(axis=0))
    column = int(holes[len(holes) // 2])
    right = np.array([column, 0])
    shifted = ((np.reshape(each, (-1, 2)) + right).ravel().tolist() for each in _pieces(mask[:, column:]))
    return [*_pieces(mask[:, :column]), *shifted]
