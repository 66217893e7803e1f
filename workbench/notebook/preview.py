"""What a training will be given: its config, its data, its samples after the mapper."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from fvcore.common.config import CfgNode

from workbench.config import changes, load_config
from workbench.data.coco import CocoDataset, load_data
from workbench.data.loaders import build_train_loader
from workbench.data.mapper import build_mapper
from workbench.data.summary import cautions, shared_images
from workbench.environment.memory import check_memory
from workbench.training.schedule import lr_factor, scaled_lr
from workbench.visualization.drawing import contact_sheet, draw_instances, drawables_of_targets, sheet_font

_ACROSS = 4  # samples beside each other


def training_config(config: str | Path, output: str | Path, overrides: Sequence = ()) -> CfgNode:
    """Return a config file's settings with overrides, keys and values in turn, for a run in ``output``."""
    return load_config(config, [*map(str, overrides), "OUTPUT_DIR", str(output)])


def training_data(cfg: CfgNode) -> CocoDataset:
    """Return the datasets that DATASETS.TRAIN names, checked as before training."""
    return load_data(cfg, cfg.DATASETS.TRAIN, None, for_training=True)


def data_cautions(cfg: CfgNode, dataset: CocoDataset) -> str:
    """Return a line for each thing to think about before training on ``dataset`` with ``cfg``.

    These are :func:`workbench.data.summary.cautions`, and images of DATASETS.VAL that are in the training data too.

    Raises:
        WorkbenchError: DATASETS.VAL cannot be read, or does not fit the training data.
    """
    sentences = cautions(dataset, cfg)
    if cfg.DATASETS.VAL:
        held_out = load_data(cfg, cfg.DATASETS.VAL, dataset.vocabulary)
        sentences += [f"{', '.join(cfg.DATASETS.VAL)}: {sentence}" for sentence in shared_images([dataset], held_out)]
    lines = [f"caution: {sentence}" for sentence in sentences]
    return "\n".join(lines or ["No caution: classes, sizes and splits are sound."])


def config_table(cfg: CfgNode) -> pd.DataFrame:
    """Return the values of a config that differ from the defaults, one row a key."""
    rows = {key: map(str, values) for key, values in changes(cfg).items()}
    return pd.DataFrame.from_dict(rows, orient="index", columns=["value", "default"]).rename_axis("key")


def mapped_samples(cfg: CfgNode, dataset: CocoDataset, count: int = 8) -> np.ndarray:
    """Draw the first ``count`` training samples after the mapper, with the masks and classes they are trained on.

    They are those of a run with the config's SEED; with 0 where SEED is -1.
    """
    check_memory(cfg, processes=1)
    mapper = build_mapper(cfg, is_train=True)
    loader = build_train_loader(dataset, mapper, batch_size=count, seed=max(cfg.SEED, 0), num_workers=0)
    words, batch = dataset.vocabulary, next(loader)
    font_size = sheet_font([tuple(item["image"].shape[1:]) for item in batch], _ACROSS)
    pictures = (
        draw_instances(item["image"], drawables_of_targets(item["targets"], words), words, font_size=font_size)
        for item in batch
    )
    return contact_sheet(list(pictures), columns=_ACROSS)


def learning_rates(cfg: CfgNode, most: int = 500) -> pd.Series:
    """Return the learning rate by step, of about ``most`` steps spread over the training."""
    steps = range(0, cfg.SOLVER.MAX_ITER, max(1, cfg.SOLVER.MAX_ITER // most))
    return pd.Series({step: scaled_lr(cfg) * lr_factor(cfg, step) for step in steps}, dtype=float)


def contents(dataset: CocoDataset) -> dict[str, pd.DataFrame]:
    """Count a dataset's objects of each main category, and of each class of each subcategory."""
    words = dataset.vocabulary
    objects = [a for d in dataset.dicts for a in d["annotations"] if not a["iscrowd"]]
    tables = {"main category": _counts([a["category_id"] for a in objects], words.categories)}
    for name, classes in words.subcategories.items():
        tables[name] = _counts([a["subcategories"][name] for a in objects], (*classes, "unlabelled"))
    return tables


def _counts(numbers: Sequence[int], names: Sequence[str]) -> pd.DataFrame:
    counts = np.bincount([n % len(names) for n in numbers], minlength=len(names))  # -1, unlabelled, is last
    return pd.DataFrame({"objects": counts}, index=pd.Index(names, name="class"))
