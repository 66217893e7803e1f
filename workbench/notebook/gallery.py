"""Images with what a model predicts in them and, where it is known, what is there."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from workbench.data.images import read_image
from workbench.data.vocabulary import Vocabulary
from workbench.evaluation.filters import Candidates, Filtered, FilterSettings, apply_filters
from workbench.visualization.drawing import (
    Drawable,
    contact_sheet,
    draw_instances,
    drawables_of_annotations,
    drawables_of_predictions,
    side_by_side,
    titled,
)


@dataclass(frozen=True)
class Gallery:
    """files: {image id: image file}, in the order they are shown. results: rows of COCO results. truth: a COCO
    dict, or None where there is no ground truth. directory: where figures and settings belong. note: a
    sentence on what this is and what could not be had.
    """

    vocabulary: Vocabulary
    files: Mapping[int, str]
    results: Sequence[Mapping]
    truth: Mapping | None
    directory: Path
    note: str = ""

    @property
    def figures(self) -> Path:
        return self.directory / "figures"

    @cached_property
    def image_ids(self) -> list[int]:
        return list(self.files)

    @cached_property
    def _rows(self) -> dict[int, list[Mapping]]:
        groups = defaultdict(list)
        for row in self.results:
            groups[row["image_id"]].append(row)
        return groups

    @cached_property
    def _annotations(self) -> dict[int, list[Mapping]]:
        groups = defaultdict(list)
        for annotation in (self.truth or {}).get("annotations", ()):
            groups[annotation["image_id"]].append(annotation)
        return groups

    @cached_property
    def candidates(self) -> Candidates:
        """The rows of all images, ready to be filtered."""
        return Candidates(self.results, self.vocabulary)

    def filtered(self, settings: FilterSettings) -> Filtered:
        """What the filters do to all images."""
        return apply_filters(self.candidates, settings, self.vocabulary)

    def scene(self, image_id: int) -> Scene:
        """One image, ready to be drawn."""
        annotations = None if self.truth is None else self._annotations[image_id]
        return Scene(image_id, self.files[image_id], self._rows[image_id], annotations, self.vocabulary)

    def contact_sheet(self, settings: FilterSettings, count: int = 6, columns: int = 2) -> np.ndarray:
        """(H, W, 3) uint8: ground truth beside the predictions kept, of `count` images spread over all."""
        spread = np.linspace(0, len(self.files) - 1, max(1, min(count, len(self.files)))).round().astype(int)
        scenes = (self.scene(self.image_ids[i]) for i in spread)
        return contact_sheet([scene.picture(settings, font_size=18) for scene in scenes], columns=columns, gap=20)


class Scene:
    """One image: what is read, decoded and drawn once is kept, so that the filters can be changed quickly.

    rows: its COCO results. annotations: its ground truth, None where there is none.
    """

    def __init__(
        self,
        image_id: int,
        file: str,
        rows: Sequence[Mapping],
        annotations: Sequence[Mapping] | None,
        vocabulary: Vocabulary,
    ) -> None:
        self.image_id, self.name, self.vocabulary = image_id, Path(file).name, vocabulary
        self.candidates = Candidates(rows, vocabulary)
        self._file, self._annotations = file, annotations
        self._drawables: dict[int, Drawable] = {}
        self._truth: dict[int | None, np.ndarray] = {}

    @cached_property
    def image(self) -> np.ndarray:
        """(H, W, 3) uint8."""
        return read_image(self._file)

    @property
    def objects(self) -> int | None:
        """Objects in the ground truth, crowd regions aside; None where there is none."""
        if self._annotations is None:
            return None
        return sum(not annotation.get("iscrowd", 0) for annotation in self._annotations)

    def filtered(self, settings: FilterSettings) -> Filtered:
        """What the filters do to this image's rows."""
        return apply_filters(self.candidates, settings, self.vocabulary)

    def picture(self, settings: FilterSettings, font_size: int | None = None) -> np.ndarray:
        """(h, w, 3) uint8: the ground truth, where there is one, beside the predictions kept."""
        panels = [] if self._annotations is None else [self._truth_panel(font_size)]
        kept = self.filtered(settings).kept
        panel = draw_instances(self.image, [self._drawable(i) for i in kept], self.vocabulary, font_size=font_size)
        title = f"prediction: {len(kept)} of {len(self.candidates)} kept"
        return side_by_side([*panels, titled(panel, title if panels else f"{self.name} · {title}")])

    def _drawable(self, i: int) -> Drawable:
        if i not in self._drawables:
            self._drawables[i] = drawables_of_predictions([self.candidates.rows[i]], self.vocabulary, 0.0)[0]
        return self._drawables[i]

    def _truth_panel(self, font_size: int | None) -> np.ndarray:
        if font_size not in self._truth:
            there = drawables_of_annotations(self._annotations, self.vocabulary, *self.image.shape[:2])
            panel = draw_instances(self.image, there, self.vocabulary, font_size=font_size)
            count = f"{self.objects} object{'' if self.objects == 1 else 's'}"
            self._truth[font_size] = titled(panel, f"{self.name} · ground truth: {count}")
        return self._truth[font_size]


def counts_table(filtered: Filtered) -> pd.DataFrame:
    """One row a rule, in the order they are applied: what it asks for, how many rows it dropped, how many were
    left.
    """
    left, lines = len(filtered.candidates), []
    for rule, count in filtered.counts.items():
        left -= count
        lines.append((rule, filtered.asks(rule), count, left))
    return pd.DataFrame(lines, columns=["rule", "asks for", "dropped", "left"]).set_index("rule")
