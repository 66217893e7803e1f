"""Find objects in images: pictures and one COCO file, and the same for panoptic segments and semantic maps."""

from __future__ import annotations

import glob
import itertools
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fvcore.common.config import CfgNode
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import nn

from workbench.config import reads
from workbench.console import follow
from workbench.data.fingerprint import digest
from workbench.data.image_files import ImageRules
from workbench.data.images import read_image
from workbench.data.mapper import build_mapper
from workbench.data.masks import mask_areas
from workbench.data.vocabulary import Vocabulary
from workbench.environment.device import choose_device
from workbench.errors import WorkbenchError, counted, errors_as
from workbench.evaluation.filters import FilterSettings, apply_filters
from workbench.evaluation.predict import encoding_masks, to_coco_results
from workbench.evaluation.segments import segment_rows
from workbench.files import replacing, write_json
from workbench.runs.checkpoint import checkpoint_config, load_model, resolve_checkpoint
from workbench.training.progress import log, logging_to
from workbench.visualization.drawing import draw_instances, drawables_of_annotations
from workbench.workflows.convert import local_checkpoint

_SOFTWARE = "workbench predict"
_NOUNS = {"instances": "object", "panoptic": "panoptic segment", "semantic": "semantic region"}
_IMAGES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif"}


def predict(
    ckpt: str | Path,
    inputs: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    score_threshold: float | None = None,
    filters: FilterSettings | str | Path | None = None,
    device: str | None = None,
    overrides: Sequence[str] = (),
) -> list[Path]:
    """Find objects in images: an overlay PNG for each, and one predictions.json for all.

    Shows how many images are done, and at the end logs how many images and objects there are and how long it took.

    What the model predicts beside instances, ``panoptic`` and ``semantic``, is drawn into folders of these names and
    written to panoptic.json and semantic.json. A model that predicts no instances gives only these.

    Args:
        ckpt: a checkpoint directory, a run (its best), or another program's model.
        inputs: image files, folders (searched through) and globs.
        output: folder for the files; made, and none of the inputs may lie directly in it. Files of an earlier
            prediction are replaced there, no others.
        score_threshold: instances that score less are left out; 0.5 by default, or what ``filters`` say.
        filters: which instances are kept, as settings or as the JSON they were saved in. Neither concerns segments.
        device: cpu, cuda, ... instead of the checkpoint's.
        overrides: config keys and values in turn, over the checkpoint's config.

    Returns:
        the files written. predictions.json is a COCO instances file (images, annotations with ``score`` and
        ``attributes``, categories, subcategories), so it can be opened, corrected and trained on; so are the others.

    Raises:
        WorkbenchError: nothing to read; ``output`` holds other files or links of the same names; or some images could
            not be read, after all others were written.
    """
    output = Path(output)
    settings = FilterSettings.load(filters) if isinstance(filters, (str, Path)) else filters or FilterSettings()
    if score_threshold is not None:
        settings = replace(settings, score=score_threshold)
    files = find_images(inputs)
    path = resolve_checkpoint(local_checkpoint(ckpt))
    cfg = checkpoint_config(path, [*overrides, *(["MODEL.DEVICE", device] if device else [])])
    for file in files:
        if file.parent.resolve() == output.resolve():
            raise WorkbenchError(f"the output folder {output} holds the input {file}; choose another folder")
    kinds = _kinds(cfg)
    free = _free_names(files)
    names = [f"{folder}{name}" for folder, _ in kinds.values() for name in free]
    for name in (*names, *(name for _, name in kinds.values())):
        _check_replaceable(output / name)
    model, checkpoint = load_model(path, choose_device(cfg.MODEL.DEVICE), config=cfg)
    vocabulary = checkpoint.vocabulary
    settings.check(vocabulary)
    output.mkdir(parents=True, exist_ok=True)
    find = partial(_find, model, build_mapper(cfg, is_train=False), vocabulary, settings)
    images, written, unreadable = [], [], []
    annotations: dict[str, list[dict]] = {kind: [] for kind in kinds}
    began = time.perf_counter()
    named = list(zip(files, free, strict=True))
    for number, (file, name) in enumerate(follow(named, "predict", "image"), start=1):
        try:
            picture = read_image(str(file), ImageRules.from_config(cfg))
        except WorkbenchError as error:
            unreadable.append(str(error))
            continue
        height, width = picture.shape[:2]
        images.append({"id": number, "file_name": str(file), "height": height, "width": width})
        found = find(picture, number)
        for kind, (folder, _) in kinds.items():
            annotations[kind] += found[kind]
            drawn = found[kind]
            if kind == "semantic":  # whose rows have no score
                drawn = drawables_of_annotations(drawn, vocabulary, height, width)
            written.append(output / f"{folder}{name}")
            _save_picture(draw_instances(picture, drawn, vocabulary), written[-1])
    for kind, (_, name) in kinds.items():
        _write_annotations(output / name, images, annotations[kind], vocabulary)
        written.append(output / name)
    with logging_to(None):
        seconds = time.perf_counter() - began
        counts = ", ".join(counted(len(rows), _NOUNS[kind]) for kind, rows in annotations.items())
        log.info(f"{counted(len(images), 'image')}, {counts} in {seconds:.1f} s")
    if unreadable:
        rest = f"; the other {len(images)} are in {output}" if images else ""
        raise WorkbenchError(
            f"{len(unreadable)} of {counted(len(files), 'image')} cannot be used: {' '.join(unreadable)}{rest}"
        )
    return written


def _kinds(cfg: CfgNode) -> dict[str, tuple[str, str]]:
    """Return what a model predicts, and for each kind the beginning of its pictures' names and its COCO file."""
    keys, places = cfg.MODEL.MASK_FORMER.TEST, {"instances": ("", "predictions.json")}
    if not reads(cfg, "MODEL.MASK_FORMER.TEST.INSTANCE_ON"):
        return places
    on = {"instances": keys.INSTANCE_ON, "panoptic": keys.PANOPTIC_ON, "semantic": keys.SEMANTIC_ON}
    places |= {kind: (f"{kind}/", f"{kind}.json") for kind in ("panoptic", "semantic")}
    return {kind: place for kind, place in places.items() if on[kind]}


def _write_annotations(path: Path, images: list[dict], rows: list[dict], vocabulary: Vocabulary) -> None:
    """Write rows of COCO results as a COCO instances file."""
    areas = mask_areas([row["segmentation"] for row in rows]).tolist()
    for number, (row, area) in enumerate(zip(rows, areas, strict=True), start=1):
        row.update(id=number, iscrowd=0, area=float(area))
    content = {"images": images, "annotations": rows, **vocabulary.to_coco()}
    write_json(path, {"info": {"software": _SOFTWARE, "content": digest(content)}, **content})


def _check_replaceable(path: Path) -> None:
    """Raise WorkbenchError unless nothing is at ``path``, or a file that :func:`predict` wrote and nobody changed."""
    if not os.path.lexists(path):
        return
    if path.is_symlink():
        raise WorkbenchError(f"{path} is a link, which is not written through; choose another output folder")
    try:
        if path.suffix == ".json":
            content = json.loads(path.read_text(encoding="utf-8"))
            info = content.pop("info")
            written = info["software"] == _SOFTWARE and info["content"] == digest(content)
        else:
            with Image.open(path, formats=["PNG"]) as image:
                written = image.text.get("Software") == _SOFTWARE
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SyntaxError, RecursionError):
        written = False
    if not written:
        raise WorkbenchError(f"{path} was not written by predict, or was changed since; choose another output folder")


def _save_picture(picture: np.ndarray, path: Path) -> None:
    """Write a picture, (H, W, 3) uint8, as a PNG that names this program."""
    note = PngInfo()
    note.add_text("Software", _SOFTWARE)
    with errors_as(f"{path} cannot be written", OSError), replacing(path) as draft:
        Image.fromarray(picture).save(draft, format="PNG", pnginfo=note)


def _find(
    model: nn.Module,
    mapper: Callable[..., dict],
    vocabulary: Vocabulary,
    settings: FilterSettings,
    picture: np.ndarray,
    image_id: int,
) -> dict[str, list[dict[str, Any]]]:
    """Return the COCO results of one image, (H, W, 3) uint8 RGB, by kind; instances are those that pass the filters."""
    height, width = picture.shape[:2]
    with torch.inference_mode(), encoding_masks(model):
        item = {"image": mapper.resize(picture), "height": height, "width": width, "image_id": image_id}
        predictions = model([item])[0]
        rows = to_coco_results(predictions, image_id, vocabulary)
    instances = apply_filters(rows, settings, vocabulary).rows
    return {"instances": instances, **segment_rows(predictions, image_id, vocabulary)}


def find_images(inputs: str | Path | Sequence[str | Path]) -> list[Path]:
    """Return the image files that files, folders (searched through) and globs name, each once, in their order.

    Raises:
        WorkbenchError: one of them names no image.
    """
    images: dict[Path, None] = {}
    for item in [inputs] if isinstance(inputs, (str, Path)) else inputs:
        path = Path(item).expanduser()
        if path.is_file():
            files = [path]
        else:
            matches = path.rglob("*") if path.is_dir() else map(Path, glob.glob(str(path), recursive=True))
            files = sorted(p for p in matches if p.suffix.lower() in _IMAGES and p.is_file())
        if not files:
            kind = "folder" if path.is_dir() else "file, folder or pattern"
            raise WorkbenchError(f"the {kind} {item} names no image")
        images.update(dict.fromkeys(files))
    return list(images)


def _free_names(files: Sequence[Path]) -> list[str]:
    """Return a PNG name for each file, none twice: folders may hold files of the same name."""
    names: dict[str, str] = {}  # by their small letters: some file systems do not tell capitals apart
    for file in files:
        numbered = (f"{file.stem}_{number}.png" for number in itertools.count(2))
        name = next(n for n in itertools.chain([f"{file.stem}.png"], numbered) if n.lower() not in names)
        names[name.lower()] = name
    return list(names.values())
