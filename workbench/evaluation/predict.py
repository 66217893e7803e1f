"""Running a model over a dataset and collecting its predictions as COCO results."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import nn

from workbench.console import follow
from workbench.data.masks import encode_masks
from workbench.data.vocabulary import Vocabulary
from workbench.evaluation.results import rounded
from workbench.evaluation.segments import segment_rows

if TYPE_CHECKING:
    from accelerate import Accelerator

ImageResults = tuple[list[dict], float | None, dict[str, list[dict]]]


def run_inference(
    model: nn.Module,
    loader: Iterable[list[dict]],
    vocabulary: Vocabulary,
    *,
    progress: bool = True,
    accelerator: Accelerator | None = None,
) -> tuple[list[dict], dict]:
    """Predict every image of ``loader`` (batches of batched inputs) and return (results, stats).

    results: COCO results of all images, by image id, the rows of an image in the model's order. stats:
    {"images", "no_object_fraction": mean over images of the share of queries that say no-object, None for a model
    without queries or where there was no image, "segments": {"panoptic" and "semantic", as far as the model predicts
    them: rows of :func:`~workbench.evaluation.segments.segment_rows`}, "seconds"}. With an ``accelerator`` of several
    processes each predicts what its loader gives it and all return the whole; an image two processes predicted counts
    once. The model is in eval mode meanwhile and then as before. A model with an attribute ``encode_masks`` encodes its
    masks in chunks.
    """
    start = time.perf_counter()
    shown = progress and (accelerator is None or accelerator.is_main_process)
    predicted: dict = {}
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode(), encoding_masks(model):
            for batch in follow(loader, "predict", "batch", shown=shown):
                for item, predictions in zip(batch, model(batch), strict=True):
                    predicted[item["image_id"]] = image_results(predictions, item["image_id"], vocabulary)
    finally:
        model.train(was_training)
    if accelerator is not None and accelerator.num_processes > 1:
        from accelerate.utils import gather_object

        predicted = dict(gather_object(list(predicted.items())))
    return collect(predicted, time.perf_counter() - start)


def image_results(predictions: Mapping, image_id: int | str, vocabulary: Vocabulary) -> ImageResults:
    """Return one image's (rows, share of no-object queries or None, rows of segments by kind) for :func:`collect`."""
    rows, segments = (of(predictions, image_id, vocabulary) for of in (to_coco_results, segment_rows))
    return rows, predictions.get("no_object_fraction"), segments


def collect(predicted: Mapping[int | str, ImageResults], seconds: float) -> tuple[list[dict], dict]:
    """Return (results, stats) of :func:`run_inference` from {image id: :func:`image_results`} and what they took."""
    ordered = [predicted[key] for key in sorted(predicted, key=lambda key: (isinstance(key, str), key))]
    fractions = [float(fraction) for _, fraction, _ in ordered if fraction is not None]
    mean = sum(fractions) / len(fractions) if fractions else None
    segments: dict[str, list[dict]] = {}
    for _, _, kinds in ordered:
        for kind, rows in kinds.items():
            segments.setdefault(kind, []).extend(rows)
    stats = {"images": len(ordered), "no_object_fraction": mean, "segments": segments, "seconds": seconds}
    return [row for rows, _, _ in ordered for row in rows], stats


@contextmanager
def encoding_masks(model: nn.Module) -> Iterator[None]:
    """Let a model encode its masks in chunks, so that those of a large image are never in memory at once.

    A model without the attribute ``encode_masks`` is left as it is.
    """
    encoder = getattr(model, "module", model)  # DistributedDataParallel and others keep the model there
    if not hasattr(encoder, "encode_masks"):
        yield
        return
    previous, encoder.encode_masks = encoder.encode_masks, _encode
    try:
        yield
    finally:
        encoder.encode_masks = previous


def to_coco_results(predictions: Mapping, image_id: int | str, vocabulary: Vocabulary) -> list[dict]:
    """Return the rows of one image's predictions, as ``workbench.models.postprocess`` makes them, in their order.

    ``masks`` are (k, H, W) bool or k compressed RLEs. Rows of a model without queries have no ``query``.

    The bbox is measured on the mask in COCO's convention, where one pixel is 1 wide. The attribute of a
    subcategory is its most probable class, None where that is no-object.
    """
    if not len(predictions["masks"]):
        return []
    masks = predictions["masks"]
    # Rows of one query have the same mask, which is the costly part.
    query = _numbers(predictions["query"]) if "query" in predictions else range(len(masks))
    _, first, place = np.unique(query, return_index=True, return_inverse=True)
    rles = [masks[i] if isinstance(masks, list) else _encode(masks[i : i + 1])[0] for i in first.tolist()]
    boxes = coco_mask.toBbox(rles).tolist()
    labels = _numbers(predictions["labels"])
    fields = {"score": "scores", "main_score": "main_scores", "mask_score": "mask_scores", "query": "query"}
    columns = {key: _numbers(predictions[field]) for key, field in fields.items() if field in predictions}
    probabilities = predictions["subcategories"]
    attributes = {
        name: [(*vocabulary.subcategories[name], None)[k] for k in values.argmax(dim=1).tolist()]
        for name, values in probabilities.items()
    }
    attribute_scores = {name: _numbers(values) for name, values in probabilities.items()}
    # The logit of one class is enough: the others differ from it as the logarithms of the probabilities do.
    logits = predictions.get("subcategory_logits", {})
    attribute_logits = {name: _numbers(values[:, :-1].amax(dim=1)) for name, values in logits.items()}
    rows = []
    for i, mask in enumerate(place.tolist()):
        row = {
            "image_id": image_id,
            "category_id": vocabulary.category_ids[labels[i]],
            "segmentation": dict(rles[mask]),
            "bbox": list(boxes[mask]),
            **{key: values[i] for key, values in columns.items()},
        }
        if probabilities:
            row["attributes"] = {name: values[i] for name, values in attributes.items()}
            row["attribute_scores"] = {name: values[i] for name, values in attribute_scores.items()}
            if logits:
                row["attribute_logits"] = {name: values[i] for name, values in attribute_logits.items()}
        rows.append(row)
    return rows


def _encode(masks: torch.Tensor) -> list[dict]:
    return encode_masks(masks.cpu().numpy())


def _numbers(values: torch.Tensor) -> list:
    values = values.detach().cpu()
    return rounded(values.double().numpy()) if values.is_floating_point() else values.tolist()
