"""Running a model over a dataset and collecting its predictions as COCO results."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import nn
from tqdm.auto import tqdm

from workbench.data.vocabulary import Vocabulary
from workbench.evaluation.results import to_coco_results

if TYPE_CHECKING:
    from accelerate import Accelerator


def run_inference(
    model: nn.Module,
    loader: Iterable[list[dict]],
    vocabulary: Vocabulary,
    *,
    progress: bool = True,
    accelerator: Accelerator | None = None,
) -> tuple[list[dict], dict]:
    """Predicts every image of `loader` (batches of batched inputs) and returns (results, stats).

    results: COCO results of all images, by image id, the rows of an image in the model's order. stats:
    {"images", "no_object_fraction": mean over images of the share of queries that say no-object, None when
    there was no image, "seconds"}. With an `accelerator` of several processes each predicts what its loader
    gives it and all return the whole; an image two processes predicted counts once. The model is in eval mode
    meanwhile and then as before.
    """
    start = time.perf_counter()
    shown = progress and (accelerator is None or accelerator.is_main_process)
    predicted: dict = {}
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for batch in tqdm(loader, desc="predict", unit="batch", disable=not shown):
                for item, predictions in zip(batch, model(batch), strict=True):
                    predicted[item["image_id"]] = (
                        to_coco_results(predictions, item["image_id"], vocabulary),
                        float(predictions["no_object_fraction"]),
                    )
    finally:
        model.train(was_training)
    if accelerator is not None and accelerator.num_processes > 1:
        from accelerate.utils import gather_object

        predicted = dict(gather_object(list(predicted.items())))
    ordered = [predicted[key] for key in sorted(predicted, key=lambda key: (isinstance(key, str), key))]
    fractions = [fraction for _, fraction in ordered]
    stats = {
        "images": len(ordered),
        "no_object_fraction": sum(fractions) / len(fractions) if fractions else None,
        "seconds": time.perf_counter() - start,
    }
    return [row for rows, _ in ordered for row in rows], stats
