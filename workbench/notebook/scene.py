"""One image of a gallery: its rows, its ground truth, what is right and wrong, and how they are drawn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from workbench.data.image_files import ImageRules
from workbench.data.images import read_at_most
from workbench.data.vocabulary import Vocabulary
from workbench.errors import counted
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
    sheet_font,
    titled,
)

LONGEST = 1600  # pixels of the longer side of what is shown
JUDGED = "right or wrong"  # colours by verdict
CROWD = "crowd region"  # its name in the legend of categories
SHEET_LONGEST = 1100  # pixels of the longer side of an image on a sheet
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

    rows: its COCO results. truth: a COCO dict of this image alone, None where there is no ground truth. Images with
    more than ``longest`` pixels a side are read, and their masks are drawn, at a half, a quarter or an eighth.
    """

    def __init__(
        self,
        image_id: int,
        file: str,
        rows: Sequence[Mapping],
        truth: Mapping | None,
        vocabulary: Vocabulary,
        rules: ImageRules | None = None,
        longest: int = LONGEST,
    ) -> None:
        self.image_id, self.name, self.vocabulary = image_id, shown_name(file), vocabulary
        self.candidates = Candidates(rows, vocabulary)
        self._file, self._truth, self._rules, self._longest = file, truth, rules, longest
        self._drawables: dict[int, Drawable] = {}
        self._truth_panels: dict[int | None, np.ndarray] = {}

    @cached_property
    def _read(self) -> tuple[np.ndarray, tuple[int, int], int]:
        return read_at_most(self._file, self._longest, self._rules)

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
            outlined.append(Outlined(drawable.mask, caption, self._classes(drawable), details))
        return outlined

    def legends(self) -> dict[str, list[tuple[str, Colour]]]:
        """Return what the colours of a viewer stand for, by what they are chosen by."""
        crowds = any(each.get("iscrowd", 0) for each in self.annotations or ())
        legends = {"category": [*_palette(self.vocabulary.categories), *[(CROWD, GREY)] * crowds]}
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
            details.append((subcategory, self._likeliest(subcategory, values) if values else chosen))
        if "query" in row:
            details.append(("query", row["query"]))
        if self.overlaps is not None:
            details.append(("IoU with the ground truth", f"{self.overlaps[i]:.2f}"))
        caption = [f"{name} {self.candidates.score[i]:.2f}", " · ".join(classes)][: 1 + bool(classes)]
        unsure = len(drawable.attributes) < len(words.subcategories)
        return Outlined(drawable.mask, caption, self._classes(drawable), [*details, ("row", i)], unsure)

    def _likeliest(self, subcategory: str, probabilities: Sequence[float], most: int = 4) -> str:
        """Return the likeliest classes of a subcategory with their probabilities; the last one is no-object's."""
        names = (*self.vocabulary.subcategories[subcategory], f"no {subcategory}")
        falling = sorted(zip(probabilities, names, strict=False), reverse=True)
        return ", ".join(f"{name} {value:.2f}" for value, name in falling[:most] if value >= 0.005)

    def _classes(self, drawable: Drawable) -> dict[str, str]:
        """Return an object's name in each of ``legends``, verdicts aside."""
        names = {name: drawable.attributes.get(name, f"no {name}") for name in self.vocabulary.subcategories}
        return {"category": CROWD if drawable.crowd else self.vocabulary.categories[drawable.label], **names}

    def contents(self, rows: Sequence[int] | None = None) -> str:
        """Return in words how many of ``rows`` there are of each category, or of the true objects where it is None."""
        if rows is None:
            counts = Counter(self._classes(drawable)["category"] for drawable in self._true_drawables)
        else:
            counts = Counter(self.vocabulary.categories[label] for label in self.candidates.label[list(rows)])
        return ", ".join(f"{count} {name}" for name, count in counts.most_common()) or "nothing"

    # pictures

    def picture(self, settings: FilterSettings, font_size: int | None = None, title: str = "") -> np.ndarray:
        """Draw the ground truth, where there is one, beside the predictions kept: (h, w, 3) uint8.

        ``title`` replaces the file name and the number of objects. ``font_size`` follows the picture by default.
        """
        kept = self.filtered(settings).kept
        panel = draw_instances(self.image, [self._drawable(i) for i in kept], self.vocabulary, font_size=font_size)
        if self.annotations is None:
            return titled(panel, f"{title or self.name} · {self.words(settings, kept)}", font_size)
        truth = titled(self._truth_panel(font_size), f"{title or self.truth_words()} · ground truth", font_size)
        return contact_sheet([truth, titled(panel, self.words(settings, kept), font_size)], columns=2)

    def truth_words(self) -> str:
        """Return the file name and the number of objects."""
        return f"{self.name}: {counted(self.objects, 'object')}"

    def words(self, settings: FilterSettings, kept: Sequence[int], label: str = "prediction") -> str:
        """Return how many rows are drawn, as the title of a panel."""
        return f"{label}: {len(kept)} of {counted(len(self.candidates), 'row')} (score ≥ {settings.score:.3g})"

    def release(self) -> None:
        """Give the memory of decoded masks back; they are decoded again when they are drawn."""
        self._drawables.clear()
        self._truth_panels.clear()
        self.__dict__.pop("_true_drawables", None)

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


def sheet(pictures: Sequence[tuple[Scene, FilterSettings, str]], columns: int = 2, gap: int = 20) -> np.ndarray:
    """Draw scenes, each with its filters and a title (or ""), in rows of ``columns``: (H, W, 3) uint8.

    Captions can be read at the width at which a notebook shows the sheet.
    """
    if not pictures:
        return contact_sheet([])
    columns = min(columns, len(pictures))
    panels = 1 if pictures[0][0].annotations is None else 2
    font_size = sheet_font([scene.image.shape[:2] for scene, _, _ in pictures], columns * panels)
    drawn = []
    for scene, settings, title in pictures:
        drawn.append(scene.picture(settings, font_size, title))
        scene.release()
    return contact_sheet(drawn, columns=columns, gap=gap)


def _palette(names: Sequence[str]) -> list[tuple[str, Colour]]:
    return [(name, PALETTE[k % len(PALETTE)]) for k, name in enumerate(names)]


def shown_name(file: str) -> str:
    """Return the name of a file as text; "?" stands for the bytes of a name that is not UTF-8."""
    return Path(file).name.encode("utf-8", "replace").decode("utf-8")
