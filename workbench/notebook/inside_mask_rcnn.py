"""A step of Mask R-CNN, opened: anchors, proposals, the regions that are sampled, their features and masks."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor
from torchvision.models.detection.roi_heads import project_masks_on_boxes
from torchvision.models.detection.rpn import concat_box_prediction_layers

from workbench.models.mask_rcnn import MaskRCNN
from workbench.notebook.inside import Step, opens
from workbench.visualization.charts import BLUE, GREEN, INK, ORANGE, QUIET, VERMILION, category_colour, sentence
from workbench.visualization.features import feature_maps
from workbench.visualization.step_charts import Boxes, BoxPanel, box_panels, region_rows

_MOST_BOXES = 60  # drawn in a panel
_MOST_REGIONS = 6  # drawn with their features


@opens(MaskRCNN)
def stage_maps(step: Step, image: int = 0) -> Figure:
    """Draw the maps of the feature pyramid for one image, fine to coarse."""
    maps = step.call("backbone").outputs
    return feature_maps({name: each[image : image + 1] for name, each in maps.items()}, step.picture(image))


def anchor_labels(step: Step, image: int = 0) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the anchors of each level, (A, 4) XYXY, and (A,) float what they are taught: 1 an object, 0 none, -1
    nothing, as they lie between the two IoU thresholds."""
    anchors, targets = step.call("rpn.anchor_generator").outputs, step.call("rpn").inputs[2]
    labels, _ = step.model.rpn.assign_targets_to_anchors(anchors, targets)
    counts = _anchors_by_level(step)
    parts = zip(anchors[image].split(counts), labels[image].split(counts), strict=True)
    return dict(zip(step.model.backbone.strides, parts, strict=True))


def _anchors_by_level(step: Step) -> list[int]:
    objectness, _ = step.call("rpn.head").outputs
    return [each[0].numel() for each in objectness]


def _boxes_of_objects(step: Step, image: int) -> Boxes:
    return Boxes(step.call("rpn").inputs[2][image]["boxes"].cpu().numpy(), INK, 2, "--")


@opens(MaskRCNN)
def anchor_chart(step: Step, image: int = 0) -> Figure:
    """Draw the anchors of each level that are taught an object (green), and those taught nothing (orange); of many
    some, spread over the image."""
    objects = _boxes_of_objects(step, image)
    shown = []
    for name, (anchors, labels) in anchor_labels(step, image).items():
        positive, ignored = anchors[labels == 1].cpu().numpy(), anchors[labels == -1].cpu().numpy()
        negative = int((labels == 0).sum())
        side = (anchors[:, 2:] - anchors[:, :2]).prod(1).sqrt().mean()
        title = f"{name}, {side:.0f} px: {len(positive)} positive,\n{len(ignored)} ignored, {negative} negative"
        layers = (Boxes(_some(ignored), ORANGE, 0.7), Boxes(_some(positive), GREEN), objects)
        shown.append(BoxPanel(title, layers))
    return box_panels(step.picture(image), shown)


def _some(boxes: np.ndarray) -> np.ndarray:
    return boxes[:: max(1, len(boxes) // _MOST_BOXES)]


def proposals(step: Step, image: int = 0) -> tuple[Tensor, Tensor]:
    """Return the proposals of an image before non-maximum suppression, best first, and those the step went on with.

    Both come from the same ``filter_proposals``; for the first its threshold is one that nothing exceeds.
    """
    rpn = step.model.rpn
    objectness, deltas = step.call("rpn.head").outputs
    anchors, sizes = step.call("rpn.anchor_generator").outputs, step.call("rpn").inputs[0].image_sizes
    scores, deltas = concat_box_prediction_layers([*objectness], [*deltas])
    boxes = rpn.box_coder.decode(deltas, anchors).view(len(anchors), -1, 4)
    kept = rpn.training, rpn.nms_thresh, rpn._post_nms_top_n
    rpn.training, rpn.nms_thresh, rpn._post_nms_top_n = True, 1.0, {"training": boxes.shape[1]}
    try:
        before, _ = rpn.filter_proposals(boxes, scores, sizes, _anchors_by_level(step))
    finally:
        rpn.training, rpn.nms_thresh, rpn._post_nms_top_n = kept
    return before[image], step.call("rpn").outputs[0][image]


@opens(MaskRCNN)
def proposal_chart(step: Step, image: int = 0) -> Figure:
    """Draw the best proposals before non-maximum suppression, those that it drops in blue, and the best after it."""
    before, after = proposals(step, image)
    best = before[:_MOST_BOXES]
    kept = (best[:, None] == after).all(-1).any(1)
    objects = _boxes_of_objects(step, image)
    shown = []
    for title, boxes, dropped in (
        (f"before: {len(before)} proposals, {int(kept.sum())} of the best {len(best)} stay", best[kept], best[~kept]),
        (f"after: {len(after)}, the best {min(len(after), _MOST_BOXES)}", after[:_MOST_BOXES], after[:0]),
    ):
        drawn = Boxes(boxes.cpu().numpy(), VERMILION, 0.9), Boxes(dropped.cpu().numpy(), BLUE, 1.2), objects
        shown.append(BoxPanel(title, drawn))
    return box_panels(step.picture(image), shown)


class Sampled(NamedTuple):
    """The regions of an image that the heads were trained on: boxes (R, 4) XYXY; objects (R,) int64, the object of
    each among those with a pixel; labels (R,) int64, its main category from 1, 0 for a region without an object."""

    boxes: Tensor
    objects: Tensor
    labels: Tensor


def sampled_regions(step: Step, image: int = 0) -> Sampled:
    """Return the regions that the step drew from the proposals and the objects' own boxes."""
    return _assigned(step, step.call("roi_heads.box_roi_pool").inputs[1][image], image)


def _assigned(step: Step, boxes: Tensor, image: int) -> Sampled:
    target = step.call("rpn").inputs[2][image]
    objects, labels = step.model.roi_heads.assign_targets_to_proposals([boxes], [target["boxes"]], [target["labels"]])
    return Sampled(boxes, objects[0], labels[0])


@opens(MaskRCNN)
def sample_chart(step: Step, image: int = 0) -> Figure:
    """Draw the regions that the heads were trained on, those with an object in its colour."""
    regions = sampled_regions(step, image)
    positive = regions.labels > 0
    boxes = regions.boxes.cpu().numpy()
    of_objects = [
        Boxes(boxes[(positive & (regions.objects == number)).cpu().numpy()], category_colour(number))
        for number in range(len(step.objects(image)))
    ]
    shown = (
        BoxPanel(f"{int(positive.sum())} with an object", (_boxes_of_objects(step, image), *of_objects)),
        BoxPanel(f"{int((~positive).sum())} without", (Boxes(_some(boxes[(~positive).cpu().numpy()]), QUIET, 0.8),)),
    )
    return box_panels(step.picture(image), shown)


@opens(MaskRCNN)
def region_chart(step: Step, image: int = 0) -> Figure:
    """Draw regions with an object: the image, the pooled features, the mask of its category and its target."""
    inputs, features = step.call("roi_heads.mask_roi_pool")
    regions, target = inputs[1], step.call("rpn").inputs[2][image]
    first = sum(len(boxes) for boxes in regions[:image])
    logits = step.call("roi_heads.mask_predictor").outputs
    assigned = _assigned(step, regions[image], image)
    rows, titles = [], []
    names = [name for name, mask in zip(step.objects(image), step.masks(image), strict=True) if mask.any()]
    for number in (assigned.labels > 0).nonzero().flatten().tolist()[:_MOST_REGIONS]:
        box, label, index = assigned.boxes[number], int(assigned.labels[number]), int(assigned.objects[number])
        wanted = project_masks_on_boxes(
            target["masks"], box[None], assigned.objects[number : number + 1], logits.shape[-1]
        )
        rows.append(
            {
                "image": _cut_out(step.picture(image), box),
                "features": features[first + number].abs().mean(0).cpu().numpy(),
                "probability": logits[first + number, label].sigmoid().cpu().numpy(),
                "target": wanted[0].cpu().numpy(),
            }
        )
        titles.append(names[index])
    return region_rows(rows, titles) if rows else sentence("No region of this image holds an object.")


def _cut_out(picture: np.ndarray, box: Tensor) -> np.ndarray:
    x1, y1, x2, y2 = box.round().int().tolist()
    return picture[max(0, y1) : max(y1 + 1, y2), max(0, x1) : max(x1 + 1, x2)]
