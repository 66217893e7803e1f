"""A browser for predictions in JupyterLab: filters beside the picture, redrawn as a slider moves."""

from __future__ import annotations

import base64
import html
import math
from functools import lru_cache
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import numpy as np
from PIL import Image

from workbench.errors import WorkbenchError, errors_as
from workbench.evaluation.filters import MEASURES, NMS, Filtered, FilterSettings, SubcategoryFilter
from workbench.files import file_name
from workbench.notebook.gallery import Gallery, Scene, shown_name
from workbench.visualization.drawing import LEAST_SIDE
from workbench.visualization.painting import encode_jpeg

_NARROW = "300px"
_STYLE = {"description_width": "80px"}
_NMS_NAMES = {"off": "keep", "within": "drop within a category", "across": "drop across categories"}


class PredictionBrowser(widgets.HBox):
    """Sliders and drop-downs beside ground truth and predictions of one image of a gallery.

    ``settings`` is what the controls say, and may be set. Errors (a file that cannot be written, a
    logit that the predictions lack) stand under the controls. Where a notebook is read without its kernel
    the picture stands as it was first drawn.
    """

    def __init__(self, gallery: Gallery, settings: FilterSettings | None = None) -> None:
        settings = settings or FilterSettings()
        settings.check(gallery.vocabulary)
        self._gallery = gallery
        self._scene_of = lru_cache(maxsize=4)(gallery.scene)
        self._quiet = False
        self._build_controls(settings)
        self._picture = widgets.Image(format="jpeg", layout=widgets.Layout(max_width="100%", height="auto"))
        self._picture.add_class("workbench-picture")
        self._counts, self._dropped, self._status = widgets.HTML(), widgets.HTML(), widgets.HTML()
        self._counts.add_class("workbench-counts")
        self._status.add_class("workbench-status")
        left = widgets.VBox([*self._controls(), self._status], layout=widgets.Layout(width="316px", flex="0 0 auto"))
        right = widgets.VBox(
            [self._navigation(), self._picture, self._counts, self._dropped],
            layout=widgets.Layout(flex="1 1 0", min_width="420px", padding="0 0 0 14px"),
        )
        super().__init__([left, right], layout=widgets.Layout(width="100%", align_items="flex-start"))
        self.add_class("workbench-browser")
        self.settings = settings

    # what it shows

    @property
    def scene(self) -> Scene:
        """The image that is shown."""
        return self._scene_of(self._gallery.image_ids[self._image.value])

    @property
    def settings(self) -> FilterSettings:
        """What the controls say."""
        shown = None if len(self._categories.value) == len(self._categories.options) else self._categories.value
        return FilterSettings(
            score=self._score.value,
            main_score=self._main_score.value,
            categories=shown,
            subcategories={
                name: SubcategoryFilter(
                    None if threshold.value <= threshold.min else threshold.value, measure.value, drop.value
                )
                for name, (measure, threshold, drop) in self._subcategories.items()
            },
            min_area=self._area.value,
            nms=self._nms.value,
            nms_iou=self._nms_iou.value,
        )

    @settings.setter
    def settings(self, settings: FilterSettings) -> None:
        settings.check(self._gallery.vocabulary)
        self._quiet = True
        self._score.value, self._main_score.value = settings.score, settings.main_score
        names = self._gallery.vocabulary.categories
        self._categories.value = names if settings.categories is None else settings.categories
        for name, (measure, threshold, drop) in self._subcategories.items():
            chosen = settings.subcategories.get(name, SubcategoryFilter())
            measure.value, drop.value = chosen.measure, chosen.drop_no_object
            self._set_range(name)
            threshold.value = threshold.min if chosen.threshold is None else chosen.threshold
        self._area.max = max(self._area.max, math.ceil(settings.min_area))
        self._area.value = settings.min_area
        self._nms.value, self._nms_iou.value = settings.nms, settings.nms_iou
        self._quiet = False
        self._redraw()

    def go(self, steps: int) -> None:
        """Show the image that many places further, or as far as there are images."""
        self._image.value = min(max(self._image.value + steps, 0), len(self._gallery.files) - 1)

    # what its buttons do

    def export(self) -> Path:
        """Write the picture as PNG into the gallery's figures, and return its path."""
        path = self._gallery.page.figures / f"{file_name(f'visualize_{Path(self.scene.name).stem}')}.png"
        with errors_as(f"The picture cannot be saved as {path}", OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(self.scene.picture(self.settings)).save(path)
        return path

    def save(self) -> Path:
        """Write the settings as JSON to the path in the text field, and return it."""
        if not self._path.value.strip():
            raise WorkbenchError("The settings need a file name.")
        return self.settings.save(self._path.value.strip())

    def _press(self, action: Any) -> None:
        try:
            self._say(f"Wrote {action()}")
        except WorkbenchError as error:
            self._say(str(error), problem=True)

    def _say(self, text: str, problem: bool = False) -> None:
        colour = "#a33c00" if problem else "#00674b"
        self._status.value = (
            f'<div style="color:{colour};line-height:1.35;overflow-wrap:anywhere">{html.escape(text)}</div>'
            if text
            else ""
        )

    # how it is drawn

    def _changed(self, _: Any = None) -> None:
        if not self._quiet:
            self._redraw()

    def _redraw(self) -> None:
        place = self._image.value
        self._before.disabled, self._after.disabled = place == 0, place == len(self._gallery.files) - 1
        self._place.value = f"{place + 1} of {len(self._gallery.files)}"
        try:
            settings, scene = self.settings, self.scene
            self._picture.value = encode_jpeg(scene.picture(settings, _font_size(scene)))
            filtered = scene.filtered(settings)
        except WorkbenchError as error:
            self._say(str(error), problem=True)
            return
        self._say("")
        self._counts.value = _counts_html(filtered, scene.objects)
        self._dropped.value = _dropped_html(filtered)

    def _repr_mimebundle_(self, **how: Any) -> dict[str, Any]:
        bundle = super()._repr_mimebundle_(**how)
        # shown instead where no kernel runs: on GitHub, in an HTML report
        bundle["image/jpeg"] = base64.b64encode(self._picture.value).decode("ascii")
        return bundle

    # its parts

    def _build_controls(self, settings: FilterSettings) -> None:
        gallery, words = self._gallery, self._gallery.vocabulary
        names = list(map(shown_name, gallery.files.values()))
        self._image = widgets.Dropdown(options=[(name, i) for i, name in enumerate(names)], value=0)
        self._before = widgets.Button(description="Previous", icon="arrow-left")
        self._after = widgets.Button(description="Next", icon="arrow-right")
        self._place = widgets.Label()
        self._score, self._main_score = _slider("score"), _slider("main score")
        self._score.add_class("workbench-score")
        self._categories = widgets.SelectMultiple(
            options=words.categories,
            description="categories",
            style=_STYLE,
            layout=widgets.Layout(width=_NARROW, height=f"{18 * min(len(words.categories), 6) + 8}px"),
        )
        self._subcategories = {}
        self._limits = {}
        for name in words.subcategories:
            measures = MEASURES if gallery.candidates.has_logits() else MEASURES[:1]
            wanted = settings.subcategories.get(name, SubcategoryFilter()).measure
            measures = [*measures, *([wanted] if wanted not in measures else [])]
            measure = _drop_down("measure", [(each, each) for each in measures])
            drop = widgets.Checkbox(
                description=f"drop those without {name}", indent=False, layout=widgets.Layout(margin="0 0 0 84px")
            )
            self._subcategories[name] = (measure, _slider("at least"), drop)
            measure.observe(lambda change, name=name: self._set_range(name), "value")
        largest = max((row["segmentation"]["size"] for row in gallery.results), default=(0, 0))
        self._area = widgets.FloatSlider(
            min=0,
            max=max(100, largest[0] * largest[1] // 20),
            step=1,
            readout_format=".0f",
            description="area in px",
            style=_STYLE,
            layout=widgets.Layout(width=_NARROW),
        )
        self._nms = _drop_down("overlaps", [(_NMS_NAMES[each], each) for each in NMS])
        self._nms_iou = _slider("from IoU")
        self._path = widgets.Text(
            value=_short(gallery.directory / "filters.json"), layout=widgets.Layout(width=_NARROW)
        )
        self._export = widgets.Button(description="Export PNG", icon="picture-o")
        self._save = widgets.Button(description="Save settings", icon="save")

        self._before.on_click(lambda _: self.go(-1))
        self._after.on_click(lambda _: self.go(1))
        self._export.on_click(lambda _: self._press(self.export))
        self._save.on_click(lambda _: self._press(self.save))
        parts = [self._image, self._score, self._main_score, self._categories, self._area, self._nms, self._nms_iou]
        for part in [*parts, *(each for group in self._subcategories.values() for each in group[1:])]:
            part.observe(self._changed, "value")

    def _controls(self) -> list[widgets.Widget]:
        groups = [_heading("Shown is what scores at least"), self._score, self._main_score, self._categories]
        for name, group in self._subcategories.items():
            groups += [_heading(f"Subcategory {name}"), *group]
        groups += [_heading("Masks"), self._area, self._nms, self._nms_iou]
        buttons = widgets.HBox([self._export, self._save], layout=widgets.Layout(width=_NARROW))
        return [*groups, _heading("Keep"), self._path, buttons]

    def _navigation(self) -> widgets.HBox:
        self._image.layout.width = "auto"
        for button in (self._before, self._after):
            button.layout.width = "100px"
        return widgets.HBox([self._before, self._image, self._after, self._place])

    def _set_range(self, name: str) -> None:
        """Set the slider: probabilities run from 0 to 1, logits from just below the least; its lowest means off."""
        measure, threshold, _ = self._subcategories[name]
        low, high = 0.0, 1.0
        if measure.value == "logit":
            low, high = self._logit_range(name)
        quiet, self._quiet = self._quiet, True
        threshold.min, threshold.max = min(low, threshold.min), max(high, threshold.max)
        threshold.value = low
        threshold.min, threshold.max = low, high
        self._quiet = quiet
        self._changed()

    def _logit_range(self, name: str) -> tuple[float, float]:
        if name not in self._limits:
            try:
                values = self._gallery.candidates.confidence(name, "logit")
            except WorkbenchError:  # said when the picture is drawn
                values = np.zeros(0)
            low, high = (values.min(), values.max()) if len(values) else (-5.0, 5.0)
            self._limits[name] = (math.floor(low) - 1.0, math.ceil(high) + 1.0)
        return self._limits[name]


def _short(path: Path) -> str:
    """Return the path from the working directory, where it lies in it."""
    path = path.absolute()
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _slider(name: str) -> widgets.FloatSlider:
    return widgets.FloatSlider(
        min=0, max=1, step=0.01, description=name, style=_STYLE, layout=widgets.Layout(width=_NARROW)
    )


def _drop_down(name: str, options: list[tuple[str, str]]) -> widgets.Dropdown:
    return widgets.Dropdown(options=options, description=name, style=_STYLE, layout=widgets.Layout(width=_NARROW))


def _heading(text: str) -> widgets.HTML:
    return widgets.HTML(f'<b style="font-size:13px">{html.escape(text)}</b>')


def _font_size(scene: Scene) -> int:
    """Return a size of captions that can be read when both panels share the width of a notebook."""
    return int(np.clip(max(LEAST_SIDE, *scene.image.shape[:2]) / 30, 14, 40))


def _counts_html(filtered: Filtered, objects: int | None) -> str:
    """Return a table with a column for all rows, one for each rule in use or with rows dropped, and the rest."""
    cells = [("predictions", len(filtered.candidates), "")]
    cells += [
        (rule, -count, "" if count else "color:#8a8a8a")
        for rule, count in filtered.counts.items()
        if count or filtered.asks(rule) != "-"
    ]
    cells.append(("drawn", len(filtered.kept), "font-weight:bold"))
    if objects is not None:
        cells.append(("in the ground truth", objects, "border-left:1px solid #bbb"))
    cell = "padding:1px 10px;text-align:right;line-height:1.4;"
    head = "".join(f'<th style="{cell}{style}">{html.escape(name)}</th>' for name, _, style in cells)
    body = "".join(
        f'<td style="{cell}{style}">{str(n).replace("-", "−")}</td>' for _, n, style in cells
    )  # a minus sign
    return f'<table style="border-collapse:collapse"><tr>{head}</tr><tr>{body}</tr></table>'


def _dropped_html(filtered: Filtered, most: int = 100) -> str:
    """Return the dropped rows as a folded list, best first, each with its reason."""
    dropped = [int(i) for i in filtered.candidates.order if filtered.rule[i] >= 0]
    names, label = filtered.candidates.vocabulary.categories, filtered.candidates.label
    lines = "".join(
        f"<li>row {i}, {html.escape(names[label[i]])} {filtered.candidates.score[i]:.2f}: "
        f"{html.escape(filtered.why(i))}</li>"
        for i in dropped[:most]
    )
    rest = f"<p>and {len(dropped) - most} more</p>" if len(dropped) > most else ""
    return (
        f"<details><summary>Why {len(dropped)} are not drawn</summary>"
        f'<ul style="margin:0;line-height:1.35;max-height:220px;overflow-y:auto">{lines}</ul>{rest}</details>'
        if dropped
        else ""
    )
