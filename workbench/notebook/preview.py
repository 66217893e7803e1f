"""What a training will be given: its config, its data, its samples after the mapper."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from workbench.config import config_to_dict, flatten, get_cfg
from workbench.data.loaders import build_train_loader
from workbench.data.mapper import build_mapper
from workbench.visualization.drawing import draw_instances, drawables_of_targets

if TYPE_CHECKING:
    from fvcore.common.config import CfgNode

    from workbench.data.coco import CocoDataset, load_data


def training_data(cfg: CfgNode) -> CocoDataset:
    """The datasets that DATASETS.TRAIN names, checked as before training."""
    return load_data(cfg, cfg.DATASETS.TRAIN, None, for_training=True)


def config_table(cfg: CfgNode) -> pd.DataFrame:
    """What a config sets away from the defaults, one row a key."""
    default = flatten(config_to_dict(get_cfg()))
    rows = {
        key: {"value": str(value), "default": str(default[key])}
        for key, value in flatten(config_to_dict(cfg)).items()
        if value != default[key]
    }
    return pd.DataFrame.from_dict(rows, orient="index", columns=["value", "default"]).rename_axis("key")


def mapped_pictures(cfg: CfgNode, dataset: CocoDataset, count: int = 8) -> list[np.ndarray]:
    """The first ``count`` training samples after the mapper, with the masks and classes they are trained on.

    They are those of a run with the config's SEED (0 where it is drawn).
    """
    loader = build_train_loader(
        dataset, build_mapper(cfg, is_train=True), batch_size=count, seed=max(cfg.SEED, 0), num_workers=0
    )
    return [
        draw_instances(item["image"], drawables_of_targets(item["targets"], dataset.vocabulary), dataset.vocabulary)
        for item in next(loader)
    ]


def contents(dataset: CocoDataset) -> dict[str, pd.DataFrame]:
    """How many objects of each main category, and of each class of each subcategory, a dataset has."""
    words = dataset.vocabulary
    objects = [a for d in dataset.dicts for a in d["annotations"] if not a["iscrowd"]]
    tables = {"main category": _counts([a["category_id"] for a in objects], words.categories)}
    for name, classes in words.subcategories.items():
        tables[name] = _counts([a["subcategories"][name] for a in objects], (*classes, "unlabelled"))
    return tables


def _counts(numbers: Sequence[int], names: Sequence[str]) -> pd.DataFrame:
    found = np.bincount([n % len(names) for n in numbers], minlength=len(names))  # -1, unlabelled, is last
    return pd.DataFrame({"objects": found}, index=pd.Index(names, name="class"))
