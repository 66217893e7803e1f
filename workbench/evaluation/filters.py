"""Which predictions are worth drawing: settings, and one function that applies them and says why.

Rules are applied in the order of `FilterSettings.rules`, each to the rows the earlier ones left, so that a row
is dropped by exactly one. Overlap comes last: a row that is not drawn must not suppress one that is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

import numpy as np
import pandas as pd
from pycocotools import mask as coco_mask
from pydantic import AfterValidator, BeforeValidator, Field

from workbench.data.masks import mask_areas, to_rle
from workbench.data.vocabulary import Vocabulary
from workbench.errors import WorkbenchError, is_number, nearest
from workbench.evaluation.predict import to_coco_results
from workbench.files import write_json
from workbench.typed_files import OWN, Flag, Number, Text, check_type, load_typed

Measure = Literal["probability", "logit"]
Overlap = Literal["off", "within", "across"]
MEASURES: tuple[str, ...] = get_args(Measure)
NMS: tuple[str, ...] = get_args(Overlap)
_Share = Annotated[Number, Field(ge=0, le=1)]


@dataclass(frozen=True)
class SubcategoryFilter:
    """What a row needs for one subcategory.

    threshold: least probability, or logit, of its likeliest class, no-object aside; None for no limit.
    measure: which of the two, "probability" or "logit" (the model's raw output).
    drop_no_object: drop rows for which no-object is likelier than every class.
    """

    __pydantic_config__: ClassVar = OWN
    threshold: Number | None = None
    measure: Measure = "probability"
    drop_no_object: Flag = False


def _number_alone(value: Any) -> Any:
    return {"threshold": value} if isinstance(value, (int, float)) and not isinstance(value, bool) else value


def _threshold_in_range(chosen: SubcategoryFilter) -> SubcategoryFilter:
    if chosen.measure == "probability" and chosen.threshold is not None and not 0 <= chosen.threshold <= 1:
        raise ValueError("its threshold must be a probability between 0 and 1")
    return chosen


_Chosen = Annotated[SubcategoryFilter, BeforeValidator(_number_alone), AfterValidator(_threshold_in_range)]


@dataclass(frozen=True)
class FilterSettings:
    """What is drawn.

    score: least score (what AP ranks by). main_score: least probability of the main category alone.
    categories: names of the main categories shown; None for all. subcategories: {name: SubcategoryFilter}.
    min_area: least mask area in pixels of the original image. nms: "off", or drop a row whose mask overlaps a
    better one's with at least the IoU nms_iou, "within" its main category or "across" all.
    """

    __pydantic_config__: ClassVar = OWN
    score: _Share = 0.5
    main_score: _Share = 0.0
    categories: tuple[Text, ...] | None = None
    subcategories: dict[Text, _Chosen] = field(default_factory=dict)
    min_area: Annotated[Number, Field(ge=0)] = 0.0
    nms: Overlap = "off"
    nms_iou: _Share = 0.7

    @classmethod
    def from_dict(cls, values: object, source: str = "the filter settings") -> FilterSettings:
        """Return settings from plain values, as JSON holds them; what is left out has its default.

        A subcategory may be a number alone, its least probability. WorkbenchError names the key at fault and the
        nearest known.
        """
        return check_type(cls, values, source)

    @classmethod
    def load(cls, path: str | Path) -> FilterSettings:
        """Return settings saved by :meth:`save`, or written by hand; WorkbenchError where they cannot be read."""
        return load_typed(cls, Path(path), f"The filter settings {path}")

    @classmethod
    def choose(cls, path: str | Path | None, **values: Any) -> FilterSettings:
        """Return the settings in the file ``path``, or where that is None or empty those of the keyword arguments."""
        return cls.load(path) if path else cls.from_dict(values, "the parameters")

    def save(self, path: str | Path) -> Path:
        """Write JSON that `load` and `workbench predict --filters` read; whole or not at all."""
        try:
            write_json(Path(path), self.to_dict(), indent=2)
        except OSError as error:
            raise WorkbenchError(f"The settings cannot be saved as {path}: {error.strerror}.") from None
        return Path(path)

    def to_dict(self) -> dict:
        """Plain values, for JSON."""
        return {
            **vars(self),
            "categories": None if self.categories is None else list(self.categories),
            "subcategories": {name: dict(vars(chosen)) for name, chosen in self.subcategories.items()},
        }

    def with_subcategory(self, name: str, **changes: Any) -> FilterSettings:
        """The same settings with some of one subcategory's changed."""
        chosen = replace(self.subcategories.get(name, SubcategoryFilter()), **changes)
        return replace(self, subcategories={**self.subcategories, name: chosen})

    def check(self, vocabulary: Vocabulary) -> None:
        """WorkbenchError for a category or subcategory that `vocabulary` does not have."""
        for kind, names, known in (
            ("category", self.categories or (), vocabulary.categories),
            ("subcategory", self.subcategories, vocabulary.subcategories),
        ):
            for name in names:
                if name not in known:
                    raise WorkbenchError(
                        f"The filters name the {kind} {name!r}, which is unknown{nearest(name, known)}; there are "
                        f"{', '.join(known) or 'none'}."
                    )

    def rules(self, vocabulary: Vocabulary) -> tuple[str, ...]:
        """Names of all rules, in the order they are applied, whether they are in use or not."""
        of_subcategories = (
            rule
            for name in vocabulary.subcategories
            for rule in (
                f"{name} no-object",
                f"{name} {self.subcategories.get(name, SubcategoryFilter()).measure}",
            )
        )
        return ("score", "main score", "category", *of_subcategories, "area", "overlap")


class Candidates:
    """Rows of COCO results, of one image or many, in the form the filters read. Masks are looked at when a rule
    needs them, and their overlaps are kept, so that the same rows can be filtered again and again.
    """

    def __init__(self, rows: Sequence[Mapping], vocabulary: Vocabulary) -> None:
        label_of = {key: k for k, key in enumerate(vocabulary.category_ids)}
        self.rows, self.vocabulary = list(rows), vocabulary
        for i, row in enumerate(self.rows):
            if not is_number(row.get("score")):
                raise WorkbenchError(f"{self._where(i)} has the score {row.get('score')!r}, not a number.")
            if row.get("category_id") not in label_of:
                raise WorkbenchError(
                    f"{self._where(i)} has the category_id {row.get('category_id')!r}, which is unknown."
                )
        self.score = np.array([row["score"] for row in self.rows], dtype=np.float64)
        self.label = np.array([label_of[row["category_id"]] for row in self.rows], dtype=np.int64)
        self._overlaps: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._confidence: dict[tuple[str, str], np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def _where(self, i: int) -> str:
        return f"Row {i} of the predictions (image {self.rows[i].get('image_id')})"

    @cached_property
    def order(self) -> np.ndarray:
        """(N,) row numbers, best score first, equal scores as listed."""
        return np.argsort(-self.score, kind="stable")

    @cached_property
    def main_score(self) -> np.ndarray:
        """(N,) probability of the main category; rows of another tool, which have none, count by their score."""
        return np.array([row.get("main_score", row["score"]) for row in self.rows], dtype=np.float64)

    def no_object(self, name: str) -> np.ndarray:
        """(N,) bool: the row says nothing, or no-object, for the subcategory."""
        return np.array([(row.get("attributes") or {}).get(name) is None for row in self.rows], dtype=bool)

    def confidence(self, name: str, measure: str) -> np.ndarray:
        """(N,) probability or logit of the likeliest class of the subcategory, no-object aside."""
        if (name, measure) not in self._confidence:
            self._confidence[name, measure] = self._read_confidence(name, measure)
        return self._confidence[name, measure]

    def _read_confidence(self, name: str, measure: str) -> np.ndarray:
        key = "attribute_scores" if measure == "probability" else "attribute_logits"
        values = np.zeros(len(self.rows))
        for i, row in enumerate(self.rows):
            try:
                value = row[key][name]
                values[i] = max(value[:-1]) if measure == "probability" else value
            except (KeyError, TypeError, ValueError):
                hint = "; filter by probability instead." if measure == "logit" else "."
                raise WorkbenchError(
                    f"{self._where(i)} has no {key} for {name}, so it cannot be filtered by them{hint}"
                ) from None
        return values

    def has_logits(self) -> bool:
        """Whether every row tells the logits of its subcategories."""
        return all("attribute_logits" in row for row in self.rows)

    @cached_property
    def rles(self) -> list[dict]:
        """N compressed RLEs, checked."""
        rles = []
        for i, row in enumerate(self.rows):
            try:
                rles.append(to_rle(row["segmentation"], *row["segmentation"]["size"]))
            except (KeyError, TypeError, ValueError, WorkbenchError):
                raise WorkbenchError(f"{self._where(i)} has no mask that can be decoded.") from None
        return rles

    @cached_property
    def area(self) -> np.ndarray:
        """(N,) mask area in pixels."""
        return mask_areas(self.rles).astype(np.float64)

    @cached_property
    def image(self) -> np.ndarray:
        """(N,) int64, a number for each image."""
        number: dict = {}
        return np.array([number.setdefault(row.get("image_id"), len(number)) for row in self.rows], dtype=np.int64)

    def of_image(self, image: int) -> np.ndarray:
        """Row numbers of one image, best score first."""
        return self.order[self.image[self.order] == image]

    def overlap(self, image: int) -> tuple[np.ndarray, np.ndarray]:
        """Row numbers (n,) of one image, best first, and their mask IoU with each other (n, n)."""
        if image not in self._overlaps:
            rows = self.of_image(image)
            rles = [self.rles[i] for i in rows]
            self._overlaps[image] = rows, np.asarray(coco_mask.iou(rles, rles, [0] * len(rles)))
        return self._overlaps[image]


@dataclass(frozen=True)
class Filtered:
    """What `apply_filters` found.

    rule: (N,) int64, for each row the number in `rules` of the one that dropped it, -1 where it was kept.
    better: {row: (row that suppressed it, IoU)} of those dropped by overlap.
    """

    candidates: Candidates
    settings: FilterSettings
    rules: tuple[str, ...]
    rule: np.ndarray
    better: dict[int, tuple[int, float]]

    @cached_property
    def kept(self) -> list[int]:
        """Numbers of the rows to draw, best score first."""
        return [int(i) for i in self.candidates.order if self.rule[i] < 0]

    @property
    def rows(self) -> list[dict]:
        """The rows to draw, as listed."""
        return [row for row, rule in zip(self.candidates.rows, self.rule, strict=True) if rule < 0]

    @property
    def dropped(self) -> dict[int, str]:
        """{row number: the rule that dropped it}."""
        return {int(i): self.rules[self.rule[i]] for i in np.flatnonzero(self.rule >= 0)}

    @property
    def counts(self) -> dict[str, int]:
        """{rule: rows it dropped}, zeros included, in the order of the rules."""
        counts = np.bincount(self.rule[self.rule >= 0], minlength=len(self.rules)).tolist()
        return dict(zip(self.rules, counts, strict=True))

    def asks(self, rule: str) -> str:
        """What a rule asks of a row, in words; "-" where it is not in use."""
        settings = self.settings
        if rule == "score":
            return f"at least {settings.score:g}"
        if rule == "main score":
            return f"at least {settings.main_score:g}" if settings.main_score > 0 else "-"
        if rule == "category":
            return "-" if settings.categories is None else ", ".join(settings.categories) or "none"
        if rule == "area":
            return f"at least {settings.min_area:g} pixels" if settings.min_area > 0 else "-"
        if rule == "overlap":
            where = {"within": "of its category", "across": "of any category"}.get(settings.nms)
            return f"IoU below {settings.nms_iou:g} with better ones {where}" if where else "-"
        name, _, kind = rule.rpartition(" ")
        chosen = settings.subcategories.get(name, SubcategoryFilter())
        if kind == "no-object":
            return f"some {name}" if chosen.drop_no_object else "-"
        return "-" if chosen.threshold is None else f"at least {chosen.threshold:g}"

    def why(self, i: int) -> str:
        """Why row `i` was dropped, in words; empty where it was kept."""
        if self.rule[i] < 0:
            return ""
        rule, settings, rows = self.rules[self.rule[i]], self.settings, self.candidates
        if rule == "score":
            return f"score {rows.score[i]:.3f} < {settings.score:g}"
        if rule == "main score":
            return f"main score {rows.main_score[i]:.3f} < {settings.main_score:g}"
        if rule == "category":
            return f"{rows.vocabulary.categories[rows.label[i]]} is not shown"
        if rule == "area":
            return f"{rows.area[i]:.0f} pixels < {settings.min_area:g}"
        if rule == "overlap":
            other, iou = self.better[i]
            return f"IoU {iou:.2f} with row {other}, which scores {rows.score[other]:.3f}"
        name, _, kind = rule.rpartition(" ")
        if kind == "no-object":
            return f"no {name}"
        value = rows.confidence(name, kind)[i]
        return f"{name} {kind} {value:.3f} < {settings.subcategories[name].threshold:g}"

    def table(self) -> pd.DataFrame:
        """One row a prediction, best score of each image first: image_id, row, category, score, the likeliest
        class of each subcategory ("-" for no-object), kept (bool), dropped by, why.
        """
        rows, words = self.candidates, self.candidates.vocabulary
        columns = ["image_id", "row", "category", "score", *words.subcategories, "kept", "dropped by", "why"]
        lines = []
        for i in sorted(range(len(rows)), key=lambda i: (rows.image[i], -rows.score[i], i)):
            row, rule = rows.rows[i], int(self.rule[i])
            classes = [(row.get("attributes") or {}).get(name) or "-" for name in words.subcategories]
            name = words.categories[rows.label[i]]
            fate = (rule < 0, "" if rule < 0 else self.rules[rule], self.why(i))
            lines.append((row.get("image_id"), i, name, rows.score[i], *classes, *fate))
        return pd.DataFrame(lines, columns=columns)


def apply_filters(
    predictions: Candidates | Sequence[Mapping] | Mapping,
    settings: FilterSettings,
    vocabulary: Vocabulary,
) -> Filtered:
    """Which of `predictions` are kept, and by which rule each other one was dropped.

    predictions: rows of COCO results (predictions.json), of one image or many; or what a model predicts for
    one image (DESIGN's predictions), whose N rows keep their numbers; or `Candidates` made before, which is
    fastest. WorkbenchError for settings the vocabulary does not know and for rows that lack what a rule needs.
    """
    settings.check(vocabulary)
    if isinstance(predictions, Mapping):
        predictions = to_coco_results(predictions, 0, vocabulary)
    rows = predictions if isinstance(predictions, Candidates) else Candidates(predictions, vocabulary)
    rules = settings.rules(vocabulary)
    rule = np.full(len(rows), -1, dtype=np.int64)
    better: dict[int, tuple[int, float]] = {}

    def drop(name: str, which: np.ndarray) -> None:
        rule[(rule < 0) & which] = rules.index(name)

    drop("score", rows.score < settings.score)
    if settings.main_score > 0:
        drop("main score", rows.main_score < settings.main_score)
    if settings.categories is not None:
        shown = [k for k, name in enumerate(vocabulary.categories) if name in settings.categories]
        drop("category", ~np.isin(rows.label, shown))
    for name in vocabulary.subcategories:
        chosen = settings.subcategories.get(name, SubcategoryFilter())
        if chosen.drop_no_object:
            drop(f"{name} no-object", rows.no_object(name))
        if chosen.threshold is not None and len(rows):
            drop(f"{name} {chosen.measure}", rows.confidence(name, chosen.measure) < chosen.threshold)
    if settings.min_area > 0:
        drop("area", rows.area < settings.min_area)
    if settings.nms != "off":
        for image in np.unique(rows.image[rule < 0]).tolist():
            better |= _suppressed(rows, image, rule < 0, settings)
        drop("overlap", np.isin(np.arange(len(rows)), list(better)))
    return Filtered(rows, settings, rules, rule, better)


def _suppressed(
    rows: Candidates, image: int, alive: np.ndarray, settings: FilterSettings
) -> dict[int, tuple[int, float]]:
    """{row: (the better row it overlaps, IoU)} of one image: greedy non-maximum suppression on masks."""
    numbers, ious = rows.overlap(image)
    label = rows.label[numbers]
    kept = np.zeros(len(numbers), dtype=bool)
    suppressed = {}
    for place in np.flatnonzero(alive[numbers]).tolist():
        rivals = kept & (label == label[place]) if settings.nms == "within" else kept
        best = int(np.where(rivals, ious[place], -1).argmax())
        if rivals[best] and ious[place, best] >= max(settings.nms_iou, 1e-9):  # no IoU is no overlap
            suppressed[int(numbers[place])] = (int(numbers[best]), float(ious[place, best]))
        else:
            kept[place] = True
    return suppressed
