"""Drawing of the shapes dataset: one object, a background, the light.

Canvases are (H, W, 3) float32 RGB in 0..255 and are drawn on in place. Every edge is one pixel soft,
computed from the signed distance to the outline, so nothing is supersampled.
"""

from __future__ import annotations

import colorsys
import math

import numpy as np
from PIL import Image

SHAPES = ("circle", "ring", "bar", "triangle", "cross")
HUES = {"red": 0, "yellow": 60, "green": 120, "cyan": 180, "blue": 240, "magenta": 300}
COLOURS = tuple(HUES)
TEXTURES = ("plain", "stripes", "dots", "checker")

# Farthest point of each outline from its middle, for a nominal size of 1.
_REACH = {"circle": 0.46, "ring": 0.52, "bar": 0.64, "triangle": 0.64, "cross": 0.60}
_RING_HOLE = 0.5  # radius of the hole, as part of the ring's
_BAR_HEIGHT = 0.36  # of its length
_CROSS_ARM = 0.28  # half the width of an arm, as part of its length from the middle


def _distance(shape: str, x: np.ndarray, y: np.ndarray, size: float) -> np.ndarray:
    """Signed distance in pixels to the outline, negative inside (exact near the outline, a bound farther
    off)."""
    reach = _REACH[shape] * size
    if shape == "circle":
        return np.hypot(x, y) - reach
    if shape == "ring":
        radius = np.hypot(x, y)
        return np.maximum(radius - reach, _RING_HOLE * reach - radius)
    if shape == "bar":
        return np.maximum(np.abs(x) - reach, np.abs(y) - _BAR_HEIGHT * reach)
    if shape == "triangle":
        sides = [math.radians(90 + 120 * k) for k in range(3)]
        return np.maximum.reduce([math.cos(a) * x + math.sin(a) * y for a in sides]) - reach / 2
    arm = _CROSS_ARM * reach
    x, y = np.abs(x), np.abs(y)
    return np.minimum(np.maximum(x - reach, y - arm), np.maximum(x - arm, y - reach))


def outline_area(shape: str, size: float) -> float:
    """Area in square pixels inside the outline of a shape of that nominal size."""
    reach = _REACH[shape] * size
    if shape == "circle":
        return math.pi * reach**2
    if shape == "ring":
        return math.pi * (1 - _RING_HOLE**2) * reach**2
    if shape == "bar":
        return 4 * _BAR_HEIGHT * reach**2
    if shape == "triangle":
        return 0.75 * math.sqrt(3) * reach**2
    return (8 * _CROSS_ARM - 4 * _CROSS_ARM**2) * reach**2


def _soft(distance: np.ndarray) -> np.ndarray:
    """Coverage 0..1 of a pixel whose centre is ``distance`` pixels outside an edge."""
    return np.clip(0.5 - distance, 0, 1)


def _texture(texture: str, x: np.ndarray, y: np.ndarray, period: float) -> tuple[np.ndarray, np.ndarray]:
    """How far each pixel is (darkened, lightened), both 0..1, by the pattern."""
    none = np.zeros_like(x)
    if texture == "plain":
        return none, none
    if texture == "stripes":
        return _soft(np.abs((x / period) % 1 - 0.5) * period - period / 4), none
    if texture == "dots":
        u = ((x / period) % 1 - 0.5) * period
        v = ((y / period) % 1 - 0.5) * period
        return none, _soft(np.hypot(u, v) - 0.31 * period)
    cell = 0.8 * period
    u = np.clip((np.abs((x / cell) % 2 - 1) - 0.5) * cell, -0.5, 0.5)
    v = np.clip((np.abs((y / cell) % 2 - 1) - 0.5) * cell, -0.5, 0.5)
    return 0.5 + 2 * u * v, none


def palette_rgb(colour: str, *, hue_shift: float = 0.0, saturation: float = 0.9, value: float = 0.9) -> np.ndarray:
    """(3,) float32 RGB 0..255 of a colour class; ``hue_shift`` in degrees."""
    hue = (HUES[colour] + hue_shift) / 360 % 1
    return np.array(colorsys.hsv_to_rgb(hue, saturation, value), dtype=np.float32) * 255


def texture_period(size: float) -> float:
    """Pixels after which the pattern repeats: it grows with the object and stays wide enough for a network
    that looks at every fourth pixel."""
    return min(max(size / 4, 6.0), 11.0)


def render_object(
    canvas: np.ndarray,
    shape: str,
    colour: str,
    texture: str,
    *,
    centre: tuple[float, float],
    size: float,
    angle: float = 0.0,
    rgb: np.ndarray | None = None,
    phase: tuple[float, float] = (0.0, 0.0),
) -> np.ndarray:
    """Draw one object on ``canvas`` (H, W, 3) float32 in place.

    ``centre`` is (x, y) in pixels ((0.5, 0.5) is the middle of the first pixel), ``size`` the nominal
    diameter in pixels, ``angle`` in degrees, ``rgb`` replaces the class's usual colour, ``phase`` shifts
    the pattern by parts of its period. Returns the (H, W) bool mask of the object: pixels whose centre lies
    inside. What falls off the canvas is cut. ValueError for a name that is not among ``SHAPES``, ``COLOURS``
    or ``TEXTURES``.
    """
    for name, known in ((shape, SHAPES), (colour, COLOURS), (texture, TEXTURES)):
        if name not in known:
            raise ValueError(f"{name!r} is not among {', '.join(known)}.")
    height, width = canvas.shape[:2]
    margin = 0.75 * size + 2
    left, right = max(0, int(centre[0] - margin)), min(width, int(centre[0] + margin) + 1)
    top, bottom = max(0, int(centre[1] - margin)), min(height, int(centre[1] + margin) + 1)
    mask = np.zeros((height, width), dtype=bool)
    if left >= right or top >= bottom:
        return mask
    dx = np.arange(left, right, dtype=np.float32)[None] + np.float32(0.5 - centre[0])
    dy = np.arange(top, bottom, dtype=np.float32)[:, None] + np.float32(0.5 - centre[1])
    cos, sin = np.float32(math.cos(math.radians(angle))), np.float32(math.sin(math.radians(angle)))
    x, y = cos * dx + sin * dy, cos * dy - sin * dx

    distance = _distance(shape, x, y, size)
    period = texture_period(size)
    darker, lighter = _texture(texture, x + phase[0] * period, y + phase[1] * period, period)
    rgb = palette_rgb(colour) if rgb is None else np.asarray(rgb, dtype=np.float32)
    paint = rgb * (1 - 0.55 * darker[..., None])
    paint = paint + (255 - paint) * (0.6 * lighter[..., None])
    coverage = _soft(distance)[..., None]
    patch = canvas[top:bottom, left:right]
    patch += (paint - patch) * coverage
    mask[top:bottom, left:right] = distance < 0
    return mask


def _smooth_noise(rng: np.random.Generator, height: int, width: int, cells: int) -> np.ndarray:
    """(height, width) float32 of smooth noise, about -1..1, ``cells`` bumps along the shorter side."""
    step = min(height, width) / cells
    grid = rng.uniform(-1, 1, (math.ceil(height / step) + 1, math.ceil(width / step) + 1)).astype(np.float32)
    return np.asarray(Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC))


def _random_rgb(rng: np.random.Generator, saturation: tuple[float, float], value: tuple[float, float]) -> np.ndarray:
    rgb = colorsys.hsv_to_rgb(rng.uniform(), rng.uniform(*saturation), rng.uniform(*value))
    return np.array(rgb, dtype=np.float32) * 255


def _draw_stroke(canvas: np.ndarray, rng: np.random.Generator, rgb: np.ndarray) -> None:
    """A thick bent line across the picture."""
    height, width = canvas.shape[:2]
    x = np.arange(width, dtype=np.float32)[None] - np.float32(rng.uniform(0, width))
    y = np.arange(height, dtype=np.float32)[:, None] - np.float32(rng.uniform(0, height))
    angle = rng.uniform(0, 2 * math.pi)
    along = np.float32(math.cos(angle)) * x + np.float32(math.sin(angle)) * y
    across = np.float32(math.cos(angle)) * y - np.float32(math.sin(angle)) * x
    bend, wavelength = rng.uniform(1, 8), rng.uniform(20, 60)
    across = across + np.float32(bend) * np.sin(along * np.float32(2 * math.pi / wavelength))
    reach = rng.uniform(12, 45)
    distance = np.maximum(np.abs(across) - np.float32(rng.uniform(1, 4.5)), np.abs(along) - np.float32(reach))
    canvas += (rgb - canvas) * _soft(distance)[..., None]


def _draw_blob(canvas: np.ndarray, rng: np.random.Generator, rgb: np.ndarray) -> None:
    """A ragged patch that is none of the shapes."""
    height, width = canvas.shape[:2]
    size = rng.uniform(8, 24)
    cx, cy = rng.uniform(0, width), rng.uniform(0, height)
    reach = int(2 * size) + 2
    left, right = max(0, int(cx) - reach), min(width, int(cx) + reach)
    top, bottom = max(0, int(cy) - reach), min(height, int(cy) + reach)
    if left >= right or top >= bottom:
        return
    x = np.arange(left, right, dtype=np.float32)[None] - np.float32(cx)
    y = np.arange(top, bottom, dtype=np.float32)[:, None] - np.float32(cy)
    turn, radius = np.arctan2(y, x), np.hypot(x, y)
    outline = np.ones_like(turn)
    for waves in (1, 2, 3, 4):
        depth, start = rng.uniform(0.1, 0.32), rng.uniform(0, 2 * math.pi)
        outline += np.float32(depth) * np.cos(waves * turn + np.float32(start))
    softness = rng.uniform(1, 6)
    patch = canvas[top:bottom, left:right]
    patch += (rgb - patch) * _soft((radius - outline * np.float32(size)) / np.float32(softness))[..., None]


def render_background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """(height, width, 3) float32 canvas: smooth colour patches of every hue, mottled, with strokes and
    ragged patches in the very colours of the objects, so that colour alone finds nothing."""
    scale = min(height, width) / 128
    cells = max(2, round(4 * scale))
    step = min(height, width) / cells
    rows, columns = math.ceil(height / step) + 1, math.ceil(width / step) + 1
    hue, saturation, value = rng.uniform(0, 1, (3, rows * columns))
    hues = [
        colorsys.hsv_to_rgb(h, 0.15 + 0.65 * s, 0.3 + 0.5 * v) for h, s, v in zip(hue, saturation, value, strict=True)
    ]
    grid = Image.fromarray((np.array(hues).reshape(rows, columns, 3) * 255).astype(np.uint8))
    canvas = np.asarray(grid.resize((width, height), Image.Resampling.BICUBIC)).astype(np.float32)
    for bumps, strength in ((10, 0.12), (36, 0.14)):
        canvas *= (1 + strength * _smooth_noise(rng, height, width, max(2, round(bumps * scale))))[..., None]
    for _ in range(round(rng.integers(1, 5) * scale * scale)):
        draw = _draw_stroke if rng.uniform() < 0.5 else _draw_blob
        draw(canvas, rng, _random_rgb(rng, (0.6, 1.0), (0.5, 1.0)))
    return canvas


def apply_light(canvas: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Brightness that changes across the picture, a slight tint and sensor noise -> (H, W, 3) uint8. The
    tint is too weak to move a colour of one class to the next."""
    height, width = canvas.shape[:2]
    angle, slope = rng.uniform(0, 2 * math.pi), rng.uniform(0, 0.3)
    x = np.linspace(-1, 1, width, dtype=np.float32)[None]
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    ramp = 1 + np.float32(slope) * (np.float32(math.cos(angle)) * x + np.float32(math.sin(angle)) * y)
    tint = rng.uniform(0.94, 1.06, 3).astype(np.float32) * np.float32(rng.uniform(0.75, 1.1))
    noise = rng.standard_normal(canvas.shape, dtype=np.float32) * np.float32(rng.uniform(3, 9))
    return np.clip(canvas * ramp[..., None] * tint + noise + 0.5, 0, 255).astype(np.uint8)
