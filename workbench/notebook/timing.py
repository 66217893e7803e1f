"""How long a notebook will take here, and the sample of images that it looks at where all would take minutes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from workbench.data.catalog import get_entry
from workbench.data.coco import load_data
from workbench.data.loaders import build_test_loader
from workbench.data.mapper import build_mapper
from workbench.data.reading import read_coco_json
from workbench.environment.device import choose_device
from workbench.errors import WorkbenchError, counted
from workbench.evaluation.predict import run_inference
from workbench.evaluation.saturation import SMALL_GRID
from workbench.models.backbones import MobileNetV3Backbone
from workbench.runs.checkpoint import load_model, load_vocabulary
from workbench.runs.directory import read_metrics_json, report_dataset, selection_dataset
from workbench.runs.evaluations import Evaluated, evaluation_directory, find_evaluated, fingerprint
from workbench.training.estimate import duration
from workbench.workflows.evaluate import TRAINING_SAMPLE, training_sample_directory

if TYPE_CHECKING:
    from fvcore.common.config import CfgNode

    from workbench.data.coco import CocoDataset

LONGEST = 300.0  # seconds that predicting images may take; where all would take longer, a sample is taken
_FEWEST = 5
_FIGURES = 10.0  # seconds that the figures and tables of a notebook take
_NETWORKS = 6  # times that a network takes, for those that the surgery notebook makes and runs
_QUICK = 50e6  # bytes of an annotation file that is read within a second or two
_SLOW = 3.0  # seconds of an image, beside which what the first one loads does not matter
_measured: dict[tuple, float] = {}


def time_needed(ckpt: str | Path, dataset: str | Path | None = None, **settings: Any) -> str:
    """Say how long a notebook on a checkpoint will take here; arguments as of :func:`_time_needed`."""
    try:
        return _time_needed(ckpt, dataset, **settings)
    except WorkbenchError as error:  # where it matters to the notebook, opening the evaluation raises it
        return f"How long this will take is unknown: {error}"


def _time_needed(
    ckpt: str | Path,
    dataset: str | Path | None = None,
    *,
    overrides: Sequence[str] = (),
    max_images: int | None = None,
    report: bool = True,
    training: bool = False,
    more: int = 0,
    counts: Sequence[int] = (),
    repeats: int = 0,
    compare: Sequence[str | Path] = (),
) -> str:
    """Say how long a notebook will take, from the time of one image; predictions that are there take none.

    Args:
        ckpt: a checkpoint directory, a run (its best), or the folder of an evaluation.
        dataset: catalog name or path of a COCO JSON; by default the evaluation's, or the checkpoint's own.
        overrides: config keys and values in turn, over the checkpoint's config.
        max_images: how many images of a dataset are looked at; see :func:`affordable`.
        report: whether the dataset is evaluated, or only the one that thresholds are chosen on.
        training: whether a sample of the training images is scored too.
        more: how many other images are predicted.
        counts: of the saturation experiment, which looks at the queries too. repeats: of it.
        compare: checkpoints that take part in it, taken to be as fast as the first.
    """
    evaluated, place = find_evaluated(ckpt, dataset, overrides)
    cfg, path = evaluated.config, evaluated.checkpoint
    selection = selection_dataset(cfg)
    wanted = (evaluated.dataset or report_dataset(cfg)) if report else selection
    if wanted is None:
        raise WorkbenchError(f"checkpoint {path} names no dataset to evaluate on; name one")
    data = load_data(cfg, [wanted], load_vocabulary(path))
    seconds = image_seconds(path, cfg, data)
    parts, total = [], _FIGURES
    for name in dict.fromkeys((wanted, selection)):
        one = replace(evaluated, dataset=name)
        if name is None or _is_evaluated(one, (name == evaluated.dataset and place) or evaluation_directory(one)):
            continue
        images = len(data if name == wanted else load_data(cfg, [name], data.vocabulary))
        count = affordable(seconds, images, max_images)
        total += count * seconds
        part = f" (a random sample of {images:,}; all would take {duration(images * seconds)})" * (count < images)
        parts.append(f"{counted(count, 'image')} of {name}{part}")
    runs = 1 + len(compare) if counts else 0
    looked_at = affordable(seconds, len(data), max_images)
    sample = 0
    if training and not _is_evaluated(evaluated, training_sample_directory(path)):
        sample = affordable(seconds, min(TRAINING_SAMPLE, _training_images(cfg)))
    for count, what in (
        (sample, "training images"),
        (more, "images"),
        (looked_at * runs, "images for their queries"),
    ):
        if count:
            total += count * seconds
            parts.append(f"{count:,} {what}")
    grids = 2 * runs * len(counts) * repeats
    if grids:
        each = _grid_seconds(path, cfg)
        total += grids * each
        parts.append(f"{grids:,} pictures of the saturation experiment at {duration(each)}")
    predicted = f"predicted are {', '.join(parts)}" if parts else "all predictions are there already"
    return f"About {duration(total)} on this machine: {predicted}. An image takes {duration(seconds)}, measured on one."


def affordable(seconds: float, images: int, max_images: int | None = None) -> int:
    """Return how many of ``images`` are looked at: ``max_images``, or where that is None all, or where all would take
    more than five minutes a round number that does not."""
    if max_images is not None:
        return min(images, max_images)
    if images * seconds <= LONGEST:
        return images
    fitting = LONGEST / seconds
    rounds = [mantissa * 10**power for power in range(1, 8) for mantissa in (1, 2, 5)]
    return min(images, max([_FEWEST, *(count for count in rounds if count <= fitting)]))


def image_seconds(checkpoint: Path, cfg: CfgNode, data: CocoDataset) -> float:
    """Return how long it takes to read and predict an image of middling size; measured once for each checkpoint."""
    key = (*map(str, fingerprint(checkpoint, cfg, {}).values()), cfg.MODEL.DEVICE)
    if key not in _measured:
        dicts = sorted(data.dicts, key=lambda item: item["height"] * item["width"])
        one = replace(data, dicts=dicts[len(dicts) // 2 :][:1])
        loader = build_test_loader(one, build_mapper(cfg, is_train=False))
        model = load_model(checkpoint, choose_device(cfg.MODEL.DEVICE), config=cfg)[0]
        for _ in range(2):  # the first time loads and starts what all others use
            _measured[key] = run_inference(model, loader, data.vocabulary, progress=False)[1]["seconds"]
            if _measured[key] > _SLOW:
                break
    return _measured[key]


def _grid_seconds(checkpoint: Path, cfg: CfgNode) -> float:
    """Return how long a picture of the saturation experiment takes: drawing and matching as long as predicting."""
    model = load_model(checkpoint, choose_device(cfg.MODEL.DEVICE), config=cfg)[0]
    side = max(SMALL_GRID // 2, min(cfg.INPUT.MAX_SIZE_TEST, SMALL_GRID))
    batch = [{"image": torch.zeros(3, side, side), "height": side, "width": side}]
    began = time.perf_counter()
    with torch.inference_mode():
        model.eval()(batch)
    return 2 * (time.perf_counter() - began)


def _training_images(cfg: CfgNode) -> int:
    """Return how many images the training data list, if that is read soon; else as many as a sample has."""
    entries = [get_entry(name, cfg.DATASETS.ROOT) for name in cfg.DATASETS.TRAIN]
    if not all(entry.annotations.is_file() and entry.annotations.stat().st_size < _QUICK for entry in entries):
        return TRAINING_SAMPLE
    return sum(len(read_coco_json(entry.annotations)["images"]) for entry in entries)


def surgery_time(size: int) -> str:
    """Say how long the surgery notebook will take here on a picture of ``size`` pixels, from one network's time."""
    for _ in range(2):  # the first one loads and starts what all others use
        began = time.perf_counter()
        with torch.inference_mode():
            MobileNetV3Backbone().eval()(torch.zeros(1, 3, size, size))
        seconds = time.perf_counter() - began
    return f"About {duration(_FIGURES + _NETWORKS * seconds)} on this machine: a network takes {duration(seconds)}."


def _is_evaluated(evaluated: Evaluated, directory: Path) -> bool:
    """Return whether the results in ``directory`` are of this checkpoint and these settings, whatever the data."""
    record = (read_metrics_json(directory) or {}).get("evaluation")
    wanted = fingerprint(evaluated.checkpoint, evaluated.config, {})
    saved = record.get("fingerprint") if isinstance(record, dict) else None
    return isinstance(saved, dict) and wanted.items() <= saved.items()
