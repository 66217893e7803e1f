"""A widget that draws objects over an image in the browser: zoom, pan, hover, isolate.

Image, outlines and captions are sent once for each image. After that a filter that moves sends the numbers of the
objects that are drawn, and no picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anywidget
import contourpy
import numpy as np
import traitlets

from workbench.visualization.captions import Colour
from workbench.visualization.painting import cut_out, encode_jpeg

_QUARTERS = 4  # outlines are whole quarters of a pixel
START = {"masks": True, "outlines": True, "boxes": False, "captions": True, "opacity": 0.3, "colour": "category"}


@dataclass(frozen=True)
class Outlined:
    """One object of a panel.

    mask: (H, W) bool, at the size of the picture. caption: lines of text. classes: {legend: name in it}; in a legend
    that is not named the verdict counts. details: (name, value) pairs, shown under the pointer. dashed: its outline is.
    """

    mask: np.ndarray
    caption: Sequence[str]
    classes: Mapping[str, str]
    details: Sequence[tuple[str, Any]] = ()
    dashed: bool = False


@dataclass(frozen=True)
class Drawn:
    """What of a panel is drawn: its title, an alternative text, the numbers of its objects, best first, and
    {number: a verdict}."""

    title: str
    alt: str
    objects: Sequence[int]
    verdicts: Mapping[int, str] = field(default_factory=dict)


class Viewer(anywidget.AnyWidget):
    """One image in panels beside each other, with a toolbar. ``view`` is what the toolbar says, see ``START``.

    Keys, once it was clicked: + - 0 zoom, arrows move, Escape ends the isolation of an object. ``n``, ``p`` and ``m``
    are sent as the messages ``{"go": 1}``, ``{"go": -1}`` and ``{"mark": True}``. The message ``{"export": True}`` is
    answered with ``{"png": True}`` and the picture on the screen. Below the panels stand counts, and while
    ``explaining`` the reasons why objects are not drawn.
    """

    _esm = Path(__file__).with_name("viewer.js")
    _css = Path(__file__).with_name("viewer.css")
    picture = traitlets.Bytes().tag(sync=True)  # JPEG
    outlines = traitlets.Bytes().tag(sync=True)  # (P, 2) int16: x, y of all points in quarters of a pixel
    # {"key": which image, "size": [w, h], "legends": {what colours stand for: [[name, colour]]},
    #  "panels": [{"objects": [{"rings": [[start, end]], "box", "area", "caption", "classes", "details", "dashed"}]}]}
    content = traitlets.Dict({"panels": []}).tag(sync=True)
    shown = traitlets.List().tag(sync=True)  # for each panel the numbers of its objects that are drawn, best first
    verdicts = traitlets.List().tag(sync=True)  # for each panel {number: verdict}
    titles = traitlets.List().tag(sync=True)  # for each panel {"title", "alt"}
    counts = traitlets.List().tag(sync=True)  # [what, how many, "" or "total" or "apart"], a column each
    left_out = traitlets.Int().tag(sync=True)  # objects that are not drawn
    reasons = traitlets.List().tag(sync=True)  # a line each, see ``explaining``
    explaining = traitlets.Bool(False).tag(sync=True)  # the list of reasons is open
    view = traitlets.Dict(dict(START)).tag(sync=True)

    def show(
        self,
        key: str,
        image: np.ndarray,
        panels: Sequence[Sequence[Outlined]],
        legends: Mapping[str, Sequence[tuple[str, Colour]]],
        **drawn: Any,
    ) -> None:
        """Show another image, (H, W, 3) uint8; ``key`` tells it from others, so that the same one keeps its zoom.

        ``drawn`` is what :meth:`draw` takes.
        """
        outlines: list[np.ndarray] = []
        first = 0
        described = []
        for panel in panels:
            objects = []
            for each in panel:
                rings = trace(each.mask)
                ends = first + np.cumsum([len(ring) for ring in rings], dtype=int)
                objects.append(_described(each, rings, [first, *ends.tolist()]))
                first = int(ends[-1]) if len(ends) else first
                outlines += rings
            described.append({"objects": objects})
        points = np.concatenate(outlines) if outlines else np.zeros((0, 2))
        coloured = {name: [[word, _css(colour)] for word, colour in words] for name, words in legends.items()}
        with self.hold_sync():
            self.picture = encode_jpeg(image)
            self.outlines = np.rint(points * _QUARTERS).astype("<i2").tobytes()
            self.content = {
                "key": key,
                "size": [image.shape[1], image.shape[0]],
                "legends": coloured,
                "panels": described,
            }
            self.draw(**drawn)

    def draw(
        self,
        drawn: Sequence[Drawn],
        counts: Sequence[tuple[str, int, str]] = (),
        left_out: int = 0,
        reasons: Sequence[str] = (),
    ) -> None:
        """Draw other objects of the image that is shown, one entry a panel; everything is one message."""
        with self.hold_sync():
            self.shown = [list(panel.objects) for panel in drawn]
            self.verdicts = [{str(number): word for number, word in panel.verdicts.items()} for panel in drawn]
            self.titles = [{"title": panel.title, "alt": panel.alt} for panel in drawn]
            self.counts, self.left_out, self.reasons = [list(each) for each in counts], left_out, list(reasons)


def _described(each: Outlined, rings: Sequence[np.ndarray], bounds: Sequence[int]) -> dict[str, Any]:
    points = np.concatenate(rings) if rings else np.zeros((1, 2))
    return {
        "rings": [list(pair) for pair in zip(bounds[:-1], bounds[1:], strict=True)],
        "box": [*points.min(axis=0).tolist(), *points.max(axis=0).tolist()],
        "area": int(np.count_nonzero(each.mask)),
        "caption": list(each.caption),
        "classes": dict(each.classes),
        "details": [[name, str(value)] for name, value in each.details],
        "dashed": each.dashed,
    }


def _css(colour: Colour) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)


def trace(mask: np.ndarray) -> list[np.ndarray]:
    """Return the closed outlines of an (H, W) bool mask, holes too, each (n, 2) of x, y; pixel (0, 0) covers 0..1."""
    piece = cut_out(mask, 1)
    if piece is None:
        return []
    height, width = piece.mask.shape
    x, y = np.arange(width + 2) - 0.5 + piece.x, np.arange(height + 2) - 0.5 + piece.y
    lines = contourpy.contour_generator(x, y, np.pad(piece.mask, 1).astype(np.float32)).lines(0.5)
    return [_without_straight_points(line[:-1]) for line in lines]


def _without_straight_points(ring: np.ndarray) -> np.ndarray:
    """Leave out the points of a ring between equal steps."""
    steps = np.diff(ring, axis=0, append=ring[:1])
    return ring[(np.abs(steps - np.roll(steps, 1, axis=0)) > 1e-9).any(axis=1)]
