"""One image of a gallery: its rows, its ground truth, what is right and wrong, and how they are drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from workbench.data.image_files import ImageRules
from workbench.data.images import read_at_most
from workbench.data.vocabulary import Vocabulary
from workbench.evaluation.columns import EvaluationData, read_inputs
from workbench.evaluation.filters import Candidates, Filtered, FilterSettings, apply_filters
from workbench.evaluation.matching import match_predictions
from workbench.notebook.viewer import Outlined
from workbench.visualization.captions import Colour
from workbench.visualization.drawing import (
    GREY,
    PALETTE,
    Drawable,
    contact_sheet,
    draw_instances,
    drawables_of_annotations,
    drawables_of_predictions,
    titled,
)

LONGEST = 1600  # pixels of the longer side of what is shown
JUDGED = "right or wrong"  # colours by verdict
VERDICTS: dict[str, Colour] = {
    "right": (0, 158, 115),
    "wrong": (213, 94, 0),
    "duplicate": (230, 159, 0),
    "found": (0, 158, 115),
    "missed": (204, 121, 167),
    "crowd": GREY,
}
_IOU = 0.5  # from which a prediction finds an object


class Scene:
    """One image: what is read, decoded and drawn once is kept, so that the filters can be changed quickly.

    rows: its COCO results. truth: a COCO dict of this image alone, None where there is no ground truth. Large photos
    are read, and masks are drawn, at a half, a quarter or an eighth.
    """

    def __init__(
        self,
        image_id: int,
        file: str,
        rows: Sequence[Mapping],
        truth: Mapping | None,
        vocabulary: Vocabulary,
        rules: ImageRules | None = None,
    ) -> None:
        self.image_id, self.name, self.vocabulary = image_id, shown_name(file), vocabulary
        self.candidates = Candidates(rows, vocabulary)
        self._file, self._truth, self._rules = file, truth, rules
        self._drawables: dict[int, Drawable] = {}
        self._truth_panels: dict[int | None, np.ndarray] = {}

    @cached_property
    def _read(self) -> tuple[np.ndarray, tuple[int, int], int]:
        return read_at_most(self._file, LONGEST, self._rules)

    @property
    def image(self) -> np.ndarray:
        """(H, W, 3) uint8."""
        return self._read[0]

    @property
    def annotations(self) -> Sequence[Mapping] | None:
        """The ground truth, None where there is none."""
        return None if self._truth is None else self._truth["annotations"]

    @property
    def objects(self) -> int | None:
        """Objects in the ground truth, crowd regions aside; None where there is none."""
        if self.annotations is None:
            return None
        return sum(not annotation.get("iscrowd", 0) for annotation in self.annotations)

    def filtered(self, settings: FilterSettings) -> Filtered:
        """Return what the filters do to this image's rows."""
        return apply_filters(self.candidates, settings, self.vocabulary)

    # right and wrong

    @cached_property
    def _data(self) -> EvaluationData:
        return read_inputs(self._truth, self.candidates.rows)

    def judge(self, kept: Sequence[int]) -> tuple[dict[int, str], dict[int, str]]:
        """Return the verdict, see ``VERDICTS``, on each row of ``kept`` and on each object.

        They are matched as in COCO at an IoU of one half. Without ground truth there are no verdicts.
        """
        if self.annotations is None:
            return {}, {}
        data, chosen = self._data, np.zeros(len(self.candidates), dtype=bool)
        chosen[list(kept)] = True
        matches = match_predictions(data, iou=_IOU, candidates=chosen)
        d, g, ious = data.pairs("segm")
        near = (ious >= _IOU) & (data.predictions.category[d] == data.objects.category[g]) & ~data.objects.crowd[g]
        twice = set(d[near].tolist())
        rows = {}
        for i in kept:
            unmatched = "crowd" if matches.ignored[i] else "duplicate" if i in twice else "wrong"
            rows[i] = "right" if matches.object_of[i] >= 0 else unmatched
        found = set(matches.object_of.tolist())
        crowd = data.objects.crowd.tolist()
        objects = {j: "crowd" if crowd[j] else "found" if j in found else "missed" for j in range(len(crowd))}
        return rows, objects

    @cached_property
    def overlaps(self) -> np.ndarray | None:
        """(N,) the largest mask IoU of each row with an object of any category; None without ground truth."""
        if self.annotations is None:
            return None
        largest = np.zeros(len(self.candidates))
        d, g, ious = self._data.pairs("segm")
        real = ~self._data.objects.crowd[g]
        np.maximum.at(largest, d[real], ious[real])
        return largest

    # what a viewer shows

    def outlined_rows(self) -> list[Outlined]:
        """Return all rows for a :class:`~workbench.notebook.viewer.Viewer`."""
        return [self._outlined_row(i) for i in range(len(self.candidates))]

    def outlined_objects(self) -> list[Outlined]:
        """Return the ground truth for a viewer."""
        outlined = []
        for drawable, annotation in zip(self._true_drawables, self.annotations or (), strict=True):
            details = [("category", self.vocabulary.categories[drawable.label]), *drawable.attributes.items()]
            details.append(("annotation", annotation.get("id", "-")))
            caption = drawable.caption(self.vocabulary).split("\n")
            outlined.append(Outlined(drawable.mask, caption, self._colours(drawable), details))
        return outlined

    def legends(self) -> dict[str, list[tuple[str, Colour]]]:
        """Return what the colours of a viewer stand for, by what they are chosen by."""
        legends = {"category": _palette(self.vocabulary.categories)}
        for name, classes in self.vocabulary.subcategories.items():
            legends[name] = [*_palette(classes), (f"no {name}", GREY)]
        if self.annotations is not None:
            legends[JUDGED] = list(VERDICTS.items())
        return legends

    def _outlined_row(self, i: int) -> Outlined:
        drawable, row, words = self._drawable(i), self.candidates.rows[i], self.vocabulary
        classes = [drawable.attributes.get(name, f"no {name}") for name in words.subcategories]
        name = words.categories[drawable.label]
        details: list[tuple[str, Any]] = [("category", name), ("score", f"{self.candidates.score[i]:.3f}")]
        if "main_score" in row:
            details.append(("main score", f"{row['main_score']:.3f}"))
        for subcategory, chosen in zip(words.subcategories, classes, strict=True):
            values = (row.get("attribute_scores") or {}).get(subcategory)
            details.append((subcategory, f"{chosen} {max(values):.2f}" if values else chosen))
        if "query" in row:
            details.append(("query", row["query"]))
        if self.overlaps is not None:
            details.append(("IoU with the ground truth", f"{self.overlaps[i]:.2f}"))
        caption = [f"{name} {self.candidates.score[i]:.2f}", " · ".join(classes)][: 1 + bool(classes)]
        unsure = len(drawable.attributes) < len(words.subcategories)
        return Outlined(drawable.mask, caption, self._colours(drawable), [*details, ("row", i)], unsure)

    def _colours(self, drawable: Drawable) -> dict[str, Colour]:
        colours = {"category": GREY if drawable.crowd else PALETTE[drawable.label % len(PALETTE)]}
        for name, classes in self.vocabulary.subcategories.items():
            value = drawable.attributes.get(name)
            colours[name] = PALETTE[classes.index(value) % len(PALETTE)] if value in classes else GREY
        return colours

    # pictures

    def picture(self, settings: FilterSettings, font_size: int | None = None, title: str = "") -> np.ndarray:
        """Draw the ground truth, where there is one, beside the predictions kept: (h, w, 3) uint8.

        ``title`` replaces the file name and the number of objects.
        """
        kept = self.filtered(settings).kept
        panel = draw_instances(self.image, [self._drawable(i) for i in kept], self.vocabulary, font_size=font_size)
        if self.annotations is None:
            return titled(panel, f"{title or self.name} · {self.words(settings, kept)}")
        truth = titled(self._truth_panel(font_size), f"{title or self.truth_words()} · ground truth")
        return contact_sheet([truth, titled(panel, self.words(settings, kept))], columns=2)

    def truth_words(self) -> str:
        """Return the file name and the number of objects."""
        return f"{self.name}: {self.objects} object{'' if self.objects == 1 else 's'}"

    def words(self, settings: FilterSettings, kept: Sequence[int]) -> str:
        """Return how many rows are drawn, as the title of a panel."""
        return f"prediction: {len(kept)} of {len(self.candidates)} rows (score ≥ {settings.score:.3g})"

    def _drawable(self, i: int) -> Drawable:
        if i not in self._drawables:
            rows, reduction = [self.candidates.rows[i]], self._read[2]
            self._drawables[i] = drawables_of_predictions(rows, self.vocabulary, 0.0, reduction)[0]
        return self._drawables[i]

    @cached_property
    def _true_drawables(self) -> list[Drawable]:
        _, size, reduction = self._read
        return drawables_of_annotations(self.annotations or (), self.vocabulary, *size, reduction)

    def _truth_panel(self, font_size: int | None) -> np.ndarray:
        if font_size not in self._truth_panels:
            drawn = draw_instances(self.image, self._true_drawables, self.vocabulary, font_size=font_size)
            self._truth_panels[font_size] = drawn
        return self._truth_panels[font_size]


def _palette(names: Sequence[str]) -> list[tuple[str, Colour]]:
    return [(name, PALETTE[k % len(PALETTE)]) for k, name in enumerate(names)]


def shown_name(file: str) -> str:
    """Return the name of a file as text; "?" stands for the bytes of a name that is not UTF-8."""
    return Path(file).name.encode("utf-8", "replace").decode("utf-8")
