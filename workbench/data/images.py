"""Reading image files as RGB, whatever they hold."""

from __future__ import annotations

import os
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from workbench.errors import WorkbenchError

_SWAPPED = {5, 6, 7, 8}  # EXIF orientations that exchange width and height
_ORIENTATION = 0x0112
_ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}


def read_image(path: str) -> np.ndarray:
    """An image file as (H, W, 3) uint8 RGB, turned as its EXIF orientation says.

    Grey images get three equal channels, palettes are looked up, transparency is ignored, and of 16-bit
    images the upper eight bits are kept. WorkbenchError where the file is missing, damaged or cut short.
    """
    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened)
            if image.mode == "F" or image.mode.startswith("I"):
                return _grey_to_rgb(np.asarray(image))
            return np.array(image.convert("RGB"))
    except FileNotFoundError:
        raise WorkbenchError(f"There is no image {path}.") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise WorkbenchError(f"The image {path} cannot be read: {error}.") from None


def _grey_to_rgb(grey: np.ndarray) -> np.ndarray:
    """(H, W) of more than eight bits -> (H, W, 3) uint8. Values above 255 are taken as 16-bit; Pillow's own
    conversion would cut them off at white."""
    grey = np.nan_to_num(grey.astype(np.float64))
    if grey.max(initial=0) > 255:
        grey = grey / 257
    return np.repeat(np.clip(np.rint(grey), 0, 255).astype(np.uint8)[..., None], 3, axis=2)


def oriented_size(image: Image.Image) -> tuple[int, int]:
    """(height, width) of an opened image after its EXIF orientation is applied."""
    width, height = image.size
    return (width, height) if image.getexif().get(_ORIENTATION) in _SWAPPED else (height, width)


def file_problem(path: str, size: tuple[int, int], decode: bool) -> tuple[str, str, str] | None:
    """Return why a file is not an image of ``size`` (height, width), as (kind, message, detail); None when it is.

    ``{folder}`` in the message stands for the image folder. Without ``decode`` only the header is read and the end of
    the file looked at; a JPEG or PNG that ends unusually is decoded all the same, as it may be cut short.
    """
    try:
        with open(path, "rb") as file:
            with Image.open(file) as opened:
                found = oriented_size(opened)
                stored = (opened.height, opened.width)
                if decode or not _is_whole(file, opened.format):
                    ImageOps.exif_transpose(opened).load()
    except FileNotFoundError:
        return "missing image", "there is no such file in {folder}", ""
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return "unreadable image", "the file cannot be read as an image", f"({reason})"
    if found != size:
        turned = " once its EXIF orientation has turned it" if stored == size else ""
        detail = f"is {found[1]}x{found[0]}{turned}, in the dataset {size[1]}x{size[0]}"
        return "image size", "the file has another size (width x height) than the dataset says", detail
    return None


def _is_whole(file: BinaryIO, kind: str | None) -> bool:
    """Return False for a JPEG or PNG that does not end as one does; other formats are not looked at."""
    mark = _ENDS.get(kind)
    if mark is None:
        return True
    place = file.tell()
    file.seek(-min(64, file.seek(0, os.SEEK_END)), os.SEEK_END)
    tail = file.read()
    file.seek(place)
    return mark in tail
