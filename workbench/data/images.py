"""Reading image files as RGB, whatever they hold."""

from __future__ import annotations

import os
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from workbench.errors import WorkbenchError

_SWAPPED = {5, 6, 7, 8}  # EXIF orientations that exchange width and height
_ORIENTATION = 0x0112
_JPEG_END = b"\xff\xd9"


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

    ``{folder}`` in the message stands for the image folder. A JPEG is decoded only where it does not end as one does:
    of a whole file Pillow accepts any content. An image of another format is decoded with ``decode``.
    """
    try:
        with open(path, "rb") as file, Image.open(file) as opened:
            found = oriented_size(opened)
            stored = (opened.height, opened.width)
            if not _ends_as_jpeg(file) if opened.format == "JPEG" else decode:
                opened.load()
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


def _ends_as_jpeg(file: BinaryIO) -> bool:
    """Return whether the last bytes of an open file hold a JPEG's end; the file stays where it is."""
    place = file.tell()
    file.seek(-min(64, file.seek(0, os.SEEK_END)), os.SEEK_END)
    tail = file.read()
    file.seek(place)
    return _JPEG_END in tail
