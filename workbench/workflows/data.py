"""The datasets that a config names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fvcore.common.config import CfgNode

from workbench.data.coco import CocoDataset, load_dataset
from workbench.data.vocabulary import Vocabulary
from workbench.errors import WorkbenchError


def load_data(
    cfg: CfgNode, names: Sequence[str | Path], vocabulary: Vocabulary | None, for_training: bool = False
) -> CocoDataset:
    """The datasets ``names`` as a config says; with ``vocabulary`` they must have its classes."""

    if not names:
        raise WorkbenchError("config key DATASETS.TRAIN names no dataset")
    return load_dataset(
        list(names),
        root=cfg.DATASETS.ROOT,
        vocabulary=vocabulary,
        subcategories=tuple(cfg.MODEL.SUBCATEGORIES),
        skip_faults=cfg.DATASETS.SKIP_FAULTS,
        filter_empty=for_training and cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
    )
