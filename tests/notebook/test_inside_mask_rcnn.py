"""What is shown of a Mask R-CNN's step is what the step computed."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torchvision.ops import box_iou

from workbench.notebook import inside_mask_rcnn as inside
from workbench.notebook.inside import Step


def test_anchors_are_taught_by_their_overlap(rcnn_step: Step) -> None:
    levels = inside.anchor_labels(rcnn_step, 1)
    assert [*levels] == ["p2", "p3", "p4", "p5", "p6"]
    assert [len(anchors) for anchors, _ in levels.values()] == [
        3 * (64 // stride) ** 2 for stride in (4, 8, 16, 32, 64)
    ]
    anchors, labels = (torch.cat(each) for each in zip(*levels.values(), strict=True))
    overlap = box_iou(anchors, rcnn_step.call("rpn").inputs[2][1]["boxes"])
    best = overlap.amax(1)
    low, high = rcnn_step.cfg.MODEL.RPN.IOU_THRESHOLDS
    assert (labels[best >= high] == 1).all() and (labels == 1).any()
    assert (best[labels == 0] < low).all()
    assert ((best[labels == -1] >= low) & (best[labels == -1] < high)).all()


def test_proposals_after_suppression_are_the_steps_and_were_there_before(rcnn_step: Step) -> None:
    before, after = inside.proposals(rcnn_step, 0)
    assert torch.equal(after, rcnn_step.call("rpn").outputs[0][0])
    assert len(before) > len(after) > 0
    assert (before[None] == after[:, None]).all(-1).any(1).all()
    assert not rcnn_step.model.rpn.training and rcnn_step.model.rpn.nms_thresh == rcnn_step.cfg.MODEL.RPN.NMS_THRESH


def test_the_sampled_regions_give_the_steps_losses(rcnn_step: Step) -> None:
    regions = [inside.sampled_regions(rcnn_step, image) for image in range(2)]
    assert all(len(each.boxes) <= rcnn_step.cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE for each in regions)
    heads = rcnn_step.model.roi_heads
    with torch.no_grad():
        pooled = heads.box_head(rcnn_step.call("roi_heads.box_roi_pool").outputs)
        logits, _ = heads.box_predictor(pooled)
    labels = torch.cat([each.labels for each in regions])
    assert F.cross_entropy(logits, labels).item() == rcnn_step.trace.losses["loss_classifier"]
    positive = [int((each.labels > 0).sum()) for each in regions]
    assert [len(boxes) for boxes in rcnn_step.call("roi_heads.mask_roi_pool").inputs[1]] == positive
