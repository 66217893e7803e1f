"""Modules named as in the code of Mask2Former and detectron2: their state dicts are files of the model zoo."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def _parameters(**shapes: tuple[int, ...]) -> nn.Module:
    module = nn.Module()
    for name, shape in shapes.items():
        module.register_parameter(name, nn.Parameter(torch.empty(shape)))
    return module


def _list(count: int, make) -> nn.ModuleList:  # noqa: ANN001
    return nn.ModuleList(make() for _ in range(count))


def _tree(**children: nn.Module) -> nn.Module:
    module = nn.Module()
    for name, child in children.items():
        module.add_module(name, child)
    return module


def _conv(inputs: int, outputs: int, kernel: int, norm: nn.Module | None = None) -> nn.Module:
    """detectron2's Conv2d: the norm is a child of the convolution, which then has no bias."""
    conv = nn.Conv2d(inputs, outputs, kernel, bias=norm is None)
    if norm is not None:
        conv.norm = norm
    return conv


def _frozen(channels: int) -> nn.Module:
    norm = nn.Module()
    for name in ("weight", "bias", "running_mean", "running_var"):
        norm.register_buffer(name, torch.empty(channels))
    return norm


def resnet(blocks: tuple[int, ...]) -> nn.Module:
    """Bottleneck ResNet with "stem" and "res2" to "res5"."""
    network = _tree(stem=_tree(conv1=_conv(3, 64, 7, _frozen(64))))
    inputs = 64
    for stage, count in enumerate(blocks):
        width, outputs = 64 * 2**stage, 256 * 2**stage
        units = []
        for index in range(count):
            unit = _tree(
                conv1=_conv(inputs, width, 1, _frozen(width)),
                conv2=_conv(width, width, 3, _frozen(width)),
                conv3=_conv(width, outputs, 1, _frozen(outputs)),
            )
            if index == 0:
                unit.shortcut = _conv(inputs, outputs, 1, _frozen(outputs))
            units.append(unit)
            inputs = outputs
        network.add_module(f"res{stage + 2}", nn.Sequential(*units))
    return network


def swin(dim: int, depths: tuple[int, ...], heads: tuple[int, ...], window: int) -> nn.Module:
    """D2SwinTransformer: a stage ends with its downsampling."""
    network = _tree(patch_embed=_tree(proj=nn.Conv2d(3, dim, 4, 4), norm=nn.LayerNorm(dim)), layers=nn.ModuleList())
    for stage, (depth, count) in enumerate(zip(depths, heads, strict=True)):
        width = dim * 2**stage
        blocks = nn.ModuleList()
        for _ in range(depth):
            attention = _tree(qkv=nn.Linear(width, 3 * width), proj=nn.Linear(width, width))
            table = torch.empty((2 * window - 1) ** 2, count)
            attention.register_parameter("relative_position_bias_table", nn.Parameter(table))
            attention.register_buffer("relative_position_index", torch.zeros(window**2, window**2, dtype=torch.long))
            mlp = _tree(fc1=nn.Linear(width, 4 * width), fc2=nn.Linear(4 * width, width))
            blocks.append(_tree(norm1=nn.LayerNorm(width), attn=attention, norm2=nn.LayerNorm(width), mlp=mlp))
        layer = _tree(blocks=blocks)
        if stage + 1 < len(depths):
            layer.downsample = _tree(
                reduction=nn.Linear(4 * width, 2 * width, bias=False), norm=nn.LayerNorm(4 * width)
            )
        network.layers.append(layer)
        network.add_module(f"norm{stage}", nn.LayerNorm(width))
    return network


def mask2former(
    backbone: nn.Module, channels: tuple[int, ...], *, classes: int, queries: int = 5, dim: int = 32, heads: int = 4
) -> nn.Module:
    """MaskFormer with a MaskFormerHead: MSDeformAttnPixelDecoder and MultiScaleMaskedTransformerDecoder."""

    def deformable() -> nn.Module:
        attention = _tree(
            sampling_offsets=nn.Linear(dim, heads * 3 * 4 * 2),
            attention_weights=nn.Linear(dim, heads * 3 * 4),
            value_proj=nn.Linear(dim, dim),
            output_proj=nn.Linear(dim, dim),
        )
        norms = {"norm1": nn.LayerNorm(dim), "norm2": nn.LayerNorm(dim)}
        return _tree(self_attn=attention, linear1=nn.Linear(dim, 48), linear2=nn.Linear(48, dim), **norms)

    transformer = _parameters(level_embed=(3, dim))
    transformer.encoder = _tree(layers=_list(2, deformable))
    pixel_decoder = _tree(
        input_proj=nn.ModuleList(
            nn.Sequential(nn.Conv2d(count, dim, 1), nn.GroupNorm(32, dim)) for count in channels[:0:-1]
        ),
        transformer=transformer,
        mask_features=_conv(dim, dim, 1),
        adapter_1=_conv(channels[0], dim, 1, nn.GroupNorm(32, dim)),
        layer_1=_conv(dim, dim, 3, nn.GroupNorm(32, dim)),
    )

    def attention(name: str) -> nn.Module:
        return _tree(norm=nn.LayerNorm(dim), **{name: nn.MultiheadAttention(dim, heads)})

    predictor = _tree(
        transformer_self_attention_layers=_list(3, lambda: attention("self_attn")),
        transformer_cross_attention_layers=_list(3, lambda: attention("multihead_attn")),
        transformer_ffn_layers=_list(
            3, lambda: _tree(linear1=nn.Linear(dim, 40), linear2=nn.Linear(40, dim), norm=nn.LayerNorm(dim))
        ),
        decoder_norm=nn.LayerNorm(dim),
        query_feat=nn.Embedding(queries, dim),
        query_embed=nn.Embedding(queries, dim),
        level_embed=nn.Embedding(3, dim),
        class_embed=nn.Linear(dim, classes + 1),
        mask_embed=_tree(layers=_list(3, lambda: nn.Linear(dim, dim))),
    )
    criterion = nn.Module()
    criterion.register_buffer("empty_weight", torch.ones(classes + 1))
    head = _tree(pixel_decoder=pixel_decoder, predictor=predictor)
    return _tree(backbone=backbone, sem_seg_head=head, criterion=criterion)


def random_state(module: nn.Module) -> dict[str, Tensor]:
    """Return a state dict of random numbers; variances are above zero."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, tensor in module.state_dict().items():
        values = 0.05 * torch.randn(tensor.shape, generator=generator)
        state[name] = (values.abs() + 0.5 if name.endswith("running_var") else values).to(tensor.dtype)
    return state


def caffe2_resnet(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return detectron2's names of a ResNet as Caffe2's: MSRA's files hold BGR stems and no statistics."""
    letters = {"shortcut": "1", "conv1": "2a", "conv2": "2b", "conv3": "2c"}
    kinds = {"weight": "s", "bias": "b"}
    renamed = {}
    for name, tensor in state.items():
        *place, kind = name.split(".")
        normed = place[-1] == "norm"
        if normed and kind not in kinds:
            continue
        unit = place[:-1] if normed else place
        suffix = f"bn_{kinds[kind]}" if normed else "w"
        if unit[0] == "stem":
            renamed["res_conv1_" + suffix if normed else "conv1_w"] = tensor if normed else tensor.flip(1)
        else:
            stage, index, part = unit
            renamed[f"{stage}_{index}_branch{letters[part]}_{suffix}"] = tensor
    return renamed
