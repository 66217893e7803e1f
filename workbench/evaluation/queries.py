"""How queries are used: how many a dataset needs, what each looks at, and when a model runs out of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from pycocotools import mask as coco_mask
from torch import Tensor, nn

from workbench.console import follow
from workbench.errors import WorkbenchError
from workbench.evaluation.coco import coco_scores
from workbench.evaluation.columns import read_inputs
from workbench.evaluation.matching import match_predictions

GRID = 32  # side of the mean masks
OVERLAPS = ("same query", "other query, same category", "other query, other category")


@dataclass(frozen=True)
class QueryOutputs:
    """What each of Q queries did in each of N images, whatever was reported of it.

    object_probability: (N, Q) float32, 1 - p(no-object). claims: (N, Q) bool, whether its likeliest class is
    an object's. label: (N, Q) int64, its likeliest main category. area: (N, Q) float32, the share of the
    image its mask covers. mean_masks: (Q, GRID, GRID) float32, its mask probability over the image, averaged
    over the images where it claims an object; NaN for a query that never does.
    """

    image_ids: tuple
    object_probability: np.ndarray
    claims: np.ndarray
    label: np.ndarray
    area: np.ndarray
    mean_masks: np.ndarray

    def claims_per_image(self) -> pd.Series:
        """How many queries claim an object in each image, by image id."""
        return pd.Series(self.claims.sum(axis=1), index=pd.Index(self.image_ids, name="image_id"), name="claims")

    def table(self) -> pd.DataFrame:
        """One row a query: the share of images in which it claims an object (percent), its mean object
        probability, its likeliest main category among the claims (-1 without) and mean area (percent)."""
        claimed = self.claims.sum(axis=0)
        with np.errstate(invalid="ignore"):
            area = 100 * (self.area * self.claims).sum(axis=0) / claimed
        return pd.DataFrame(
            {
                "claims": 100 * self.claims.mean(axis=0),
                "object probability": self.object_probability.mean(axis=0),
                "main category": [
                    np.bincount(self.label[self.claims[:, q], q]).argmax() if claimed[q] else -1
                    for q in range(self.claims.shape[1])
                ],
                "area": area,
            },
            index=pd.RangeIndex(self.claims.shape[1], name="query"),
        )


def collect_queries(model: nn.Module, loader: Iterable[list[dict]], *, progress: bool = True) -> QueryOutputs:
    """Run a model over ``loader`` (batches of batched inputs) and note what every query does.

    ``model`` is a Mask2Former of this package: its raw outputs are read where its transformer decoder puts
    them out. WorkbenchError where there is no image, or where the model has no such decoder.
    """
    if not hasattr(model, "transformer_decoder"):
        raise WorkbenchError(
            f"{type(model).__name__} has no queries to look at: the analysis of queries needs a Mask2Former"
        )
    raw: dict[str, Tensor] = {}

    def keep(module: nn.Module, inputs: tuple, outputs: Mapping[str, Tensor]) -> None:
        raw.update({name: outputs[name].detach().float() for name in ("pred_logits", "pred_masks")})

    notes: dict[str, list[np.ndarray]] = {name: [] for name in ("object", "claims", "label", "area")}
    ids: list = []
    total: Tensor | float = 0.0
    handle = model.transformer_decoder.register_forward_hook(keep)
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for batch in follow(loader, "queries", "batch", shown=progress):
                model(batch)
                probabilities = raw["pred_logits"].softmax(-1)
                claims = probabilities.argmax(-1) < probabilities.shape[-1] - 1
                masks = _over_the_images(raw["pred_masks"].sigmoid(), batch, model.size_divisibility)
                total = total + (masks * claims[..., None, None]).sum(0)
                ids += [item["image_id"] for item in batch]
                notes["object"].append((1 - probabilities[..., -1]).cpu().numpy())
                notes["claims"].append(claims.cpu().numpy())
                notes["label"].append(probabilities[..., :-1].argmax(-1).cpu().numpy())
                notes["area"].append((masks > 0.5).float().mean((-2, -1)).cpu().numpy())
    finally:
        handle.remove()
        model.train(was_training)
    if not ids:
        raise WorkbenchError("There is no image to look at queries in.")
    columns = {name: np.concatenate(parts) for name, parts in notes.items()}
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = total.cpu().numpy() / columns["claims"].sum(axis=0)[:, None, None]
    return QueryOutputs(
        tuple(ids),
        columns["object"],
        columns["claims"],
        columns["label"],
        columns["area"],
        np.where(np.isfinite(mean), mean, np.nan),
    )


def _over_the_images(masks: Tensor, batch: Sequence[Mapping], divisibility: int) -> Tensor:
    """(B, Q, h, w) over the padded batch -> (B, Q, GRID, GRID) over each image."""
    sizes = [tuple(item["image"].shape[-2:]) for item in batch]
    padded = [-(-max(size[axis] for size in sizes) // divisibility) * divisibility for axis in (0, 1)]
    parts = []
    for mask, size in zip(masks, sizes, strict=True):
        h, w = (max(1, round(mask.shape[axis + 1] * size[axis] / padded[axis])) for axis in (0, 1))
        parts.append(F.interpolate(mask[None, :, :h, :w], (GRID, GRID), mode="bilinear", antialias=True)[0])
    return torch.stack(parts)


def objects_per_image(truth: Mapping) -> pd.Series:
    """The number of objects, crowd regions aside, of each image of a COCO dict, by image id."""
    counts = {image["id"]: 0 for image in truth["images"]}
    for annotation in truth["annotations"]:
        if not annotation.get("iscrowd", 0):
            counts[annotation["image_id"]] += 1
    return pd.Series(counts, name="objects", dtype=int).rename_axis("image_id")


def detection_limits(
    truth: Mapping, results: Sequence[Mapping], limits: Sequence[int], *, scorer: str = "hotcoco"
) -> pd.DataFrame:
    """AP and AR of masks in percent when the best k predictions of a category count in each image, for each k
    of ``limits``; NaN without ground truth."""
    scores = coco_scores(truth, results, max_dets=limits, scorer=scorer)
    rows = {k: {"AP": scores[f"AP@{k}"], "AR": scores[f"AR@{k}"]} for k in sorted(set(limits))}
    return pd.DataFrame.from_dict(rows, orient="index", dtype=float).rename_axis("maxDets")


def right_and_wrong(truth: Mapping, results: Sequence[Mapping], *, iou: float = 0.5) -> pd.DataFrame:
    """One row a prediction: score, and "outcome": "right" (found an object of its category, as in COCO),
    "duplicate" (lies on one, of its category, that a better prediction found), "wrong" or "crowd"."""
    data = read_inputs(truth, results)
    matches = match_predictions(data, iou=iou)
    outcome = np.where(matches.object_of >= 0, "right", np.where(matches.ignored, "crowd", "wrong")).astype(object)
    d, g, ious = data.pairs()
    same = data.predictions.category[d] == data.objects.category[g]
    on_object = np.zeros(len(outcome), dtype=bool)
    on_object[d[(ious >= iou) & same & ~data.objects.crowd[g]]] = True
    outcome[on_object & (outcome == "wrong")] = "duplicate"
    return pd.DataFrame({"score": data.predictions.scores, "outcome": outcome})


def find_overlaps(results: Sequence[Mapping], *, iou: float = 0.7, score_threshold: float = 0.0) -> pd.DataFrame:
    """Find predictions whose mask has an IoU above ``iou`` with a better one of the same image, whatever lies there.

    Returns:
        One row a prediction scoring at least ``score_threshold``, best first within its image: image_id, score,
        query, category_id, and "overlaps": "" (no better one), or of ``OVERLAPS`` what the best one it overlaps has:
        the same query (reported under several main categories), or another query and the same or another category.
    """
    groups: dict = {}
    for row in results:
        if row["score"] >= score_threshold:
            groups.setdefault(row["image_id"], []).append(row)
    rows = []
    for image_id, members in groups.items():
        members = sorted(members, key=lambda row: -row["score"])
        rles = [row["segmentation"] for row in members]
        ious = np.asarray(coco_mask.iou(rles, rles, [0] * len(rles)))
        overlaps = np.triu(ious > iou, k=1)
        for i, row in enumerate(members):
            better = np.flatnonzero(overlaps[:, i])
            kind = _kind_of_overlap(row, members[better[0]]) if len(better) else ""
            rows.append((image_id, row["score"], row.get("query", -1), row["category_id"], kind))
    return pd.DataFrame(rows, columns=["image_id", "score", "query", "category_id", "overlaps"])


def _kind_of_overlap(row: Mapping, better: Mapping) -> str:
    if "query" in row and row["query"] == better.get("query"):
        return OVERLAPS[0]
    return OVERLAPS[1 if row["category_id"] == better["category_id"] else 2]


def overlap_counts(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Count the overlaps of each kind; ``tables``: {label: what :func:`find_overlaps` returned}."""
    rows = {}
    for label, table in tables.items():
        kinds = table.overlaps.value_counts()
        rows[label] = {
            "predictions": len(table),
            **{kind: int(kinds.get(kind, 0)) for kind in OVERLAPS},
            "overlapping in percent": 100 * float((table.overlaps != "").mean()) if len(table) else float("nan"),
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("of")
