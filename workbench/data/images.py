"""Reading image files as RGB, whatever they hold."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from workbench.data.image_files import ERRORS, ImageRules, depth_range, open_image, scale_deep
from workbench.errors import WorkbenchError
from workbench.files import replacing

_SWAPPED = {5, 6, 7, 8}  # EXIF orientations that exchange width and height
_ORIENTATION = 0x0112
_JPEG_END = b"\xff\xd9"
REDUCTIONS = (8, 4, 2)  # what JPEG's scaled decoding offers


def read_image(path: str, rules: ImageRules | None = None) -> np.ndarray:
    """Return an image file as (H, W, 3) uint8 RGB, turned as its EXIF orientation says.

    Grey images get three equal channels, palettes are looked up, transparency is ignored, and values of more than
    eight bits are scaled as ``rules`` say.

    Raises:
        WorkbenchError: the file is missing, damaged, cut short, of another format or too large.
    """
    return read_reduced(path, 1, rules)[0]


def read_reduced(path: str, reduction: int, rules: ImageRules | None = None) -> tuple[np.ndarray, tuple[int, int]]:
    """Read an image as :func:`read_image` does, at 1/``reduction`` of its size, and return it with its full (H, W).

    Args:
        path: the file.
        reduction: 1, or one of ``REDUCTIONS``. The picture has :func:`reduced_size`. A JPEG is decoded at that size,
            which takes a fraction of the time and memory; other formats are decoded whole and averaged.
        rules: how image files are read.
    """
    rules = rules or ImageRules()
    with _reading(path), open_image(path, rules) as opened:
        black_and_white = depth_range(opened, rules)
        full, (width, height) = oriented_size(opened), opened.size
        image: Image.Image = opened
        if reduction > 1 and opened.draft(None, reduced_size(width, height, reduction)):
            # This comes before the image is turned: cells that are only partly image are at its right and bottom.
            image = whole_frame(opened, (height, width), reduction)
            reduction = 1
        image = ImageOps.exif_transpose(image)
        if black_and_white is not None:
            image = Image.fromarray(scale_deep(np.asarray(image), black_and_white, rules))
        image = image.convert("RGB")
        if reduction > 1:
            image = whole_frame(image.reduce(reduction), full, reduction)
        return np.array(image), full


def read_at_most(path: str, longest: int, rules: ImageRules | None = None) -> tuple[np.ndarray, tuple[int, int], int]:
    """Read an image as :func:`read_reduced` does, at the least reduction that leaves at most ``longest`` pixels a side,
    or at the largest there is. Return it with its full (H, W) and the reduction."""
    with _reading(path), open_image(path, rules or ImageRules()) as opened:
        largest = max(oriented_size(opened))
    reduction = next((each for each in (1, *sorted(REDUCTIONS)) if largest <= longest * each), max(REDUCTIONS))
    return *read_reduced(path, reduction, rules), reduction


@contextmanager
def _reading(path: str) -> Iterator[None]:
    """Raise what opening and decoding a file raises as a WorkbenchError."""
    try:
        yield
    except FileNotFoundError:
        raise WorkbenchError(f"There is no image {path}.") from None
    except ERRORS as error:
        raise WorkbenchError(f"The image {path} cannot be read: {error}.") from None


def read_copy(
    path: str, size: tuple[int, int], reduction: int, kept: int, folder: Path, rules: ImageRules
) -> tuple[np.ndarray, tuple[int, int]]:
    """Read an image as :func:`read_reduced` does, from a reduced copy that is made where there is none.

    Args:
        path: the file.
        size: its (height, width); of a file of another size no copy is made.
        reduction: a multiple of ``kept``.
        kept: the reduction of the copy.
        folder: where copies lie: JPEGs of JPEGs, PNGs of anything else. A file that changed gets a new copy.
        rules: how image files are read.

    Raises:
        WorkbenchError: the image cannot be read, or the copy cannot be written.
    """
    try:
        state = Path(path).stat()
    except OSError:
        return read_reduced(path, reduction, rules)  # says what is wrong
    key = f"{Path(path).absolute()} {state.st_mtime_ns} {state.st_size} {size} {kept} {rules.depth_range}"
    suffix = ".jpg" if Path(path).suffix.lower() in (".jpg", ".jpeg") else ".png"
    copy = folder / (hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest() + suffix)
    if not copy.exists():
        picture, full = read_reduced(path, kept, rules)
        if full != size:
            return picture, full
        options = {"format": "JPEG", "quality": 95, "subsampling": 0} if suffix == ".jpg" else {"format": "PNG"}
        try:
            with replacing(copy) as draft:
                Image.fromarray(picture).save(draft, **options)
        except OSError as error:
            raise WorkbenchError(f"The copy {copy} of {path} (DATALOADER.CACHE) cannot be written: {error}.") from None
    return read_reduced(str(copy), reduction // kept)[0], size


def reduced_size(height: int, width: int, reduction: int) -> tuple[int, int]:
    """Return the (height, width) of an image of that size at 1/``reduction``."""
    return max(1, height // reduction), max(1, width // reduction)


def whole_frame(image: Image.Image, full: tuple[int, int], reduction: int) -> Image.Image:
    """Resize cells, of which the last ones may reach over the edge of the ``full`` (H, W), to :func:`reduced_size`."""
    height, width = reduced_size(*full, reduction)
    if image.size == (width, height):
        return image
    box = (0, 0, full[1] / reduction, full[0] / reduction)
    return image.resize((width, height), Image.Resampling.BILINEAR, box=box)


def oriented_size(image: Image.Image) -> tuple[int, int]:
    """(height, width) of an opened image after its EXIF orientation is applied."""
    width, height = image.size
    return (width, height) if image.getexif().get(_ORIENTATION) in _SWAPPED else (height, width)


def file_problem(
    path: str, size: tuple[int, int], decode: bool, rules: ImageRules | None = None
) -> tuple[str, str, str] | None:
    """Return why a file is not an image of ``size`` (height, width), as (kind, message, detail); None when it is.

    ``{folder}`` in the message stands for the image folder. A JPEG is decoded only where it does not end as one does:
    of a whole file Pillow accepts any content. An image of another format is decoded with ``decode``.
    """
    rules = rules or ImageRules()
    try:
        with open(path, "rb") as file, open_image(file, rules) as opened:
            black_and_white = depth_range(opened, rules)
            found = oriented_size(opened)
            stored = (opened.height, opened.width)
            if not _ends_as_jpeg(file) if opened.format == "JPEG" else decode:
                opened.load()
                if black_and_white is not None:
                    scale_deep(np.asarray(opened), black_and_white, rules)
    except FileNotFoundError:
        return "missing image", "there is no such file in {folder}", ""
    except ERRORS as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return "unreadable image", "the file cannot be read as an image", reason
    if found != size:
        turned = " once its EXIF orientation has turned it" if stored == size else ""
        detail = f"{found[1]}x{found[0]}{turned}, in the dataset {size[1]}x{size[0]}"
        return "image size", "the file has another size (width x height) than the dataset says", detail
    return None


def _ends_as_jpeg(file: BinaryIO) -> bool:
    """Return whether the last bytes of an open file hold a JPEG's end; the file stays where it is."""
    place = file.tell()
    file.seek(-min(64, file.seek(0, os.SEEK_END)), os.SEEK_END)
    tail = file.read()
    file.seek(place)
    return _JPEG_END in tail
