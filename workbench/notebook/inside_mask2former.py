"""A step of Mask2Former, opened: sampling points, queries layer by layer, costs, assignments, and how rows arise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from workbench.evaluation.predict import to_coco_results
from workbench.evaluation.queries import find_overlaps
from workbench.losses.criterion import name_in_layer
from workbench.models.mask2former import Mask2Former
from workbench.notebook.inside import Step, opens
from workbench.visualization import step_charts
from workbench.visualization.charts import heat_table, sentence
from workbench.visualization.features import feature_maps

_MOST_QUERIES = 6  # drawn layer by layer
_MOST_ROWS = 14  # of tables of queries
_MOST_OBJECTS = 8  # in tables


@opens(Mask2Former)
def stage_maps(step: Step, image: int = 0) -> Figure:
    """Draw the maps of the backbone and of the pixel decoder for one image, coarse to fine."""
    embeddings, maps = step.call("pixel_decoder").outputs
    names = step.model.pixel_decoder.encoder_features
    shown = dict(step.call("backbone").outputs)
    shown |= {f"encoder {name}": each for name, each in zip(names, maps, strict=True)}
    shown["embeddings"] = embeddings
    return feature_maps({name: each[image : image + 1] for name, each in shown.items()}, step.picture(image))


@opens(Mask2Former)
def sampling_points(step: Step, image: int = 0) -> Figure:
    """Draw where the deformable attention of each encoder layer reads for one pixel of the finest map: that at the
    centre of the largest object, or of an image without objects."""
    decoder = step.model.pixel_decoder
    picture, masks = step.picture(image), step.masks(image)
    height, width = picture.shape[:2]
    x, y = width / 2, height / 2
    if masks.any():
        y, x = (masks[masks.flatten(1).sum(1).argmax()].nonzero().double().mean(0) + 0.5).tolist()
    layers = []
    for number, _ in enumerate(decoder.layers):
        query, reference, _, shapes = step.call(f"pixel_decoder.layers.{number}.self_attn").inputs
        first = sum(h * w for h, w in shapes[:-1])
        h, w = shapes[-1]
        place = first + min(h - 1, int(y / height * h)) * w + min(w - 1, int(x / width * w))
        with torch.no_grad():
            locations, weights = decoder.layers[number].self_attn.sampling(query, reference, shapes)
        places = locations[image, place] * locations.new_tensor([width, height])  # (heads, levels, points, 2)
        levels = torch.arange(len(shapes)).view(1, -1, 1).expand(weights.shape[2:])
        # A head's weights sum to 1, and all heads count alike.
        share = weights[image, place] / len(weights[image, place])
        layers.append(
            step_charts.Points(
                places.flatten(0, 2).cpu().numpy() - 0.5,
                share.flatten().cpu().numpy(),
                levels.flatten().numpy(),
                f"encoder layer {number + 1}",
            )
        )
        pixel = (reference[place] * reference.new_tensor([width, height])).tolist()
    names = [f"{name} ({h} x {w})" for name, (h, w) in zip(decoder.encoder_features, shapes, strict=True)]
    return step_charts.sampling_points(picture, (pixel[0] - 0.5, pixel[1] - 0.5), layers, names)


def predictions(step: Step) -> dict[str, Mapping[str, Any]]:
    """Return the raw outputs of each decoder layer by the layer's name; of the last alone without deep supervision."""
    outputs = step.call("criterion").inputs[0]
    earlier = outputs["aux_outputs"]
    last = f"layer {len(step.model.transformer_decoder.layers)}"
    return {("queries" if i == 0 else f"layer {i}"): each for i, each in enumerate(earlier)} | {last: outputs}


def assignments(step: Step, image: int = 0) -> pd.DataFrame:
    """Return the query that each object took, a row an object and a column a decoder layer; NaN for none."""
    matches = step.call("criterion.matcher").outputs
    names = step.objects(image)
    table = pd.DataFrame(np.nan, index=pd.Index(names, name="object"), columns=pd.Index([*predictions(step)]))
    for layer, name in enumerate(table.columns):
        queries, objects = matches[layer][image]
        table.iloc[objects.tolist(), table.columns.get_loc(name)] = queries.numpy()
    return table


@opens(Mask2Former)
def assignment_chart(step: Step, image: int = 0) -> Figure:
    """Draw which query each object took in each layer; where it is another one than in the layer before is shaded."""
    every = assignments(step, image)
    table = every.head(_MOST_OBJECTS)
    if table.empty:
        return sentence("This image has no object, so every query learns that it has none.")
    changed = 100.0 * (table.ne(table.shift(axis=1)) & table.notna())
    changed.iloc[:, 0] = 0
    text = table.map(lambda query: "–" if np.isnan(query) else f"{query:.0f}")
    which = "each object" if len(table) == len(every) else f"the first {len(table)} of {len(every)} objects"
    return heat_table(table, title=f"The query of {which}, by layer (dark: it changed)", shades=changed, text=text)


@opens(Mask2Former)
def query_layers(step: Step, image: int = 0) -> Figure:
    """Draw the masks of queries layer by layer, and the region that the next layer attends to.

    The queries are those that objects took in the last layer; in an image without objects the surest ones.
    """
    picture, layers = step.picture(image), predictions(step)
    size = picture.shape[:2]
    table, truth = assignments(step, image), step.masks(image).numpy()
    taken = table.iloc[:, -1].dropna().astype(int)
    objects = [table.index.get_loc(name) for name in taken.index][:_MOST_QUERIES]
    queries = taken.tolist()[:_MOST_QUERIES]
    if not queries:
        logits = step.call("criterion").inputs[0]["pred_logits"][image]
        queries = (1 - logits.softmax(-1)[:, -1]).argsort(descending=True)[:_MOST_QUERIES].tolist()
    shapes = [each.shape[-2:] for each in step.call("pixel_decoder").outputs[1]]
    masks, regions, titles = [], [], []
    for place, query in enumerate(queries):
        name = f"query {query}: {table.index[objects[place]]}" if objects else f"query {query}"
        masks.append([_enlarged(each["pred_masks"][image, query].sigmoid(), size) for each in layers.values()])
        regions.append([_region(step, number, image, query, shapes, size) for number in _attending(step, layers)])
        shares = [None if region is None else region.mean() for region in regions[-1]]
        titles.append(
            [
                f"{name}\n{layer}" + ("" if share is None else f" → {100 * share:.0f} %")
                for layer, share in zip(layers, shares, strict=True)
            ]
        )
    return step_charts.mask_grid(
        picture, masks, titles, truth=[truth[each] for each in objects] or None, regions=regions
    )


def _attending(step: Step, layers: Mapping[str, Any]) -> list[int | None]:
    """Return for each prediction the number of the decoder layer that attends by it, None for the last one's."""
    return [*range(len(layers) - 1), None]


def _region(
    step: Step, layer: int | None, image: int, query: int, shapes: Sequence[tuple[int, int]], size: tuple[int, int]
) -> np.ndarray | None:
    """Return where a query may attend in a decoder layer, (H, W) bool."""
    if layer is None:
        return None
    allowed = step.call(f"transformer_decoder.layers.{layer}").inputs[4][image, query]
    shape = shapes[layer % len(shapes)]
    return F.interpolate(allowed.view(1, 1, *shape).float(), size, mode="nearest")[0, 0].cpu().numpy() > 0


def _enlarged(values: Tensor, size: tuple[int, int]) -> np.ndarray:
    return F.interpolate(values[None, None].float(), size, mode="bilinear")[0, 0].cpu().numpy()


def costs(step: Step, image: int = 0) -> dict[str, pd.DataFrame]:
    """Return the terms of the last layer's costs and their sum, which is what the step's matching minimised: a row a
    query and a column an object each."""
    outputs, targets, seeds = step.call("criterion").inputs
    generator = None
    if seeds is not None:  # the points of the matching are the first that the step drew from it
        generator = torch.Generator(outputs["pred_logits"].device).manual_seed(seeds[image])
    layers = [*outputs["aux_outputs"], outputs]
    with torch.no_grad():
        terms = step.model.criterion.matcher.cost_terms(layers, image, targets[image], generator)
    terms["cost"] = sum(terms.values())
    columns = pd.Index(step.objects(image), name="object")
    return {
        name: pd.DataFrame(each[-1].cpu().numpy(), columns=columns).rename_axis("query") for name, each in terms.items()
    }


@opens(Mask2Former)
def cost_chart(step: Step, image: int = 0) -> Figure:
    """Draw the costs of the last layer: of the queries that the first objects took, and of the cheapest others."""
    terms = {name: each.iloc[:, :_MOST_OBJECTS] for name, each in costs(step, image).items()}
    total = terms["cost"]
    if not total.shape[1]:
        return sentence("This image has no object, so there is nothing to match.")
    taken = assignments(step, image).iloc[:_MOST_OBJECTS, -1]
    pairs = [(int(query), column) for column, query in enumerate(taken) if not np.isnan(query)]
    others = total.min(axis=1).sort_values().index
    shown = sorted(dict.fromkeys([*(query for query, _ in pairs), *others][: max(_MOST_ROWS, len(pairs))]))
    matched = [(shown.index(query), column) for query, column in pairs]
    titles = {name.removeprefix("subcategory "): each.loc[shown] for name, each in terms.items()}
    return step_charts.cost_tables(titles, matched)


@opens(Mask2Former)
def losses_by_layer(step: Step) -> pd.DataFrame:
    """Return the step's losses, a row a decoder layer and a column a kind of loss, and their sum."""
    losses, layers = step.trace.losses, [*predictions(step)]
    earlier = range(len(layers) - 1)
    kinds = [key for key in losses if all(name_in_layer(key, index) in losses for index in earlier)]
    rows = [[losses[name_in_layer(key, index)] for key in kinds] for index in earlier]
    names = [kind.removeprefix("loss_") for kind in kinds]
    table = pd.DataFrame([*rows, [losses[key] for key in kinds]], index=pd.Index(layers, name="layer"), columns=names)
    return table.assign(sum=table.sum(axis=1))


@opens(Mask2Former)
def row_chart(step: Step, image: int = 0) -> Figure:
    """Draw the class probabilities of the queries that give the best rows, and the rank of the rows."""
    prediction, calls = step.predict(image, "transformer_decoder")
    logits = calls["transformer_decoder"][0].outputs["pred_logits"][0]
    probabilities = pd.DataFrame(100 * logits.softmax(-1).cpu().numpy(), columns=[*step.vocabulary.categories, "none"])
    order = prediction["scores"].argsort(descending=True).tolist()
    places = [(int(prediction["query"][row]), int(prediction["labels"][row])) for row in order]
    shown = sorted(dict.fromkeys(query for query, _ in places[: 2 * _MOST_ROWS]))[:_MOST_ROWS]
    ranks = {place: rank for rank, place in enumerate(places, start=1)}
    text = probabilities.map(lambda share: f"{share:.0f}").astype(object)
    for (query, label), rank in ranks.items():
        if rank <= _MOST_ROWS:
            text.iat[query, label] = f"{probabilities.iat[query, label]:.0f} (row {rank})"
    title = "Class probabilities of each query in percent, and its rows by rank"
    table = probabilities.rename_axis("query").rename_axis("main category", axis=1)
    return heat_table(table.loc[shown], title=title, text=text.loc[shown])


@opens(Mask2Former)
def rows(step: Step, image: int = 0, overlap_iou: float = 0.7) -> pd.DataFrame:
    """Return how the rows of an image came about, best first.

    Columns: "query" and "category" of the pair that the row is; "main" probability of the category, times "mask", the
    mean probability within the mask, is the "score" unless TEST.RANK_BY says otherwise; "object" that the mask overlaps
    most and "IoU" with it; "overlaps", what :func:`~workbench.evaluation.queries.find_overlaps` says of it.
    """
    prediction, _ = step.predict(image, "transformer_decoder")
    found = to_coco_results(prediction, 0, step.vocabulary)
    order = np.argsort([-row["score"] for row in found], kind="stable")
    overlaps = find_overlaps(found, iou=overlap_iou)["overlaps"].tolist()
    masks = step.masks(image)[:, : prediction["masks"].shape[1], : prediction["masks"].shape[2]]
    names = step.objects(image)
    table = []
    for rank, (place, kind) in enumerate(zip(order.tolist(), overlaps, strict=True), start=1):
        overlap = _ious(prediction["masks"][place].cpu(), masks)
        best = int(overlap.argmax()) if len(overlap) and overlap.max() > 0 else None
        table.append(
            {
                "rank": rank,
                "query": int(prediction["query"][place]),
                "category": step.vocabulary.categories[int(prediction["labels"][place])],
                "main": float(prediction["main_scores"][place]),
                "mask": float(prediction["mask_scores"][place]),
                "score": float(prediction["scores"][place]),
                "object": "none" if best is None else names[best],
                "IoU": 0.0 if best is None else float(overlap[best]),
                "overlaps": kind,
            }
        )
    return pd.DataFrame(table).set_index("rank") if table else pd.DataFrame()


def _ious(mask: Tensor, masks: Tensor) -> Tensor:
    """(H, W) and (N, H, W) bool -> (N,)."""
    both = (masks & mask).flatten(1).sum(1)
    return both / (masks | mask).flatten(1).sum(1).clamp(min=1)
