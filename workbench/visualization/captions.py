"""Text on pictures: plates that stay inside the picture and off each other."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]
WHITE: Colour = (255, 255, 255)
BLACK: Colour = (0, 0, 0)

# Fonts with Chinese, Japanese and Korean characters, for class names that need them.
_WIDE_FONTS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Source Han Sans SC",
    "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei",
    "Microsoft YaHei",
    "SimHei",
    "PingFang SC",
    "Arial Unicode MS",
)


@lru_cache(maxsize=64)
def font(size: int, wide: bool = False) -> ImageFont.FreeTypeFont:
    """Return matplotlib's DejaVu Sans; with ``wide`` a system font with East Asian characters, where there is one."""
    import matplotlib

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    if wide:
        from matplotlib import font_manager

        installed = {entry.name: entry.fname for entry in font_manager.fontManager.ttflist}
        path = next((Path(installed[name]) for name in _WIDE_FONTS if name in installed), path)
    return ImageFont.truetype(str(path), size)


def _font_for(text: str, size: int) -> ImageFont.FreeTypeFont:
    return font(size, any(character >= "\u2e80" for character in text))


def readable_on(colour: Colour) -> Colour:
    """Return black or white, whichever stands out more on ``colour`` (WCAG's relative luminance)."""
    linear = [c / 3294.6 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return BLACK if luminance > 0.179 else WHITE


@lru_cache(maxsize=8192)
def plate(text: str, size: int, colour: Colour, widest: int) -> np.ndarray:
    """Return a picture (h, w, 3) uint8 of ``text``, one or more lines in a readable colour on ``colour``.

    It is at most ``widest`` pixels wide; a longer line ends in an ellipsis.
    """
    pad = max(2, size // 5)
    face = _font_for(text, size)
    lines = [_cut(line, face, widest - 2 * pad) for line in text.split("\n")]
    ascent, descent = face.getmetrics()
    step = ascent + descent
    width = int(np.ceil(max(face.getlength(line) for line in lines))) + 2 * pad
    picture = Image.new("RGB", (min(width, widest), step * len(lines) + pad), colour)
    draw = ImageDraw.Draw(picture)
    for number, line in enumerate(lines):
        draw.text((pad, pad // 2 + number * step), line, fill=readable_on(colour), font=face)
    return np.asarray(picture)


def _cut(line: str, face: ImageFont.FreeTypeFont, widest: int) -> str:
    if face.getlength(line) <= widest:
        return line
    while line and face.getlength(line + "…") > widest:
        line = line[:-1]
    return line + "…" if line else ""


def place_plates(
    sizes: Sequence[tuple[int, int]],
    boxes: np.ndarray,
    objects: np.ndarray,
    reserved: Sequence[tuple[int, int, int, int]] = (),
) -> list[tuple[int, int] | None]:
    """Place plates in and around their boxes, earlier ones first.

    Each plate takes the place, inside the picture, that hides least; other plates count most.

    Args:
        sizes: (h, w) of each plate.
        boxes: (N, 4) XYXY, one a plate.
        objects: (H, W) bool, where the picture shows what is not to be hidden.
        reserved: XYXY boxes that stay free.

    Returns:
        the top left corner (x, y) of each plate; None for one that would hide part of another, or with which plates
        would cover more than a third of the picture.
    """
    height, width = objects.shape
    # hidden pixels of a rectangle = four look-ups in the sums over everything above and left
    sums = np.zeros((height + 1, width + 1), dtype=np.int32)
    np.cumsum(objects, axis=0, dtype=np.int32, out=sums[1:, 1:])
    np.cumsum(sums[1:, 1:], axis=1, out=sums[1:, 1:])
    taken = np.zeros((len(reserved) + len(sizes), 4), dtype=np.int64)
    taken[: len(reserved)] = np.array(reserved, dtype=np.int64).reshape(-1, 4)
    count, area = len(reserved), 0
    places: list[tuple[int, int] | None] = []
    for (h, w), box in zip(sizes, boxes.tolist(), strict=True):
        if area + h * w > height * width / 3:
            places.append(None)
            continue
        x1, y1 = _candidates(h, w, *box, height, width)
        x2, y2 = np.minimum(x1 + w, width), np.minimum(y1 + h, height)
        others = taken[:count]
        across = np.minimum(x2[:, None], others[:, 2]) - np.maximum(x1[:, None], others[:, 0])
        down = np.minimum(y2[:, None], others[:, 3]) - np.maximum(y1[:, None], others[:, 1])
        on_plates = (across.clip(0) * down.clip(0)).sum(axis=1)
        on_objects = sums[y2, x2] - sums[y1, x2] - sums[y2, x1] + sums[y1, x1]
        on_own = (np.minimum(x2, box[2]) - np.maximum(x1, box[0])).clip(0) * (
            np.minimum(y2, box[3]) - np.maximum(y1, box[1])
        ).clip(0)
        best = int((100 * on_plates + on_objects + on_own).argmin())
        if on_plates[best]:
            places.append(None)
            continue
        taken[count] = x1[best], y1[best], x2[best], y2[best]
        count, area = count + 1, area + h * w
        places.append((int(x1[best]), int(y1[best])))
    return places


def _candidates(
    h: int, w: int, x1: float, y1: float, x2: float, y2: float, height: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return x and y (18,) of a plate above, below, inside and beside a box, pushed into the picture."""
    across, down = (x1, x2 - w, (x1 + x2 - w) / 2), (y1, y2 - h, (y1 + y2 - h) / 2)
    x = np.array([*across, *across, *across * 3, *(x2,) * 3, *(x1 - w,) * 3])
    y = np.array([*(y1 - h,) * 3, *(y2,) * 3, *np.repeat(down, 3), *down, *down])
    return (
        x.clip(0, max(width - w, 0)).round().astype(np.int64),
        y.clip(0, max(height - h, 0)).round().astype(np.int64),
    )
