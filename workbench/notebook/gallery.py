"""A gallery: images with what a model predicts in them and, where it is known, the ground truth."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from fvcore.common.config import CfgNode
from PIL import Image

from workbench.data.coco import CocoDataset, load_data, load_dataset
from workbench.data.fingerprint import data_fingerprint
from workbench.data.image_files import ImageRules
from workbench.data.images import read_image
from workbench.data.loaders import build_test_loader
from workbench.data.mapper import build_mapper
from workbench.data.vocabulary import Vocabulary
from workbench.environment.device import choose_device
from workbench.errors import WorkbenchError, counted
from workbench.evaluation.analysis import confusions, per_image_scores, suspected_label_errors
from workbench.evaluation.filters import Candidates, Filtered, FilterSettings, apply_filters
from workbench.evaluation.ground_truth import ground_truth
from workbench.evaluation.predict import run_inference
from workbench.evaluation.results import load_predictions
from workbench.evaluation.subcategories import MISSED
from workbench.evaluation.thresholds import Suggestion
from workbench.notebook.display import Page
from workbench.notebook.scene import LONGEST, SHEET_LONGEST, Scene, sheet
from workbench.runs.checkpoint import check_vocabulary, load_model, load_vocabulary
from workbench.runs.directory import report_dataset, run_of
from workbench.runs.evaluations import evaluation_directory, find_evaluated, fingerprint, saved_metrics
from workbench.workflows.predict import find_images

AS_LISTED = "as listed"
ORDERS = {  # what the images are shown by: the column of per_image_scores, and 1 for lowest first
    AS_LISTED: ("", 1),
    "most errors": ("errors", -1),
    "most missed": ("missed", -1),
    "most false": ("false", -1),
    "lowest F1": ("f1", 1),
    "most objects": ("n_gt", -1),
    "lowest score drawn": ("score", 1),
}


@dataclass(frozen=True)
class Gallery:
    """files: {image id: image file}, in the order they are shown. results: rows of COCO results. truth: a COCO
    dict, or None where there is no ground truth. directory: where figures and settings belong. note: a
    sentence on what this is and what could not be had. label: a short name of the checkpoint.
    dataset: the name or file of the dataset, None for single images.
    """

    vocabulary: Vocabulary
    files: Mapping[int, str]
    results: Sequence[Mapping]
    truth: Mapping | None
    directory: Path
    note: str = ""
    rules: ImageRules = ImageRules()  # how image files are read
    label: str = "prediction"
    dataset: str | Path | None = None

    @property
    def page(self) -> Page:
        """Shows results and writes them into ``figures/`` of the gallery's directory."""
        return Page(self.directory)

    @cached_property
    def image_ids(self) -> list[int]:
        return list(self.files)

    @cached_property
    def _rows(self) -> dict[int, list[Mapping]]:
        return _by_image(self.results)

    @cached_property
    def annotations(self) -> dict[int, list[Mapping]]:
        """The ground truth of each image."""
        return _by_image((self.truth or {}).get("annotations", ()))

    @cached_property
    def candidates(self) -> Candidates:
        """The rows of all images, ready to be filtered."""
        return Candidates(self.results, self.vocabulary)

    def filtered(self, settings: FilterSettings) -> Filtered:
        """Return what the filters do to all images."""
        return apply_filters(self.candidates, settings, self.vocabulary)

    def rates(self, **settings: FilterSettings) -> pd.DataFrame | None:
        """Return, one row for each of several settings, how many instances are drawn, and their precision, recall and
        F1 in percent; None without ground truth."""
        if self.truth is None:
            return None
        rows = {}
        for name, each in settings.items():
            images = per_image_scores(self.truth, self.filtered(each).rows, score_threshold=0.0)
            matched, false, objects = (int(images[column].sum()) for column in ("matched", "false", "n_gt"))
            rows[name.replace("_", " ")] = {
                "drawn": matched + false,
                "precision": 100 * matched / max(matched + false, 1),
                "recall": 100 * matched / max(objects, 1),
                "F1": 200 * matched / max(matched + false + objects, 1),
            }
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("thresholds")

    def starting_settings(
        self, path: str | Path | None, suggestion: Suggestion, **given: Any
    ) -> tuple[FilterSettings, str]:
        """Return the filters to start with, and in words where they are from.

        They are those of the file ``path``; or those saved here before, where they fit; or the suggested ones, if there
        are any. Whatever of ``given``, arguments of :class:`FilterSettings`, is not None comes on top.

        Raises:
            WorkbenchError: ``path`` cannot be read, or a value is wrong.
        """
        start, origin = FilterSettings(nms="within"), "defaults: a score of 0.5, no overlaps within a category"
        saved = self.directory / "filters.json"
        if path:
            start, origin = FilterSettings.load(path), f"those of {path}"
        elif saved.is_file():
            try:
                start, origin = FilterSettings.load(saved), f"those saved in {saved}"
                start.check(self.vocabulary)
            except WorkbenchError as error:
                start, origin = FilterSettings(nms="within"), f"defaults, as those saved do not fit: {error}"
        elif suggestion.curves:
            start, origin = suggestion.settings, "those suggested in section 4"
        changes = {name: value for name, value in given.items() if value is not None}
        if changes:
            origin += f", with {', '.join(changes)} as the parameters say"
        return FilterSettings.from_dict({**start.to_dict(), **changes}, "the parameters"), f"The filters are {origin}."

    def save(self, settings: FilterSettings, name: str) -> Path:
        """Write settings as ``name``.json into the gallery's directory, and return the path."""
        return settings.save(self.directory / f"{name}.json")

    def keep(self, settings: FilterSettings) -> str:
        """Save the settings in use and return where, in words. Settings saved before are left as they are."""
        saved = self.directory / "filters.json"
        if not saved.is_file() or FilterSettings.load(saved) == settings:
            return f"In use: {self.save(settings, 'filters')}"
        path = self.save(settings, "filters_in_use")
        return f"In use: {path}. {saved} holds what was saved before, and is left; Save settings replaces it."

    def scene(self, image_id: int, longest: int = LONGEST) -> Scene:
        """Return one image, ready to be drawn with at most about ``longest`` pixels a side."""
        file, rows, truth = self.files[image_id], self._rows[image_id], self._truth_of(image_id)
        return Scene(image_id, file, rows, truth, self.vocabulary, self.rules, longest)

    def _truth_of(self, image_id: int) -> dict | None:
        if self.truth is None:
            return None
        image = [self._images[image_id]]
        return {"images": image, "categories": self.truth["categories"], "annotations": self.annotations[image_id]}

    @cached_property
    def _images(self) -> dict[int, Mapping]:
        return {image["id"]: image for image in self.truth["images"]}

    def prediction(self, image_id: int, category: str, score: float) -> Mapping | None:
        """Return the row of an image with a main category and, nearly, a score; None where there is none."""
        wanted = self.vocabulary.category_ids[self.vocabulary.categories.index(category)]
        rows = (row for row in self._rows[image_id] if row["category_id"] == wanted)
        return next((row for row in rows if abs(row["score"] - score) < 1e-6), None)

    def suspected(self, settings: FilterSettings) -> pd.DataFrame | None:
        """Return :func:`suspected_label_errors` of what the filters keep; None without ground truth."""
        if self.truth is None:
            return None
        return suspected_label_errors(self.truth, self.filtered(settings).rows, score_threshold=settings.score)

    def ordered(self, by: str, settings: FilterSettings) -> list[int]:
        """Return the image ids in one of ``ORDERS``: what comes first is most, or lowest. Equal ones stay as listed."""
        column, sign = ORDERS[by]
        if not column:
            return self.image_ids
        rows = self.filtered(settings).rows
        if column == "score":
            least: dict[int, float] = {}
            for row in rows:
                least[row["image_id"]] = min(row["score"], least.get(row["image_id"], 1.0))
            values = {image_id: least.get(image_id, 2.0) for image_id in self.image_ids}
        elif self.truth is None:
            drawn = Counter(row["image_id"] for row in rows)
            values = {image_id: drawn[image_id] for image_id in self.image_ids}
        else:
            scores = per_image_scores(self.truth, rows, score_threshold=0.0).set_index("image_id")
            values = scores.assign(errors=scores.missed + scores.false)[column].to_dict()
        return sorted(self.image_ids, key=lambda image_id: sign * values[image_id])

    def groups(self, settings: FilterSettings) -> dict[str, list[int]]:
        """Return {what images have in common: their ids}: a category that is drawn or in the ground truth, or a main
        category or class of a subcategory that was missed or taken for another."""
        images = defaultdict(set)
        rows = self.filtered(settings).rows
        names = dict(zip(self.vocabulary.category_ids, self.vocabulary.categories, strict=True))
        for row in (*rows, *(self.truth or {}).get("annotations", ())):
            images[f"with {names[row['category_id']]}"].add(row["image_id"])
        if self.truth is not None:
            for image_id, kind, true, predicted in confusions(self.truth, rows, self.vocabulary):
                images[f"{kind}: {true} {MISSED if predicted == MISSED else f'taken for {predicted}'}"].add(image_id)
        place = {image_id: place for place, image_id in enumerate(self.image_ids)}
        return {name: sorted(images[name], key=place.__getitem__) for name in sorted(images, key=_by_kind)}

    def contact_sheet(self, settings: FilterSettings, count: int = 6, columns: int = 2) -> np.ndarray:
        """Draw ground truth beside the predictions kept, of ``count`` images spread over all: (H, W, 3) uint8."""
        spread = np.linspace(0, len(self.files) - 1, max(1, min(count, len(self.files)))).round().astype(int)
        return sheet([(self.scene(self.image_ids[i], SHEET_LONGEST), settings, "") for i in spread], columns)


def _by_kind(name: str) -> tuple[bool, str]:
    return not name.startswith("with "), name


def _by_image(rows: Iterable[Mapping]) -> dict[int, list[Mapping]]:
    groups = defaultdict(list)
    for row in rows:
        groups[row["image_id"]].append(row)
    return groups


def dropped_table(filtered: Filtered) -> pd.DataFrame:
    """Return the rows that filters dropped, each with the rule and the reason."""
    rows = filtered.table()
    return rows[~rows.kept].drop(columns="kept")


def counts_table(filtered: Filtered) -> pd.DataFrame:
    """Return one row a rule, in the order they are applied: its condition, how many rows it dropped, how many were
    left."""
    left, lines = len(filtered.candidates), []
    for rule, count in filtered.counts.items():
        left -= count
        lines.append((rule, filtered.asks(rule), count, left))
    return pd.DataFrame(lines, columns=["rule", "asks for", "dropped", "left"]).set_index("rule")


def open_gallery(
    ckpt: str | Path,
    dataset: str | Path | Sequence[str | Path] | None = None,
    *,
    num_images: int = 24,
    output: str | Path | None = None,
    overrides: Sequence[str] = (),
) -> Gallery:
    """Open what a checkpoint predicts in images, beside the ground truth where there is one.

    Where the dataset was evaluated with this checkpoint before, all its images are shown with those
    predictions; otherwise the model is run on ``num_images`` of them, spread over the dataset.

    Args:
        ckpt: a checkpoint directory, a run (its best), or the folder of an evaluation.
        dataset: a catalog name or a COCO JSON; by default the first of the checkpoint's DATASETS.TEST. Or
            images: a file, a folder, a glob or several; these have no ground truth. Nor has a dataset with
            other classes than the checkpoint's, of which the images are still shown.
        output: where figures and settings belong; by default as for ``open_evaluation``.
        overrides: config keys and values in turn, over the checkpoint's config, or the evaluation's.
    """
    evaluated, place = find_evaluated(ckpt, dataset, overrides)
    path, cfg = evaluated.checkpoint, evaluated.config
    vocabulary = load_vocabulary(path)
    wanted = evaluated.dataset or report_dataset(cfg)
    if not wanted:
        raise WorkbenchError(f"checkpoint {path} names no dataset to look at; name one")
    if _names_images(wanted):
        data, reason = _images(wanted, vocabulary), "single images have none"
        usual = run_of(path)
    else:
        data, reason = _open_dataset(path, cfg, wanted, vocabulary)
        usual = place or evaluation_directory(replace(evaluated, dataset=wanted))
    directory = Path(output) if output is not None else usual
    saved = None
    if not reason:
        current = fingerprint(path, cfg, data_fingerprint(data))
        saved = next((place for place in (directory, usual) if saved_metrics(place, current)), None)
    if saved is not None:
        results = load_predictions(saved / "predictions.json")
        origin = f"the predictions in {saved / 'predictions.json'}"
    else:
        data = _spread(data, num_images)
        results, origin = _predict(path, cfg, data), f"what {path} predicts now"
    truth = None if reason else ground_truth(data)
    files = {item["image_id"]: item["file_name"] for item in data.dicts}
    results = [row for row in results if row["image_id"] in files]
    note = f"{counted(len(files), 'image')}, {counted(len(results), 'prediction')}: {origin}."
    if reason:
        note += f" There is no ground truth beside them: {reason.rstrip('.')}."
    elif not truth["annotations"]:
        note += " The dataset has no annotations, so there is no ground truth beside them."
        truth = None
    run = run_of(path)
    label = run.name if run != path else path.name
    named = None if _names_images(wanted) else wanted
    return Gallery(data.vocabulary, files, results, truth, directory, note, ImageRules.from_config(cfg), label, named)


def beside(gallery: Gallery, ckpt: str | Path | None, *, overrides: Sequence[str] = ()) -> Gallery | None:
    """Open what another checkpoint predicts in the images of a gallery; None where ``ckpt`` is.

    Raises:
        WorkbenchError: its classes are others, or it cannot be opened.
    """
    if ckpt is None:
        return None
    if gallery.dataset is None:
        raise WorkbenchError("Another checkpoint can be shown beside one on a dataset, not on single images.")
    other = open_gallery(ckpt, gallery.dataset, num_images=len(gallery.files), overrides=overrides)
    if other.vocabulary != gallery.vocabulary:
        raise WorkbenchError(f"{ckpt} has other classes than {gallery.label}, so they are not shown beside each other.")
    return replace(other, label=other.label if other.label != gallery.label else str(ckpt))


def _names_images(wanted: str | Path | Sequence[str | Path]) -> bool:
    """Return whether these are image files rather than a dataset: several, a folder, a file or a glob."""
    if not isinstance(wanted, (str, Path)):
        return True
    path, text = Path(wanted).expanduser(), str(wanted)
    return path.is_dir() or any(c in text for c in "*?") or path.suffix.lower() in Image.registered_extensions()


def _images(wanted: str | Path | Sequence[str | Path], vocabulary: Vocabulary) -> CocoDataset:
    dicts = []
    for number, file in enumerate(find_images(wanted), start=1):
        dicts.append({"file_name": str(file), "image_id": number, "annotations": []})
    return CocoDataset([], vocabulary, dicts, 0)


def _open_dataset(path: Path, cfg: CfgNode, wanted: str | Path, vocabulary: Vocabulary) -> tuple[CocoDataset, str]:
    """Return a dataset, and why it cannot be the ground truth of the checkpoint's predictions; empty where it can."""
    try:
        data = load_data(cfg, [wanted], vocabulary)
        check_vocabulary(path, vocabulary, data.vocabulary)
        return data, ""
    except WorkbenchError as error:
        # What is wrong with the dataset itself is raised again here; what remains are other classes.
        keys = cfg.DATASETS
        options = {"skip_faults": keys.SKIP_FAULTS, "crowds_are_objects": keys.CROWDS_ARE_OBJECTS}
        data = load_dataset(wanted, root=keys.ROOT, rules=ImageRules.from_config(cfg), **options)
        return replace(data, vocabulary=vocabulary), str(error)


def _spread(data: CocoDataset, count: int) -> CocoDataset:
    """Return the dataset with at most ``count`` of its images."""
    if count < 1:
        raise WorkbenchError(f"num_images is {count}; it must be 1 or more")
    places = np.linspace(0, len(data.dicts) - 1, min(count, len(data.dicts))).round().astype(int)
    return replace(data, dicts=[data.dicts[i] for i in places])


def _predict(path: Path, cfg: CfgNode, data: CocoDataset) -> list[dict[str, Any]]:
    for item in data.dicts:
        if "height" not in item:  # a single image: its size as it will be read
            item["height"], item["width"] = read_image(item["file_name"], ImageRules.from_config(cfg)).shape[:2]
    model, _ = load_model(path, choose_device(cfg.MODEL.DEVICE), config=cfg)
    loader = build_test_loader(data, build_mapper(cfg, is_train=False))
    return run_inference(model, loader, data.vocabulary)[0]
