"""What a person looks at in notebooks: a training batch as the model sees it, a checkpoint's evaluation."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from workbench import workflows
from workbench.config import config_to_dict, get_cfg
from workbench.data.images import read_image
from workbench.data.loaders import build_train_loader
from workbench.data.mapper import build_mapper
from workbench.evaluation.evaluate import evaluate_results
from workbench.evaluation.ground_truth import ground_truth
from workbench.evaluation.results import load_predictions
from workbench.models.inference import RANK_BY
from workbench.training.checkpoint import check_vocabulary, load_checkpoint, resolve_checkpoint
from workbench.training.run import flat
from workbench.visualization.drawing import (
    draw_instances,
    drawables_of_targets,
    ground_truth_panel,
    prediction_panel,
    side_by_side,
)

if TYPE_CHECKING:
    from fvcore.common.config import CfgNode

    from workbench.data.coco import CocoDataset
    from workbench.data.vocabulary import Vocabulary


def training_data(cfg: CfgNode) -> CocoDataset:
    """The datasets that DATASETS.TRAIN names, checked as before training."""
    return workflows.load_data(cfg, cfg.DATASETS.TRAIN, None, for_training=True)


def config_table(cfg: CfgNode) -> pd.DataFrame:
    """What a config sets away from the defaults, one row a key."""
    default = flat(config_to_dict(get_cfg()))
    rows = {
        key: {"value": str(value), "default": str(default[key])}
        for key, value in flat(config_to_dict(cfg)).items()
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
        draw_instances(
            item["image"], drawables_of_targets(item["targets"], dataset.vocabulary), dataset.vocabulary
        )
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


@dataclass(frozen=True)
class Evaluation:
    """A checkpoint's predictions on a dataset beside the ground truth, and where its results belong.

    directory: with metrics.json, predictions.json and figures/. truth: a COCO dict; results: COCO results;
    files: the image file of each image id.
    """

    checkpoint: Path
    directory: Path
    config: CfgNode
    vocabulary: Vocabulary
    truth: dict[str, Any]
    results: list[dict[str, Any]]
    metrics: dict[str, Any]
    files: dict[int, str]

    @property
    def figures(self) -> Path:
        return self.directory / "figures"

    def picture(self, image_id: int) -> np.ndarray:
        """(H, W, 3) uint8."""
        return read_image(self.files[image_id])

    def annotations(self, image_id: int) -> list[dict]:
        return [a for a in self.truth["annotations"] if a["image_id"] == image_id]

    def predictions(self, image_id: int) -> list[dict]:
        return [r for r in self.results if r["image_id"] == image_id]

    def compare(self, image_id: int, *, score_threshold: float = 0.5, title: str = "") -> np.ndarray:
        """Ground truth and prediction of one image beside each other."""
        image = self.picture(image_id)
        name = f"image {image_id}{f': {title}' if title else ''}"
        return side_by_side(
            [
                ground_truth_panel(image, self.annotations(image_id), self.vocabulary, title=f"{name} · truth"),
                prediction_panel(
                    image, self.predictions(image_id), self.vocabulary, score_threshold=score_threshold,
                    title=f"predicted (score ≥ {score_threshold:g})",
                ),
            ]
        )  # fmt: skip

    def compare_all(self, ranking: pd.DataFrame, score_threshold: float = 0.5) -> list[np.ndarray]:
        """:meth:`compare` of the images of a table that `per_image_scores` made, with their scores."""
        return [
            self.compare(
                row.image_id,
                score_threshold=score_threshold,
                title=f"{row.matched} of {row.n_gt} found, {row.false} false",
            )
            for row in ranking.itertuples()
        ]

    def ranked(self) -> pd.DataFrame:
        """The key scores, in percent, of the same predictions in each order of TEST.RANK_BY: one row each."""
        how = {"max_dets": list(self.config.TEST.MAX_DETS), "scorer": self.config.TEST.SCORER}
        rows = {}
        for rank_by in RANK_BY:
            found = evaluate_results(self.truth, self.results, self.vocabulary, rank_by=rank_by, **how)
            segm, joint = found["segm"] or {}, found.get("joint") or {}
            rows[rank_by] = {
                "AP": segm.get("AP"), "AP50": segm.get("AP50"), "AP75": segm.get("AP75"),
                "joint AP": joint.get("AP"), "joint AP50": joint.get("AP50"),
            }  # fmt: skip
        return pd.DataFrame.from_dict(rows, orient="index", dtype=float).rename_axis("ranked by")


def open_evaluation(
    ckpt: str | Path,
    *,
    dataset: str | Path | None = None,
    output: str | Path | None = None,
    overrides: Sequence[str] = (),
    again: bool = True,
) -> Evaluation:
    """Evaluate a checkpoint, as `workflows.evaluate` does, and open what came out beside the ground truth.

    Args:
        ckpt: a checkpoint directory, or a run (its best).
        dataset: catalog name or path of a COCO JSON; by default the first of the checkpoint's DATASETS.TEST.
        output: where metrics.json, predictions.json and figures/ go. By default the checkpoint's run; for
            another than the checkpoint's own dataset ``evaluations/<dataset>`` in it, so that the run keeps
            its own scores.
        again: False takes metrics.json and predictions.json from there where they are this checkpoint's, on
            this dataset, and newer than it; overrides always evaluate.
    """
    path = resolve_checkpoint(ckpt)
    cfg = workflows.checkpoint_config(path, overrides)
    wanted = dataset or default_dataset(cfg)
    directory = Path(output) if output is not None else evaluation_directory(path, cfg, wanted)
    metrics = None if again or overrides else evaluated_before(directory, path, wanted)
    if metrics is None:
        metrics = workflows.evaluate(path, dataset=wanted, output=directory, overrides=overrides)
    vocabulary = load_checkpoint(path).vocabulary
    data = workflows.load_data(cfg, [wanted], vocabulary)
    check_vocabulary(path, vocabulary, data.vocabulary)
    return Evaluation(
        path, directory, cfg, data.vocabulary, ground_truth(data), load_predictions(directory / "predictions.json"),
        metrics, {item["image_id"]: item["file_name"] for item in data.dicts},
    )  # fmt: skip


def default_dataset(cfg: CfgNode) -> str | None:
    """The dataset that a checkpoint is evaluated on, if any."""
    return cfg.DATASETS.TEST[0] if cfg.DATASETS.TEST else None


def evaluation_directory(checkpoint: Path, cfg: CfgNode, dataset: str | Path | None) -> Path:
    """Where what is found with a checkpoint on a dataset belongs, see :func:`open_evaluation`."""
    run = workflows.run_of(checkpoint)
    return run if dataset == default_dataset(cfg) else run / "evaluations" / Path(str(dataset)).stem


def evaluated_before(directory: Path, checkpoint: Path, dataset: str | Path) -> dict[str, Any] | None:
    """metrics.json of a directory, where it and predictions.json are of this checkpoint, as it is now, on this
    dataset; else None."""
    scores, predictions = directory / "metrics.json", directory / "predictions.json"
    try:
        metrics = json.loads(scores.read_text(encoding="utf-8"))
        written = min(scores.stat().st_mtime_ns, predictions.stat().st_mtime_ns)
        trained = max(file.stat().st_mtime_ns for file in checkpoint.iterdir())
    except (OSError, ValueError):
        return None
    same = metrics.get("dataset") == Path(str(dataset)).stem and written >= trained
    return metrics if same and Path(metrics["checkpoint"]).resolve() == checkpoint.resolve() else None
