"""Mask R-CNN (He et al., 2017): torchvision's parts behind the models' contract, with subcategories.

An object's region of interest (RoI) is pooled once for its box, its main category and its subcategories, and once
more, from the box that was found, for its mask.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss, maskrcnn_loss, paste_masks_in_image
from torchvision.models.detection.rpn import AnchorGenerator, RegionProposalNetwork, RPNHead
from torchvision.models.detection.transform import resize_boxes
from torchvision.ops import MultiScaleRoIAlign, batched_nms, clip_boxes_to_image, remove_small_boxes
from torchvision.ops.poolers import initLevelMapper

from workbench.models.fpn import PyramidBackbone
from workbench.models.inputs import collate_images, collate_targets
from workbench.models.postprocess import boxes_of_masks, rank_scores
from workbench.models.transformer_decoder import module_name

_CHUNK_PIXELS = 1 << 23  # of masks pasted at once
# torchvision's heads have an output for each of COCO's 90 category ids; these ten have no objects.
_UNUSED_COCO_IDS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
_COCO_OUTPUTS = 91
_NORM_EPSILON = 1e-5  # of torch's and torchvision's batch norms


class MaskRCNN(nn.Module):
    """Backbone with feature pyramid, region proposals and RoI heads; losses in training, instances in evaluation.

    The names of the weights are those of torchvision's ``maskrcnn_resnet50_fpn``, and so are the outputs.

    Args:
        backbone: images to feature maps p2, p3, ...; the RoI heads use all but the last, as published.
        num_classes: K. subcategories: {name: K_s}.
        anchor_sizes: side of the anchors in pixels of the input, a list for each map, or one for all.
        aspect_ratios: height over width, a list for each map, or one for all.
        rpn: other arguments of torchvision's ``RegionProposalNetwork``.
        rpn_convs: convolutions of its head.
        roi: other arguments of torchvision's ``RoIHeads``.
        box_resolution: cells of a RoI across, for its box. box_convs, box_conv_dim, box_fcs, box_fc_dim, box_norm:
            layers of the box head; without convolutions and with two linear layers it is the published one.
        mask_resolution: cells of a RoI across, for its mask, which is twice as fine. mask_convs, mask_dim, mask_norm:
            convolutions of the mask head.
        subcategory_weight: of the loss of each subcategory; 0 switches the heads off.
        subcategory_no_object_weight: of RoIs without an object in these losses.
        pixel_mean, pixel_std: of the three channels, in 0-255.
        rank_by: of :func:`~workbench.models.postprocess.rank_scores`.

    Attributes:
        encode_masks: (n, H, W) bool -> n encoded masks, called for each chunk; None keeps the masks as tensors.
    """

    encode_masks: Callable[[Tensor], Sequence[Any]] | None = None

    def __init__(
        self,
        backbone: PyramidBackbone,
        *,
        num_classes: int,
        subcategories: Mapping[str, int],
        anchor_sizes: Sequence[Sequence[float]] = ((32,), (64,), (128,), (256,), (512,)),
        aspect_ratios: Sequence[Sequence[float]] = ((0.5, 1.0, 2.0),),
        rpn: Mapping[str, Any],
        rpn_convs: int = 1,
        roi: Mapping[str, Any],
        box_resolution: int = 7,
        box_convs: int = 0,
        box_conv_dim: int = 256,
        box_fcs: int = 2,
        box_fc_dim: int = 1024,
        box_norm: Callable[[int], nn.Module] | None = None,
        mask_resolution: int = 14,
        mask_convs: int = 4,
        mask_dim: int = 256,
        mask_norm: Callable[[int], nn.Module] | None = None,
        subcategory_weight: float = 1.0,
        subcategory_no_object_weight: float = 0.1,
        pixel_mean: Sequence[float] = (123.675, 116.28, 103.53),
        pixel_std: Sequence[float] = (58.395, 57.12, 57.375),
        rank_by: str = "main",
    ):
        super().__init__()
        dim, levels = backbone.out_channels, list(backbone.strides)
        sizes = _per_level("anchor sizes", anchor_sizes, levels)
        anchors = AnchorGenerator(sizes, _per_level("aspect ratios", aspect_ratios, levels))
        counts = set(anchors.num_anchors_per_location())
        if len(counts) > 1:
            raise ValueError("each map of the pyramid needs the same number of anchor sizes and aspect ratios")
        self.backbone = backbone
        self.rpn = RegionProposalNetwork(anchors, _ProposalHead(dim, counts.pop(), conv_depth=rpn_convs), **rpn)
        if box_convs == 0 and box_fcs == 2:
            box_head: nn.Module = TwoMLPHead(dim * box_resolution**2, box_fc_dim)
        else:
            box_input = (dim, box_resolution, box_resolution)
            box_head = FastRCNNConvFCHead(box_input, [box_conv_dim] * box_convs, [box_fc_dim] * box_fcs, box_norm)
        self.roi_heads = SubcategoryRoIHeads(
            _roi_align(backbone, box_resolution),
            box_head,
            FastRCNNPredictor(box_fc_dim, num_classes + 1),
            mask_roi_pool=_roi_align(backbone, mask_resolution),
            mask_head=MaskRCNNHeads(dim, [mask_dim] * mask_convs, 1, mask_norm),
            mask_predictor=MaskRCNNPredictor(mask_dim if mask_convs else dim, mask_dim, num_classes + 1),
            bbox_reg_weights=None,
            subcategories=subcategories,
            dim=box_fc_dim,
            subcategory_weight=subcategory_weight,
            subcategory_no_object_weight=subcategory_no_object_weight,
            rank_by=rank_by,
            **roi,
        )
        self.num_classes = num_classes
        self.subcategories = dict(subcategories)
        self.size_divisibility = max(32, max(list(backbone.strides.values())[:-1]))
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(3, 1, 1), persistent=False)

    def forward(self, batched_inputs: Sequence[Mapping[str, Any]]) -> dict[str, Tensor] | list[dict[str, Any]]:
        """Losses of a batch in training, predictions for it in evaluation.

        Args:
            batched_inputs: as :class:`~workbench.models.mask2former.Mask2Former` takes them. RoIs and anchors to
                train on are drawn with torch's global generator.

        Returns:
            In training {name: weighted loss}: ``loss_objectness`` and ``loss_rpn_box_reg`` of the proposals,
            ``loss_classifier``, ``loss_box_reg``, ``loss_mask`` and ``loss_subcategory_<name>`` of the RoIs. In
            evaluation, for each image the rows of :meth:`instances`, and ``image_id`` if given.

        Raises:
            WorkbenchError: a label outside its range, with the image, the object and the range.
        """
        images, sizes = collate_images(batched_inputs, self.pixel_mean, self.pixel_std, self.size_divisibility)
        targets = self._targets(batched_inputs, images) if self.training else None
        # In mixed precision the maps are narrow; coordinates are computed in float32.
        features = {name: each.float() for name, each in self.backbone(images).items()}
        proposals, rpn_losses = self.rpn(ImageList(images, sizes), features, targets)
        if self.training:
            return rpn_losses | self.roi_heads.losses(features, proposals, sizes, targets)
        rows = self.roi_heads.detect(features, proposals, sizes)
        return [
            self.instances(found, size, (inputs.get("height", size[0]), inputs.get("width", size[1])))
            | {key: inputs[key] for key in ("image_id",) if key in inputs}
            for found, size, inputs in zip(rows, sizes, batched_inputs, strict=True)
        ]

    def instances(
        self, rows: dict[str, Any], image_size: tuple[int, int], output_size: tuple[int, int]
    ) -> dict[str, Any]:
        """Return the predictions of one image, best first.

        Args:
            rows: of :meth:`SubcategoryRoIHeads.detect`.
            image_size: (height, width) of the input image. output_size: of the original one.

        Returns:
            ``scores`` (k,) to rank by; ``main_scores`` (k,) of the main category; ``mask_scores`` (k,) ones, as a mask
            has no part in the score; ``labels`` (k,) int64 in [0, K); ``masks`` (k, H, W) bool, or k encoded masks;
            ``boxes`` (k, 4) XYXY in pixels, of the masks; ``roi_boxes`` (k, 4) the boxes that were found and that the
            masks were pasted into; ``subcategories`` {name: probabilities (k, K_s+1)}; ``subcategory_logits`` the same
            in logits. There are no queries.
        """
        roi_boxes = resize_boxes(rows["roi_boxes"], image_size, output_size)
        chunk = max(1, _CHUNK_PIXELS // (output_size[0] * output_size[1]))
        masks: list[Any] = []
        boxes = [roi_boxes.new_zeros(0, 4)]
        for part, place in zip(rows["mask_probabilities"].split(chunk), roi_boxes.split(chunk), strict=True):
            pasted = paste_masks_in_image(part, place, output_size)[:, 0] > 0.5
            boxes.append(boxes_of_masks(pasted))
            masks += [pasted] if self.encode_masks is None else self.encode_masks(pasted)
        if self.encode_masks is None:
            masks = torch.cat(masks)
        kept = {key: value for key, value in rows.items() if key not in ("mask_probabilities", "roi_boxes")}
        mask_scores = torch.ones_like(rows["scores"])
        return kept | {"mask_scores": mask_scores, "masks": masks, "boxes": torch.cat(boxes), "roi_boxes": roi_boxes}

    def adapt_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return published weights under the present names.

        torchvision renamed layers after it published the first ones, and runs those with an epsilon of 0 in the norms
        of their backbone, which their variances absorb here. Its heads have an output for each of COCO's 90 category
        ids; a model for the 80 categories that have objects takes theirs.
        """
        adapted = {_present_name(name): tensor for name, tensor in state.items()}
        if "backbone.fpn.inner_blocks.0.weight" in state:  # a first release, which runs without an epsilon in its norms
            for name in [each for each in adapted if each.endswith(".running_var")]:
                adapted[name] = adapted[name] - _NORM_EPSILON
        outputs = self.roi_heads.box_predictor.cls_score.out_features
        published = adapted.get("roi_heads.box_predictor.cls_score.bias")
        used = [index for index in range(_COCO_OUTPUTS) if index not in _UNUSED_COCO_IDS]
        if published is None or len(published) != _COCO_OUTPUTS or outputs != len(used):
            return adapted
        for name, tensor in adapted.items():
            if name.startswith("roi_heads.box_predictor.") or "mask_fcn_logits" in name:
                adapted[name] = tensor.unflatten(0, (_COCO_OUTPUTS, -1))[used].flatten(0, 1)
        return adapted

    def _targets(self, batched_inputs: Sequence[Mapping[str, Any]], images: Tensor) -> list[dict[str, Any]]:
        """Return the targets as torchvision's heads take them: boxes of the masks, labels from 1.

        Objects without a pixel have no box and are left out.
        """
        targets = []
        for each in collate_targets(batched_inputs, images, self.num_classes, self.subcategories):
            seen = each["masks"].flatten(1).any(1)
            masks = each["masks"][seen]
            subcategories = {name: values[seen] for name, values in each["subcategories"].items()}
            targets.append(
                {
                    "boxes": boxes_of_masks(masks),
                    "labels": each["labels"][seen] + 1,
                    "masks": masks,
                    "subcategories": subcategories,
                }
            )
        return targets


class SubcategoryRoIHeads(RoIHeads):
    """torchvision's RoI heads, and a classifier of K_s+1 outputs for each subcategory on the box head's features.

    Args:
        arguments: of ``RoIHeads``.
        subcategories: {name: K_s}. dim: channels of the box head's features.
        subcategory_weight, subcategory_no_object_weight, rank_by: of :class:`MaskRCNN`.
    """

    def __init__(
        self,
        *arguments: Any,
        subcategories: Mapping[str, int],
        dim: int,
        subcategory_weight: float,
        subcategory_no_object_weight: float,
        rank_by: str,
        **options: Any,
    ):
        super().__init__(*arguments, **options)
        self.subcategory_predictor = nn.ModuleDict(
            {module_name(name): nn.Linear(dim, classes + 1) for name, classes in subcategories.items()}
        )
        self.subcategory_names = tuple(subcategories)
        self.subcategory_weight = subcategory_weight
        self.subcategory_no_object_weight = subcategory_no_object_weight
        self.rank_by = rank_by
        if not subcategory_weight:  # heads without a loss: several processes would wait for their gradients
            self.subcategory_predictor.requires_grad_(False)

    def predict(
        self, features: dict[str, Tensor], proposals: list[Tensor], sizes: list[tuple[int, int]]
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return class logits (R, K+1), background first, box regression (R, 4 (K+1)) and subcategory logits
        {name: (R, K_s+1)} of the proposals of all images."""
        pooled = self.box_head(self.box_roi_pool(features, proposals, sizes))
        class_logits, box_regression = (each.float() for each in self.box_predictor(pooled))
        heads = {name: self.subcategory_predictor[module_name(name)] for name in self.subcategory_names}
        return class_logits, box_regression, {name: head(pooled).float() for name, head in heads.items()}

    def mask_logits(self, features: dict[str, Tensor], boxes: list[Tensor], sizes: list[tuple[int, int]]) -> Tensor:
        """Return the mask logits (R, K+1, h, w) of the boxes of all images."""
        return self.mask_predictor(self.mask_head(self.mask_roi_pool(features, boxes, sizes))).float()

    def losses(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        sizes: list[tuple[int, int]],
        targets: list[dict[str, Any]],
    ) -> dict[str, Tensor]:
        """Return the losses of RoIs drawn from the proposals, as ``RoIHeads`` does, and those of subcategories."""
        proposals, matched, labels, wanted_boxes = self.select_training_samples(proposals, targets)
        class_logits, box_regression, subcategory_logits = self.predict(features, proposals, sizes)
        classifier, box_reg = fastrcnn_loss(class_logits, box_regression, labels, wanted_boxes)
        positive = [each > 0 for each in labels]
        boxes = [each[chosen] for each, chosen in zip(proposals, positive, strict=True)]
        objects = [each[chosen] for each, chosen in zip(matched, positive, strict=True)]
        masks, classes = ([each[key] for each in targets] for key in ("masks", "labels"))
        if any(map(len, boxes)):
            loss_mask = maskrcnn_loss(self.mask_logits(features, boxes, sizes), boxes, masks, classes, objects)
        else:  # any region, without a loss: batch norms cannot take none, and other processes may wait for this one's
            regions = [each[:1] for each in proposals]
            loss_mask = 0 * self.mask_logits(features, regions, sizes).sum()
        losses = {"loss_classifier": classifier, "loss_box_reg": box_reg, "loss_mask": loss_mask}
        if self.subcategory_weight:
            for name, logits in subcategory_logits.items():
                values = [each["subcategories"][name] for each in targets]
                wanted = subcategory_targets(values, matched, labels, logits.shape[1] - 1)
                loss = self._subcategory_loss(logits, wanted)
                losses[f"loss_subcategory_{name}"] = self.subcategory_weight * loss
        return losses

    def _subcategory_loss(self, logits: Tensor, wanted: Tensor) -> Tensor:
        """Return the weighted mean of the cross-entropy over labelled RoIs; 0 where there is none."""
        weights = logits.new_ones(logits.shape[1])
        weights[-1] = self.subcategory_no_object_weight
        total = F.cross_entropy(logits, wanted, weights, ignore_index=-1, reduction="sum")
        return total / weights[wanted.clamp(min=0)][wanted >= 0].sum().clamp(min=1)

    def detect(
        self, features: dict[str, Tensor], proposals: list[Tensor], sizes: list[tuple[int, int]]
    ) -> list[dict[str, Any]]:
        """Return the rows of each image, best first.

        Returns:
            ``scores``, ``main_scores``, ``labels``, ``roi_boxes``, ``subcategories`` and ``subcategory_logits`` of
            :meth:`MaskRCNN.instances`, the boxes in pixels of the input, and ``mask_probabilities`` (k, 1, h, w) over
            each box.
        """
        class_logits, box_regression, subcategory_logits = self.predict(features, proposals, sizes)
        counts = [len(each) for each in proposals]
        probabilities = class_logits.softmax(-1).split(counts)
        boxes = self.box_coder.decode(box_regression, proposals).split(counts)
        subcategory_logits = {name: logits.split(counts) for name, logits in subcategory_logits.items()}
        rows = [
            self._rows(probabilities[i], boxes[i], {n: parts[i] for n, parts in subcategory_logits.items()}, size)
            for i, size in enumerate(sizes)
        ]
        masks = self.mask_logits(features, [each["roi_boxes"] for each in rows], sizes).sigmoid()
        labels = torch.cat([each["labels"] for each in rows])
        masks = masks[torch.arange(len(labels), device=labels.device), labels + 1][:, None]
        parts = masks.split([len(each["labels"]) for each in rows])
        return [each | {"mask_probabilities": part} for each, part in zip(rows, parts, strict=True)]

    def _rows(
        self, probabilities: Tensor, boxes: Tensor, subcategory_logits: Mapping[str, Tensor], size: tuple[int, int]
    ) -> dict[str, Any]:
        """Return the rows of one image from its RoIs' class probabilities (R, K+1) and boxes (R, K+1, 4).

        The steps are those of ``RoIHeads.postprocess_detections``, which does not say which RoI a row is from.
        """
        classes = probabilities.shape[1] - 1
        scores = probabilities[:, 1:].flatten()
        boxes = clip_boxes_to_image(boxes, size)[:, 1:].reshape(-1, 4)
        kept = torch.where(scores > self.score_thresh)[0]
        kept = kept[remove_small_boxes(boxes[kept], min_size=1e-2)]
        kept = kept[batched_nms(boxes[kept], scores[kept], kept % classes, self.nms_thresh)]
        roi = kept // classes
        logits = {name: each[roi] for name, each in subcategory_logits.items()}
        subcategories = {name: each.softmax(-1) for name, each in logits.items()}
        main = scores[kept]
        ranked = rank_scores(main, list(subcategories.values()), self.rank_by)
        best = ranked.argsort(descending=True, stable=True)[: self.detections_per_img]
        return {
            "scores": ranked[best],
            "main_scores": main[best],
            "labels": (kept % classes)[best],
            "roi_boxes": boxes[kept[best]],
            "subcategories": {name: each[best] for name, each in subcategories.items()},
            "subcategory_logits": {name: each[best] for name, each in logits.items()},
        }


def subcategory_targets(
    values: Sequence[Tensor], matched: Sequence[Tensor], labels: Sequence[Tensor], no_object: int
) -> Tensor:
    """Return (R,) int64, what a subcategory's head is to say for the RoIs of all images.

    Args:
        values: for each image (N,) int64 of its objects, -1 unlabelled.
        matched: for each image the object of each RoI. labels: its main category from 1, 0 where it has no object.
        no_object: the class of a RoI without an object.
    """
    wanted = []
    for value, index, label in zip(values, matched, labels, strict=True):
        of_object = value[index] if len(value) else torch.full_like(index, no_object)
        wanted.append(of_object.where(label > 0, no_object))
    return torch.cat(wanted)


class _ProposalHead(RPNHead):
    """torchvision's, with outputs in float32: anchors take the precision of what moves them."""

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        objectness, deltas = super().forward(x)
        return [each.float() for each in objectness], [each.float() for each in deltas]


def _per_level(what: str, values: Sequence[Sequence[float]], levels: Sequence[str]) -> tuple[tuple[float, ...], ...]:
    if len(values) not in (1, len(levels)):
        raise ValueError(f"{what} are given for {len(values)} maps, and the pyramid has {', '.join(levels)}")
    repeated = values if len(values) == len(levels) else [values[0]] * len(levels)
    return tuple(tuple(each) for each in repeated)


def _roi_align(backbone: PyramidBackbone, resolution: int) -> MultiScaleRoIAlign:
    """torchvision's pooling, told the strides: it takes them from the first batch, where small images mislead it."""
    maps = list(backbone.strides)[:-1]
    pool = MultiScaleRoIAlign(maps, resolution, sampling_ratio=2)
    pool.scales = [1 / backbone.strides[name] for name in maps]
    first, last = (backbone.strides[name].bit_length() - 1 for name in (maps[0], maps[-1]))
    pool.map_levels = initLevelMapper(first, last)
    return pool


def _present_name(name: str) -> str:
    """Return the present name of a weight of torchvision's detectors."""
    for block in ("inner_blocks", "layer_blocks"):
        start, found, rest = name.partition(f"backbone.fpn.{block}.")
        if found and len(rest.split(".")) == 2:
            index, kind = rest.split(".")
            return f"{start}{found}{index}.0.{kind}"
    if name.startswith("rpn.head.conv.") and len(name.split(".")) == 4:
        return name.replace("conv.", "conv.0.0.")
    if ".mask_fcn" in name and "mask_fcn_logits" not in name:
        layer, kind = name.rpartition(".mask_fcn")[2].split(".")
        return f"roi_heads.mask_head.{int(layer) - 1}.0.{kind}"
    return name
