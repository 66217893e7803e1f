"""Several models on one dataset side by side: what each costs and finds, where they differ, and that in words."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from itertools import combinations, islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.utils.flop_counter import FlopCounterMode

from workbench.config import changes, load_config
from workbench.data.loaders import build_test_loader
from workbench.data.mapper import build_mapper
from workbench.errors import WorkbenchError
from workbench.evaluation.analysis import compare_results, tide_table
from workbench.evaluation.filters import FilterSettings
from workbench.notebook.evaluation import Evaluation, by_name
from workbench.notebook.scene import SHEET_LONGEST, sheet
from workbench.runs.directory import run_of
from workbench.runs.table import metrics_frame
from workbench.training.estimate import GB, data_objects, estimate
from workbench.workflows.train import train

_TIMED = 8  # images
_SCORES = ("AP", "AP50", "AP75", "APs", "APm", "APl")
_OF_A_SEED = {"SEED", "OUTPUT_DIR"}  # keys in which runs of one model may differ


def baseline_runs(
    configs: Sequence[str | Path], runs: Sequence[str | Path] = (), overrides: Sequence[str] = ()
) -> list:
    """Return ``runs``, or where there are none the run of each config: trained, continued, or taken as it is."""
    if not runs and not configs:
        raise WorkbenchError("there is no model to compare: name configs to train, or runs")
    return list(runs) or [train(load_config(config, overrides)) for config in configs]


def model_table(evaluations: Sequence[Evaluation]) -> pd.DataFrame:
    """Return one row a model: its size, what a step and an image cost, and its scores in percent.

    "GFLOPs" are those of the convolutions and matrix products for one image, a product and a sum counted as two.
    "seconds a step" are the median of the run's training, "GB a step" a lower bound from a dry run here, and
    "ms an image" what one image takes here.
    """
    rows = {}
    for name, each in by_name(evaluations).items():
        segm, joint = each.metrics["segm"] or {}, each.metrics.get("joint") or {}
        subcategories = each.metrics.get("subcategories") or {}
        rows[name] = {
            "model": each.config.MODEL.META_ARCHITECTURE,
            **_costs(each),
            **{score: segm.get(score) for score in _SCORES},
            "joint AP": joint.get("AP"),
            **{f"{subcategory} accuracy": scores["accuracy"] for subcategory, scores in subcategories.items()},
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("run")


def _costs(evaluation: Evaluation) -> dict[str, float]:
    model, data = evaluation.model, evaluation.data
    loader = build_test_loader(data, build_mapper(evaluation.config, is_train=False))
    images = [[item] for batch in islice(loader, _TIMED) for item in batch][:_TIMED]
    with FlopCounterMode(display=False) as counter:  # with gradients: it fails on parameters that are given as inputs
        model(images[0])  # also a first run, which is slower
    began = time.perf_counter()
    with torch.inference_mode():
        for image in images:
            model(image)[0]["scores"].tolist()  # waits for a GPU
    seconds = time.perf_counter() - began
    steps = metrics_frame(run_of(evaluation.checkpoint) / "metrics.csv")
    need = estimate(model, evaluation.config, evaluation.vocabulary, max(1, round(data_objects(data))))
    return {
        "M parameters": sum(parameter.numel() for parameter in model.parameters()) / 1e6,
        "GFLOPs": counter.get_total_flops() / 1e9,
        "seconds a step": float(steps["seconds"].median()) if "seconds" in steps else float("nan"),
        "GB a step": need.memory / GB,
        "ms an image": 1000 * seconds / len(images),
    }


def first_seeds(evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """Return the first evaluation of each model, as runs whose configs differ by the seed alone are of one model."""
    named = by_name(evaluations)
    return [named[names[0]] for names in _by_model(named)]


def seed_table(evaluations: Sequence[Evaluation], models: pd.DataFrame) -> pd.DataFrame:
    """Return one row a model of which there are several seeds: their number, and the medians of ``models``.

    "AP lowest" and "AP highest" are those of the seeds. ``models`` is the :func:`model_table` of ``evaluations``.
    """
    rows = {}
    for names in _by_model(by_name(evaluations)):
        if len(names) > 1:
            seeds = models.loc[names]
            spread = {"AP lowest": seeds["AP"].min(), "AP highest": seeds["AP"].max()}
            rows[names[0]] = {"seeds": len(names), **spread, **seeds.select_dtypes("number").median()}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("run")


def _by_model(named: Mapping[str, Evaluation]) -> list[list[str]]:
    """Return the names of the evaluations of each model."""
    groups: list[list[str]] = []
    for name, each in named.items():
        for names in groups:
            if changes(each.config, named[names[0]].config).keys() <= _OF_A_SEED:
                names.append(name)
                break
        else:
            groups.append([name])
    return groups


def model_differences(evaluations: Sequence[Evaluation]) -> pd.DataFrame:
    """Return one row for each two models: AP of both, and the 95 % interval of the difference, from bootstrap samples
    of the images (:func:`compare_results`)."""
    rows = []
    for (first, one), (second, other) in combinations(by_name(evaluations).items(), 2):
        compared = compare_results(one.truth, one.results, other.results)
        if "AP" in compared.index:
            rows.append({"pair": f"{first} / {second}", "one": first, "other": second, **compared.loc["AP"].to_dict()})
    return pd.DataFrame(rows).set_index("pair") if rows else pd.DataFrame()


def error_table(evaluations: Sequence[Evaluation]) -> pd.DataFrame:
    """Return TIDE's kinds of error, one row each, and the AP50 that each model loses by it; the dearest first."""
    columns = {name: tide_table(each.truth, each.results)["AP50 lost"] for name, each in by_name(evaluations).items()}
    table = pd.DataFrame(columns).rename_axis("AP50 lost by")
    return table.loc[table.mean(axis=1).sort_values(ascending=False, kind="stable").index]


def same_images(evaluations: Sequence[Evaluation], count: int = 4, score_threshold: float | None = None) -> np.ndarray:
    """Draw the fullest images, a row each, as every model sees them, ground truth beside prediction."""
    named = by_name(evaluations)
    objects = {image: len(rows) for image, rows in evaluations[0].gallery.annotations.items()}
    images = sorted(evaluations[0].gallery.image_ids, key=lambda image: -objects.get(image, 0))[:count]
    settings = {name: FilterSettings(score=each.threshold(score_threshold)) for name, each in named.items()}
    pictures = [
        (each.gallery.scene(image, SHEET_LONGEST), settings[name], f"{name}, image {image}")
        for image in images
        for name, each in named.items()
    ]
    return sheet(pictures, columns=len(named))


def baseline_summary(table: pd.DataFrame, differences: pd.DataFrame, errors: pd.DataFrame) -> str:
    """Say in words what each model is good at; the arguments are the tables above.

    Of ``table`` only the models of ``errors`` are spoken of.
    """
    table, sentences = table.loc[errors.columns], []
    if table["AP"].notna().any():
        best = table["AP"].idxmax()
        sentences.append(f"{best} has the highest AP, {table['AP'][best]:.1f}.")
        sentences += [_difference(row) for row in differences.to_dict("records")]
    least = {
        "ms an image": "is the fastest in use, {:.0f} ms an image",
        "seconds a step": "is trained the fastest, {:.2g} s a step",
        "M parameters": "is the smallest, {:.2f} million parameters",
    }
    for column, words in least.items():
        if table[column].notna().any():
            sentences.append(f"{table[column].idxmin()} {words.format(table[column].min())}.")
    for column in table.filter(like=" accuracy"):
        if table[column].notna().any():
            sentences.append(f"{table[column].idxmax()} has the highest {column}, {table[column].max():.1f}.")
    for name, lost in errors.items():
        sentences.append(f"{name} loses most AP50 to {lost.idxmax()}: {lost.max():.1f}.")
    return " ".join(sentences)


def _difference(row: Mapping[str, Any]) -> str:
    low, high = row["low"], row["high"]
    if low <= 0 <= high:
        return (
            f"{row['one']} and {row['other']} cannot be told apart on these images: the difference lies between "
            f"{low:.1f} and {high:.1f}."
        )
    better, worse = (row["other"], row["one"]) if low > 0 else (row["one"], row["other"])
    gain = sorted((abs(low), abs(high)))
    return f"{better} is better than {worse} by {abs(row['difference']):.1f} AP ({gain[0]:.1f} to {gain[1]:.1f})."
