"""Names of tensors in the files of other programs, and in this package's models.

A rule is a pair of patterns, this package's name first. ``{i}`` stands for a number, ``{rest}`` for the end of a name;
the same pattern reads one way and writes the other. Where a rule has several names for one tensor, that tensor is
their concatenation.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

Rule = tuple[str, str | tuple[str, ...]]


@dataclass(frozen=True)
class Naming:
    """The names of one format. ``ignored`` matches names that no model here has a tensor for."""

    rules: tuple[Rule, ...]
    ignored: str = r"(?!)"

    @cached_property
    def _readers(self) -> list[tuple[re.Pattern, str, int, int]]:
        return [
            (_pattern(name), own, part, len(names))
            for own, names in ((own, (other,) if isinstance(other, str) else other) for own, other in self.rules)
            for part, name in enumerate(names)
        ]

    @cached_property
    def _writers(self) -> list[tuple[re.Pattern, tuple[str, ...]]]:
        return [(_pattern(own), (other,) if isinstance(other, str) else other) for own, other in self.rules]

    def read(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a file's tensors under this package's names; a name that no rule matches stays as it is."""
        state: dict[str, Tensor] = {}
        parts: dict[str, dict[int, Tensor]] = {}
        for name, tensor in tensors.items():
            if re.fullmatch(self.ignored, name):
                continue
            for pattern, own, part, count in self._readers:
                if match := pattern.fullmatch(name):
                    own = own.format(**match.groupdict())
                    if count == 1:
                        state[own] = tensor
                        break
                    pieces = parts.setdefault(own, {})
                    pieces[part] = tensor
                    if len(pieces) == count:
                        state[own] = torch.cat([pieces[index] for index in range(count)])
                    break
            else:
                state[name] = tensor
        return state

    def write(self, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
        """Return a model's tensors under the names of the format, and the names that it has none for."""
        tensors: dict[str, Tensor] = {}
        without = []
        for name, tensor in state.items():
            for pattern, names in self._writers:
                if match := pattern.fullmatch(name):
                    pieces = (tensor,) if len(names) == 1 else tensor.chunk(len(names))
                    named = zip(names, pieces, strict=True)
                    tensors |= {other.format(**match.groupdict()): piece.contiguous() for other, piece in named}
                    break
            else:
                without.append(name)
        return tensors, without


def _pattern(text: str) -> re.Pattern:
    """Return a rule's pattern as a regular expression."""
    escaped = re.escape(text).replace(r"\{rest\}", "(?P<rest>.+)")
    return re.compile(re.sub(r"\\\{(\w)\\\}", r"(?P<\1>\\d+)", escaped))


def _prefixed(prefix: str, other: str, names: Iterable[Rule]) -> list[Rule]:
    """Return rules with a prefix before the names on each side."""
    return [
        (prefix + own, other + names if isinstance(names, str) else tuple(other + name for name in names))
        for own, names in names
    ]


# Mask2Former's own checkpoints, and those of its model zoo.
_MASK2FORMER_HEAD = (
    *_prefixed(
        "pixel_decoder.",
        "sem_seg_head.pixel_decoder.",
        [
            ("layers.{rest}", "transformer.encoder.layers.{rest}"),
            ("level_embed", "transformer.level_embed"),
            ("lateral_convs.0.1.{rest}", "adapter_1.norm.{rest}"),
            ("lateral_convs.0.0.{rest}", "adapter_1.{rest}"),
            ("output_convs.0.1.{rest}", "layer_1.norm.{rest}"),
            ("output_convs.0.0.{rest}", "layer_1.{rest}"),
            ("input_proj.{rest}", "input_proj.{rest}"),
            ("mask_features.{rest}", "mask_features.{rest}"),
        ],
    ),
    *_prefixed(
        "transformer_decoder.",
        "sem_seg_head.predictor.",
        [
            ("layers.{i}.cross_attn.{rest}", "transformer_cross_attention_layers.{i}.multihead_attn.{rest}"),
            ("layers.{i}.self_attn.{rest}", "transformer_self_attention_layers.{i}.self_attn.{rest}"),
            ("layers.{i}.norms.0.{rest}", "transformer_cross_attention_layers.{i}.norm.{rest}"),
            ("layers.{i}.norms.1.{rest}", "transformer_self_attention_layers.{i}.norm.{rest}"),
            ("layers.{i}.norms.2.{rest}", "transformer_ffn_layers.{i}.norm.{rest}"),
            ("layers.{i}.linear1.{rest}", "transformer_ffn_layers.{i}.linear1.{rest}"),
            ("layers.{i}.linear2.{rest}", "transformer_ffn_layers.{i}.linear2.{rest}"),
            *((f"mask_embed.{2 * i}.{{rest}}", f"mask_embed.layers.{i}.{{rest}}") for i in range(3)),
            ("query_feat.{rest}", "query_feat.{rest}"),
            ("query_feat.{rest}", "static_query.{rest}"),  # before the first release
            ("{rest}", "{rest}"),
        ],
    ),
)


def _resnet(stem: str, stem_norm: str, stage: str, first: int, unit: Iterable[Rule]) -> list[Rule]:
    """Return the rules of a ResNet; ``{}`` in ``stage``, the prefix of a unit, is the stage's number from ``first``."""
    rules: list[Rule] = [("conv1.weight", stem), ("bn1.{rest}", stem_norm)]
    for index in range(4):
        rules += _prefixed(f"layer{index + 1}.{{i}}.", stage.replace("{}", str(first + index)), unit)
    return rules


# detectron2's ResNet is "stem" and "res2" to "res5", with the norms inside the convolutions.
_DETECTRON2_RESNET = _resnet(
    "stem.conv1.weight",
    "stem.conv1.norm.{rest}",
    "res{}.{i}.",
    2,
    [
        ("downsample.0.weight", "shortcut.weight"),
        ("downsample.1.{rest}", "shortcut.norm.{rest}"),
        ("bn{k}.{rest}", "conv{k}.norm.{rest}"),
        ("conv{k}.weight", "conv{k}.weight"),
    ],
)

# Microsoft's Swin ends a stage with the downsampling that begins the next one in timm, whose names are used here.
_SWIN = (
    *((f"layers.{s + 1}.downsample.{{rest}}", f"layers.{s}.downsample.{{rest}}") for s in range(3)),
    ("layers.{i}.blocks.{rest}", "layers.{i}.blocks.{rest}"),
    ("patch_embed.{rest}", "patch_embed.{rest}"),
    *((f"norm{s}.{{rest}}", f"norm{s}.{{rest}}") for s in range(4)),
)
_CONSTANTS = r".*\.(attn_mask|relative_position_index|empty_weight)"  # of a window's geometry, and of the loss

# Hugging Face's Mask2Former as its files have it; transformers renames some of it in memory.
_HF_BACKBONE = (
    *_resnet(
        "embedder.embedder.convolution.weight",
        "embedder.embedder.normalization.{rest}",
        "encoder.stages.{}.layers.{i}.",
        0,
        [
            ("downsample.0.weight", "shortcut.convolution.weight"),
            ("downsample.1.{rest}", "shortcut.normalization.{rest}"),
            *((f"conv{k + 1}.weight", f"layer.{k}.convolution.weight") for k in range(3)),
            *((f"bn{k + 1}.{{rest}}", f"layer.{k}.normalization.{{rest}}") for k in range(3)),
        ],
    ),
    ("patch_embed.proj.{rest}", "embeddings.patch_embeddings.projection.{rest}"),
    ("patch_embed.norm.{rest}", "embeddings.norm.{rest}"),
    *((f"norm{s}.{{rest}}", f"hidden_states_norms.stage{s + 1}.{{rest}}") for s in range(4)),
    *((f"layers.{s + 1}.downsample.{{rest}}", f"encoder.layers.{s}.downsample.{{rest}}") for s in range(3)),
    *_prefixed(
        "layers.{i}.blocks.{j}.",
        "encoder.layers.{i}.blocks.{j}.",
        [
            ("attn.qkv.{rest}", tuple(f"attention.self.{part}.{{rest}}" for part in ("query", "key", "value"))),
            ("attn.relative_position_bias_table", "attention.self.relative_position_bias_table"),
            ("attn.proj.{rest}", "attention.output.dense.{rest}"),
            ("mlp.fc1.{rest}", "intermediate.dense.{rest}"),
            ("mlp.fc2.{rest}", "output.dense.{rest}"),
            ("norm1.{rest}", "layernorm_before.{rest}"),
            ("norm2.{rest}", "layernorm_after.{rest}"),
        ],
    ),
)
_HF_HEAD = (
    *_prefixed(
        "pixel_decoder.",
        "model.pixel_level_module.decoder.",
        [
            ("layers.{i}.self_attn.{rest}", "encoder.layers.{i}.self_attn.{rest}"),
            ("layers.{i}.norm1.{rest}", "encoder.layers.{i}.self_attn_layer_norm.{rest}"),
            ("layers.{i}.norm2.{rest}", "encoder.layers.{i}.final_layer_norm.{rest}"),
            ("layers.{i}.linear{k}.{rest}", "encoder.layers.{i}.fc{k}.{rest}"),
            ("level_embed", "level_embed"),
            ("lateral_convs.0.{rest}", "adapter_1.{rest}"),
            ("output_convs.0.{rest}", "layer_1.{rest}"),
            ("input_proj.{rest}", "input_projections.{rest}"),
            ("mask_features.{rest}", "mask_projection.{rest}"),
        ],
    ),
    *_prefixed(
        "transformer_decoder.",
        "model.transformer_module.",
        [
            ("query_embed.weight", "queries_embedder.weight"),
            ("query_feat.weight", "queries_features.weight"),
            ("level_embed.weight", "level_embed.weight"),
            ("input_proj.{rest}", "input_projections.{rest}"),
            ("decoder_norm.{rest}", "decoder.layernorm.{rest}"),
            *(
                (f"mask_embed.{2 * i}.{{rest}}", f"decoder.mask_predictor.mask_embedder.{i}.0.{{rest}}")
                for i in range(3)
            ),
            ("layers.{i}.self_attn.out_proj.{rest}", "decoder.layers.{i}.self_attn.out_proj.{rest}"),
            (
                "layers.{i}.self_attn.in_proj_{rest}",
                tuple(f"decoder.layers.{{i}}.self_attn.{part}_proj.{{rest}}" for part in "qkv"),
            ),
            ("layers.{i}.cross_attn.{rest}", "decoder.layers.{i}.cross_attn.{rest}"),
            ("layers.{i}.norms.0.{rest}", "decoder.layers.{i}.cross_attn_layer_norm.{rest}"),
            ("layers.{i}.norms.1.{rest}", "decoder.layers.{i}.self_attn_layer_norm.{rest}"),
            ("layers.{i}.norms.2.{rest}", "decoder.layers.{i}.final_layer_norm.{rest}"),
            ("layers.{i}.linear{k}.{rest}", "decoder.layers.{i}.fc{k}.{rest}"),
        ],
    ),
    ("transformer_decoder.class_embed.{rest}", "class_predictor.{rest}"),
    ("transformer_decoder.subcategory_embed.{rest}", "subcategory_predictor.{rest}"),  # this package's addition
)

# Caffe2's ResNets, which detectron2 publishes as MSRA's: their norms were folded into a scale and a shift.
_CAFFE2_NORMS = tuple(
    (kind, f"{norm}_{short}")
    for norm in ("bn", "gn")
    for short, kind in (("s", "weight"), ("b", "bias"), ("rm", "running_mean"), ("riv", "running_var"))
)
_CAFFE2_RESNET = (
    *((f"bn1.{kind}", f"res_conv1_{short}") for kind, short in _CAFFE2_NORMS),
    *_resnet(
        "conv1_w",
        "res_conv1_bn_{rest}",
        "res{}_{i}_branch",
        2,
        [
            rule
            for convolution, norm, branch in (
                ("downsample.0", "downsample.1", "1"),
                ("conv1", "bn1", "2a"),
                ("conv2", "bn2", "2b"),
                ("conv3", "bn3", "2c"),
            )
            for rule in (
                (f"{convolution}.weight", f"{branch}_w"),
                *((f"{norm}.{kind}", f"{branch}_{short}") for kind, short in _CAFFE2_NORMS),
            )
        ],
    ),
)

DETECTRON2 = Naming(tuple(_prefixed("backbone.", "", _DETECTRON2_RESNET)), r"stem\.fc\..*")
CAFFE2 = Naming(
    tuple(_prefixed("backbone.", "", _CAFFE2_RESNET)), r"(conv1|pred|fc1000|.*_branch\d[abc]?)_b|(pred|fc1000)_w"
)
SWIN = Naming(tuple(_prefixed("backbone.", "", _SWIN)), rf"{_CONSTANTS}|(norm|head)\..*")
MASK2FORMER = Naming(
    (
        *_prefixed("backbone.", "backbone.", (*_DETECTRON2_RESNET, *_SWIN, ("{rest}", "{rest}"))),
        *_MASK2FORMER_HEAD,
    ),
    _CONSTANTS,
)
HUGGINGFACE = Naming(
    (*_prefixed("backbone.", "model.pixel_level_module.encoder.", _HF_BACKBONE), *_HF_HEAD),
    rf"{_CONSTANTS}|.*encoder\.(swin\.)?layernorm\..*",
)

# AdelaiDet's SOLOv2, whose heads have their names here too.
ADELAIDET = Naming(
    (
        *_prefixed("backbone.body.", "backbone.bottom_up.", _DETECTRON2_RESNET),
        *(
            (f"backbone.fpn.{own}.{level}.{part}.{{rest}}", f"backbone.fpn_{other}{level + 2}.{norm}{{rest}}")
            for own, other in (("inner_blocks", "lateral"), ("layer_blocks", "output"))
            for level in range(4)
            for part, norm in ((1, "norm."), (0, ""))
        ),
    )
)


@dataclass(frozen=True)
class Recognised:
    """Tensors under this package's names.

    Attributes:
        kind: whose format they were in.
        state: name to tensor; those of a backbone alone begin with ``backbone.`` too.
        pixel_std: deviation of red, green and blue that the backbone was trained with, where the kind fixes it.
        fused: whether the norms were folded into a scale and a shift.
    """

    kind: str
    state: dict[str, Tensor]
    pixel_std: tuple[float, ...] | None = None
    fused: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether more than a backbone is there."""
        return any(not name.startswith("backbone.") for name in self.state)


OWN_KIND = "workbench"  # and of any other names that no format here has
IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)
UNDIVIDED = (1.0, 1.0, 1.0)


def recognise(tensors: Mapping[str, Tensor]) -> Recognised:
    """Return tensors under this package's names, whatever format their own names are of; unknown names stay."""
    if tensors and all(name.startswith("module.") for name in tensors):  # DistributedDataParallel's
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}

    def some(pattern: str) -> bool:
        return any(re.match(pattern, name) for name in tensors)

    if some(r"sem_seg_head\."):
        return Recognised("Mask2Former", MASK2FORMER.read(tensors), IMAGENET_STD)
    if some(r"model\.pixel_level_module\."):
        return Recognised("Hugging Face Mask2Former", HUGGINGFACE.read(tensors), IMAGENET_STD)
    if some(r"res[2-5]_\d+_branch"):
        return _from_caffe2(tensors)
    if some(r"stem\.conv1\.") and some(r"res2\.0\."):
        return Recognised("detectron2 ResNet", DETECTRON2.read(tensors), IMAGENET_STD)
    if some(r"layers\.0\.blocks\.0\.attn\."):
        microsoft = some(r"layers\.0\.downsample\.")
        state = SWIN.read(tensors) if microsoft else {f"backbone.{name}": tensor for name, tensor in tensors.items()}
        return Recognised(f"{'Microsoft' if microsoft else 'timm'} Swin", state, IMAGENET_STD)
    if some(r"(features\.0\.0\.|layer1\.0\.conv1\.)") or (some(r"backbone\.") and some(r"(aux_)?classifier\.")):
        state = {f"backbone.{name}": tensor for name, tensor in torchvision_backbone(tensors).items()}
        return Recognised(f"torchvision {torchvision_kind(tensors)}", state, IMAGENET_STD)
    return Recognised(OWN_KIND, dict(tensors))


def _from_caffe2(tensors: Mapping[str, Tensor]) -> Recognised:
    """Return MSRA's weights for images in RGB, whose norms get the mean 0 and the variance 1 that were folded."""
    state = CAFFE2.read(tensors)
    if (stem := state.get("backbone.conv1.weight")) is not None:
        state["backbone.conv1.weight"] = stem.flip(1)  # they were trained on BGR
    fused = not any(name.endswith("running_var") for name in state) and not any("_gn_" in name for name in tensors)
    if fused:
        for name, tensor in list(state.items()):
            if re.search(r"(bn\d|downsample\.1)\.weight$", name):
                stem = name.removesuffix("weight")
                state[f"{stem}running_mean"] = torch.zeros_like(tensor)
                state[f"{stem}running_var"] = torch.full_like(tensor, 1 - 1e-5)  # 1e-5 is added to it
    return Recognised("detectron2 MSRA ResNet", state, UNDIVIDED, fused)


def torchvision_kind(state: Mapping[str, Tensor]) -> str:
    """Return what a torchvision state dict was trained for: "segmentation", "classification" or "backbone"."""
    if any(name.startswith("backbone.") for name in state):
        return "segmentation"
    if any(name.startswith(("classifier.", "fc.")) for name in state):
        return "classification"
    return "backbone"


def torchvision_backbone(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the backbone's part of a torchvision network's weights, under the names of this package's backbones.

    DeepLabV3's MobileNetV3 is an IntermediateLayerGetter, so its layers are ``backbone.<index>``, where the classifier
    has ``features.<index>``; its ResNet is ``backbone.<name>``. Heads are left out. Dilation changes no weight's shape,
    so the weights of a dilated network fit an undilated one.
    """
    kind = torchvision_kind(state)
    cut = {}
    for name, tensor in state.items():
        if kind == "segmentation":
            head, _, rest = name.partition(".")
            if head != "backbone":
                continue
            name = f"features.{rest}" if rest.split(".")[0].isdigit() else rest
        if not name.startswith(("classifier.", "aux_classifier.", "fc.")):
            cut[name] = tensor
    return cut
