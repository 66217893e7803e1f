"""Opening image files: which formats, how many pixels, and how values of more than eight bits are scaled."""

from __future__ import annotations

import os
import warnings
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from fvcore.common.config import CfgNode
from PIL import Image, UnidentifiedImageError

from workbench.errors import counted

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")  # of all that Pillow opens; some start other programs
ERRORS = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)  # what opening and decoding raise
_BITS_PER_SAMPLE, _SAMPLE_FORMAT = 258, 339  # TIFF tags
_UNSIGNED, _FLOAT = 1, 3  # TIFF's sample formats
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # max_pixels refuses such images
_NARROW = 1 / 8  # share of a range; values that keep to less of it become few grey levels


@dataclass(frozen=True)
class ImageRules:
    """How image files are read, one rule for all files of a dataset.

    max_pixels: width times height of the largest image that is opened.
    depth_range: the values that become 0 and 255 in grey images of more than eight bits. None takes what each file
    declares: 0 and the largest value of its bit depth, or 0 and 1 for decimal numbers.
    cache: the folder where reduced copies of large photos are kept; None keeps none.
    """

    max_pixels: int = 2**27
    depth_range: tuple[float, float] | None = None
    cache: Path | None = None

    @classmethod
    def from_config(cls, cfg: CfgNode) -> ImageRules:
        """Return what ``INPUT.MAX_PIXELS``, ``INPUT.DEPTH_RANGE`` and ``DATALOADER.CACHE`` say."""
        cache = Path(cfg.OUTPUT_DIR) / "cache" if cfg.DATALOADER.CACHE else None
        return cls(cfg.INPUT.MAX_PIXELS, tuple(cfg.INPUT.DEPTH_RANGE) or None, cache)


def open_image(file: str | Path | IO[bytes], rules: ImageRules) -> Image.Image:
    """Open an image of one of ``FORMATS``, told by its content, and check its size; pixels are not decoded yet.

    Raises:
        OSError: there is no such file, or it is damaged or of another format.
        ValueError: it has more than ``rules.max_pixels``.
    """
    # Pillow has a limit of its own, for the whole process.
    Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS or 0, rules.max_pixels)
    try:
        image = Image.open(file, formats=FORMATS)
    except UnidentifiedImageError:
        raise UnidentifiedImageError(f"it is damaged, or of another format than {', '.join(FORMATS)}") from None
    except Image.DecompressionBombError:
        raise ValueError(f"it has more pixels than INPUT.MAX_PIXELS {rules.max_pixels:,}") from None
    if image.width * image.height > rules.max_pixels:
        image.close()
        raise ValueError(f"it has {image.width}x{image.height} pixels, more than INPUT.MAX_PIXELS {rules.max_pixels:,}")
    return image


def depth_range(image: Image.Image, rules: ImageRules) -> tuple[float, float] | None:
    """Return the values of an opened image that become 0 and 255; None where it has eight bits a channel.

    Raises:
        ValueError: the image is deep, and neither it nor ``rules`` say which values are black and white.
    """
    if image.mode != "F" and not image.mode.startswith("I"):
        if rules.depth_range and ";16" in _raw_mode(image):
            raise ValueError("its colours have 16 bits, and INPUT.DEPTH_RANGE is for grey images only")
        return None
    declared = rules.depth_range or _declared_range(image)
    if declared is None:
        raise ValueError(
            "its values may be negative or have 32 bits: name those that are black and white with INPUT.DEPTH_RANGE"
        )
    return declared


def _raw_mode(image: Image.Image) -> str:
    arguments = image.tile[0][3] if image.tile else ""
    return str(arguments if isinstance(arguments, str) else (arguments or ("",))[0])


def _declared_range(image: Image.Image) -> tuple[float, float] | None:
    if image.format == "PNG":
        return 0, _largest_of_png(image)
    tags = getattr(image, "tag_v2", {})
    bits, kind = tags.get(_BITS_PER_SAMPLE, (0,))[0], tags.get(_SAMPLE_FORMAT, (_UNSIGNED,))[0]
    if kind == _FLOAT:
        return 0, 1
    return (0, 2**bits - 1) if kind == _UNSIGNED and 8 < bits <= 16 else None


def _largest_of_png(image: Image.Image) -> int:
    """Return the largest value that the samples of a 16-bit PNG can have.

    A file with an sBIT chunk declares how many bits its samples had at first. They should have been scaled up to 16
    bits (PNG specification, third edition, 13.12), which leaves the lowest bits zero or a copy of the highest. Cameras
    and microscopes also write them unscaled: then no value has more than the declared bits, and the lowest are in use.
    """
    bits = _significant_bits(image)
    if bits < 16:
        values, largest = np.asarray(image), 2**bits - 1
        if values.max(initial=0) <= largest and (values & (2 ** (16 - bits) - 1)).any():
            return largest
    return 65535


def _significant_bits(image: Image.Image) -> int:
    """Return the bits that the sBIT chunk of a grey 16-bit PNG declares, 16 where there is none or it is damaged."""
    file = image.fp
    if file is None:  # the image was decoded before
        return 16
    place = file.tell()
    try:
        file.seek(8)  # after the signature
        while len(head := file.read(8)) == 8 and head[4:] != b"IDAT":  # sBIT comes before the pixels
            if head[4:] == b"sBIT":
                declared = int.from_bytes(file.read(1), "big")
                return declared if 8 < declared < 16 else 16
            file.seek(int.from_bytes(head[:4], "big") + 4, os.SEEK_CUR)
    finally:
        file.seek(place)
    return 16


def scale_deep(values: np.ndarray, black_and_white: tuple[float, float], rules: ImageRules) -> np.ndarray:
    """Scale (H, W) values of more than eight bits to (H, W, 3) uint8; NaN is black.

    Raises:
        ValueError: decimal numbers lie outside 0..1 and ``rules`` name no range.
    """
    low, high = black_and_white
    values = np.nan_to_num(values.astype(np.float64), nan=low)
    if values.size and rules.depth_range is None and (values.min() < low or values.max() > high):
        found = f"{values.min():g} to {values.max():g}"
        raise ValueError(f"its values are {found}, not {low:g} to {high:g}: set INPUT.DEPTH_RANGE")
    grey = np.rint((values - low) * (255 / (high - low))).clip(0, 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


def describe_depth(paths: Iterable[str], rules: ImageRules) -> list[str]:
    """Return a sentence for each range that deep images are scaled from: which it is, who says so, what was found.

    Files that cannot be read are passed over: they are faults.
    """
    found: dict[tuple[float, float], list[tuple[float, float]]] = defaultdict(list)
    for path in paths:
        if path.lower().endswith((".jpg", ".jpeg")):  # never deep, and most images of most datasets
            continue
        try:
            with open_image(path, rules) as image:
                black_and_white = depth_range(image, rules)
                if black_and_white is not None:
                    values = np.nan_to_num(np.asarray(image), nan=black_and_white[0])
                    found[black_and_white].append((float(values.min()), float(values.max())))
        except ERRORS:
            continue
    source = "INPUT.DEPTH_RANGE" if rules.depth_range else "as the files declare"
    sentences = []
    for (low, high), extremes in found.items():
        least, most = min(pair[0] for pair in extremes), max(pair[1] for pair in extremes)
        images = counted(len(extremes), "deep image is", "deep images are")
        sentence = f"{images} scaled from {low:g}..{high:g} ({source}), with values of {least:g}..{most:g}"
        if most - least < (high - low) * _NARROW:
            sentence += (
                f", which leaves few grey levels: set INPUT.DEPTH_RANGE [{least:g}, {most:g}] if that is their range"
            )
        elif least < low or most > high:
            sentence += ", and what lies outside is cut off"
        sentences.append(sentence)
    if len(found) > 1:
        sentences.append("the files declare different bit depths: set INPUT.DEPTH_RANGE if their values mean the same")
    return sentences
