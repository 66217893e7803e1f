"""From raw outputs to instances, semantic maps and panoptic segments at the size of the original image."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

RANK_BY = ("main", "sum", "geometric_mean")
_CHUNK_PIXELS = 1 << 23  # of maps or masks held at once
_STRIP_PIXELS = 1 << 21  # of a map enlarged at once: 8 MB, which malloc hands out again without a system call


def rank_scores(main: Tensor, subcategories: Sequence[Tensor], rank_by: str = "main") -> Tensor:
    """Return the score that rows are ordered by, before it is multiplied by the mask's quality.

    Args:
        main: (...,) probability of the main category.
        subcategories: one (..., K_s+1) a subcategory: its probabilities, no-object last. The best class that is not
            no-object counts.
        rank_by: "main"; "sum": the mean of the main and the subcategory scores, which orders as their sum does and
            stays in [0, 1]; "geometric_mean": the n-th root of their product.

    Returns:
        (...,) in [0, 1].
    """
    if rank_by not in RANK_BY:
        raise ValueError(f"rank_by is {rank_by!r}; it must be one of {', '.join(RANK_BY)}")
    if rank_by == "main" or not subcategories:
        return main
    scores = torch.stack([main, *(p[..., :-1].amax(-1).expand_as(main) for p in subcategories)])
    return scores.mean(0) if rank_by == "sum" else scores.log().mean(0).exp()


def select_rows(
    logits: Tensor,
    subcategories: Mapping[str, Tensor],
    *,
    top_k: int,
    rank_by: str = "main",
    one_class_per_query: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the ``top_k`` pairs of query and main category with the best score (Mask2Former's instance inference).

    Args:
        logits: (Q, K+1) of one image. subcategories: {name: (Q, K_s+1)} probabilities of the same image.
        one_class_per_query: keep only each query's best category, so that one mask is reported once.

    Returns:
        query (k,) int64, labels (k,) int64, rank score (k,), main score (k,); best first.
    """
    main = logits.softmax(-1)[:, :-1]
    scores = rank_scores(main, [p.unsqueeze(1) for p in subcategories.values()], rank_by)
    if one_class_per_query:
        labels = main.argmax(-1)
        queries = torch.arange(len(main), device=main.device)
    else:
        queries, labels = torch.meshgrid(*(torch.arange(n, device=main.device) for n in main.shape), indexing="ij")
        queries, labels = queries.flatten(), labels.flatten()
    candidates = scores[queries, labels]
    best = candidates.topk(min(top_k, len(candidates))).indices
    queries, labels = queries[best], labels[best]
    return queries, labels, candidates[best], main[queries, labels]


def instance_inference(
    logits: Tensor,
    mask_logits: Tensor,
    subcategory_logits: Mapping[str, Tensor],
    *,
    padded_size: tuple[int, int],
    image_size: tuple[int, int],
    output_size: tuple[int, int],
    top_k: int = 100,
    rank_by: str = "main",
    one_class_per_query: bool = False,
    stuff: Collection[int] = (),
    encode_masks: Callable[[Tensor], Sequence[Any]] | None = None,
) -> dict[str, Any]:
    """Return the predictions of one image.

    Rows are chosen before masks are enlarged, and a query's mask is enlarged once however many rows it gives, and only
    where it is above 0. With ``encode_masks`` memory depends on the size of a few masks alone, without it there are
    the rows' bool masks.

    Args:
        logits: (Q, K+1). mask_logits: (Q, h, w). subcategory_logits: {name: (Q, K_s+1)}: this image's raw outputs.
        padded_size: (height, width) that ``mask_logits`` cover. image_size: the part of it that is image.
        output_size: the original image's size.
        stuff: labels whose rows are left out of the ``top_k``.
        encode_masks: (n, H, W) bool -> n encoded masks; called for each chunk.

    Returns:
        ``scores`` (k,) rank score times mask score; ``main_scores`` (k,); ``mask_scores`` (k,) mean probability
        within the mask; ``labels`` (k,) int64; ``masks`` (k, H, W) bool, or with ``encode_masks`` a list of k encoded
        masks, where rows of one query share one; ``boxes`` (k, 4) XYXY in pixels; ``query`` (k,) int64;
        ``subcategories`` {name: probabilities (k, K_s+1)}; ``subcategory_logits`` the same in logits;
        ``no_object_fraction`` float: the share of queries whose likeliest class is no-object.
    """
    logits = logits.float()
    subcategory_logits = {name: head.float() for name, head in subcategory_logits.items()}
    probabilities = {name: head.softmax(-1) for name, head in subcategory_logits.items()}
    query, labels, rank, main = select_rows(
        logits, probabilities, top_k=top_k, rank_by=rank_by, one_class_per_query=one_class_per_query
    )
    if stuff:
        things = torch.isin(labels, torch.tensor(sorted(stuff), device=labels.device), invert=True)
        query, labels, rank, main = (field[things] for field in (query, labels, rank, main))
    distinct, row = query.unique(return_inverse=True)
    pieces = []
    for maps in mask_logits[distinct].detach().split(maps_at_once(output_size)):
        masks = maps.new_zeros((len(maps), *output_size), dtype=torch.bool)
        inside, total = (maps.new_zeros(len(maps), dtype=torch.float32) for _ in range(2))
        for index, place, strip in enlarged_strips(maps.float(), padded_size, image_size, output_size):
            mask = strip > 0
            masks[index][place] = mask
            inside[index] += mask.sum(dtype=torch.float32)  # a sum of bool as int64 takes ten times as long
            total[index] += F.threshold_(strip, 0.0, -torch.inf).sigmoid_().sum()
        quality = total / (inside + 1e-6)
        pieces.append((masks if encode_masks is None else encode_masks(masks), quality, boxes_of_masks(masks)))
    masks, quality, boxes = zip(*pieces, strict=True)
    quality, boxes = torch.cat(quality), torch.cat(boxes)
    return {
        "scores": rank * quality[row],
        "main_scores": main,
        "mask_scores": quality[row],
        "labels": labels,
        "masks": masks_of_rows(masks, row),
        "boxes": boxes[row],
        "query": query,
        "subcategories": {name: p[query] for name, p in probabilities.items()},
        "subcategory_logits": {name: head[query] for name, head in subcategory_logits.items()},
        "no_object_fraction": (logits.argmax(-1) == logits.shape[1] - 1).float().mean().item(),
    }


def semantic_inference(
    logits: Tensor, mask_logits: Tensor, *, enlarge_masks: bool = True, **sizes: tuple[int, int]
) -> Tensor:
    """Return the score of each main category at each pixel of one image (Mask2Former's semantic inference).

    Args:
        logits: (Q, K+1). mask_logits: (Q, h, w). sizes: those of :func:`instance_inference`.
        enlarge_masks: enlarge the masks to ``output_size``; False enlarges the scores instead, which takes less memory.

    Returns:
        (K, H, W) float32: the sum over queries of the category's probability times that of the mask.
    """
    classes = logits.float().softmax(-1)[:, :-1]
    output_size = tuple(sizes["output_size"])
    sizes |= {} if enlarge_masks else {"output_size": sizes["image_size"]}
    scores = torch.zeros(classes.shape[1], *sizes["output_size"], device=logits.device)
    done = 0
    for enlarged in enlarge_in_chunks(mask_logits.float(), **sizes):
        weights = classes[done : done + len(enlarged)]
        scores += torch.einsum("qk,qhw->khw", weights, enlarged.sigmoid_())
        done += len(enlarged)
    if scores.shape[1:] == output_size:
        return scores
    return F.interpolate(scores.unsqueeze(0), output_size, mode="bilinear").squeeze(0)


def panoptic_inference(
    logits: Tensor,
    mask_logits: Tensor,
    *,
    stuff: Collection[int] = (),
    object_mask_threshold: float = 0.8,
    overlap_threshold: float = 0.8,
    **sizes: tuple[int, int],
) -> tuple[Tensor, list[dict[str, Any]]]:
    """Return the segments of one image, which do not overlap (Mask2Former's panoptic inference).

    A query is kept where its likeliest class is a category of a probability above ``object_mask_threshold``. A pixel
    goes to the query with the largest product of that probability and the mask's, and belongs to its segment where the
    mask's is one half or more. A query that wins fewer pixels than ``overlap_threshold`` times its mask's is left out.

    Args:
        logits: (Q, K+1). mask_logits: (Q, h, w). sizes: those of :func:`instance_inference`.
        stuff: categories whose segments are one.

    Returns:
        (H, W) int32, 0 where there is nothing, and for each segment its ``id`` there, ``category`` label, ``is_thing``,
        ``score`` and ``query``, those of its first query.
    """
    scores, labels = logits.float().softmax(-1).max(-1)
    kept = (labels < logits.shape[1] - 1) & (scores > object_mask_threshold)
    queries = kept.nonzero().squeeze(1)
    segments = torch.zeros(sizes["output_size"], dtype=torch.int32, device=logits.device)
    infos: list[dict[str, Any]] = []
    if not len(queries):
        return segments, infos
    probabilities = torch.cat(list(enlarge_in_chunks(mask_logits[queries].float(), **sizes))).sigmoid_()
    winners = (probabilities * scores[queries, None, None]).argmax(0)
    ids: dict[int, int] = {}  # of stuff
    for index, query in enumerate(queries.tolist()):
        won, whole = winners == index, probabilities[index] >= 0.5
        mask, area = won & whole, int(whole.sum())
        if not mask.any() or int(won.sum()) / area < overlap_threshold:
            continue
        label = int(labels[query])
        if label in ids:
            segments[mask] = ids[label]
            continue
        number = len(infos) + 1
        if label in stuff:
            ids[label] = number
        segments[mask] = number
        is_thing, score = label not in stuff, float(scores[query])
        infos.append({"id": number, "category": label, "is_thing": is_thing, "score": score, "query": query})
    return segments, infos


def enlarge_in_chunks(
    maps: Tensor, padded_size: tuple[int, int], image_size: tuple[int, int], output_size: tuple[int, int]
) -> Iterator[Tensor]:
    """Yield (n, h, w) maps as new tensors (..., *output_size), no more at a time than memory should hold.

    Sizes are those of :func:`instance_inference`.
    """
    for chunk in maps.split(min(maps_at_once(padded_size), maps_at_once(output_size))):
        # Masks are a batch of one channel: torch enlarges three channels with another kernel, whose last bits differ.
        enlarged = F.interpolate(chunk.unsqueeze(1), padded_size, mode="bilinear")
        enlarged = enlarged[..., : image_size[0], : image_size[1]]
        if tuple(output_size) != tuple(image_size):
            enlarged = F.interpolate(enlarged, tuple(output_size), mode="bilinear")
        yield enlarged.squeeze(1)


def enlarged_strips(
    maps: Tensor,
    padded_size: tuple[int, int],
    image_size: tuple[int, int],
    output_size: tuple[int, int],
    above: float = 0.0,
) -> Iterator[tuple[int, tuple[slice, slice], Tensor]]:
    """Yield (n, h, w) maps, enlarged as by :func:`enlarge_in_chunks`, only where they exceed ``above``.

    Between two pixels a bilinear map has no maximum. So what exceeds ``above`` lies in the rectangle around the pixels
    that did before the last enlargement, most often a small part of a photo, and only that is enlarged.

    Args:
        maps: (n, h, w). The sizes are those of :func:`instance_inference`.

    Yields:
        the number of the map, a place (rows, columns) in the output and a new tensor of that size. The strips of a map
        cover all that exceeds ``above``; a map that nowhere does has none.
    """
    taps = [_taps(source, target) for source, target in zip(image_size, output_size, strict=True)]
    vertical, horizontal = ([part.to(maps.device) for part in each] for each in taps)
    first = 0
    for chunk in maps.split(maps_at_once(padded_size)):
        # Masks are a batch of one channel: torch enlarges three channels with another kernel, whose last bits differ.
        inner = F.interpolate(chunk.unsqueeze(1), padded_size, mode="bilinear")[:, 0, : image_size[0], : image_size[1]]
        for index, (left, top, right, bottom) in enumerate(boxes_of_masks(inner > above).int().tolist()):
            if bottom <= top:
                continue
            if tuple(output_size) == tuple(image_size):
                place = slice(top, bottom), slice(left, right)
                yield first + index, place, inner[index][place].clone()
                continue
            # Outputs of which one of the two source pixels lies in the rectangle.
            top, left = (int(torch.searchsorted(t[1], edge)) for t, edge in zip(taps, (top, left), strict=True))
            bottom, right = (int(torch.searchsorted(t[0], edge)) for t, edge in zip(taps, (bottom, right), strict=True))
            if bottom <= top or right <= left:  # between the pixels of a smaller output
                continue
            columns = slice(left, right)
            across = _blend(inner[index].t(), *(part[columns] for part in horizontal)).t()
            height = max(1, _STRIP_PIXELS // (right - left))
            for start in range(top, bottom, height):
                rows = slice(start, min(start + height, bottom))
                yield first + index, (rows, columns), _blend(across, *(part[rows] for part in vertical))
        first += len(chunk)


def maps_at_once(size: tuple[int, int]) -> int:
    """Return how many maps or masks of a (height, width) are held at once."""
    return max(1, _CHUNK_PIXELS // (size[0] * size[1]))


def _taps(source: int, target: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return where each of ``target`` pixels lies among ``source`` ones: (target,) int64 the pixel before it, the
    pixel after it, and float32 the weight of the latter; as ``torch.nn.functional.interpolate`` has it."""
    place = (torch.arange(target, dtype=torch.float32) + 0.5) * (torch.tensor(float(source)) / target) - 0.5
    place = place.clamp(min=0)
    lower = place.long().clamp(max=source - 1)
    return lower, (lower + 1).clamp(max=source - 1), place - lower


def _blend(rows: Tensor, lower: Tensor, upper: Tensor, weights: Tensor) -> Tensor:
    """(h, w) -> (t, w): rows ``lower`` and ``upper``, (t,) int64, the latter weighted by ``weights`` (t,)."""
    blended = rows.index_select(0, lower).mul_(1 - weights[:, None])
    return blended.addcmul_(rows.index_select(0, upper), weights[:, None])


def masks_of_rows(chunks: Sequence[Tensor | Sequence[Any]], rows: Tensor) -> Tensor | list[Any]:
    """Return the mask of each row: of chunks of masks, or of encoded masks, those numbered ``rows`` (k,) int64."""
    if isinstance(chunks[0], Tensor):
        return torch.cat(chunks)[rows]
    encoded = [mask for chunk in chunks for mask in chunk]
    return [encoded[i] for i in rows.tolist()]


@dataclass(frozen=True)
class Kinds:
    """What is inferred for an image.

    Attributes:
        instances: rows; without them there are none, and every field has length 0.
        semantic, panoptic: whether :func:`semantic_inference` and :func:`panoptic_inference` run.
        stuff: labels of no objects: they give no rows of instances, and one panoptic segment each.
        object_mask_threshold, overlap_threshold: of :func:`panoptic_inference`.
        enlarge_masks: of :func:`semantic_inference`.
    """

    instances: bool = True
    semantic: bool = False
    panoptic: bool = False
    stuff: frozenset[int] = frozenset()
    object_mask_threshold: float = 0.8
    overlap_threshold: float = 0.8
    enlarge_masks: bool = True


INSTANCES = Kinds()


def batch_inference(
    outputs: Mapping[str, Any],
    batched_inputs: Sequence[Mapping[str, Any]],
    image_sizes: Sequence[tuple[int, int]],
    *,
    padded_size: tuple[int, int],
    kinds: Kinds = INSTANCES,
    top_k: int = 100,
    **settings: Any,
) -> list[dict[str, Any]]:
    """Return the predictions of a batch, one dict an image.

    Args:
        outputs: raw outputs: ``pred_logits`` (B, Q, K+1), ``pred_masks`` (B, Q, h, w) logits, ``pred_subcategories``
            {name: (B, Q, K_s+1)}.
        batched_inputs: ``height`` and ``width`` of the original images (default: ``image_sizes``), ``image_id``.
        image_sizes: (height, width) of each image within the padded batch.
        kinds: what is inferred.
        padded_size, top_k, settings: the other arguments of :func:`instance_inference`.

    Returns:
        for each image what :func:`instance_inference` returns, and its ``image_id`` where the input has one. Where
        ``kinds`` says so also ``semantic``, (H, W) int32, the label with the highest score at each pixel, and
        ``panoptic``, what :func:`panoptic_inference` returns.
    """
    predictions = []
    for index, (inputs, size) in enumerate(zip(batched_inputs, image_sizes, strict=True)):
        logits, masks = outputs["pred_logits"][index], outputs["pred_masks"][index]
        output_size = (inputs.get("height", size[0]), inputs.get("width", size[1]))
        sizes = {"padded_size": padded_size, "image_size": size, "output_size": output_size}
        rows = instance_inference(
            logits,
            masks,
            {name: head[index] for name, head in outputs["pred_subcategories"].items()},
            top_k=top_k if kinds.instances else 0,
            stuff=kinds.stuff,
            **sizes,
            **settings,
        )
        if kinds.semantic:
            scores = semantic_inference(logits, masks, enlarge_masks=kinds.enlarge_masks, **sizes)
            rows["semantic"] = scores.argmax(0).int()
        if kinds.panoptic:
            rows["panoptic"] = panoptic_inference(
                logits,
                masks,
                stuff=kinds.stuff,
                object_mask_threshold=kinds.object_mask_threshold,
                overlap_threshold=kinds.overlap_threshold,
                **sizes,
            )
        predictions.append(rows | {key: inputs[key] for key in ("image_id",) if key in inputs})
    return predictions


def boxes_of_masks(masks: Tensor) -> Tensor:
    """(N, H, W) bool, or uint8 0 or 1 -> (N, 4) float XYXY in pixels, the far edges exclusive; zeros if empty."""
    if masks.numel() == 0:
        return masks.new_zeros(len(masks), 4, dtype=torch.float32)
    edges = []
    values = masks.view(torch.uint8) if masks.dtype == torch.bool else masks
    for occupied in (values.amax(1), values.amax(2)):  # columns, rows; on a CPU any() takes twenty times as long
        first = occupied.argmax(1)
        last = occupied.shape[1] - occupied.flip(1).argmax(1)
        edges.append((first, last))
    (x1, x2), (y1, y2) = edges
    boxes = torch.stack([x1, y1, x2, y2], 1).float()
    return boxes * occupied.any(1, keepdim=True)
