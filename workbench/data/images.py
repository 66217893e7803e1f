"""Reading image files as RGB, whatever they hold."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageOps

from workbench.errors import WorkbenchError


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
