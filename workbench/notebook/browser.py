"""A browser for predictions in JupyterLab: filters beside a viewer, which redraws as a slider moves."""

from __future__ import annotations

import html
import math
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import numpy as np
import traitlets
from IPython import display as ipython

from workbench.errors import WorkbenchError, counted, errors_as
from workbench.evaluation.filters import MEASURES, NMS, Filtered, FilterSettings, SubcategoryFilter
from workbench.evaluation.thresholds import Suggestion
from workbench.files import file_name, replacing
from workbench.notebook.gallery import AS_LISTED, ORDERS, Gallery
from workbench.notebook.review import Review
from workbench.notebook.scene import Scene, sheet, shown_name
from workbench.notebook.viewer import Drawn, Viewer
from workbench.visualization.drawing import SHOWN_WIDTH
from workbench.visualization.painting import encode_jpeg

_NARROW = "300px"
_STYLE = {"description_width": "80px"}
_NMS_NAMES = {"off": "keep", "within": "drop within a category", "across": "drop across categories"}
_ALL = "all images"
_FEW = 50_000  # predictions whose groups are listed without being asked for
_GROUPS = (
    "Images with a category or a confusion. What the filters drop counts as missed; the matrices of notebook 04 count "
    "the objects of all predictions."
)
_SCORE = "What rows are ranked by (TEST.RANK_BY); AP uses it"
_MAIN_SCORE = "The probability of the main category alone, before subcategories and the mask's certainty change it"


class PredictionBrowser(widgets.HBox):
    """Sliders and drop-downs beside ground truth and predictions of one image of a gallery.

    ``settings`` is what the controls say, and may be set; ``images`` is which images are gone through, in which order.
    Errors (a file that cannot be written, a logit that the predictions lack) stand under the controls. Where a notebook
    is read without its kernel a picture stands.

    Args:
        gallery: images and predictions.
        settings: filters to start with, and to go back to.
        suggestion: thresholds that a button applies.
        other: the gallery of another checkpoint on the same images, shown beside.
        images: ids of the images to look at, such as ``gallery.groups(settings)["with ring"]``; None for all.
        order: one of ``ORDERS``; "as listed" is the order of ``images``.
        still: what stands where no kernel runs; by default the first image with the settings of then.

    Raises:
        WorkbenchError: there are no images, or one of ``images`` is unknown.
    """

    def __init__(
        self,
        gallery: Gallery,
        settings: FilterSettings | None = None,
        *,
        suggestion: Suggestion | None = None,
        other: Gallery | None = None,
        images: Sequence[int] | None = None,
        order: str = AS_LISTED,
        still: ipython.Image | None = None,
    ) -> None:
        settings = settings or FilterSettings()
        settings.check(gallery.vocabulary)
        self._gallery, self._other, self._start, self._suggestion = gallery, other, settings, suggestion
        self._galleries = [gallery] if other is None else [gallery, other]
        self._scenes_of = lru_cache(maxsize=4)(lambda key: [each.scene(key) for each in self._galleries])
        self.review = Review(gallery)
        self._still = still
        self._chosen = list(gallery.image_ids if images is None else images)
        _check_images(self._chosen, gallery)
        self._ids = self._chosen
        self._quiet = True
        self._shown: int | None = None
        self._build_controls(settings, order)
        self._viewer = Viewer()
        self._viewer.on_msg(self._receive)
        self._viewer.observe(self._changed, "explaining")
        self._status = widgets.HTML()
        self._status.add_class("workbench-status")
        self._panel = widgets.VBox([*self._controls(), self._status])
        self._panel.add_class("workbench-controls")
        right = widgets.VBox([self._navigation(), self._viewer])
        right.add_class("workbench-look")
        super().__init__([self._panel, right], layout=widgets.Layout(width="100%", align_items="flex-end"))
        self.add_class("workbench-browser")
        self.settings = settings
        self._sort()
        if len(gallery.results) <= _FEW:
            self._list_groups()

    # what it shows

    @property
    def images(self) -> list[int]:
        """Ids of the images that are gone through, in this order."""
        return list(self._ids)

    @property
    def image_id(self) -> int:
        """The image that is shown."""
        return self._ids[self._image.value]

    @property
    def scene(self) -> Scene:
        """The image that is shown, with this gallery's predictions."""
        return self._scenes_of(self.image_id)[0]

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
        self._image.value = min(max(self._image.value + steps, 0), len(self._ids) - 1)

    # what its buttons do

    def save(self) -> Path:
        """Write the settings as JSON to the path in the text field, and return it."""
        if not self._path.value.strip():
            raise WorkbenchError("The settings need a file name.")
        return self.settings.save(self._path.value.strip())

    def _receive(self, _: Any, content: dict[str, Any], buffers: Sequence[memoryview]) -> None:
        """Act on a message of the viewer: a key that was pressed, or the picture on the screen."""
        if "go" in content:
            self.go(1 if content["go"] == 1 else -1)
        elif "mark" in content:
            self._mark.value = not self._mark.value
        elif "png" in content and buffers:
            self._press(lambda: self._export(bytes(buffers[0])))

    def _export(self, png: bytes) -> Path:
        """Write the picture on the screen into the gallery's figures, and return its path."""
        path = self._gallery.page.figures / f"{file_name(f'visualize_{Path(self.scene.name).stem}')}.png"
        with errors_as(f"The picture cannot be saved as {path}", OSError), replacing(path) as draft:
            draft.write_bytes(png)
        return path

    def _keep_review(self) -> str:
        """Write the marked images and the annotations that what is drawn contradicts; return where, in words."""
        suspected = self._gallery.suspected(self.settings)
        marked, count = len(self.review), 0 if suspected is None else len(suspected)
        paths = " and ".join(map(str, self.review.save(suspected)))
        return (
            f"{paths}: {counted(marked, 'marked image')}, {counted(count, 'suspected label error')} among what is drawn"
        )

    def _press(self, action: Callable[[], object]) -> None:
        try:
            self._say(f"Wrote {action()}")
        except WorkbenchError as error:
            self._say(str(error), problem=True)

    def _say(self, text: str, problem: bool = False) -> None:
        # The text has the theme's own colour, which can be read on any background.
        border = "#d32f2f" if problem else "#00897b"
        style = f"border-left:4px solid {border};padding-left:6px;line-height:1.35;overflow-wrap:anywhere"
        self._status.value = f'<div role="status" style="{style}">{html.escape(text)}</div>' if text else ""

    # how it is drawn

    def _changed(self, _: Any = None) -> None:
        if not self._quiet:
            self._redraw()

    def _redraw(self) -> None:
        place = self._image.value
        self._before.disabled, self._after.disabled = place == 0, place == len(self._ids) - 1
        self._place.value = f"{place + 1} of {len(self._ids)}"
        try:
            settings, scenes = self.settings, self._scenes_of(self.image_id)
            filtered = [scene.filtered(settings) for scene in scenes]
            self._show(scenes, filtered)
        except WorkbenchError as error:
            self._say(str(error), problem=True)
            return
        self._say("")
        self._quiet = True
        self._mark.value, self._note.value = self.review.is_marked(self.image_id), self.review.note(self.image_id)
        self._quiet = False

    def _show(self, scenes: Sequence[Scene], filtered: Sequence[Filtered]) -> None:
        first, drawn = scenes[0], []
        for number, (scene, each) in enumerate(zip(scenes, filtered, strict=True)):
            rows, objects = scene.judge(each.kept)
            if number == 0 and first.annotations is not None:
                words = f"{first.truth_words()} · ground truth"
                drawn.append(Drawn(words, _alt(words, first.contents(), objects), range(len(objects)), objects))
            label = self._galleries[number].label if len(scenes) > 1 else "prediction"
            words = scene.words(each.settings, each.kept, label)
            if first.annotations is None and number == 0:
                words = f"{first.name} · {words}"
            drawn.append(Drawn(words, _alt(words, scene.contents(each.kept), rows), each.kept, rows))
        changes = {
            "drawn": drawn,
            "counts": _counts(filtered[0], first.objects, f"{self._gallery.label}: " if len(scenes) > 1 else ""),
            "left_out": len(first.candidates) - len(filtered[0].kept),
            "reasons": _reasons(filtered[0]) if self._viewer.explaining else (),
        }
        if self._shown == self.image_id:
            self._viewer.draw(**changes)
            return
        panels = [] if first.annotations is None else [first.outlined_objects()]
        panels += [scene.outlined_rows() for scene in scenes]
        self._viewer.show(str(self.image_id), first.image, panels, first.legends(), **changes)
        self._shown = self.image_id

    def _repr_mimebundle_(self, **how: Any) -> dict[str, Any] | tuple[dict[str, Any], dict[str, Any]]:
        bundle = super()._repr_mimebundle_(**how)
        try:
            picture, described = (self._still or self._first_image())._repr_mimebundle_()
        except WorkbenchError:  # stands under the controls
            return bundle
        return {**bundle, **picture}, described  # the picture is shown on GitHub and in an HTML report

    def _first_image(self) -> ipython.Image:
        scene = self._gallery.scene(self.image_id)
        picture = sheet([(scene, self.settings, "")])
        alt = ", ".join([scene.name, *(panel["alt"] for panel in self._viewer.titles)])
        width = min(picture.shape[1], SHOWN_WIDTH)
        return ipython.Image(data=encode_jpeg(picture), format="jpeg", width=width, alt=alt)

    # which images, in which order

    def _sort(self, _: Any = None) -> None:
        """Choose the images of the group and the order again; the settings of now decide."""
        quiet, self._quiet = self._quiet, True
        chosen = set(self._chosen)
        if self._only.value != _ALL:
            chosen &= set(self._group_lists().get(self._only.value, ()))
        listed = self._order.value == AS_LISTED
        ordered = self._chosen if listed else self._gallery.ordered(self._order.value, self.settings)
        ids = [key for key in ordered if key in chosen]
        if ids:
            self._ids = ids
            names = [shown_name(self._gallery.files[key]) for key in ids]
            self._image.options = [(name, i) for i, name in enumerate(names)]
            self._image.value = 0
        self._quiet = quiet
        self._changed()
        if not ids:
            self._say(f"No image is in the group {self._only.value!r}.", problem=True)

    def _group_lists(self) -> dict[str, list[int]]:
        return self._gallery.groups(self.settings)

    def _list_groups(self, _: Any = None) -> None:
        """Offer the groups that there are with the settings of now."""
        kept = self._only.value
        quiet, self._quiet = self._quiet, True
        groups = self._group_lists()
        options = [(_ALL, _ALL), *((f"{name} ({counted(len(ids), 'image')})", name) for name, ids in groups.items())]
        self._only.options = options
        self._only.value = kept if kept in groups else _ALL
        self._quiet = quiet

    def _mark_changed(self, _: Any = None) -> None:
        if not self._quiet:
            self.review.mark(self.image_id, self._mark.value, self._note.value)

    # its parts

    def _build_controls(self, settings: FilterSettings, order: str) -> None:
        gallery, words = self._gallery, self._gallery.vocabulary
        self._image = widgets.Dropdown(options=[("", 0)], value=0, tooltip="Image")
        self._before = widgets.Button(description="Previous", icon="arrow-left", tooltip="Previous image (key p)")
        self._after = widgets.Button(description="Next", icon="arrow-right", tooltip="Next image (key n)")
        self._fold = widgets.ToggleButton(value=True, description="Filters", tooltip="Show or hide the filters")
        self._place = widgets.Label()
        self._order = _drop_down("order", [(name, name) for name in ORDERS])
        self._order.value = order
        self._only = _drop_down("only", [(_ALL, _ALL)])
        self._only.tooltip = _GROUPS
        self._list_groups_button = widgets.Button(
            description="List groups", tooltip="Offer categories and confusions, as the filters of now leave them"
        )
        self._score, self._main_score = _slider("score", _SCORE), _slider("main score", _MAIN_SCORE)
        self._score.add_class("workbench-score")
        self._categories = widgets.SelectMultiple(
            options=words.categories,
            description="categories",
            tooltip="Main categories that are drawn",
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
            self._subcategories[name] = (measure, _slider("at least", f"Least value of the {name}"), drop)
            measure.observe(lambda change, name=name: self._set_range(name), "value")
        largest = max((row["segmentation"]["size"] for row in gallery.results), default=(0, 0))
        self._area = _Slider(
            min=0,
            max=max(100, largest[0] * largest[1] // 20),
            step=1,
            readout_format=".0f",
            description="area in px",
            style=_STYLE,
            layout=widgets.Layout(width=_NARROW),
        )
        self._nms = _drop_down("overlaps", [(_NMS_NAMES[each], each) for each in NMS])
        self._nms_iou = _slider("from IoU", "Mask IoU from which a row overlaps a better one")
        self._path = widgets.Text(
            value=_short(gallery.directory / "filters.json"),
            tooltip="File of the settings",
            layout=widgets.Layout(width=_NARROW),
        )
        self._reset = _button("Reset", "undo", "The settings that this cell began with")
        self._use = _button("Use suggestion", "magic", "The thresholds with the best F1 on validation images")
        self._use.disabled = self._suggestion is None or not self._suggestion.curves
        self._export_button = _button("Export PNG", "picture-o", "The picture as it is on the screen, into figures/")
        self._save = _button("Save settings", "save", "Write the filters as JSON")
        self._mark = widgets.Checkbox(description="annotations look wrong (key m)", indent=False)
        self._note = widgets.Text(placeholder="what is wrong", tooltip="Note", layout=widgets.Layout(width=_NARROW))
        self._save_review = _button(
            "Save review", "flag", "Write marked images and suspected label errors as CSV and COCO JSON"
        )

        self._before.on_click(lambda _: self.go(-1))
        self._after.on_click(lambda _: self.go(1))
        self._reset.on_click(lambda _: setattr(self, "settings", self._start))
        self._use.on_click(lambda _: setattr(self, "settings", self._suggestion.settings))
        self._export_button.on_click(lambda _: self._viewer.send({"export": True}))
        self._save.on_click(lambda _: self._press(self.save))
        self._save_review.on_click(lambda _: self._press(self._keep_review))
        self._fold.observe(lambda change: setattr(self._panel.layout, "display", "" if change.new else "none"), "value")
        for part in (self._order, self._only):
            part.observe(lambda _: None if self._quiet else self._sort(), "value")
        self._list_groups_button.on_click(self._list_groups)
        for part in (self._mark, self._note):
            part.observe(self._mark_changed, "value")
        parts = [self._image, self._score, self._main_score, self._categories, self._area, self._nms, self._nms_iou]
        for part in [*parts, *(each for group in self._subcategories.values() for each in group[1:])]:
            part.observe(self._changed, "value")

    def _controls(self) -> list[widgets.Widget]:
        groups = [_heading("Shown is what scores at least"), self._score, self._main_score, self._categories]
        for name, group in self._subcategories.items():
            groups += [_heading(f"Subcategory {name}"), *group]
        groups += [_heading("Masks"), self._area, self._nms, self._nms_iou, _row(self._reset, self._use)]
        groups += [_heading("Images"), self._order, self._only, self._list_groups_button]
        groups += [_heading("Keep"), self._path, _row(self._save, self._export_button)]
        return [*groups, _heading("Review"), self._mark, self._note, self._save_review]

    def _navigation(self) -> widgets.HBox:
        self._image.layout.width = "auto"
        for button in (self._before, self._after, self._fold):
            button.layout.width = "100px"
        row = widgets.HBox([self._fold, self._before, self._image, self._after, self._place])
        row.add_class("workbench-navigation")
        return row

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


def _check_images(ids: Sequence[int], gallery: Gallery) -> None:
    if not ids:
        raise WorkbenchError("There are no images to look at.")
    unknown = next((each for each in ids if each not in gallery.files), None)
    if unknown is not None:
        raise WorkbenchError(f"There is no image with the id {unknown!r} here; one is {gallery.image_ids[0]!r}.")


def _short(path: Path) -> str:
    """Return the path from the working directory, where it lies in it."""
    path = path.absolute()
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


class _Slider(widgets.FloatSlider):
    """A slider whose moves are not sent back to the page they come from."""

    value = traitlets.CFloat(0.0).tag(sync=True, echo_update=False)


def _slider(name: str, tooltip: str) -> _Slider:
    return _Slider(
        min=0, max=1, step=0.01, description=name, tooltip=tooltip, style=_STYLE, layout=widgets.Layout(width=_NARROW)
    )


def _drop_down(name: str, options: list[tuple[str, str]]) -> widgets.Dropdown:
    return widgets.Dropdown(
        options=options, description=name, tooltip=name, style=_STYLE, layout=widgets.Layout(width=_NARROW)
    )


def _button(name: str, icon: str, tooltip: str) -> widgets.Button:
    return widgets.Button(description=name, icon=icon, tooltip=tooltip)


def _row(*parts: widgets.Widget) -> widgets.HBox:
    return widgets.HBox(parts, layout=widgets.Layout(width=_NARROW))


def _alt(words: str, contents: str, verdicts: dict[int, str]) -> str:
    """Return a panel's title with what is in it, and the number of each verdict."""
    counts = Counter(verdicts.values())
    judged = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    return "; ".join(filter(None, [words, contents, judged]))


def _heading(text: str) -> widgets.HTML:
    return widgets.HTML(f'<b style="font-size:13px">{html.escape(text)}</b>')


def _counts(filtered: Filtered, objects: int | None, whose: str) -> list[tuple[str, int, str]]:
    """Return a column for all rows, one for each rule in use or with rows dropped, and the rest."""
    columns = [(f"{whose}predictions", len(filtered.candidates), "")]
    columns += [(rule, -count, "") for rule, count in filtered.counts.items() if count or filtered.asks(rule) != "-"]
    columns.append(("drawn", len(filtered.kept), "total"))
    return columns if objects is None else [*columns, ("in the ground truth", objects, "apart")]


def _reasons(filtered: Filtered, most: int = 100) -> list[str]:
    """Return a line for each dropped row, best first."""
    dropped = [int(i) for i in filtered.candidates.order if filtered.rule[i] >= 0]
    names, label = filtered.candidates.vocabulary.categories, filtered.candidates.label
    lines = [
        f"row {i}, {names[label[i]]} {filtered.candidates.score[i]:.2f}: {filtered.why(i)}" for i in dropped[:most]
    ]
    return [*lines, f"and {len(dropped) - most} more"] if len(dropped) > most else lines
