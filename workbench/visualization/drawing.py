"""Pictures of instances: masks, contours and captions on an image, panels beside each other.

Small images are enlarged first, so that a caption on a 128-pixel image can be read. The colours are those of
Okabe and Ito (2008), which people with any common colour blindness can tell apart; contours and captions say
the same again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from workbench.data.masks import decode_mask, mask_cover
from workbench.data.vocabulary import Vocabulary, class_name
from workbench.evaluation.predict import to_coco_results
from workbench.visualization.captions import BLACK, WHITE, Colour, place_plates, plate
from workbench.visualization.painting import Piece, blit, cut_out, lead, paint

PALETTE: tuple[Colour, ...] = (
    (230, 159, 0),  # orange
    (86, 180, 233),  # sky blue
    (0, 158, 115),  # bluish green
    (240, 228, 66),  # yellow
    (0, 114, 178),  # blue
    (213, 94, 0),  # vermilion
    (204, 121, 167),  # reddish purple
)
GREY: Colour = (150, 150, 150)  # crowd regions
LEAST_SIDE = 512  # images whose longer side is shorter are enlarged by a whole factor to about this
SHOWN_WIDTH = 1100  # pixels across at which notebooks and reports show a wide picture
_READABLE = 11  # pixels of a font there


@dataclass(frozen=True)
class Drawable:
    """One object to draw: mask (H, W) bool; label, the number of its main category; attributes {subcategory:
    class}, with only those known; score, None for ground truth; crowd region or not.
    """

    mask: np.ndarray
    label: int
    attributes: dict[str, str]
    score: float | None = None
    crowd: bool = False

    def caption(self, vocabulary: Vocabulary) -> str:
        """Main category and score in one line, subcategory classes in a second."""
        name = "crowd" if self.crowd else vocabulary.categories[self.label]
        head = name if self.score is None else f"{name} {self.score:.2f}"
        return "\n".join(filter(None, (head, " · ".join(self.attributes.values()))))


def draw_masks(
    image: np.ndarray | torch.Tensor,
    masks: Sequence[np.ndarray] | np.ndarray | torch.Tensor,
    *,
    captions: Sequence[str] | None = None,
    colours: Sequence[Colour] | None = None,
    boxes: bool = False,
    opacity: float = 0.15,
    scale: int | None = None,
    font_size: int | None = None,
) -> np.ndarray:
    """Draw N masks on an image, smaller ones over larger ones.

    Args:
        image: (H, W, 3) or (H, W) array, or (3, H, W) tensor; uint8, or float in 0..255.
        masks: N of (H, W) bool.
        captions: N texts; the first ones get the best places. Where a picture is too full for all, the rest is left
            out and a note in the corner says how many.
        colours: N RGB colours; by default the palette in turn.
        boxes: also draw the box of each mask.
        scale: whole factor by which image and masks are enlarged; by default small images are.

    Returns:
        (H x scale, W x scale, 3) uint8.
    """
    picture = as_image(image)
    scale = scale or _enlargement(*picture.shape[:2])
    height, width = (side * scale for side in picture.shape[:2])
    canvas = np.array(Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC))
    colours = list(colours or (PALETTE[i % len(PALETTE)] for i in range(len(masks))))
    pieces = [cut_out(mask, scale) for mask in masks]
    there = [i for i, piece in enumerate(pieces) if piece is not None]
    line = max(2, round(max(height, width) / 200))
    order = sorted(there, key=lambda i: -int(np.count_nonzero(pieces[i].mask)))
    painted = [pieces[i] for i in order], [colours[i] for i in order]
    canvas = paint(canvas, *painted, opacity=opacity, line=line, boxes=boxes)
    if captions is not None:
        shown = [i for i in there if captions[i]]
        size = font_size or max(12, round(max(height, width) / 44))
        plates = [plate(captions[i], size, colours[i], width) for i in shown]
        _caption(canvas, [pieces[i] for i in there], [pieces[i] for i in shown], plates, size)
    return canvas


def _enlargement(height: int, width: int) -> int:
    return max(1, math.ceil(LEAST_SIDE / max(height, width)))


def sheet_font(sizes: Sequence[tuple[int, int]], across: int) -> int:
    """Return the font size with which captions on a sheet of pictures can be read where a notebook shows the sheet.

    sizes: (height, width) of the images, before they are drawn. across: how many stand beside each other.
    """
    widest = max((width * _enlargement(height, width) for height, width in sizes), default=0)
    return max(12, round(_READABLE * widest * across / SHOWN_WIDTH))


def _caption(
    canvas: np.ndarray, objects: Sequence[Piece], captioned: Sequence[Piece], plates: Sequence[np.ndarray], size: int
) -> None:
    """Put a plate beside each captioned object, and a note in the corner where some have no place."""
    height, width = canvas.shape[:2]
    covered = np.zeros((height, width), dtype=bool)
    for mask, x, y in objects:
        covered[y : y + mask.shape[0], x : x + mask.shape[1]] |= mask
    boxes = np.array([[x, y, x + mask.shape[1], y + mask.shape[0]] for mask, x, y in captioned]).reshape(-1, 4)
    sizes = [p.shape[:2] for p in plates]
    spots = place_plates(sizes, boxes, covered)
    if None in spots:
        note = plate(f"{len(spots)} captions left out", size, BLACK, width)  # at its longest
        corner = (width - note.shape[1], height - note.shape[0], width, height)
        spots = place_plates(sizes, boxes, covered, [corner])
        note = plate(f"{spots.count(None)} captions left out", size, BLACK, width)
        blit(canvas, note, width - note.shape[1], height - note.shape[0])
    placed = [(spot, *rest) for spot, *rest in zip(spots, plates, captioned, strict=True) if spot]
    for spot, label, piece in placed:
        lead(canvas, spot, label, piece)
    for spot, label, _ in placed:
        blit(canvas, label, *spot)


def as_image(image: np.ndarray | torch.Tensor) -> np.ndarray:
    """Return a copy, (H, W, 3) uint8, of a (3, H, W) tensor or (H, W, 3) or (H, W) array, uint8 or float in 0..255."""
    if isinstance(image, torch.Tensor):
        image = image.detach().cpu().numpy().transpose(1, 2, 0)
    image = np.asarray(image)
    if image.ndim == 2:
        image = image[:, :, None].repeat(3, axis=2)
    if image.dtype != np.uint8:
        image = image.round().clip(0, 255)
    return np.array(image[:, :, :3], dtype=np.uint8)


def drawables_of_predictions(
    predictions: Sequence[Mapping] | Mapping,
    vocabulary: Vocabulary,
    score_threshold: float = 0.5,
    reduction: int = 1,
) -> list[Drawable]:
    """Return what to draw of one image's predictions, rows of COCO results or the model's own, best first.

    Subcategories for which no-object is the likeliest are left out. ``reduction`` is the image's, see
    :func:`workbench.data.images.read_reduced`.
    """
    if isinstance(predictions, Mapping):
        predictions = to_coco_results(predictions, 0, vocabulary)
    label_of = {key: k for k, key in enumerate(vocabulary.category_ids)}
    rows = sorted((r for r in predictions if r["score"] >= score_threshold), key=lambda r: -r["score"])
    distinct = {str(row["segmentation"]["counts"]): row["segmentation"] for row in rows}  # rows of a query share one
    masks = {counts: _mask(rle, *rle["size"], reduction) for counts, rle in distinct.items()}
    return [
        Drawable(
            masks[str(row["segmentation"]["counts"])],
            label_of[row["category_id"]],
            _known(row.get("attributes"), vocabulary),
            float(row["score"]),
        )
        for row in rows
    ]


def _mask(segmentation: list | dict, height: int, width: int, reduction: int) -> np.ndarray:
    if reduction == 1:
        return decode_mask(segmentation, height, width)
    return mask_cover(segmentation, height, width, reduction) >= 128


def drawables_of_annotations(
    annotations: Sequence[Mapping], vocabulary: Vocabulary, height: int, width: int, reduction: int = 1
) -> list[Drawable]:
    """Return what to draw of one image's ground truth: annotations of a COCO file or of a dataset dict.

    ``height`` and ``width`` are those of the file, ``reduction`` is that at which its image was read.
    """
    label_of = {key: k for k, key in enumerate(vocabulary.category_ids)}
    drawables = []
    for annotation in annotations:
        if "subcategories" in annotation:  # a dataset dict's: numbers instead of names
            label = annotation["category_id"]
            attributes = _named(annotation["subcategories"], vocabulary)
        else:
            label = label_of[annotation["category_id"]]
            attributes = _known(annotation.get("attributes"), vocabulary)
        mask = _mask(annotation["segmentation"], height, width, reduction)
        drawables.append(Drawable(mask, label, attributes, crowd=bool(annotation.get("iscrowd", 0))))
    return drawables


def drawables_of_targets(targets: Mapping, vocabulary: Vocabulary) -> list[Drawable]:
    """Return what to draw of the targets of a batched input: what the model is trained on, after the mapper."""
    classes = {name: values.tolist() for name, values in targets["subcategories"].items()}
    return [
        Drawable(mask.cpu().numpy(), label, _named({name: classes[name][i] for name in classes}, vocabulary))
        for i, (mask, label) in enumerate(zip(targets["masks"], targets["labels"].tolist(), strict=True))
    ]


def _known(attributes: Mapping | None, vocabulary: Vocabulary) -> dict[str, str]:
    values = {name: class_name((attributes or {}).get(name)) for name in vocabulary.subcategories}
    return {name: value for name, value in values.items() if value is not None}


def _named(numbers: Mapping[str, int], vocabulary: Vocabulary) -> dict[str, str]:
    return {name: vocabulary.subcategories[name][k] for name, k in numbers.items() if k >= 0}


def draw_instances(
    image: np.ndarray | torch.Tensor,
    instances: Sequence[Drawable] | Sequence[Mapping] | Mapping,
    vocabulary: Vocabulary,
    **how: object,
) -> np.ndarray:
    """Draw one image's instances, all of them: drawables, rows of COCO results or the model's predictions.

    Colours are by main category, so that panels of one image compare; keyword arguments are those of ``draw_masks``.
    """
    if isinstance(instances, Mapping) or not all(isinstance(each, Drawable) for each in instances):
        instances = drawables_of_predictions(instances, vocabulary, score_threshold=0.0)
    return draw_masks(
        image,
        [each.mask for each in instances],
        captions=[each.caption(vocabulary) for each in instances],
        colours=[GREY if each.crowd else PALETTE[each.label % len(PALETTE)] for each in instances],
        **how,
    )


def titled(panel: np.ndarray, title: str, font_size: int | None = None) -> np.ndarray:
    """Return the panel with a line of text above it."""
    width = panel.shape[1]
    text = plate(title, font_size or max(11, round(width / 40)), WHITE, width)
    strip = np.full((text.shape[0] + 4, width, 3), 255, dtype=np.uint8)
    strip[2 : 2 + text.shape[0], : text.shape[1]] = text
    return np.concatenate([strip, panel])


def contact_sheet(
    panels: Sequence[np.ndarray], *, columns: int = 4, titles: Sequence[str] | None = None, gap: int = 8
) -> np.ndarray:
    """Return panels (h, w, 3) uint8 of any sizes in rows of ``columns`` on white, aligned at the bottom of their row.

    Each column is as wide as its widest panel.
    """
    if titles is not None:
        panels = [titled(panel, title) for panel, title in zip(panels, titles, strict=True)]
    if not panels:
        return np.full((gap, gap, 3), 255, dtype=np.uint8)
    columns = max(1, min(columns, len(panels)))
    rows = [panels[i : i + columns] for i in range(0, len(panels), columns)]
    widths = [max(panel.shape[1] for panel in panels[i::columns]) for i in range(columns)]
    heights = [max(panel.shape[0] for panel in row) for row in rows]
    sheet = np.full((sum(heights) + gap * (len(rows) - 1), sum(widths) + gap * (columns - 1), 3), 255, np.uint8)
    y = 0
    for row, height in zip(rows, heights, strict=True):
        x = 0
        for panel, width in zip(row, widths, strict=False):
            top = y + height - panel.shape[0]
            sheet[top : top + panel.shape[0], x : x + panel.shape[1]] = panel
            x += width + gap
        y += height + gap
    return sheet
