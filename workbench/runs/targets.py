"""Models written for other programs: a folder for transformers, a file for Mask2Former.

What the other program has no place for, subcategories and config, is written beside, under a key of this package's own,
so that the model comes back whole.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from fvcore.common.config import CfgNode
from safetensors.torch import save_file
from torch import Tensor

from workbench.config import config_to_dict
from workbench.data.vocabulary import Vocabulary
from workbench.errors import WorkbenchError
from workbench.files import replacing, write_json
from workbench.runs.sources import OWN_KEY
from workbench.weights.naming import HUGGINGFACE, MASK2FORMER, Naming

_RESNETS = {18: ("basic", [2, 2, 2, 2]), 34: ("basic", [3, 4, 6, 3]), 50: ("bottleneck", [3, 4, 6, 3])}
_RESNETS[101] = ("bottleneck", [3, 4, 23, 3])


def write_mask2former(path: Path, state: Mapping[str, Tensor], cfg: CfgNode, vocabulary: Vocabulary) -> None:
    """Write a checkpoint that Mask2Former and detectron2 load, ``.pkl`` or ``.pth``."""
    if path.suffix not in (".pkl", ".pth"):
        raise WorkbenchError(f"Mask2Former's weights are a .pkl or a .pth file, not {path.name}")
    tensors = _renamed(state, MASK2FORMER, cfg)
    tensors["criterion.empty_weight"] = _empty_weight(cfg, vocabulary)
    own = {"__author__": "workbench", OWN_KEY: _own(cfg, vocabulary)}
    with replacing(path) as draft:
        if path.suffix == ".pth":
            with draft.open("wb") as file:
                torch.save({"model": tensors, **own}, file)
        else:
            arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
            draft.write_bytes(pickle.dumps({"model": arrays, **own}, protocol=4))


def write_transformers(folder: Path, state: Mapping[str, Tensor], cfg: CfgNode, vocabulary: Vocabulary) -> None:
    """Write a folder that ``Mask2FormerForUniversalSegmentation.from_pretrained`` opens; config.json is the last file.

    Raises:
        WorkbenchError: transformers cannot build the model that the config describes.
    """
    content = _transformers_config(cfg, vocabulary)
    tensors = _renamed(state, HUGGINGFACE, cfg)
    tensors["criterion.empty_weight"] = _empty_weight(cfg, vocabulary)
    for name in [name for name in tensors if name.endswith("running_mean")]:  # transformers has no frozen norms
        tensors.setdefault(name.replace("running_mean", "num_batches_tracked"), torch.tensor(0))
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / "model.safetensors") as draft:
        save_file(tensors, draft, metadata={"format": "pt"})
    write_json(folder / "preprocessor_config.json", _preprocessor(cfg), indent=2)
    write_json(folder / "config.json", content, indent=2)


def _renamed(state: Mapping[str, Tensor], naming: Naming, cfg: CfgNode) -> dict[str, Tensor]:
    tensors, without = naming.write(state)
    if without:
        raise WorkbenchError(
            f"the other program has no place for {len(without)} tensors ({', '.join(without[:3])}) of a model with "
            f"the backbone {cfg.MODEL.BACKBONE.NAME}"
        )
    # Each gets memory of its own, in the order of its axes, which both kinds of file need.
    return {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }


def _empty_weight(cfg: CfgNode, vocabulary: Vocabulary) -> Tensor:
    """Return the weights of classes in the loss, a buffer of both programs' models."""
    weights = torch.ones(vocabulary.num_classes + 1)
    weights[-1] = cfg.MODEL.MASK_FORMER.NO_OBJECT_WEIGHT
    return weights


def _own(cfg: CfgNode, vocabulary: Vocabulary) -> dict[str, Any]:
    return json.loads(json.dumps({"config": config_to_dict(cfg), **vocabulary.to_coco()}))


def _transformers_config(cfg: CfgNode, vocabulary: Vocabulary) -> dict[str, Any]:
    head, former = cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.MASK_FORMER
    fixed = {
        "MODEL.SEM_SEG_HEAD.NORM": (head.NORM, "GN"),
        "MODEL.SEM_SEG_HEAD.COMMON_STRIDE": (head.COMMON_STRIDE, 4),
        "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS": (
            head.DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS,
            4,
        ),
        "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS": (
            head.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS,
            former.NHEADS,
        ),
        "MODEL.SEM_SEG_HEAD.IN_FEATURES": (sorted(head.IN_FEATURES), ["res2", "res3", "res4", "res5"]),
    }
    for key, (value, wanted) in fixed.items():
        if value != wanted:
            raise WorkbenchError(f"transformers builds no Mask2Former with {key} {value}, only with {wanted}")
    if head.CONVS_DIM % 32 or head.CONVS_DIM == 32:
        raise WorkbenchError(
            f"transformers builds no Mask2Former with MODEL.SEM_SEG_HEAD.CONVS_DIM {head.CONVS_DIM}: its group norms "
            "need a multiple of 32 above 32"
        )
    backbone, strides = _transformers_backbone(cfg)
    labels = {str(index): name for index, name in enumerate(vocabulary.categories)}
    return {
        "architectures": ["Mask2FormerForUniversalSegmentation"],
        "model_type": "mask2former",
        "dtype": "float32",
        "backbone_config": backbone,
        "feature_strides": strides,
        "feature_size": head.CONVS_DIM,
        "mask_feature_size": head.MASK_DIM,
        "hidden_dim": former.HIDDEN_DIM,
        "encoder_feedforward_dim": head.TRANSFORMER_DIM_FEEDFORWARD,
        "encoder_layers": head.TRANSFORMER_ENC_LAYERS,
        "decoder_layers": former.DEC_LAYERS,
        "num_attention_heads": former.NHEADS,
        "dim_feedforward": former.DIM_FEEDFORWARD,
        "dropout": former.DROPOUT,
        "pre_norm": former.PRE_NORM,
        "enforce_input_projection": former.ENFORCE_INPUT_PROJ,
        "common_stride": 4,
        "num_queries": former.NUM_OBJECT_QUERIES,
        "no_object_weight": former.NO_OBJECT_WEIGHT,
        "class_weight": former.CLASS_WEIGHT,
        "mask_weight": former.MASK_WEIGHT,
        "dice_weight": former.DICE_WEIGHT,
        "train_num_points": former.TRAIN_NUM_POINTS,
        "oversample_ratio": former.OVERSAMPLE_RATIO,
        "importance_sample_ratio": former.IMPORTANCE_SAMPLE_RATIO,
        "id2label": labels,
        "label2id": {name: int(index) for index, name in labels.items()},
        OWN_KEY: _own(cfg, vocabulary),
    }


def _transformers_backbone(cfg: CfgNode) -> tuple[dict[str, Any], list[int]]:
    """Return transformers' config of the backbone, and the strides of its four maps."""
    name = cfg.MODEL.BACKBONE.NAME
    stages = {"out_features": ["stage1", "stage2", "stage3", "stage4"]}
    if name == "D2SwinTransformer" and cfg.MODEL.SWIN.PATCH_NORM:
        keys = cfg.MODEL.SWIN
        return {
            "model_type": "swin",
            "embed_dim": keys.EMBED_DIM,
            "depths": list(keys.DEPTHS),
            "num_heads": list(keys.NUM_HEADS),
            "window_size": keys.WINDOW_SIZE,
            "mlp_ratio": keys.MLP_RATIO,
            "qkv_bias": keys.QKV_BIAS,
            "drop_path_rate": keys.DROP_PATH_RATE,
            "hidden_dropout_prob": keys.DROP_RATE,
            "attention_probs_dropout_prob": keys.ATTN_DROP_RATE,
            **stages,
        }, [4, 8, 16, 32]
    keys = cfg.MODEL.RESNETS
    if name == "build_resnet_backbone" and keys.NORM != "GN" and keys.RES4_DILATION == keys.RES5_DILATION == 1:
        kind, depths = _RESNETS[keys.DEPTH]
        widest = 2048 if kind == "bottleneck" else 512
        return {
            "model_type": "resnet",
            "layer_type": kind,
            "depths": depths,
            "embedding_size": 64,
            "hidden_sizes": [widest // 8, widest // 4, widest // 2, widest],
            "downsample_in_bottleneck": keys.STRIDE_IN_1X1,
            **stages,
        }, [4, 8, 16, 32]
    raise WorkbenchError(
        f"transformers has no such backbone as MODEL.BACKBONE.NAME {name} with these keys; it has Swin and ResNet, "
        "neither dilated nor with group norm"
    )


def _preprocessor(cfg: CfgNode) -> dict[str, Any]:
    size = {"shortest_edge": cfg.INPUT.MIN_SIZE_TEST, "longest_edge": cfg.INPUT.MAX_SIZE_TEST}
    return {
        "image_processor_type": "Mask2FormerImageProcessor",
        "do_resize": cfg.INPUT.MIN_SIZE_TEST > 0,
        **({"size": size} if cfg.INPUT.MIN_SIZE_TEST > 0 else {}),
        "size_divisor": max(cfg.MODEL.MASK_FORMER.SIZE_DIVISIBILITY, 1),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [value / 255 for value in cfg.MODEL.PIXEL_MEAN],
        "image_std": [value / 255 for value in cfg.MODEL.PIXEL_STD],
        "ignore_index": 255,
        "do_reduce_labels": False,
    }
