"""Opening a gallery: a checkpoint's predictions on a dataset, or on any images, to look through."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from workbench.data.coco import CocoDataset, load_dataset
from workbench.data.images import read_image
from workbench.data.loaders import build_test_loader
from workbench.data.mapper import build_mapper
from workbench.environment.facts import choose_device
from workbench.errors import WorkbenchError
from workbench.evaluation.ground_truth import ground_truth
from workbench.evaluation.predict import run_inference
from workbench.evaluation.results import load_predictions
from workbench.notebook.evaluation import default_dataset, evaluated_before, evaluation_directory
from workbench.notebook.gallery import Gallery
from workbench.runs.checkpoint import check_vocabulary, load_checkpoint, load_model, resolve_checkpoint
from workbench.workflows import all as workflows

if TYPE_CHECKING:
    from fvcore.common.config import CfgNode

    from workbench.data.vocabulary import Vocabulary


def open_gallery(
    ckpt: str | Path,
    dataset: str | Path | Sequence[str | Path] | None = None,
    *,
    num_images: int = 24,
    output: str | Path | None = None,
    overrides: Sequence[str] = (),
) -> Gallery:
    """What a checkpoint finds in images, beside the ground truth where there is one.

    Where the dataset was evaluated with this checkpoint before, all its images are shown with the predictions
    of then; otherwise the model is run on `num_images` of them, spread over the dataset.

    Args:
        ckpt: a checkpoint directory, or a run (its best).
        dataset: a catalog name or a COCO JSON; by default the first of the checkpoint's DATASETS.TEST. Or
            images: a file, a folder, a glob or several; these have no ground truth. Nor has a dataset with
            other classes than the checkpoint's, of which the images are still shown.
        output: where figures and settings belong; by default as for `open_evaluation`.
        overrides: config keys and values in turn; with any the model is run.
    """
    path = resolve_checkpoint(ckpt)
    cfg = workflows.checkpoint_config(path, overrides)
    vocabulary = load_checkpoint(path).vocabulary
    wanted = dataset or default_dataset(cfg)
    if not wanted:
        raise WorkbenchError(f"checkpoint {path} names no dataset to look at; name one")
    if _names_images(wanted):
        data, reason = _images(wanted, vocabulary), "single images have none"
        usual = workflows.run_of(path)
    else:
        data, reason = _open_dataset(path, cfg, wanted, vocabulary)
        usual = evaluation_directory(path, cfg, wanted)
    directory = Path(output) if output is not None else usual
    places = [] if reason or overrides else [directory, usual]
    evaluated = next((place for place in places if evaluated_before(place, path, wanted)), None)
    if evaluated is not None:
        results = load_predictions(evaluated / "predictions.json")
        origin = f"the predictions in {evaluated / 'predictions.json'}"
    else:
        data = _spread(data, num_images)
        results, origin = _predict(path, cfg, data), f"what {path} predicts now"
    truth = None if reason else ground_truth(data)
    files = {item["image_id"]: item["file_name"] for item in data.dicts}
    results = [row for row in results if row["image_id"] in files]
    note = f"{len(files)} images, {len(results)} predictions: {origin}."
    if reason:
        note += f" There is no ground truth beside them: {reason.rstrip('.')}."
    elif not truth["annotations"]:
        note += " The dataset has no annotations, so there is no ground truth beside them."
        truth = None
    return Gallery(data.vocabulary, files, results, truth, directory, note)


def _names_images(wanted: str | Path | Sequence[str | Path]) -> bool:
    """Whether these are image files rather than a dataset: several, a folder, a file or a glob."""
    if not isinstance(wanted, (str, Path)):
        return True
    path, text = Path(wanted).expanduser(), str(wanted)
    return path.is_dir() or any(c in text for c in "*?") or path.suffix.lower() in Image.registered_extensions()


def _images(wanted: str | Path | Sequence[str | Path], vocabulary: Vocabulary) -> CocoDataset:
    dicts = []
    for number, file in enumerate(workflows.find_images(wanted), start=1):
        dicts.append({"file_name": str(file), "image_id": number, "annotations": []})
    return CocoDataset([], vocabulary, dicts, 0)


def _open_dataset(path: Path, cfg: CfgNode, wanted: str | Path, vocabulary: Vocabulary) -> tuple[CocoDataset, str]:
    """A dataset, and why it cannot be the ground truth of the checkpoint's predictions; empty where it can."""
    try:
        data = workflows.load_data(cfg, [wanted], vocabulary)
        check_vocabulary(path, vocabulary, data.vocabulary)
        return data, ""
    except WorkbenchError as error:
        # What is wrong with the dataset itself is raised again here; what remains are other classes.
        data = load_dataset(wanted, root=cfg.DATASETS.ROOT, skip_faults=cfg.DATASETS.SKIP_FAULTS)
        return replace(data, vocabulary=vocabulary), str(error)


def _spread(data: CocoDataset, count: int) -> CocoDataset:
    """The dataset with at most `count` of its images."""
    if count < 1:
        raise WorkbenchError(f"num_images is {count}; it must be 1 or more")
    places = np.linspace(0, len(data.dicts) - 1, min(count, len(data.dicts))).round().astype(int)
    return replace(data, dicts=[data.dicts[i] for i in places])


def _predict(path: Path, cfg: CfgNode, data: CocoDataset) -> list[dict[str, Any]]:
    for item in data.dicts:
        if "height" not in item:  # a single image: its size as it will be read
            item["height"], item["width"] = read_image(item["file_name"]).shape[:2]
    model, _ = load_model(path, choose_device(cfg.MODEL.DEVICE), config=cfg)
    loader = build_test_loader(data, build_mapper(cfg, is_train=False))
    return run_inference(model, loader, data.vocabulary)[0]
