"""A checkpoint's evaluation, opened to be looked at: predictions beside ground truth, and the model itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from torch import nn

from workbench.data.coco import load_data
from workbench.data.fingerprint import data_fingerprint
from workbench.data.image_files import ImageRules
from workbench.data.images import read_image
from workbench.data.loaders import build_test_loader
from workbench.data.mapper import build_mapper
from workbench.environment.device import choose_device
from workbench.errors import WorkbenchError, counted
from workbench.evaluation.analysis import compare_results
from workbench.evaluation.evaluate import evaluate_results
from workbench.evaluation.filters import FilterSettings
from workbench.evaluation.ground_truth import ground_truth
from workbench.evaluation.queries import QueryOutputs, collect_queries, find_overlaps, overlap_counts
from workbench.evaluation.results import load_predictions
from workbench.evaluation.saturation import SMALL_GRID, Tile, choose_objects, cut_tile, draw_grid, fit_tiles, saturation
from workbench.evaluation.summary import compare_with_training, largest_recall
from workbench.evaluation.thresholds import Suggestion, suggest_thresholds
from workbench.models.postprocess import RANK_BY
from workbench.notebook.display import Page
from workbench.notebook.gallery import Gallery
from workbench.notebook.scene import SHEET_LONGEST, sheet
from workbench.notebook.timing import affordable, image_seconds
from workbench.runs.checkpoint import check_vocabulary, load_model, load_vocabulary
from workbench.runs.directory import report_dataset, run_of, selection_dataset
from workbench.runs.evaluations import Evaluated, evaluation_directory, find_evaluated, fingerprint, saved_metrics
from workbench.training.distributed import start_processes
from workbench.training.weights import starting_weights
from workbench.visualization.drawing import contact_sheet
from workbench.workflows.evaluate import (
    TRAINING_SAMPLE,
    evaluate,
    evaluate_checkpoint,
    evaluate_on_training_images,
    random_sample,
)

if TYPE_CHECKING:
    from fvcore.common.config import CfgNode

    from workbench.data.coco import CocoDataset
    from workbench.data.vocabulary import Vocabulary


@dataclass(frozen=True)
class Evaluation:
    """A checkpoint's predictions on a dataset beside the ground truth, and where its results belong.

    directory: with metrics.json, predictions.json and figures/. truth: a COCO dict; results: COCO results; data:
    the dataset; dataset: its name or file.
    """

    checkpoint: Path
    directory: Path
    config: CfgNode
    vocabulary: Vocabulary
    truth: dict[str, Any]
    results: list[dict[str, Any]]
    metrics: dict[str, Any]
    data: CocoDataset
    dataset: str | Path
    overrides: Sequence[str] = ()

    @property
    def page(self) -> Page:
        """Shows results and writes them into ``figures/`` of the evaluation's directory."""
        return Page(self.directory)

    @cached_property
    def gallery(self) -> Gallery:
        """The images with predictions and ground truth, ready to be drawn."""
        files = {item["image_id"]: item["file_name"] for item in self.data.dicts}
        return Gallery(self.vocabulary, files, self.results, self.truth, self.directory, rules=self.rules)

    @property
    def rules(self) -> ImageRules:
        """How image files are read."""
        return ImageRules.from_config(self.config)

    @cached_property
    def model(self) -> nn.Module:
        """The checkpoint's model, on the device that its config names."""
        return load_model(self.checkpoint, choose_device(self.config.MODEL.DEVICE), config=self.config)[0]

    @property
    def label(self) -> str:
        """A short name: the run's, or the checkpoint's."""
        run = run_of(self.checkpoint)
        return run.name if run != self.checkpoint else self.checkpoint.name

    @property
    def queries(self) -> int:
        """How many queries the model has."""
        return self.config.MODEL.MASK_FORMER.NUM_OBJECT_QUERIES

    def ranked(self) -> pd.DataFrame:
        """Return the key scores, in percent, of the same predictions in each order of TEST.RANK_BY: one row each."""
        settings = {"max_dets": list(self.config.TEST.MAX_DETS), "scorer": self.config.TEST.SCORER}
        rows = {}
        for rank_by in RANK_BY:
            metrics = evaluate_results(self.truth, self.results, self.vocabulary, rank_by=rank_by, **settings)
            segm, joint = metrics["segm"] or {}, metrics.get("joint") or {}
            rows[rank_by] = {
                **{name: segm.get(name) for name in ("AP", "AP50", "AP75")},
                **{f"joint {name}": joint.get(name) for name in ("AP", "AP50")},
            }
        return pd.DataFrame.from_dict(rows, orient="index", dtype=float).rename_axis("ranked by")

    def threshold(self, given: float | None = None) -> float:
        """Return the least score of what is drawn: ``given``, or where that is None the one with the best F1 on the
        images that thresholds are chosen on; 0.5 where that cannot be known."""
        return self._best_threshold if given is None else given

    @cached_property
    def _best_threshold(self) -> float:
        suggestion = suggest(self.checkpoint, overrides=self.overrides, subcategories=False)
        return suggestion.settings.score if suggestion.curves else 0.5

    def compare(self, other: str | Path | None) -> pd.DataFrame | None:
        """Return :func:`compare_results` of another run or checkpoint, on the same dataset, and this one; None without
        one. Predictions of ``other`` that are current are not made again."""
        if other is None:
            return None
        results = open_evaluation(other, dataset=self.dataset, again=False).results
        table = compare_results(self.truth, results, self.results)
        return table.rename(columns={"first": "other", "second": "this", "second is better": "this is better"})

    def contact_sheet(self, scores: pd.DataFrame, score_threshold: float = 0.5) -> np.ndarray:
        """Draw the images of a table of :func:`per_image_scores`, ground truth beside prediction, two in a row."""
        settings = FilterSettings(score=score_threshold)
        return sheet(
            [
                (
                    self.gallery.scene(row.image_id, SHEET_LONGEST),
                    settings,
                    f"image {row.image_id}: {row.matched} of {row.n_gt} found, {row.false} false",
                )
                for row in scores.itertuples()
            ]
        )

    def query_outputs(self, max_images: int | None = None) -> QueryOutputs:
        """Run the model on a random sample of images, see :func:`affordable`, and return what every query does.

        What was returned before for ``max_images`` is returned again.
        """
        if max_images not in self._query_outputs:
            most = affordable(image_seconds(self.checkpoint, self.config, self.data), len(self.data), max_images)
            loader = build_test_loader(random_sample(self.data, most), build_mapper(self.config, is_train=False))
            self._query_outputs[max_images] = collect_queries(self.model, loader)
        return self._query_outputs[max_images]

    @cached_property
    def _query_outputs(self) -> dict[int | None, QueryOutputs]:
        return {}

    def overlaps(self, iou: float, score_threshold: float) -> pd.DataFrame:
        """Count the overlaps of each kind among all predictions, and among those above the threshold."""
        tables = {
            "all predictions": find_overlaps(self.results, iou=iou),
            f"score ≥ {score_threshold:.2g}": find_overlaps(self.results, iou=iou, score_threshold=score_threshold),
        }
        return overlap_counts(tables)

    def tiles(self, most: int = 20) -> list[Tile]:
        """Cut out the objects found best, for the saturation experiment; empty where no object is whole."""
        sizes = {item["image_id"]: (item["height"], item["width"]) for item in self.data.dicts}
        tiles = []
        for chosen in choose_objects(self.truth, self.results, sizes, most):
            image_id = chosen["image_id"]
            label = self.vocabulary.category_ids.index(chosen["category_id"])
            annotations = self.gallery.annotations[image_id]
            tiles.append(cut_tile(read_image(self.gallery.files[image_id], self.rules), chosen, label, annotations))
        return tiles

    def saturation(self, tiles: Sequence[Tile], **settings: Any) -> pd.DataFrame:
        """Run :func:`saturation` with this model, on objects as large as in evaluation.

        Objects are smaller where the grid would be larger than the model's input. Every query may be reported, once.
        """
        size = tiles[0].image_size
        input_size = build_mapper(self.config, is_train=False).output_size(*size)
        tiles = fit_tiles(tiles, input_size[0] / size[0], max(*input_size, SMALL_GRID))
        kept = self.model.top_k, self.model.one_class_per_query
        self.model.top_k, self.model.one_class_per_query = max(kept[0], self.queries), True
        try:
            return saturation(self.model, tiles, **settings)
        finally:
            self.model.top_k, self.model.one_class_per_query = kept


def query_summary(objects: pd.Series, claims: pd.Series, queries: int) -> str:
    """Say in words whether the number of queries fits: from the objects, and the queries that claim one, of each
    image."""
    most, high = int(objects.max()), float(objects.quantile(0.99))
    counts = (
        f"An image holds {objects.mean():.1f} objects on average and {most} at most. Of the {queries} queries "
        f"{claims.mean():.1f} claim an object on average and {int(claims.max())} at most; "
        f"{100 * (1 - claims.mean() / queries):.0f} % predict no object."
    )
    if not most:
        return f"{counts} Without ground truth nothing can be said about how many are needed."
    if most > queries:
        return f"{counts} {counted(int((objects > queries).sum()), 'image')} with more objects than queries: take more."
    if queries < 1.5 * high:
        return f"{counts} The fullest images leave little room: try {int(np.ceil(2 * high))} queries."
    if queries > 6 * high:
        return f"{counts} That is many more than the fullest images need: try {int(np.ceil(3 * high))}."
    return f"{counts} The number fits the dataset."


def query_comparison(
    evaluations: Sequence[Evaluation], max_images: int | None = None, overlap_iou: float = 0.7
) -> pd.DataFrame:
    """Return one row an evaluation: number of queries, key scores, how many queries claim an object in an image, and
    how many percent of the predictions above the best threshold lie on one of their category by another query."""
    rows = {}
    for name, each in by_name(evaluations).items():
        drawn = find_overlaps(each.results, iou=overlap_iou, score_threshold=each.threshold())
        twice = (drawn.overlaps == "other query, same category").mean() if len(drawn) else float("nan")
        segm = each.metrics["segm"] or {}
        rows[name] = {
            "queries": each.queries,
            "AP": segm.get("AP"),
            "AP50": segm.get("AP50"),
            "AR": segm.get(f"AR@{max(each.config.TEST.MAX_DETS)}"),
            "claims in an image": each.query_outputs(max_images).claims.sum(axis=1).mean(),
            "one object, two queries (percent)": 100 * twice,
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("run")


def saturation_examples(tiles: Sequence[Tile], counts: Sequence[int] = (1, 20, 100)) -> np.ndarray | None:
    """Draw grids with ``counts`` visible cells: a row with one object repeated, a row with different objects. None
    without tiles."""
    if not tiles:
        return None
    cells = np.random.default_rng(0).permutation(100)
    grids = [draw_grid(fit_tiles(shown), cells[:n])[0] for shown in (tiles[:1], tiles) for n in counts]
    return contact_sheet(grids, columns=len(counts))


def compare_saturation(evaluations: Sequence[Evaluation], tiles: Sequence[Tile], **settings: Any) -> pd.DataFrame:
    """Run the saturation experiment with one object repeated and with different objects.

    Returns the rows of :func:`saturation` with the columns "experiment", "run" and "queries" before them; none without
    tiles.
    """
    tables = [
        each.saturation(shown, **settings).assign(experiment=experiment, run=name, queries=each.queries)
        for experiment, shown in (("the same object", tiles[:1]), ("different objects", tiles))
        for name, each in by_name(evaluations).items()
        if shown
    ]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def by_name(evaluations: Sequence[Evaluation]) -> dict[str, Evaluation]:
    """Name each evaluation by its label, or by its checkpoint where several have one label."""
    labels = [each.label for each in evaluations]
    return {each.label if labels.count(each.label) == 1 else str(each.checkpoint): each for each in evaluations}


def open_evaluations(
    checkpoints: Sequence[str | Path],
    dataset: str | Path | None = None,
    output: str | Path | None = None,
    max_images: int | None = None,
) -> list[Evaluation]:
    """Open the evaluations of several checkpoints, without evaluating again what is evaluated; ``output`` is the first
    one's, see :func:`open_evaluation`."""
    outputs = [output, *[None] * len(checkpoints)]
    return [
        open_evaluation(ckpt, dataset=dataset, output=place, again=False, max_images=max_images)
        for ckpt, place in zip(checkpoints, outputs, strict=False)
    ]


def open_evaluation(
    ckpt: str | Path,
    *,
    dataset: str | Path | None = None,
    output: str | Path | None = None,
    overrides: Sequence[str] = (),
    again: bool = True,
    max_images: int | None = None,
) -> Evaluation:
    """Evaluate a checkpoint, as `workflows.evaluate` does, and open what came out beside the ground truth.

    Where all images would take minutes, a random sample of them is evaluated: its results go to a folder of their own
    in ``evaluations/`` of the run.

    Args:
        ckpt: a checkpoint directory, a run (its best), or the folder of an evaluation.
        dataset: catalog name or path of a COCO JSON; by default the evaluation's, or the first of the checkpoint's
            DATASETS.TEST.
        output: where metrics.json, predictions.json and figures/ go;
            :func:`workbench.runs.evaluations.evaluation_directory` by default.
        overrides: config keys and values in turn, over the checkpoint's config, or the evaluation's.
        again: False takes metrics.json and predictions.json from there where checkpoint, settings and data are those
            that they were made with.
        max_images: how many images are evaluated where that has to be done, see :func:`affordable`.
    """
    evaluated, place = find_evaluated(ckpt, dataset, overrides)
    path, cfg, overrides = evaluated.checkpoint, evaluated.config, evaluated.overrides
    wanted = evaluated.dataset or report_dataset(cfg)
    if wanted is None:
        raise WorkbenchError(f"checkpoint {path} names no dataset to evaluate on; name one")
    directory = (
        Path(output) if output is not None else place or evaluation_directory(replace(evaluated, dataset=wanted))
    )
    vocabulary = load_vocabulary(path)
    data = load_data(cfg, [wanted], vocabulary)
    check_vocabulary(path, vocabulary, data.vocabulary)
    current = fingerprint(path, cfg, data_fingerprint(data))
    metrics = None if again else saved_metrics(directory, current)
    if metrics is None:
        count = affordable(image_seconds(path, cfg, data), len(data), max_images)
        if count < len(data):
            return _open_sample(replace(evaluated, dataset=wanted), random_sample(data, count), output, again)
        metrics = evaluate(path, dataset=wanted, output=directory, overrides=overrides)
    results = load_predictions(directory / "predictions.json")
    truth = ground_truth(data)
    return Evaluation(path, directory, cfg, data.vocabulary, truth, results, metrics, data, wanted, overrides)


def _open_sample(evaluated: Evaluated, sample: CocoDataset, output: str | Path | None, again: bool) -> Evaluation:
    """Evaluate a sample of a dataset, or open its evaluation; never as the run's own scores."""
    path, cfg, run = evaluated.checkpoint, evaluated.config, run_of(evaluated.checkpoint)
    usual = evaluation_directory(evaluated)
    name = sample.entries[0].name if usual == run else usual.name
    directory = run / "evaluations" / f"{name}_{len(sample)}_images"
    if output is not None and not (Path(output) / "checkpoints").is_dir():
        directory = Path(output)
    metrics = None if again else saved_metrics(directory, fingerprint(path, cfg, data_fingerprint(sample)))
    if metrics is None:
        metrics = evaluate_checkpoint(evaluated, cfg, sample, start_processes(cfg), directory)
    results, truth = load_predictions(directory / "predictions.json"), ground_truth(sample)
    overrides = evaluated.overrides
    return Evaluation(
        path, directory, cfg, sample.vocabulary, truth, results, metrics, sample, evaluated.dataset, overrides
    )


def open_selection(ckpt: str | Path, overrides: Sequence[str] = ()) -> Evaluation:
    """Open the evaluation of a checkpoint on the data it was chosen on, which is evaluated only where that changed.

    These are the first of DATASETS.VAL, or of DATASETS.TEST where that is empty.

    Raises:
        WorkbenchError: there is none, or it cannot be evaluated.
    """
    evaluated, _ = find_evaluated(ckpt, overrides=overrides)
    name = selection_dataset(evaluated.config)
    if name is None:
        raise WorkbenchError(f"checkpoint {evaluated.checkpoint} names no dataset to choose on; set DATASETS.VAL")
    return open_evaluation(evaluated.checkpoint, dataset=name, overrides=evaluated.overrides, again=False)


def suggest(
    ckpt: str | Path,
    settings: FilterSettings | None = None,
    *,
    overrides: Sequence[str] = (),
    subcategories: bool = True,
) -> Suggestion:
    """Suggest thresholds for a checkpoint, see :func:`suggest_thresholds`, from the images that it is chosen on.

    These are DATASETS.VAL, or DATASETS.TEST where that is empty. Their evaluation is kept in the run and evaluated
    only once. Where they cannot be evaluated, the note of the suggestion says why.
    """
    try:
        chosen_on = open_selection(ckpt, overrides)
    except WorkbenchError as error:
        return Suggestion(settings or FilterSettings(), {}, f"No thresholds can be suggested: {error}")
    words = chosen_on.vocabulary if subcategories else replace(chosen_on.vocabulary, subcategories={})
    suggestion = suggest_thresholds(chosen_on.truth, chosen_on.results, words, settings)
    return replace(suggestion, note=f"On {chosen_on.dataset}: {suggestion.note}")


def training_beside_validation(ckpt: str | Path) -> tuple[pd.DataFrame | None, str]:
    """Score a checkpoint on a sample of its training images and on the data it was chosen on.

    Returns:
        a table with a row for each of the two, and what it means in words. Where one of them cannot be evaluated the
        table is None and the words say why.
    """
    try:
        validation = open_selection(ckpt)
        seconds = image_seconds(validation.checkpoint, validation.config, validation.data)
        training = evaluate_on_training_images(validation.checkpoint, most=affordable(seconds, TRAINING_SAMPLE))
    except WorkbenchError as error:
        return None, f"Training and validation cannot be compared: {error}"
    rows = {}
    for label, metrics in {"training images (sample)": training, str(validation.dataset): validation.metrics}.items():
        scores = metrics["segm"] or metrics["bbox"] or {}
        rows[label] = {
            "images": metrics["images"],
            **{score: scores.get(score) for score in ("AP", "AP50")},
            "AR": largest_recall(scores),
            "joint AP": (metrics.get("joint") or {}).get("AP"),
        }
    table = pd.DataFrame.from_dict(rows, orient="index").dropna(axis=1, how="all").rename_axis("scored on")
    words = compare_with_training(
        training, validation.metrics, starting_weights(validation.config), jitter=validation.config.INPUT.COLOR_JITTER
    )
    return table, words
