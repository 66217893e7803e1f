"""What is read from the folder of somebody else's annotations: documents, images and encoded pictures."""

from __future__ import annotations

import base64
import binascii
import io
import os
import zlib
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, ParseError

import numpy as np
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import parse as parse_xml
from PIL import Image

from workbench.data.reading import read_json
from workbench.errors import WorkbenchError, is_number, reason_of

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif"})


@contextmanager
def reading(where: str) -> Iterator[None]:
    """Turn what a malformed record raises into a WorkbenchError that begins with ``where`` (file and item)."""
    try:
        yield
    except KeyError as error:
        raise WorkbenchError(f"{where} has no {error.args[0]!r}.") from None
    except (AttributeError, IndexError, OverflowError, RecursionError, TypeError, ValueError) as error:
        raise WorkbenchError(f"{where} is malformed: {reason_of(error)}.") from None


class Source:
    """The file or folder that a user names, and the images that belong to it.

    Attributes:
        path: what the user named.
        folder: the folder of ``path``, or ``path`` itself. Paths in data files do not lead out of it.
        images: a further folder with the images, or None.
        category: the attribute that names the main category, for formats that leave it open, or None.
    """

    def __init__(self, path: Path, images: Path | None = None, category: str | None = None) -> None:
        for given in (path, *([images] if images else [])):
            if not given.exists():
                raise WorkbenchError(f"There is no file or folder {given}.")
        self.path = path
        self.folder = path if path.is_dir() else path.parent
        self.images = images
        self.category = category
        self._parsed: dict[Path, Any] = {}

    def name(self, path: Path) -> str:
        """Return a path as messages show it."""
        return os.path.relpath(path, self.folder) if path.is_relative_to(self.folder) else str(path)

    def files(self, suffix: str) -> list[Path]:
        """Return the files with this suffix: ``path`` itself, or those directly in the folder, or where it has none
        those anywhere below it; sorted."""
        if self.path.is_file():
            return [self.path]
        return sorted(self.folder.glob(f"*{suffix}")) or sorted(self.folder.rglob(f"*{suffix}"))

    def read_json(self, path: Path) -> Any:
        """Return the content of a JSON file. The last one is kept: the format is recognised by its content."""
        if path not in self._parsed:
            self._parsed = {path: read_json(path)}
        return self._parsed[path]

    def find_image(self, name: str, beside: Path) -> Path | None:
        """Return the image that a data file in the folder ``beside`` calls ``name``; None where there is none.

        The name is taken relative to ``beside``, to the images' and to the source's folder. A name that leads out of
        them, and one that is in none of them, is looked for by its last part: exported files carry the paths of the
        annotator's machine. A last part that several files have is not resolved, see :meth:`same_name`.
        """
        name = name.replace("\\", "/")
        if not name or "\0" in name:
            return None
        roots = [root for root in (self.images, beside, self.folder, self.folder / "images") if root is not None]
        allowed = [os.path.join(os.path.abspath(root), "") for root in (self.images, self.folder) if root is not None]
        for root in roots:
            path = os.path.normpath(os.path.join(os.path.abspath(root), name))
            inside = any(path.startswith(folder) for folder in allowed)
            if inside and _is_image(path) and os.path.isfile(path):
                return Path(path)
        paths = self.same_name(name)
        return paths[0] if len(paths) == 1 else None

    def same_name(self, name: str) -> list[Path]:
        """Return all images whose file name is the last part of ``name``, in any folder."""
        return self._by_name.get(name.replace("\\", "/").rpartition("/")[2], [])

    @cached_property
    def _by_name(self) -> dict[str, list[Path]]:
        paths = defaultdict(list)
        for root in (self.images, self.folder):
            for folder, _, names in os.walk(root) if root is not None else ():
                for name in names:
                    if _is_image(name):
                        paths[name].append(Path(os.path.abspath(folder)) / name)
            if root is not None and paths:
                break
        return dict(paths)


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def read_xml(path: Path) -> Element:
    """Return the root of an XML file. One that declares entities is refused: nothing is expanded or fetched."""
    try:
        return parse_xml(path).getroot()
    except OSError as error:
        raise WorkbenchError(f"The annotation file {path} cannot be read: {error.strerror or error}.") from None
    except DefusedXmlException:
        raise WorkbenchError(f"The annotation file {path} declares XML entities, which are not read.") from None
    except (ParseError, ValueError, LookupError) as error:
        raise WorkbenchError(f"The annotation file {path} is not valid XML: {error}.") from None


def as_points(value: object) -> np.ndarray:
    """(N, 2) float64 of ``[[x, y], ...]``; ValueError where a point is not two finite numbers."""
    if not isinstance(value, (list, tuple)):
        raise ValueError("its points are no list")
    for point in value:
        if not (isinstance(point, (list, tuple)) and len(point) >= 2 and all(map(is_number, point[:2]))):
            raise ValueError(f"the point {str(point)[:60]} is not two finite numbers")
    return np.array([point[:2] for point in value], dtype=np.float64).reshape(-1, 2)


def as_number(value: object) -> float:
    """Return a finite number, also where a file writes it as text; ValueError for anything else."""
    number = float(value) if isinstance(value, str) else value
    if not is_number(number):
        raise ValueError(f"{str(value)[:60]!r} is not a finite number")
    return number


def decode_base64(text: object, limit: int, *, inflate: bool = False) -> bytes:
    """Return the bytes of base64 text, ``inflate``d with zlib if asked; ValueError where they are damaged or would
    be more than ``limit``."""
    if not isinstance(text, str) or len(text) > 4 * limit:
        raise ValueError("its base64 data is no text, or too long")
    try:
        data = base64.b64decode(text)
        if not inflate:
            return data
        unpacker = zlib.decompressobj()
        data = unpacker.decompress(data, limit)
    except (binascii.Error, zlib.error) as error:
        raise ValueError(f"its base64 data is damaged ({error})") from None
    if unpacker.unconsumed_tail:
        raise ValueError("its compressed data is larger than its image can need")
    return data


def decode_mask_picture(data: bytes, limit: int) -> np.ndarray:
    """(H, W) bool of a PNG mask: its alpha channel where it has one, else what is not 0.

    ValueError where it is no picture, or has more than ``limit`` pixels.
    """
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as picture:
            if picture.width * picture.height > limit:
                raise ValueError(f"its mask of {picture.width}x{picture.height} pixels is larger than the image")
            pixels = np.asarray(picture)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"its mask is no PNG ({error})") from None
    if pixels.ndim == 3:
        pixels = pixels[..., -1] if pixels.shape[2] in (2, 4) else pixels.any(axis=2)
    return pixels != 0


def ellipse(cx: float, cy: float, rx: float, ry: float, angle: float = 0.0, points: int = 72) -> np.ndarray:
    """(points, 2) float64: the outline of an ellipse turned by ``angle`` radians, clockwise on the screen.

    The points lie outside the ellipse by as much as makes the areas equal, so that small circles do not shrink.
    """
    t = np.arange(points) * 2 * np.pi / points
    grow = np.sqrt(2 * np.pi / points / np.sin(2 * np.pi / points))
    x, y = grow * rx * np.cos(t), grow * ry * np.sin(t)
    return np.stack([cx + x * np.cos(angle) - y * np.sin(angle), cy + x * np.sin(angle) + y * np.cos(angle)], axis=1)


def rectangle(x: float, y: float, width: float, height: float) -> np.ndarray:
    """(4, 2) float64: the corners of an upright box."""
    return np.array([[x, y], [x + width, y], [x + width, y + height], [x, y + height]], dtype=np.float64)


def joined(values: list) -> str | None:
    """Return one class for the values chosen together: ``"dent+scratch"``, sorted; None for no value."""
    return "+".join(sorted(map(str, values))) or None
