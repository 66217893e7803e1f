"""Build a COCO instances dict from images and shapes, whatever format they come from."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from workbench.data.formats.source import Source, reading
from workbench.data.image_files import ERRORS, ImageRules, open_image
from workbench.data.images import oriented_size
from workbench.data.masks import MOST_PIXELS, decode_mask, encode_mask, to_rle
from workbench.data.vocabulary import name_problem
from workbench.errors import WorkbenchError, reason_of

_ORIENTATION = 0x0112
# What parts of a dataset are called in exports, and here.
_SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
BOXES = "boxes, left out because a box is no mask"


RECTANGLES = "rectangles, read as masks of that form"


@dataclass
class Imported:
    """A dataset as one COCO dict, and where its images come from.

    Attributes:
        content: ``images`` (with ``split``: train, val or test, where the source says it for all of them),
            ``annotations`` (with ``attributes``) and ``categories``.
        files: by ``file_name``, the path of each image, or its bytes where an annotation file holds it.
        notes: what was left out or changed, a sentence each with its count and first place.
    """

    content: dict[str, Any]
    files: dict[str, Path | bytes]
    notes: list[str]


@dataclass
class _Object:
    image: dict
    category: str
    attributes: dict
    where: str
    segmentations: list[list | dict] = field(default_factory=list)


class Frame:
    """An image in the making: takes the objects drawn on it.

    Coordinates and masks are given as the source has them, on an image of ``size``. Where that is the stored image
    and EXIF turns it, they are turned along: images are read turned.
    """

    def __init__(self, builder: Builder, record: dict, turn: int) -> None:
        self._builder = builder
        self._turn = turn
        self.record = record
        height, width = record["height"], record["width"]
        self.size = (width, height) if turn > 1 else (height, width)  # (height, width), as the source has it

    def add_polygons(
        self,
        category: str,
        outlines: Sequence[np.ndarray],
        where: str,
        attributes: dict | None = None,
        *,
        holes: Sequence[np.ndarray] = (),
        group: object = None,
    ) -> None:
        """Add an object drawn as polygons, (N, 2) arrays of x and y in pixels.

        ``where`` names it in messages. Objects of one image and category with the same ``group`` (not None) are
        parts of one object. A polygon with fewer than three different points is left out.
        """
        drawn = [line for line in outlines if len(np.unique(line, axis=0)) >= 3]
        if not drawn:
            self._builder.note("polygons with fewer than 3 different points, left out", where)
            return
        segmentation: list | dict = [self._turned_points(line).ravel().tolist() for line in drawn]
        cut = [self._turned_points(line).ravel().tolist() for line in holes if len(np.unique(line, axis=0)) >= 3]
        if cut:
            size = (self.record["height"], self.record["width"])
            with reading(where):
                segmentation = encode_mask(decode_mask(segmentation, *size) & ~decode_mask(cut, *size))
        self._add(category, segmentation, where, attributes, group)

    def add_mask(
        self,
        category: str,
        mask: np.ndarray,
        where: str,
        attributes: dict | None = None,
        *,
        left: int = 0,
        top: int = 0,
        group: object = None,
    ) -> None:
        """Add an object from an (h, w) bool array, whose corner lies at ``left``, ``top``; what is outside the image
        is cut off. Other arguments as :meth:`add_polygons`."""
        height, width = self.size
        whole = np.zeros(self.size, dtype=bool)
        x0, y0 = min(max(left, 0), width), min(max(top, 0), height)
        x1, y1 = max(min(left + mask.shape[1], width), x0), max(min(top + mask.shape[0], height), y0)
        whole[y0:y1, x0:x1] = mask[y0 - top : y1 - top, x0 - left : x1 - left] if x1 > x0 and y1 > y0 else False
        self._add(category, encode_mask(self._turned_mask(whole)), where, attributes, group)

    def add_box(
        self, category: str, outline: np.ndarray, where: str, attributes: dict | None = None, *, group: object = None
    ) -> None:
        """Add a rectangle, a (4, 2) array of its corners, as a mask of that form. A dataset of nothing else is
        refused: its rectangles were drawn around objects. Other arguments as :meth:`add_polygons`."""
        self._builder.note(RECTANGLES, where)
        self.add_polygons(category, [outline], where, attributes, group=group)

    def leave_out(self, kind: str, where: str) -> None:
        """Count a shape that is not read; ``kind`` is its plural (``"boxes"``, ``"points"``)."""
        self._builder.note(BOXES if kind == "boxes" else f"{kind}, left out", where)

    def _add(
        self, category: str, segmentation: list | dict, where: str, attributes: dict | None, group: object
    ) -> None:
        if not isinstance(category, str):
            raise ValueError(f"its label {str(category)[:60]} is no text")
        if category == "":
            self._builder.note("shapes without a label, left out", where)
            return
        if problem := name_problem(category):
            raise ValueError(f"its label {problem}")
        key = (self.record["id"], category, group) if group is not None else None
        self._builder.add_object(_Object(self.record, category, attributes or {}, where, [segmentation]), key)

    def _turned_points(self, points: np.ndarray) -> np.ndarray:
        height, width = self.size
        x, y = points[:, 0], points[:, 1]
        turned = {5: (y, x), 6: (height - y, x), 7: (height - y, width - x), 8: (y, width - x)}
        return np.stack(turned.get(self._turn, (x, y)), axis=1)

    def _turned_mask(self, mask: np.ndarray) -> np.ndarray:
        if self._turn in (5, 7):
            mask = mask.T if self._turn == 5 else np.rot90(mask, 2).T
        return np.rot90(mask, {6: -1, 8: 1}.get(self._turn, 0))


class Builder:
    """Collects images and objects; :meth:`finish` returns the dataset."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self._frames: dict[Path | str, Frame] = {}
        self._files: dict[Path | str, Path | bytes] = {}
        self.objects: list[_Object] = []
        self._groups: dict[tuple, _Object] = {}
        self._categories: list[str] = []
        self._notes: dict[str, tuple[int, str]] = {}

    def note(self, kind: str, where: str) -> None:
        """Count something that is left out or changed; ``where`` says which, the first is kept."""
        count, first = self._notes.get(kind, (0, where))
        self._notes[kind] = (count + 1, first)

    def declare_categories(self, names: Iterable[str]) -> None:
        """Fix the order of categories; those without an object are left out at the end."""
        self._categories += [name for name in names if name not in self._categories]

    def add_image(
        self,
        name: str,
        where: str,
        *,
        beside: Path | None = None,
        size: tuple[int, int] | None = None,
        data: bytes | None = None,
        split: str | None = None,
    ) -> Frame | None:
        """Return the frame of an image; None, with a note, where it cannot be used.

        Args:
            name: what the source calls it, see :meth:`Source.find_image`.
            where: the file and item that name it, for messages.
            beside: the folder of the file that names it; the source's own.
            size: (height, width) that the objects are drawn on. None where the source does not say: then they are
                drawn on the image as it is shown, turned by EXIF.
            data: the image file's bytes, used where there is no file.
            split: what part of the dataset it is in, in the source's words.
        """
        path = self.source.find_image(name, beside or self.source.folder)
        if path is None and data is None:
            several = self.source.same_name(name)
            kind = "whose name several files have" if several else "that are missing"
            place = f"{name!r} of {where}" + (f" may be {several[0]} or {several[1]}" if several else "")
            self.note(f"images {kind}, left out with their objects", place)
            return None
        key = str(beside) + name if path is None else path
        if key in self._frames:
            self.note("images listed more than once, their objects put together", where)
            return self._frames[key]
        try:
            with open_image(path if data is None or path else io.BytesIO(data), ImageRules()) as opened:
                shown, stored = oriented_size(opened), (opened.height, opened.width)
                turn = int(opened.getexif().get(_ORIENTATION, 1))
                suffix = f".{(opened.format or 'png').lower()}"
        except ERRORS as error:
            self.note("images that cannot be read, left out with their objects", f"{path or where}: {reason_of(error)}")
            return None
        if shown[0] * shown[1] > MOST_PIXELS or size not in (None, shown, stored):
            said = f"{shown[1]}x{shown[0]}" + (f", not {size[1]}x{size[0]} as {where} says" if size else "")
            kind = "images of another size than their annotations say, left out with their objects"
            self.note(kind, f"{path or name} is {said}")
            return None
        turned = shown != stored and size == stored
        record = {"id": len(self._frames) + 1, "height": shown[0], "width": shown[1]}
        if split is not None:
            record["split"] = split
        if path is None:
            path = (beside or self.source.folder).absolute() / (Path(name).name + suffix)
        self._files[key] = path if data is None or path.is_file() else data
        record["path"] = path
        self._frames[key] = Frame(self, record, turn if turned else 1)
        return self._frames[key]

    def add_object(self, drawn: _Object, group: tuple | None) -> None:
        """Add an object, or its parts to the object of the same ``group``."""
        first = self._groups.setdefault(group, drawn) if group is not None else drawn
        if first is drawn:
            self.objects.append(drawn)
        else:
            first.segmentations += drawn.segmentations
            first.attributes.update(drawn.attributes)

    def finish(self) -> Imported:
        """Return the dataset.

        Raises:
            WorkbenchError: nothing of it can be used, or a polygon lies far outside its image.
        """
        if not self._frames:
            reasons = "; ".join(self._note_lines()) or "its files name no image"
            raise WorkbenchError(
                f"No image of {self.source.path} can be used: {reasons}. Name the folder of the images with --images."
            )
        annotations = [record for record in map(self._annotation, self.objects) if record is not None]
        kind = BOXES if BOXES in self._notes else RECTANGLES
        boxes, first = self._notes.get(kind, (0, ""))
        if boxes and (not annotations or (kind == RECTANGLES and boxes >= len(self.objects))):
            raise WorkbenchError(
                f"{self.source.path} has boxes only ({boxes} of them, the first is {first}), and masks are not learnt "
                "from boxes; draw polygons."
            )
        if not annotations:
            reasons = "; ".join(self._note_lines()) or "it has no shapes"
            raise WorkbenchError(f"{self.source.path} has no object with a mask: {reasons}.")
        used = {record["category_id"] for record in annotations}
        self.declare_categories(sorted(used))
        unused = [name for name in self._categories if name not in used]
        for name in unused:
            self.note("categories without an object, left out", name)
        numbers = {name: i for i, name in enumerate((name for name in self._categories if name in used), 1)}
        for i, record in enumerate(annotations, 1):
            record.update(id=i, category_id=numbers[record["category_id"]])
        files = self._name_files()
        content = {
            "images": [frame.record for frame in self._frames.values()],
            "annotations": annotations,
            "categories": [{"id": i, "name": name} for name, i in numbers.items()],
        }
        self._set_splits(content["images"])
        return Imported(content, files, self._note_lines())

    def _annotation(self, drawn: _Object) -> dict | None:
        """Return the record of an object, its category a name still; None, with a note, where it covers no pixel."""
        height, width = drawn.image["height"], drawn.image["width"]
        with reading(drawn.where):
            try:
                rles = [to_rle(segmentation, height, width) for segmentation in drawn.segmentations]
            except WorkbenchError as error:
                raise WorkbenchError(f"{drawn.where}: {error}") from None
            rle = rles[0] if len(rles) == 1 else coco_mask.merge(rles)
        area = int(coco_mask.area(rle))
        if not area:
            self.note("objects that cover no pixel of their image, left out", drawn.where)
            return None
        counts = rle["counts"].decode("ascii") if isinstance(rle["counts"], bytes) else rle["counts"]
        segmentation: list | dict = {"size": [height, width], "counts": counts}
        if all(isinstance(part, list) for part in drawn.segmentations):
            segmentation = [polygon for part in drawn.segmentations for polygon in part]
        return {
            "id": 0,
            "image_id": drawn.image["id"],
            "category_id": drawn.category,
            "segmentation": segmentation,
            "area": area,
            "bbox": coco_mask.toBbox(rle).tolist(),
            "iscrowd": 0,
            "attributes": drawn.attributes,
        }

    def _name_files(self) -> dict[str, Path | bytes]:
        """Give each image record its ``file_name``: the path below the folder that holds all images."""
        paths = {key: frame.record.pop("path") for key, frame in self._frames.items()}
        parents = [path.parent for path in paths.values()]
        common = parents[0]
        while not all(parent.is_relative_to(common) for parent in parents):
            common = common.parent
        files: dict[str, Path | bytes] = {}
        for key, path in paths.items():
            name = path.relative_to(common).as_posix()
            self._frames[key].record["file_name"] = name
            files[name] = self._files[key]
        return files

    @staticmethod
    def _set_splits(images: list[dict]) -> None:
        """Keep the splits where the source gives every image one of the three that are known, and not all the same."""
        splits = [_SPLITS.get(str(image.pop("split", "")).lower()) for image in images]
        if None not in splits and len(set(splits)) > 1:
            for image, split in zip(images, splits, strict=True):
                image["split"] = split

    def _note_lines(self) -> list[str]:
        return [f"{kind}: {count} (first: {first})" for kind, (count, first) in self._notes.items()]
