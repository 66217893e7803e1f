"""The one place where a config becomes a model."""

from __future__ import annotations

import math

import torch
from fvcore.common.config import CfgNode
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from workbench.data.vocabulary import Vocabulary
from workbench.environment.memory import check_memory
from workbench.errors import WorkbenchError
from workbench.losses.criterion import SetCriterion
from workbench.losses.matcher import HungarianMatcher
from workbench.losses.solov2 import SOLOv2Criterion
from workbench.models.backbones import (
    MobileNetV3Backbone,
    PyramidError,
    ResNetBackbone,
    SmallResNet,
    SwinBackbone,
    TimmBackbone,
    check_pyramid,
    measure,
)
from workbench.models.fpn import PyramidBackbone
from workbench.models.mask2former import Mask2Former
from workbench.models.mask_rcnn import MaskRCNN
from workbench.models.pixel_decoder import MSDeformAttnPixelDecoder, group_norm
from workbench.models.postprocess import Kinds
from workbench.models.solov2 import InstanceHead, MaskHead, SOLOv2
from workbench.models.transformer_decoder import MaskedTransformerDecoder
from workbench.models.weights import load_backbone, torchvision_state
from workbench.registry import BACKBONES, MODELS
from workbench.weights.download import local_weights
from workbench.weights.reading import read_state

_TIMM = "timm/<name>"  # every name that timm knows
_NORMS = {"BN": nn.BatchNorm2d, "SyncBN": nn.SyncBatchNorm, "FrozenBN": FrozenBatchNorm2d, "GN": group_norm}


def build_model(cfg: CfgNode, vocabulary: Vocabulary, *, pretrained: bool = True) -> nn.Module:
    """Return the model a config describes, for a dataset's categories.

    Args:
        cfg: the config. vocabulary: ``num_classes`` K and ``num_subcategory_classes`` {name: K_s}.
        pretrained: False leaves the backbone's weights random, for a model whose weights are about to be loaded.

    Raises:
        WorkbenchError: the config names something that does not exist or does not fit, the model exceeds the memory,
            or weights cannot be read.
    """
    check_memory(cfg)
    try:
        model = MODELS[cfg.MODEL.META_ARCHITECTURE](cfg, vocabulary, pretrained)
    except PyramidError as error:
        raise WorkbenchError(f"MODEL.BACKBONE.NAME {cfg.MODEL.BACKBONE.NAME}: {error}") from None
    except ValueError as error:
        raise WorkbenchError(f"the config does not describe a model: {error}") from None
    # Convolutions are faster with channels last: on a CPU the demo's training step takes three quarters of the time.
    return model.to(memory_format=torch.channels_last)


def build_backbone(cfg: CfgNode, *, pretrained: bool = True) -> nn.Module:
    """Return the backbone a config describes, with the weights it asks for."""
    name = cfg.MODEL.BACKBONE.NAME
    return BACKBONES[_TIMM if name.startswith("timm/") else name](cfg, pretrained)


def build_pyramid(cfg: CfgNode, *, pretrained: bool = True) -> PyramidBackbone:
    """Return the backbone a config describes, under a feature pyramid network."""
    keys = cfg.MODEL.FPN
    return PyramidBackbone(
        build_backbone(cfg, pretrained=pretrained),
        in_features=keys.IN_FEATURES,
        out_channels=keys.OUT_CHANNELS,
        norm_layer=_NORMS.get(keys.NORM),
    )


def build_criterion(cfg: CfgNode) -> SetCriterion:
    """Return the losses a config describes, matcher included."""
    former = cfg.MODEL.MASK_FORMER
    return SetCriterion(
        HungarianMatcher(
            class_cost=former.CLASS_WEIGHT,
            mask_cost=former.MASK_WEIGHT,
            dice_cost=former.DICE_WEIGHT,
            subcategory_cost=former.SUBCATEGORY_COST,
            num_points=former.TRAIN_NUM_POINTS,
        ),
        class_weight=former.CLASS_WEIGHT,
        mask_weight=former.MASK_WEIGHT,
        dice_weight=former.DICE_WEIGHT,
        subcategory_weight=former.SUBCATEGORY_WEIGHT,
        no_object_weight=former.NO_OBJECT_WEIGHT,
        subcategory_no_object_weight=former.SUBCATEGORY_NO_OBJECT_WEIGHT,
        num_points=former.TRAIN_NUM_POINTS,
        oversample_ratio=former.OVERSAMPLE_RATIO,
        importance_sample_ratio=former.IMPORTANCE_SAMPLE_RATIO,
    )


@MODELS.register("MaskFormer", "Mask2Former")
def _mask2former(cfg: CfgNode, vocabulary: Vocabulary, pretrained: bool) -> Mask2Former:
    head, former = cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.MASK_FORMER
    backbone = build_backbone(cfg, pretrained=pretrained)
    shapes = measure(backbone)
    check_pyramid(shapes)
    pixel_decoder = MSDeformAttnPixelDecoder(
        shapes,
        in_features=head.IN_FEATURES,
        transformer_in_features=head.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES,
        conv_dim=head.CONVS_DIM,
        mask_dim=head.MASK_DIM,
        feedforward=head.TRANSFORMER_DIM_FEEDFORWARD,
        layers=head.TRANSFORMER_ENC_LAYERS,
        heads=head.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS,
        points=head.DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS,
        dropout=former.DROPOUT,
        norm=head.NORM,
        common_stride=head.COMMON_STRIDE,
    )
    transformer_decoder = MaskedTransformerDecoder(
        num_classes=vocabulary.num_classes,
        subcategories=vocabulary.num_subcategory_classes,
        in_channels=head.CONVS_DIM,
        mask_dim=head.MASK_DIM,
        hidden_dim=former.HIDDEN_DIM,
        num_queries=former.NUM_OBJECT_QUERIES,
        heads=former.NHEADS,
        feedforward=former.DIM_FEEDFORWARD,
        layers=former.DEC_LAYERS - 1,  # the learnable queries' own prediction counts as a layer
        pre_norm=former.PRE_NORM,
        always_project=former.ENFORCE_INPUT_PROJ,
    )
    if not former.SUBCATEGORY_WEIGHT:  # heads without a loss: several processes would wait for their gradients
        transformer_decoder.subcategory_embed.requires_grad_(False)
    return Mask2Former(
        backbone,
        pixel_decoder,
        transformer_decoder,
        build_criterion(cfg),
        pixel_mean=cfg.MODEL.PIXEL_MEAN,
        pixel_std=cfg.MODEL.PIXEL_STD,
        size_divisibility=former.SIZE_DIVISIBILITY,
        deep_supervision=former.DEEP_SUPERVISION,
        top_k=cfg.TEST.DETECTIONS_PER_IMAGE,
        rank_by=cfg.TEST.RANK_BY,
        one_class_per_query=cfg.TEST.ONE_CLASS_PER_QUERY,
        kinds=Kinds(
            instances=former.TEST.INSTANCE_ON,
            semantic=former.TEST.SEMANTIC_ON,
            panoptic=former.TEST.PANOPTIC_ON,
            stuff=vocabulary.stuff_labels,
            object_mask_threshold=former.TEST.OBJECT_MASK_THRESHOLD,
            overlap_threshold=former.TEST.OVERLAP_THRESHOLD,
            # Published models enlarge masks wherever other predictions need them in full size.
            enlarge_masks=former.TEST.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE
            or former.TEST.INSTANCE_ON
            or former.TEST.PANOPTIC_ON,
        ),
    )


@MODELS.register("GeneralizedRCNN")
def _mask_rcnn(cfg: CfgNode, vocabulary: Vocabulary, pretrained: bool) -> MaskRCNN:
    keys, anchors, heads = cfg.MODEL.RPN, cfg.MODEL.ANCHOR_GENERATOR, cfg.MODEL.ROI_HEADS
    box, mask = cfg.MODEL.ROI_BOX_HEAD, cfg.MODEL.ROI_MASK_HEAD
    return MaskRCNN(
        build_pyramid(cfg, pretrained=pretrained),
        num_classes=vocabulary.num_classes,
        subcategories=vocabulary.num_subcategory_classes,
        anchor_sizes=anchors.SIZES,
        aspect_ratios=anchors.ASPECT_RATIOS,
        rpn={
            "fg_iou_thresh": keys.IOU_THRESHOLDS[1],
            "bg_iou_thresh": keys.IOU_THRESHOLDS[0],
            "batch_size_per_image": keys.BATCH_SIZE_PER_IMAGE,
            "positive_fraction": keys.POSITIVE_FRACTION,
            "pre_nms_top_n": {"training": keys.PRE_NMS_TOPK_TRAIN, "testing": keys.PRE_NMS_TOPK_TEST},
            "post_nms_top_n": {"training": keys.POST_NMS_TOPK_TRAIN, "testing": keys.POST_NMS_TOPK_TEST},
            "nms_thresh": keys.NMS_THRESH,
        },
        rpn_convs=len(keys.CONV_DIMS),
        roi={
            "fg_iou_thresh": heads.IOU_THRESHOLDS[0],
            "bg_iou_thresh": heads.IOU_THRESHOLDS[0],
            "batch_size_per_image": heads.BATCH_SIZE_PER_IMAGE,
            "positive_fraction": heads.POSITIVE_FRACTION,
            "score_thresh": heads.SCORE_THRESH_TEST,
            "nms_thresh": heads.NMS_THRESH_TEST,
            "detections_per_img": cfg.TEST.DETECTIONS_PER_IMAGE,
        },
        box_resolution=box.POOLER_RESOLUTION,
        box_convs=box.NUM_CONV,
        box_conv_dim=box.CONV_DIM,
        box_fcs=box.NUM_FC,
        box_fc_dim=box.FC_DIM,
        box_norm=_NORMS.get(box.NORM),
        mask_resolution=mask.POOLER_RESOLUTION,
        mask_convs=mask.NUM_CONV,
        mask_dim=mask.CONV_DIM,
        mask_norm=_NORMS.get(mask.NORM),
        subcategory_weight=heads.SUBCATEGORY_WEIGHT,
        subcategory_no_object_weight=heads.SUBCATEGORY_NO_OBJECT_WEIGHT,
        rank_by=cfg.TEST.RANK_BY,
        pixel_mean=cfg.MODEL.PIXEL_MEAN,
        pixel_std=cfg.MODEL.PIXEL_STD,
    )


@MODELS.register("SOLOv2")
def _solov2(cfg: CfgNode, vocabulary: Vocabulary, pretrained: bool) -> SOLOv2:
    keys, channels = cfg.MODEL.SOLOV2, cfg.MODEL.FPN.OUT_CHANNELS
    backbone = build_pyramid(cfg, pretrained=pretrained)
    for key in ("INSTANCE_IN_FEATURES", "MASK_IN_FEATURES"):
        missing = [name for name in keys[key] if name not in backbone.strides]
        if missing:
            raise WorkbenchError(
                f"config key MODEL.SOLOV2.{key} names {', '.join(missing)}; the pyramid on "
                f"{cfg.MODEL.BACKBONE.NAME} has {', '.join(backbone.strides)}"
            )
    mask_head = MaskHead(
        [backbone.strides[name] for name in keys.MASK_IN_FEATURES],
        in_channels=channels,
        channels=keys.MASK_CHANNELS,
        kernel_size=keys.NUM_MASKS,
    )
    instance_head = InstanceHead(  # last, as its heads of subcategories are
        vocabulary.num_classes,
        vocabulary.num_subcategory_classes,
        in_channels=channels,
        channels=keys.INSTANCE_CHANNELS,
        convolutions=keys.NUM_INSTANCE_CONVS,
        kernel_size=keys.NUM_KERNELS,
        grids=keys.NUM_GRIDS,
        prior=keys.PRIOR_PROB,
    )
    if not keys.LOSS.SUBCATEGORY_WEIGHT:  # heads without a loss: several processes would wait for their gradients
        instance_head.subcategory_pred.requires_grad_(False)
    criterion = SOLOv2Criterion(
        grids=keys.NUM_GRIDS,
        scale_ranges=keys.FPN_SCALE_RANGES,
        sigma=keys.SIGMA,
        focal_alpha=keys.LOSS.FOCAL_ALPHA,
        focal_gamma=keys.LOSS.FOCAL_GAMMA,
        focal_weight=keys.LOSS.FOCAL_WEIGHT,
        dice_weight=keys.LOSS.DICE_WEIGHT,
        subcategory_weight=keys.LOSS.SUBCATEGORY_WEIGHT,
    )
    return SOLOv2(
        backbone,
        instance_head,
        mask_head,
        criterion,
        instance_features=keys.INSTANCE_IN_FEATURES,
        mask_features=keys.MASK_IN_FEATURES,
        instance_strides=keys.FPN_INSTANCE_STRIDES,
        pixel_mean=cfg.MODEL.PIXEL_MEAN,
        pixel_std=cfg.MODEL.PIXEL_STD,
        # Every map has then the same part of the image in each of its pixels.
        size_divisibility=math.lcm(32, *keys.FPN_INSTANCE_STRIDES),
        score_threshold=keys.SCORE_THR,
        mask_threshold=keys.MASK_THR,
        before_nms=keys.NMS_PRE,
        nms_kernel=keys.NMS_KERNEL,
        nms_sigma=keys.NMS_SIGMA,
        update_threshold=keys.UPDATE_THR,
        top_k=min(keys.MAX_PER_IMG, cfg.TEST.DETECTIONS_PER_IMAGE),
        rank_by=cfg.TEST.RANK_BY,
    )


@BACKBONES.register("build_mobilenet_v3_large_backbone")
def _mobilenet(cfg: CfgNode, pretrained: bool) -> nn.Module:
    keys, freeze_at = cfg.MODEL.MOBILENET, cfg.MODEL.BACKBONE.FREEZE_AT
    try:
        backbone = MobileNetV3Backbone(
            taps=keys.TAPS, dilated=keys.DILATED, norm_layer=_NORMS[keys.NORM], freeze_at=freeze_at
        )
    except PyramidError as error:
        raise WorkbenchError(f"config key MODEL.MOBILENET.TAPS: {error}") from None
    return _with_weights(backbone, "mobilenet_v3_large", keys.WEIGHTS, pretrained)


@BACKBONES.register("build_resnet_backbone", "build_resnet_fpn_backbone")  # the pyramid is the model's part
def _resnet(cfg: CfgNode, pretrained: bool) -> nn.Module:
    keys = cfg.MODEL.RESNETS
    backbone = ResNetBackbone(
        depth=keys.DEPTH,
        dilated=(False, keys.RES4_DILATION > 1, keys.RES5_DILATION > 1),
        norm_layer=_NORMS[keys.NORM],
        stride_in_1x1=keys.STRIDE_IN_1X1,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
    )
    return _with_weights(backbone, f"resnet{keys.DEPTH}", keys.WEIGHTS, pretrained)


@BACKBONES.register("build_small_resnet_backbone")
def _small_resnet(cfg: CfgNode, pretrained: bool) -> nn.Module:
    keys = cfg.MODEL.SMALL_RESNET
    norm_layer, freeze_at = _NORMS[keys.NORM], cfg.MODEL.BACKBONE.FREEZE_AT
    return SmallResNet(widths=keys.WIDTHS, depths=keys.DEPTHS, norm_layer=norm_layer, freeze_at=freeze_at)


@BACKBONES.register("D2SwinTransformer")
def _swin(cfg: CfgNode, pretrained: bool) -> nn.Module:
    keys = cfg.MODEL.SWIN
    return SwinBackbone(
        embed_dim=keys.EMBED_DIM,
        depths=keys.DEPTHS,
        num_heads=keys.NUM_HEADS,
        window_size=keys.WINDOW_SIZE,
        mlp_ratio=keys.MLP_RATIO,
        qkv_bias=keys.QKV_BIAS,
        drop_rate=keys.DROP_RATE,
        attn_drop_rate=keys.ATTN_DROP_RATE,
        drop_path_rate=keys.DROP_PATH_RATE,
        patch_norm=keys.PATCH_NORM,
        checkpointed=keys.USE_CHECKPOINT,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
    )


@BACKBONES.register(_TIMM)
def _timm(cfg: CfgNode, pretrained: bool) -> nn.Module:
    name = cfg.MODEL.BACKBONE.NAME.partition("/")[2]
    if cfg.MODEL.BACKBONE.FREEZE_AT:
        raise WorkbenchError(
            f"config key MODEL.BACKBONE.FREEZE_AT is {cfg.MODEL.BACKBONE.FREEZE_AT}; timm's models cannot be frozen in "
            "part, so it must be 0"
        )
    return TimmBackbone(name, pretrained=pretrained and cfg.MODEL.TIMM.PRETRAINED)


def _with_weights(backbone: nn.Module, network: str, weights: str, pretrained: bool) -> nn.Module:
    if pretrained and weights != "none":
        published = weights in ("imagenet", "deeplabv3")
        state = torchvision_state(network, weights) if published else read_state(local_weights(weights))
        load_backbone(backbone, state, weights)
    return backbone
