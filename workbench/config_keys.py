"""Every config key: its default, the values it takes and what it means.

The names and defaults are detectron2's and Mask2Former's; the workbench's own are marked. :mod:`workbench.config`
builds its defaults from this table and checks values against it, and ``docs/config.md`` is its text::

    python -m workbench.config_keys > docs/config.md
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from workbench.errors import is_number


class Rule(NamedTuple):
    """The values that a key takes: ``wanted`` completes "it must be ...", ``fits`` says whether a value is one."""

    wanted: str
    fits: Callable[[Any], bool]


@dataclass(frozen=True)
class Key:
    """One config key. The type of its values is that of ``default``, which :mod:`workbench.config` checks first."""

    default: Any
    rule: Rule
    meaning: str
    own: bool = False  # not a key of detectron2 or Mask2Former
    unread: bool = False  # legal in a published YAML, and without effect here


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def whole(low: int, high: int) -> Rule:
    """Whole numbers from ``low`` to ``high``."""
    return Rule(f"at least {low} and at most {high}", lambda value: _is_whole(value) and low <= value <= high)


def number(low: float = -math.inf, high: float = math.inf, *, above: bool = False, below: bool = False) -> Rule:
    """Finite numbers from ``low`` to ``high``; ``above`` and ``below`` leave the bound itself out."""
    bounds = []
    if low > -math.inf:
        bounds.append(f"above {low:.15g}" if above else f"at least {low:.15g}")
    if high < math.inf:
        bounds.append(f"below {high:.15g}" if below else f"at most {high:.15g}")

    def fits(value: Any) -> bool:
        if not is_number(value):
            return False
        return (low < value if above else low <= value) and (value < high if below else value <= high)

    return Rule(" and ".join(bounds) or "a finite number", fits)


def one_of(*choices: Any) -> Rule:
    """One of ``choices``."""
    listed = ", ".join("(empty)" if choice == "" else str(choice) for choice in choices)
    return Rule(f"one of {listed}", lambda value: value in choices)


def each(rule: Rule, count: int | None = None, *, least: int = 0, distinct: bool = False) -> Rule:
    """Lists whose every element follows ``rule``: ``count`` of them, or ``least`` to 1000."""
    wanted = f"a list of {f'{count} values' if count else 'values'}, each {rule.wanted}"
    wanted += ", not empty" * (least > 0) + ", none twice" * distinct

    def fits(values: Any) -> bool:
        if (
            not isinstance(values, (list, tuple))
            or count not in (None, len(values))
            or not least <= len(values) <= 1000
        ):
            return False
        return all(map(rule.fits, values)) and (not distinct or len(set(values)) == len(values))

    return Rule(wanted, fits)


def _is_range(values: Any) -> bool:
    return isinstance(values, (list, tuple)) and (
        not values or (len(values) == 2 and all(map(is_number, values)) and values[0] < values[1])
    )


def _is_scale_range(values: Any) -> bool:
    return isinstance(values, (list, tuple)) and len(values) == 2 and _is_range(values) and values[0] >= 0


def optional(rule: Rule) -> Rule:
    """None, or what ``rule`` takes."""
    return Rule(f"None or a number that is {rule.wanted}", lambda value: value is None or rule.fits(value))


def matching(pattern: str, wanted: str) -> Rule:
    """Text that the regular expression ``pattern`` matches as a whole."""
    return Rule(wanted, lambda value: isinstance(value, str) and re.fullmatch(pattern, value) is not None)


ANY = Rule("any", lambda value: True)
FLAG = Rule("True or False", lambda value: isinstance(value, bool))
# Without lone surrogates, which no file can hold, and control characters.
TEXT = matching(r"[^\x00-\x1f\x7f\ud800-\udfff]{0,4096}", "one line of text, of at most 4096 characters")
NAME = matching(r"[^\x00-\x1f\x7f\ud800-\udfff]{1,4096}", "one line of text, not empty, of at most 4096 characters")
NAMES = each(NAME)
RANGE = Rule("[] or [least, largest value]", _is_range)

_SIZE = whole(1, 65536)  # pixels or channels
_LAYERS = whole(1, 1000)
_STEPS = whole(0, 10**12)
_WEIGHT = number(0, 1e6)
_RATE = number(0, 1e3)
_SHARE = number(0, 1)
_NORM = one_of("BN", "SyncBN", "FrozenBN", "GN")
_OPTIONAL_NORM = one_of("", "BN", "SyncBN", "FrozenBN", "GN")
_FEATURES = ("res2", "res3", "res4", "res5")
_FEATURE = one_of(*_FEATURES)
_SEED = whole(-1, 2**63 - 1)


def _unread(default: Any, meaning: str) -> Key:
    return Key(default, ANY, meaning, unread=True)


def _own(default: Any, rule: Rule, meaning: str) -> Key:
    return Key(default, rule, meaning, own=True)


_MODEL = {
    "META_ARCHITECTURE": Key("MaskFormer", NAME, "The model, by its name in the registry."),
    "DEVICE": Key(
        "auto",
        matching(r"(?i)\s*(auto|cpu|cuda|cuda:\d{1,4}|mps)\s*", "one of auto, cpu, cuda, cuda:N, mps"),
        "Where the model runs; auto takes a GPU where there is one.",
    ),
    "WEIGHTS": Key("", TEXT, "Weights to start from: a checkpoint, a file, a folder or an address (docs/weights.md)."),
    "MASK_ON": _unread(True, "Masks are always predicted."),
    "PIXEL_MEAN": Key([123.675, 116.28, 103.53], each(number(-1e6, 1e6), 3), "Mean of red, green and blue, 0-255."),
    "PIXEL_STD": Key([58.395, 57.12, 57.375], each(number(1e-6, 1e6), 3), "Standard deviation of the same."),
    "SUBCATEGORIES": _own(["all"], NAMES, 'Subcategories that get a head: ["all"], their names, or [] for none.'),
    "BACKBONE.NAME": Key("build_resnet_backbone", NAME, "The backbone, by its name in the registry."),
    "BACKBONE.FREEZE_AT": Key(0, whole(0, 5), "Stages that are not trained; 1 is the stem."),
    "RESNETS.DEPTH": Key(50, one_of(18, 34, 50, 101), "Layers of the ResNet."),
    "RESNETS.WEIGHTS": _own("none", NAME, "none, imagenet, or a path."),
    "RESNETS.NORM": Key("FrozenBN", _NORM, "Normalisation of the ResNet."),
    "RESNETS.OUT_FEATURES": _unread(["res2", "res3", "res4", "res5"], "All four are always given."),
    "RESNETS.STEM_TYPE": _unread("basic", "The stem is torchvision's."),
    "RESNETS.STEM_OUT_CHANNELS": _unread(64, "The stem is torchvision's."),
    "RESNETS.STRIDE_IN_1X1": Key(False, FLAG, "Stride in the 1x1 convolutions, as MSRA's ResNets do."),
    "RESNETS.RES2_OUT_CHANNELS": _unread(256, "Channels are torchvision's."),
    "RESNETS.NUM_GROUPS": _unread(1, "No ResNeXt is built."),
    "RESNETS.WIDTH_PER_GROUP": _unread(64, "No ResNeXt is built."),
    "RESNETS.RES4_DILATION": Key(1, one_of(1, 2), "2 dilates res4 instead of striding."),
    "RESNETS.RES5_DILATION": Key(1, one_of(1, 2, 4), "More than 1 dilates res5 instead of striding."),
    "RESNETS.RES5_MULTI_GRID": _unread([1, 1, 1], "Dilations of res5 are torchvision's."),
    "MOBILENET.WEIGHTS": _own("none", NAME, "none, imagenet, deeplabv3, or a path."),
    "MOBILENET.TAPS": _own([3, 6, 10, 15], each(whole(0, 10**6), least=1), "Layers that give res2 to res5."),
    "MOBILENET.DILATED": _own(False, FLAG, "Keep DeepLabV3's dilation: res5 then has stride 16."),
    "MOBILENET.NORM": _own("BN", _NORM, "Normalisation of the MobileNet."),
    "SMALL_RESNET.WIDTHS": _own(
        [32, 64, 96, 128], each(whole(2, 65536), least=3), "Channels of res2 to res5 (or res4)."
    ),
    "SMALL_RESNET.DEPTHS": _own([1, 1, 1, 1], each(_LAYERS, least=3), "Blocks of each stage."),
    "SMALL_RESNET.NORM": _own("BN", _NORM, "Normalisation of the small ResNet."),
    "SWIN.PRETRAIN_IMG_SIZE": _unread(224, "Only absolute position embeddings would depend on it."),
    "SWIN.PATCH_SIZE": Key(4, one_of(4), "Side of a patch, in pixels."),
    "SWIN.EMBED_DIM": Key(96, _SIZE, "Channels of a Swin's res2; each stage has twice those before."),
    "SWIN.DEPTHS": Key([2, 2, 6, 2], each(_LAYERS, 4), "Blocks of each stage."),
    "SWIN.NUM_HEADS": Key([3, 6, 12, 24], each(whole(1, 1024), 4), "Attention heads of each stage; they divide it."),
    "SWIN.WINDOW_SIZE": Key(7, whole(1, 1024), "Side of a window, in positions of the map."),
    "SWIN.MLP_RATIO": Key(4.0, number(0, 1000, above=True), "Width of a block's MLP over its channels."),
    "SWIN.QKV_BIAS": Key(True, FLAG, "Biases of queries, keys and values."),
    "SWIN.QK_SCALE": Key(None, Rule("None", lambda value: value is None), "Queries are scaled by their length."),
    "SWIN.DROP_RATE": Key(0.0, number(0, 1, below=True), "Dropout of embeddings, projections and MLPs."),
    "SWIN.ATTN_DROP_RATE": Key(0.0, number(0, 1, below=True), "Dropout of attention."),
    "SWIN.DROP_PATH_RATE": Key(0.3, number(0, 1, below=True), "Stochastic depth of the last block."),
    "SWIN.APE": Key(False, one_of(False), "Absolute position embeddings; no published Mask2Former has them."),
    "SWIN.PATCH_NORM": Key(True, FLAG, "Normalise the patch embedding."),
    "SWIN.OUT_FEATURES": _unread(["res2", "res3", "res4", "res5"], "All four are always given."),
    "SWIN.USE_CHECKPOINT": Key(False, FLAG, "Recompute blocks in the backward pass, to save memory."),
    "TIMM.PRETRAINED": _own(False, FLAG, "Start a backbone timm/<name> from the weights that timm publishes."),
    "SEM_SEG_HEAD.NAME": Key("MaskFormerHead", NAME, "The published name of the head."),
    "SEM_SEG_HEAD.NUM_CLASSES": _unread(0, "The number of categories is the dataset's."),
    "SEM_SEG_HEAD.IGNORE_VALUE": _unread(255, "Instances have no ignored pixels."),
    "SEM_SEG_HEAD.LOSS_WEIGHT": _unread(1.0, "Each loss has its own weight."),
    "SEM_SEG_HEAD.CONVS_DIM": Key(256, whole(2, 65536), "Channels of the pixel decoder; a multiple of 4."),
    "SEM_SEG_HEAD.MASK_DIM": Key(256, _SIZE, "Channels of the embedding of a mask and of a pixel."),
    "SEM_SEG_HEAD.NORM": Key("GN", one_of("GN", ""), "Normalisation of the pixel decoder's convolutions."),
    "SEM_SEG_HEAD.PIXEL_DECODER_NAME": Key(
        "MSDeformAttnPixelDecoder", one_of("MSDeformAttnPixelDecoder"), "The pixel decoder."
    ),
    "SEM_SEG_HEAD.IN_FEATURES": Key(
        ["res2", "res3", "res4", "res5"], each(_FEATURE, least=3, distinct=True), "Maps that the pixel decoder takes."
    ),
    "SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES": Key(
        ["res3", "res4", "res5"], each(_FEATURE, 3, distinct=True), "Maps that its transformer encodes."
    ),
    "SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS": Key(4, whole(1, 1024), "Sampled points a head and level."),
    "SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS": Key(
        8, whole(1, 1024), "Heads of its attention; they divide CONVS_DIM."
    ),
    "SEM_SEG_HEAD.COMMON_STRIDE": Key(4, one_of(4, 8, 16, 32), "Stride of the predicted masks."),
    "SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS": Key(6, _LAYERS, "Layers of the pixel decoder's transformer."),
    "SEM_SEG_HEAD.TRANSFORMER_DIM_FEEDFORWARD": Key(1024, _SIZE, "Width of their feed-forward networks."),
    "MASK_FORMER.TRANSFORMER_DECODER_NAME": Key(
        "MultiScaleMaskedTransformerDecoder", one_of("MultiScaleMaskedTransformerDecoder"), "The transformer decoder."
    ),
    "MASK_FORMER.TRANSFORMER_IN_FEATURE": _unread("multi_scale_pixel_decoder", "The decoder always takes three maps."),
    "MASK_FORMER.DEEP_SUPERVISION": Key(True, FLAG, "Train the predictions of every decoder layer."),
    "MASK_FORMER.NO_OBJECT_WEIGHT": Key(0.1, _WEIGHT, 'Weight of "no object" in the classification loss.'),
    "MASK_FORMER.CLASS_WEIGHT": Key(2.0, _WEIGHT, "Weight of the classification loss, and its matching cost."),
    "MASK_FORMER.MASK_WEIGHT": Key(5.0, _WEIGHT, "Weight of the cross-entropy of masks, and its matching cost."),
    "MASK_FORMER.DICE_WEIGHT": Key(5.0, _WEIGHT, "Weight of the Dice loss of masks, and its matching cost."),
    "MASK_FORMER.SUBCATEGORY_WEIGHT": _own(1.0, _WEIGHT, "Loss weight of each subcategory head; 0 switches it off."),
    "MASK_FORMER.SUBCATEGORY_COST": _own(1.0, _WEIGHT, "Matching cost of each subcategory head; 0 switches it off."),
    "MASK_FORMER.SUBCATEGORY_NO_OBJECT_WEIGHT": _own(
        0.0, _WEIGHT, 'Weight of "no object" in the subcategories\' losses; 0 teaches only queries with an object.'
    ),
    "MASK_FORMER.HIDDEN_DIM": Key(256, whole(2, 65536), "Channels of the transformer decoder; a multiple of 4."),
    "MASK_FORMER.NUM_OBJECT_QUERIES": Key(100, whole(1, 10**6), "Queries: the most objects an image can get."),
    "MASK_FORMER.NHEADS": Key(8, whole(1, 1024), "Heads of its attention; they divide HIDDEN_DIM."),
    "MASK_FORMER.DROPOUT": Key(0.0, number(0, 1, below=True), "Dropout of the pixel decoder's transformer."),
    "MASK_FORMER.DIM_FEEDFORWARD": Key(2048, _SIZE, "Width of the decoder's feed-forward networks."),
    "MASK_FORMER.ENC_LAYERS": _unread(0, "The decoder has no encoder of its own."),
    "MASK_FORMER.DEC_LAYERS": Key(10, _LAYERS, "Predictions: 10 are nine decoder layers and the learnable queries."),
    "MASK_FORMER.PRE_NORM": Key(False, FLAG, "Normalise before each step of a decoder layer, not after it."),
    "MASK_FORMER.ENFORCE_INPUT_PROJ": Key(False, FLAG, "A convolution before the decoder even where channels agree."),
    "MASK_FORMER.SIZE_DIVISIBILITY": Key(32, whole(1, 4096), "Images are padded to a multiple of it."),
    "MASK_FORMER.TRAIN_NUM_POINTS": Key(12544, whole(1, 10**8), "Points of a mask that losses and matching look at."),
    "MASK_FORMER.OVERSAMPLE_RATIO": Key(3.0, number(1, 1000), "Candidates for each of these points."),
    "MASK_FORMER.IMPORTANCE_SAMPLE_RATIO": Key(0.75, _SHARE, "Share of the points taken where the mask is unsure."),
    "MASK_FORMER.TEST.SEMANTIC_ON": Key(False, FLAG, "Predict the category of each pixel, scored by mIoU."),
    "MASK_FORMER.TEST.INSTANCE_ON": Key(True, FLAG, "Predict instances, scored by AP."),
    "MASK_FORMER.TEST.PANOPTIC_ON": Key(False, FLAG, "Predict segments that do not overlap, scored by PQ."),
    "MASK_FORMER.TEST.OVERLAP_THRESHOLD": Key(
        0.8, _SHARE, "A panoptic segment that keeps a smaller share of its mask is left out."
    ),
    "MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD": Key(
        0.8, _SHARE, "A query of a lower probability gives no panoptic segment."
    ),
    "MASK_FORMER.TEST.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE": Key(
        False, FLAG, "Enlarge masks before categories are summed up; with instances or segments they always are."
    ),
}

_FPN = {
    "IN_FEATURES": Key(list(_FEATURES), each(_FEATURE, least=1, distinct=True), "Maps that the pyramid takes."),
    "OUT_CHANNELS": Key(256, _SIZE, "Channels of its maps."),
    "NORM": Key("", _OPTIONAL_NORM, "Normalisation of its convolutions."),
    "FUSE_TYPE": Key("sum", one_of("sum"), "How a map joins the one above it."),
}

# Defaults are those of detectron2's Base-RCNN-FPN.yaml: there is always a pyramid here.
_RCNN = {
    "PROPOSAL_GENERATOR.NAME": Key("RPN", one_of("RPN"), "What proposes regions."),
    "PROPOSAL_GENERATOR.MIN_SIZE": _unread(0, "Only empty boxes are left out."),
    "ANCHOR_GENERATOR.NAME": Key("DefaultAnchorGenerator", one_of("DefaultAnchorGenerator"), "What makes anchors."),
    "ANCHOR_GENERATOR.SIZES": Key(
        [[32], [64], [128], [256], [512]],
        each(each(number(0, 65536, above=True), least=1), least=1),
        "Sides of the anchors in pixels, a list for each map of the pyramid, or one for all.",
    ),
    "ANCHOR_GENERATOR.ASPECT_RATIOS": Key(
        [[0.5, 1.0, 2.0]],
        each(each(number(0, 1000, above=True), least=1), least=1),
        "Their heights over widths, a list for each map, or one for all.",
    ),
    "ANCHOR_GENERATOR.ANGLES": _unread([[-90, 0, 90]], "Boxes are upright."),
    "ANCHOR_GENERATOR.OFFSET": _unread(0.0, "Anchors lie on the corners of cells, as torchvision's."),
    "RPN.HEAD_NAME": Key("StandardRPNHead", one_of("StandardRPNHead"), "The head of the proposals."),
    "RPN.IN_FEATURES": _unread(["p2", "p3", "p4", "p5", "p6"], "Proposals come from every map of the pyramid."),
    "RPN.BOUNDARY_THRESH": _unread(-1, "Anchors that leave the image count."),
    "RPN.IOU_THRESHOLDS": Key([0.3, 0.7], each(_SHARE, 2), "Below and from which IoU an anchor has no or an object."),
    "RPN.IOU_LABELS": _unread([0, -1, 1], "The labels of RPN.IOU_THRESHOLDS are fixed."),
    "RPN.BATCH_SIZE_PER_IMAGE": Key(256, whole(1, 10**6), "Anchors of an image that are trained on."),
    "RPN.POSITIVE_FRACTION": Key(0.5, _SHARE, "Their largest share with an object."),
    "RPN.BBOX_REG_LOSS_TYPE": Key("smooth_l1", one_of("smooth_l1"), "Loss of the boxes."),
    "RPN.BBOX_REG_LOSS_WEIGHT": _unread(1.0, "Losses are not weighted."),
    "RPN.BBOX_REG_WEIGHTS": _unread([1.0, 1.0, 1.0, 1.0], "Scales of the box regression are torchvision's."),
    "RPN.SMOOTH_L1_BETA": _unread(0.0, "torchvision's 1/9 is taken."),
    "RPN.LOSS_WEIGHT": _unread(1.0, "Losses are not weighted."),
    "RPN.PRE_NMS_TOPK_TRAIN": Key(2000, whole(1, 10**6), "Proposals of a map before NMS, in training."),
    "RPN.PRE_NMS_TOPK_TEST": Key(1000, whole(1, 10**6), "The same in evaluation."),
    "RPN.POST_NMS_TOPK_TRAIN": Key(1000, whole(1, 10**6), "Proposals of an image after NMS, in training."),
    "RPN.POST_NMS_TOPK_TEST": Key(1000, whole(1, 10**6), "The same in evaluation."),
    "RPN.NMS_THRESH": Key(0.7, _SHARE, "IoU above which the worse of two proposals is dropped."),
    "RPN.CONV_DIMS": Key([-1], each(one_of(-1), least=1), "A -1 for each convolution of the head."),
    "ROI_HEADS.NAME": Key("StandardROIHeads", one_of("StandardROIHeads"), "The heads of regions."),
    "ROI_HEADS.NUM_CLASSES": _unread(80, "The number of categories is the dataset's."),
    "ROI_HEADS.IN_FEATURES": _unread(["p2", "p3", "p4", "p5"], "Regions are pooled from all maps but the last."),
    "ROI_HEADS.IOU_THRESHOLDS": Key([0.5], each(_SHARE, 1), "From which IoU on a region has an object."),
    "ROI_HEADS.IOU_LABELS": _unread([0, 1], "The labels of ROI_HEADS.IOU_THRESHOLDS are fixed."),
    "ROI_HEADS.BATCH_SIZE_PER_IMAGE": Key(512, whole(1, 10**6), "Regions of an image that are trained on."),
    "ROI_HEADS.POSITIVE_FRACTION": Key(0.25, _SHARE, "Their largest share with an object."),
    "ROI_HEADS.SCORE_THRESH_TEST": Key(0.05, _SHARE, "Rows that score less are left out."),
    "ROI_HEADS.NMS_THRESH_TEST": Key(0.5, _SHARE, "IoU above which the worse of two rows of a category is dropped."),
    "ROI_HEADS.PROPOSAL_APPEND_GT": _unread(True, "Objects' own boxes are proposals in training."),
    "ROI_HEADS.SUBCATEGORY_WEIGHT": _own(1.0, _WEIGHT, "Loss weight of each subcategory head; 0 switches it off."),
    "ROI_HEADS.SUBCATEGORY_NO_OBJECT_WEIGHT": _own(
        0.1, _WEIGHT, 'Weight of "no object" in the subcategories\' losses.'
    ),
    "ROI_BOX_HEAD.NAME": Key("FastRCNNConvFCHead", one_of("FastRCNNConvFCHead"), "The head of boxes."),
    "ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE": Key("smooth_l1", one_of("smooth_l1"), "Loss of the boxes."),
    "ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT": _unread(1.0, "Losses are not weighted."),
    "ROI_BOX_HEAD.BBOX_REG_WEIGHTS": _unread((10.0, 10.0, 5.0, 5.0), "Scales of the regression are torchvision's."),
    "ROI_BOX_HEAD.SMOOTH_L1_BETA": _unread(0.0, "torchvision's 1/9 is taken."),
    "ROI_BOX_HEAD.POOLER_RESOLUTION": Key(7, whole(1, 1024), "Cells across a region, for its box."),
    "ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": _unread(0, "torchvision's 2 points a cell are taken."),
    "ROI_BOX_HEAD.POOLER_TYPE": _unread("ROIAlignV2", "Regions are pooled as torchvision's detectors do."),
    "ROI_BOX_HEAD.NUM_FC": Key(2, whole(1, 100), "Its linear layers."),
    "ROI_BOX_HEAD.FC_DIM": Key(1024, _SIZE, "Their width."),
    "ROI_BOX_HEAD.NUM_CONV": Key(0, whole(0, 100), "Its convolutions."),
    "ROI_BOX_HEAD.CONV_DIM": Key(256, _SIZE, "Their channels."),
    "ROI_BOX_HEAD.NORM": Key("", _OPTIONAL_NORM, "Their normalisation."),
    "ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": Key(False, one_of(False), "Each category has its own box."),
    "ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES": _unread(False, "Masks are trained on proposals."),
    "ROI_MASK_HEAD.NAME": Key("MaskRCNNConvUpsampleHead", one_of("MaskRCNNConvUpsampleHead"), "The head of masks."),
    "ROI_MASK_HEAD.POOLER_RESOLUTION": Key(14, whole(1, 1024), "Cells across a region; its mask has twice as many."),
    "ROI_MASK_HEAD.POOLER_SAMPLING_RATIO": _unread(0, "torchvision's 2 points a cell are taken."),
    "ROI_MASK_HEAD.POOLER_TYPE": _unread("ROIAlignV2", "Regions are pooled as torchvision's detectors do."),
    "ROI_MASK_HEAD.NUM_CONV": Key(4, whole(0, 100), "Its convolutions."),
    "ROI_MASK_HEAD.CONV_DIM": Key(256, _SIZE, "Their channels."),
    "ROI_MASK_HEAD.NORM": Key("", _OPTIONAL_NORM, "Their normalisation."),
    "ROI_MASK_HEAD.CLS_AGNOSTIC_MASK": Key(False, one_of(False), "Each category has its own mask."),
}

_PYRAMID_MAP = one_of("p2", "p3", "p4", "p5", "p6")
_SOLOV2 = {
    "INSTANCE_IN_FEATURES": Key(
        ["p2", "p3", "p4", "p5", "p6"],
        each(_PYRAMID_MAP, least=1, distinct=True),
        "Maps of the instance head, a level each.",
    ),
    "FPN_INSTANCE_STRIDES": Key([8, 8, 16, 32, 32], each(whole(1, 1024), least=1), "Strides that they are brought to."),
    "FPN_SCALE_RANGES": Key(
        [[1, 96], [48, 192], [96, 384], [192, 768], [384, 2048]],
        each(Rule("[least, largest]", _is_scale_range), least=1),
        "Sizes of the objects of each level: square roots of their boxes' areas, in pixels.",
    ),
    "SIGMA": Key(0.2, number(0, 1), "Size of an object's centre region over that of its box."),
    "NUM_GRIDS": Key([40, 36, 24, 16, 12], each(whole(1, 1024), least=1), "Cells along a side of each level's grid."),
    "INSTANCE_IN_CHANNELS": _unread(256, "MODEL.FPN.OUT_CHANNELS is read."),
    "INSTANCE_CHANNELS": Key(512, whole(2, 65536), "Channels of the category and kernel branches."),
    "NUM_INSTANCE_CONVS": Key(4, whole(0, 1000), "Convolutions of each of the two."),
    "USE_DCN_IN_INSTANCE": _unread(False, "The published code builds ordinary convolutions too."),
    "TYPE_DCN": _unread("DCN", "The published code builds ordinary convolutions too."),
    "NUM_CLASSES": _unread(80, "The number of categories is the dataset's."),
    "NUM_KERNELS": Key(256, whole(2, 65536), "Numbers of a predicted kernel; as many as NUM_MASKS."),
    "NORM": Key("GN", one_of("GN"), "Normalisation of both heads."),
    "USE_COORD_CONV": Key(True, one_of(True), "The kernel branch sees coordinates."),
    "PRIOR_PROB": Key(0.01, number(0, 1, above=True, below=True), "Probability that each category begins with."),
    "MASK_IN_FEATURES": Key(
        ["p2", "p3", "p4", "p5"],
        each(one_of("p2", "p3", "p4", "p5"), least=1, distinct=True),
        "Maps of the mask head, from p2 on.",
    ),
    "MASK_IN_CHANNELS": _unread(256, "MODEL.FPN.OUT_CHANNELS is read."),
    "MASK_CHANNELS": Key(128, whole(2, 65536), "Channels of the mask head."),
    "NUM_MASKS": Key(256, whole(2, 65536), "Channels of the mask features."),
    "NMS_PRE": Key(500, whole(1, 10**5), "Rows of an image, best first, that NMS looks at."),
    "SCORE_THR": Key(0.1, _SHARE, "A category of a lower probability gives no row."),
    "UPDATE_THR": Key(0.05, _SHARE, "A row of a lower score after NMS is left out."),
    "MASK_THR": Key(0.5, _SHARE, "Probability above which a pixel belongs to a mask."),
    "MAX_PER_IMG": Key(100, whole(1, 10**6), "The most rows of an image, if TEST.DETECTIONS_PER_IMAGE is not lower."),
    "NMS_TYPE": Key("matrix", one_of("matrix"), "How overlapping masks lower one another's scores."),
    "NMS_KERNEL": Key("gaussian", one_of("gaussian", "linear"), "How the overlap lowers the score."),
    "NMS_SIGMA": Key(2.0, number(0, 1000), "Steepness of the Gaussian."),
    "LOSS.FOCAL_USE_SIGMOID": Key(True, one_of(True), "Categories are independent."),
    "LOSS.FOCAL_ALPHA": Key(0.25, _SHARE, "Weight of positives in the focal loss."),
    "LOSS.FOCAL_GAMMA": Key(2.0, number(0, 100), "Exponent of the focal loss."),
    "LOSS.FOCAL_WEIGHT": Key(1.0, _WEIGHT, "Weight of the focal loss."),
    "LOSS.DICE_WEIGHT": Key(3.0, _WEIGHT, "Weight of the dice loss."),
    "LOSS.SUBCATEGORY_WEIGHT": _own(1.0, _WEIGHT, "Loss weight of each subcategory head; 0 switches it off."),
}

_INPUT = {
    "FORMAT": Key("RGB", one_of("RGB"), "Order of the channels."),
    "MAX_PIXELS": _own(2**27, whole(1, 2**40), "Width times height of the largest image file that is opened."),
    "DEPTH_RANGE": _own(
        [],
        RANGE,
        "Values that become 0 and 255 in grey images of more than eight bits; [] takes what each file declares.",
    ),
    "DATASET_MAPPER_NAME": Key("coco_instance_lsj", NAME, "The mapper, by its name in the registry."),
    "IMAGE_SIZE": Key(1024, _SIZE, "Side of the square that coco_*_lsj mappers train on, in pixels."),
    "MIN_SCALE": Key(0.1, number(0, 1000, above=True), "Smallest scale of the training's jitter."),
    "MAX_SCALE": Key(2.0, number(0, 1000, above=True), "Largest scale of the training's jitter."),
    "RANDOM_FLIP": Key("horizontal", one_of("horizontal", "vertical", "none"), "Flip half of the training images."),
    "COLOR_JITTER": _own(False, FLAG, "A little change of brightness, contrast, saturation and hue in training."),
    "COLOR_AUG_SSD": Key(False, FLAG, "SSD's strong distortion of colours in training."),
    "SIZE_DIVISIBILITY": Key(
        -1, whole(-1, 65536), "Side of the square that mask_former mappers cut or pad an image to; -1 leaves its size."
    ),
    "MIN_SIZE_TRAIN": Key((800,), each(_SIZE, least=1), "Shortest edges in training with mask_former mappers."),
    "MIN_SIZE_TRAIN_SAMPLING": Key(
        "choice", one_of("choice", "range"), "Draw one of them, or a number from the first to the second."
    ),
    "MAX_SIZE_TRAIN": Key(1333, whole(1, 10**9), "Longest edge in training with mask_former mappers."),
    "MIN_SIZE_TEST": Key(800, whole(0, 65536), "Shortest edge in evaluation; 0 keeps the image's own size."),
    "MAX_SIZE_TEST": Key(1333, whole(0, 10**9), "Longest edge in evaluation; 0 sets no limit."),
    "MASK_FORMAT": _unread("polygon", "Polygons and RLE are both read."),
    "CROP.ENABLED": Key(False, FLAG, "Cut a random window in training with mask_former mappers."),
    "CROP.TYPE": Key(
        "relative_range",
        one_of("relative_range", "relative", "absolute", "absolute_range"),
        "What CROP.SIZE is: shares of the image or pixels, or the least shares, or least and most pixels.",
    ),
    "CROP.SIZE": Key([0.9, 0.9], each(number(0, 65536, above=True), 2), "Height and width of the window."),
    "CROP.SINGLE_CATEGORY_MAX_AREA": _unread(1.0, "A window may hold one category alone."),
}

_DATASETS = {
    "ROOT": _own("data", NAME, "The folder of the named datasets."),
    "TRAIN": Key((), NAMES, "Names or paths of the datasets to train on."),
    "VAL": _own((), NAMES, "Chooses the best checkpoint and thresholds; where it is empty, TEST does."),
    "TEST": Key((), NAMES, "Reported, and nothing is chosen on it."),
    "SKIP_FAULTS": _own(False, FLAG, "Leave broken annotations out instead of stopping."),
    "CROWDS_ARE_OBJECTS": _own(False, FLAG, "Read iscrowd 1 as 0: CVAT marks its brush and SAM masks so."),
}

_DATALOADER = {
    "NUM_WORKERS": Key(4, whole(0, 1024), "Processes that load images; 0 loads them in the training process."),
    "CACHE": _own(False, FLAG, "Keep reduced copies of photos larger than ever needed in OUTPUT_DIR/cache."),
    "FILTER_EMPTY_ANNOTATIONS": Key(True, FLAG, "Leave images without objects out of training."),
    "ASPECT_RATIO_GROUPING": _unread(True, "Training images are square."),
    "SAMPLER_TRAIN": _unread("TrainingSampler", "Each pass visits every image once."),
    "REPEAT_THRESHOLD": _unread(0.0, "No image is repeated."),
    "REPEAT_SQRT": _unread(True, "No image is repeated."),
}

_SOLVER = {
    "OPTIMIZER": Key("ADAMW", one_of("ADAMW", "SGD", "MUON"), "The optimiser; MUON is the workbench's own choice."),
    "IMS_PER_BATCH": Key(16, whole(1, 10**6), "Images in a step, over all processes."),
    "REFERENCE_BATCH_SIZE": _own(
        16,
        whole(1, 10**6),
        "The batch that BASE_LR was chosen for; where it is not set, the IMS_PER_BATCH of the file that sets BASE_LR.",
    ),
    "LR_SCALING": _own(
        "linear", one_of("linear", "sqrt", "none"), "How the rate follows the batch; the schedule does unless none."
    ),
    "BASE_LR": Key(0.0001, _RATE, "Peak learning rate at the reference batch."),
    "BASE_LR_END": Key(0.0, _RATE, "Learning rate at the end of WarmupCosineLR."),
    "BACKBONE_MULTIPLIER": Key(0.1, _RATE, "Factor on the backbone's learning rate."),
    "MAX_ITER": Key(368750, _STEPS, "Steps of the training."),
    "LR_SCHEDULER_NAME": Key(
        "WarmupMultiStepLR", one_of("WarmupMultiStepLR", "WarmupCosineLR", "WarmupPolyLR"), "The schedule."
    ),
    "STEPS": Key((327778, 355092), each(_STEPS), "Steps after which WarmupMultiStepLR multiplies by GAMMA."),
    "GAMMA": Key(0.1, _RATE, "That factor."),
    "POLY_LR_POWER": Key(0.9, number(0, 1000), "Power of WarmupPolyLR."),
    "POLY_LR_CONSTANT_ENDING": Key(0.0, number(-1, 1), "Least share of the peak rate in WarmupPolyLR."),
    "WARMUP_FACTOR": Key(1.0, _SHARE, "Share of the rate at step 0."),
    "WARMUP_ITERS": Key(10, _STEPS, "Steps of the warm-up."),
    "WARMUP_METHOD": Key("linear", one_of("linear", "constant"), "How the rate rises in it."),
    "WEIGHT_DECAY": Key(0.05, _RATE, "Weight decay."),
    "WEIGHT_DECAY_NORM": Key(0.0, _RATE, "Weight decay of normalisations."),
    "WEIGHT_DECAY_EMBED": Key(0.0, _RATE, "Weight decay of embeddings."),
    "WEIGHT_DECAY_BIAS": Key(None, optional(_RATE), "Weight decay of biases; None follows WEIGHT_DECAY."),
    "BIAS_LR_FACTOR": Key(1.0, _RATE, "Factor on the learning rate of biases."),
    "MOMENTUM": Key(0.9, number(0, 1, below=True), "Momentum of SGD."),
    "NESTEROV": Key(False, FLAG, "Nesterov's momentum in SGD; MOMENTUM must then be above 0."),
    "CLIP_GRADIENTS.ENABLED": Key(True, FLAG, "Clip gradients."),
    "CLIP_GRADIENTS.CLIP_TYPE": Key(
        "full_model", one_of("full_model", "norm", "value"), "The whole norm, each parameter's, or each value."
    ),
    "CLIP_GRADIENTS.CLIP_VALUE": Key(0.01, number(0, 1e6, above=True), "The limit."),
    "CLIP_GRADIENTS.NORM_TYPE": Key(2.0, number(0, 1e6, above=True), "p of the p-norm."),
    "AMP.ENABLED": Key(False, FLAG, "Train in mixed precision."),
    "AMP.DTYPE": _own("bfloat16", one_of("bfloat16", "float16"), "Its narrow type."),
    "ACCUMULATION_STEPS": _own(1, whole(1, 10**6), "Parts that a step's images are computed in, one after another."),
    "EMA_DECAY": _own(0.0, number(0, 1, below=True), "Decay of the moving average of weights; 0 switches it off."),
    "CHECKPOINT_PERIOD": Key(5000, _STEPS, "Steps between checkpoints; 0 writes one at the end."),
    "REFERENCE_WORLD_SIZE": Key(
        0, whole(0, 10**6), "Processes that IMS_PER_BATCH and the schedule were written for; 0: any number."
    ),
}

_TEST = {
    "EVAL_PERIOD": Key(5000, _STEPS, "Steps between evaluations; 0 evaluates at the end."),
    "DETECTIONS_PER_IMAGE": Key(100, whole(1, 10**6), "The most rows of an image."),
    "MAX_DETS": _own([1, 10, 100], each(whole(1, 10**6), least=1), "Rows of an image that AR counts."),
    "RANK_BY": _own("main", one_of("main", "sum", "geometric_mean"), "The score that rows are ranked by."),
    "ONE_CLASS_PER_QUERY": _own(False, FLAG, "A query gives one row, of its best category."),
    "SCORER": _own("hotcoco", one_of("hotcoco", "pycocotools"), "What computes AP."),
    "EXPECTED_RESULTS": _unread([], "No result is expected."),
    "PRECISE_BN.ENABLED": _unread(False, "Norms keep their running averages; detectron2's trainer reads it."),
    "PRECISE_BN.NUM_ITER": _unread(200, "Norms keep their running averages."),
    "AUG.ENABLED": _unread(False, "There is no augmentation in evaluation."),
    "AUG.MIN_SIZES": _unread((400, 500, 600, 700, 800, 900), "There is no augmentation in evaluation."),
    "AUG.MAX_SIZE": _unread(4000, "There is no augmentation in evaluation."),
    "AUG.FLIP": _unread(True, "There is no augmentation in evaluation."),
}

KEYS: dict[str, Key] = {
    "VERSION": Key(2, one_of(1, 2), "Version of detectron2's keys."),
    **{f"MODEL.{name}": key for name, key in _MODEL.items()},
    **{f"MODEL.FPN.{name}": key for name, key in _FPN.items()},
    **{f"MODEL.{name}": key for name, key in _RCNN.items()},
    **{f"MODEL.SOLOV2.{name}": key for name, key in _SOLOV2.items()},
    **{f"INPUT.{name}": key for name, key in _INPUT.items()},
    **{f"DATASETS.{name}": key for name, key in _DATASETS.items()},
    **{f"DATALOADER.{name}": key for name, key in _DATALOADER.items()},
    **{f"SOLVER.{name}": key for name, key in _SOLVER.items()},
    **{f"TEST.{name}": key for name, key in _TEST.items()},
    "OUTPUT_DIR": Key("./output", NAME, "The run directory."),
    "SEED": Key(-1, _SEED, "Seed of everything random; -1 draws one, which the run records."),
    "PROCESS_TIMEOUT": _own(1800.0, number(1, 1e6), "Seconds that a process waits for the others."),
    "CUDNN_BENCHMARK": Key(False, FLAG, "Let cuDNN choose its fastest algorithms, which may differ between runs."),
    "VIS_PERIOD": _unread(0, "Nothing is drawn in training."),
}

_MODEL_NAME, _BACKBONE_NAME, _MAPPER_NAME = NAMED_PARTS = (
    "MODEL.META_ARCHITECTURE",
    "MODEL.BACKBONE.NAME",
    "INPUT.DATASET_MAPPER_NAME",
)
"""Keys that may name a part of the user's own, which may read any key."""

_MASK2FORMER = ("MaskFormer", "Mask2Former")
_TEST_KEYS = "MODEL.MASK_FORMER.TEST."
_WITH_PYRAMID = ("GeneralizedRCNN", "SOLOv2")
JITTER_MAPPERS = ("coco_instance_lsj", "coco_panoptic_lsj")
EDGE_MAPPERS = ("mask_former_instance", "mask_former_panoptic", "mask_former_semantic")
_SCHEDULE = "SOLVER.LR_SCHEDULER_NAME"
# Keys that are read only where another key has one of some values, by the beginning of their names.
READ_WITH: tuple[tuple[str, str, tuple], ...] = (
    ("MODEL.SEM_SEG_HEAD.", _MODEL_NAME, _MASK2FORMER),
    ("MODEL.MASK_FORMER.", _MODEL_NAME, _MASK2FORMER),
    ("TEST.ONE_CLASS_PER_QUERY", _MODEL_NAME, _MASK2FORMER),
    (f"{_TEST_KEYS}OVERLAP_THRESHOLD", f"{_TEST_KEYS}PANOPTIC_ON", (True,)),
    (f"{_TEST_KEYS}OBJECT_MASK_THRESHOLD", f"{_TEST_KEYS}PANOPTIC_ON", (True,)),
    (f"{_TEST_KEYS}SEM_SEG_POSTPROCESSING", f"{_TEST_KEYS}SEMANTIC_ON", (True,)),
    ("MODEL.FPN.", _MODEL_NAME, _WITH_PYRAMID),
    *(
        (f"MODEL.{group}.", _MODEL_NAME, ("GeneralizedRCNN",))
        for group in ("PROPOSAL_GENERATOR", "ANCHOR_GENERATOR", "RPN", "ROI_HEADS", "ROI_BOX_HEAD", "ROI_MASK_HEAD")
    ),
    ("MODEL.SOLOV2.", _MODEL_NAME, ("SOLOv2",)),
    ("MODEL.RESNETS.", _BACKBONE_NAME, ("build_resnet_backbone",)),
    ("MODEL.MOBILENET.", _BACKBONE_NAME, ("build_mobilenet_v3_large_backbone",)),
    ("MODEL.SMALL_RESNET.", _BACKBONE_NAME, ("build_small_resnet_backbone",)),
    ("MODEL.SWIN.", _BACKBONE_NAME, ("D2SwinTransformer",)),
    ("INPUT.IMAGE_SIZE", _MAPPER_NAME, JITTER_MAPPERS),
    ("INPUT.MIN_SCALE", _MAPPER_NAME, JITTER_MAPPERS),
    ("INPUT.MAX_SCALE", _MAPPER_NAME, JITTER_MAPPERS),
    ("INPUT.MIN_SIZE_TRAIN", _MAPPER_NAME, EDGE_MAPPERS),
    ("INPUT.MAX_SIZE_TRAIN", _MAPPER_NAME, EDGE_MAPPERS),
    ("INPUT.CROP.", _MAPPER_NAME, EDGE_MAPPERS),
    ("INPUT.SIZE_DIVISIBILITY", _MAPPER_NAME, EDGE_MAPPERS),
    ("INPUT.CROP.TYPE", "INPUT.CROP.ENABLED", (True,)),
    ("INPUT.CROP.SIZE", "INPUT.CROP.ENABLED", (True,)),
    ("SOLVER.STEPS", _SCHEDULE, ("WarmupMultiStepLR",)),
    ("SOLVER.GAMMA", _SCHEDULE, ("WarmupMultiStepLR",)),
    ("SOLVER.BASE_LR_END", _SCHEDULE, ("WarmupCosineLR",)),
    ("SOLVER.POLY_LR_", _SCHEDULE, ("WarmupPolyLR",)),
    ("SOLVER.MOMENTUM", "SOLVER.OPTIMIZER", ("SGD",)),
    ("SOLVER.NESTEROV", "SOLVER.OPTIMIZER", ("SGD",)),
    ("SOLVER.AMP.DTYPE", "SOLVER.AMP.ENABLED", (True,)),
    ("SOLVER.CLIP_GRADIENTS.CLIP_", "SOLVER.CLIP_GRADIENTS.ENABLED", (True,)),
    ("SOLVER.CLIP_GRADIENTS.NORM_TYPE", "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", ("full_model", "norm")),
)


def page() -> str:
    """Return the table as Markdown, the text of ``docs/config.md``."""
    lines = [
        "# Config keys",
        "",
        "Names and defaults are detectron2's and Mask2Former's; the workbench's own are marked +. A published YAML",
        "loads unchanged; its keys without effect here are listed at the end and named in the log where they are set.",
        "`python -m workbench.config_keys > docs/config.md` writes this page.",
        "",
        "| Key | Default | Values | Meaning |",
        "| --- | --- | --- | --- |",
    ]
    for name, key in KEYS.items():
        if not key.unread:
            lines.append(f"| {name}{' +' * key.own} | `{key.default!r}` | {key.rule.wanted} | {key.meaning} |")
    lines += ["", "## Without effect", "", "| Key | Default | Why |", "| --- | --- | --- |"]
    lines += [f"| {name} | `{key.default!r}` | {key.meaning} |" for name, key in KEYS.items() if key.unread]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(page(), end="")
