"""Predictions as COCO results: rows made from a model's predictions, ranked, written and read.

A row of `predictions.json` is what every COCO tool reads (image_id, category_id, segmentation, bbox, score)
plus main_score, mask_score, query, attributes {subcategory: class, or null for no-object} and
attribute_scores {subcategory: K_s + 1 probabilities, no-object last} and attribute_logits {subcategory: the
logit of its likeliest class, no-object aside}.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from pycocotools import mask as coco_mask

from workbench.data.masks import encode_masks
from workbench.data.vocabulary import Vocabulary
from workbench.errors import WorkbenchError
from workbench.files import write_text
from workbench.models.postprocess import RANK_BY, rank_scores

DECIMALS = 8  # keeps the order of float32 scores and halves the file


def to_coco_results(predictions: Mapping, image_id: int | str, vocabulary: Vocabulary) -> list[dict]:
    """The rows of one image's predictions, as `workbench.models.postprocess` makes them, in their order.

    The bbox is measured on the mask in COCO's convention, where one pixel is 1 wide. The attribute of a
    subcategory is its most probable class, None where that is no-object.
    """
    if not len(predictions["masks"]):
        return []
    # Rows of one query have the same mask, which is the costly part.
    _, first, place = np.unique(_numbers(predictions["query"]), return_index=True, return_inverse=True)
    rles = encode_masks(predictions["masks"][torch.from_numpy(first)].cpu().numpy())
    boxes = coco_mask.toBbox(rles).tolist()
    labels = _numbers(predictions["labels"])
    fields = {"score": "scores", "main_score": "main_scores", "mask_score": "mask_scores", "query": "query"}
    columns = {key: _numbers(predictions[field]) for key, field in fields.items()}
    probabilities = predictions["subcategories"]
    attributes = {
        name: [(*vocabulary.subcategories[name], None)[k] for k in values.argmax(dim=1).tolist()]
        for name, values in probabilities.items()
    }
    attribute_scores = {name: _numbers(values) for name, values in probabilities.items()}
    # One number says all: the other logits differ from it as the logarithms of the probabilities do.
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


def _numbers(values: torch.Tensor) -> list:
    values = values.detach().cpu()
    if values.is_floating_point():
        return np.round(values.double().numpy(), DECIMALS).tolist()
    return values.tolist()


def rank_results(results: Sequence[Mapping], rank_by: str) -> list[dict]:
    """The same rows with `score` set anew from main_score, mask_score and attribute_scores; order kept.

    `rank_by` is "main", "sum" or "geometric_mean": the formula is `workbench.models.postprocess.rank_scores`,
    times mask_score. Rows without a main_score (another tool's file) can only be ranked by "main", which
    leaves their score as it is; WorkbenchError otherwise, and for an unknown `rank_by`.
    """
    if rank_by not in RANK_BY:
        raise WorkbenchError(f"rank_by {rank_by!r} is not one of {', '.join(RANK_BY)}.")
    rows = [dict(row) for row in results]
    lacking = [i for i, row in enumerate(rows) if not {"main_score", "mask_score"} <= row.keys()]
    if lacking and rank_by == "main":
        return rows
    if lacking:
        raise WorkbenchError(
            f"Row {lacking[0]} of the results has no main_score and mask_score, so it cannot be ranked by {rank_by}."
        )
    # Rows of one model have the same subcategories; files put together from several may not.
    groups: dict[tuple, list[int]] = {}
    try:
        for i, row in enumerate(rows):
            scores = row.get("attribute_scores") or {}
            groups.setdefault(tuple((name, len(values)) for name, values in scores.items()), []).append(i)
        for key, members in groups.items():
            main, mask = (_column(rows, members, name) for name in ("main_score", "mask_score"))
            scores = [
                torch.tensor([rows[i]["attribute_scores"][name] for i in members], dtype=torch.float64)
                for name, _ in key
            ]
            for i, score in zip(members, _numbers(rank_scores(main, scores, rank_by) * mask), strict=True):
                rows[i]["score"] = score
    except (TypeError, ValueError, AttributeError) as error:
        raise WorkbenchError(
            f"The main_score, mask_score and attribute_scores of the results are not all numbers: {error}."
        ) from None
    return rows


def _column(rows: Sequence[Mapping], members: Sequence[int], name: str) -> torch.Tensor:
    return torch.tensor([rows[i][name] for i in members], dtype=torch.float64)


def save_predictions(path: str | Path, results: Sequence[Mapping]) -> Path:
    """Write results as JSON, one row a line; the file is complete or absent, never half written."""
    lines = (json.dumps(row, ensure_ascii=False, allow_nan=False, separators=(",", ":")) for row in results)
    write_text(Path(path), "[\n" + ",\n".join(lines) + "\n]\n")
    return Path(path)


def load_predictions(path: str | Path) -> list[dict]:
    """Reads a COCO results file, anybody's. WorkbenchError where it is absent, not JSON or not a list of
    objects; what stands in the rows is checked against the ground truth when they are scored.
    """
    path = Path(path)
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise WorkbenchError(f"The results file {path} does not exist.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise WorkbenchError(f"The results file {path} cannot be read: {error}.") from None
    except (ValueError, RecursionError) as error:
        raise WorkbenchError(f"The results file {path} is not valid JSON: {error}.") from None
    if not isinstance(rows, list):
        raise WorkbenchError(f"The results file {path} holds no list of COCO results.")
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise WorkbenchError(f"Row {number} of the results file {path} is not an object.")
    return rows
