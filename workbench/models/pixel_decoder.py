"""Mask2Former's pixel decoder: a multi-scale deformable attention encoder and an FPN level above it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workbench.models.backbones.pyramid import FeatureShape
from workbench.models.position_encoding import sine_position_encoding
from workbench.ops import deform_attn


class MSDeformAttn(nn.Module):
    """Multi-scale deformable attention (Deformable DETR, Zhu et al., 2021, equation 3)."""

    def __init__(self, dim: int, *, levels: int, heads: int, points: int):
        super().__init__()
        if dim % heads:
            raise ValueError(f"{dim} channels cannot be shared among {heads} heads")
        self.levels, self.heads, self.points = levels, heads, points
        self.sampling_offsets = nn.Linear(dim, heads * levels * points * 2)
        self.attention_weights = nn.Linear(dim, heads * levels * points)
        self.value_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Point each head in a direction of its own, its point p at p + 1 pixels, with equal weights."""
        angle = torch.arange(self.heads, dtype=torch.float32) * (2 * math.pi / self.heads)
        direction = torch.stack([angle.cos(), angle.sin()], -1)
        direction = direction / direction.abs().amax(-1, keepdim=True)
        steps = torch.arange(1, self.points + 1, dtype=torch.float32)
        offsets = direction[:, None, None, :] * steps[None, None, :, None]
        with torch.no_grad():
            self.sampling_offsets.weight.zero_()
            self.sampling_offsets.bias.copy_(offsets.expand(-1, self.levels, -1, -1).flatten())
            self.attention_weights.weight.zero_()
            self.attention_weights.bias.zero_()
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(
        self, query: Tensor, reference_points: Tensor, value: Tensor, spatial_shapes: Sequence[tuple[int, int]]
    ) -> Tensor:
        """query (B, Lq, C), reference_points (Lq, 2) as (x, y) in [0, 1], value (B, S, C) -> (B, Lq, C)."""
        value = self.value_proj(value).unflatten(2, (self.heads, -1))
        locations, weights = self.sampling(query, reference_points, spatial_shapes)
        return self.output_proj(deform_attn(value, spatial_shapes, locations, weights))

    def sampling(
        self, query: Tensor, reference_points: Tensor, spatial_shapes: Sequence[tuple[int, int]]
    ) -> tuple[Tensor, Tensor]:
        """Return where each query reads and with which weight; the arguments are those of :meth:`forward`.

        Returns:
            locations (B, Lq, heads, levels, points, 2) as (x, y), where [0, 1] is the map, and weights (B, Lq, heads,
            levels, points), which sum to 1 over levels and points.
        """
        batch, length, _ = query.shape
        samples = (batch, length, self.heads, self.levels, self.points)
        # All coordinates in one dimension: on a CPU, torch is slow on a last dimension of two.
        # Filled, and not made of a list: sizes are symbols where the model is exported.
        sizes = torch.cat([query.new_full((1,), size) for height, width in spatial_shapes for size in (width, height)])
        sizes = sizes.view(-1, 2).repeat_interleave(self.points, 0).flatten().repeat(self.heads)
        centres = reference_points.repeat(1, self.heads * self.levels * self.points)
        locations = (centres + self.sampling_offsets(query) / sizes).view(*samples, 2)
        # Softmax over the first dimension: on a CPU, torch is slow on a last dimension as short as this.
        weights = self.attention_weights(query).view(-1, self.levels * self.points).t().softmax(0)
        return locations, weights.t().contiguous().view(samples)


class DeformableEncoderLayer(nn.Module):
    """Deformable self-attention and a feed-forward network, each followed by a residual and a LayerNorm."""

    def __init__(self, dim: int, *, feedforward: int, dropout: float, levels: int, heads: int, points: int):
        super().__init__()
        self.self_attn = MSDeformAttn(dim, levels=levels, heads=heads, points=points)
        self.norm1 = nn.LayerNorm(dim)
        self.linear1 = nn.Linear(dim, feedforward)
        self.linear2 = nn.Linear(feedforward, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        for linear in (self.linear1, self.linear2):
            nn.init.xavier_uniform_(linear.weight)

    def forward(
        self, x: Tensor, position: Tensor, reference_points: Tensor, spatial_shapes: Sequence[tuple[int, int]]
    ) -> Tensor:
        """x (B, S, C), position (S, C), reference_points (S, 2) -> (B, S, C)."""
        x = self.norm1(x + self.dropout(self.self_attn(x + position, reference_points, x, spatial_shapes)))
        hidden = self.dropout(F.relu(self.linear1(x)))
        return self.norm2(x + self.dropout(self.linear2(hidden)))


class _ConvNorm(nn.Sequential):
    def __init__(self, inputs: int, outputs: int, kernel: int, norm: str):
        if norm not in ("GN", ""):
            raise ValueError(f"the norm of the pixel decoder is {norm!r}; it must be GN or empty")
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=not norm),
            group_norm(outputs) if norm else nn.Identity(),
        )
        nn.init.kaiming_uniform_(self[0].weight, a=1)
        if self[0].bias is not None:
            nn.init.zeros_(self[0].bias)


def group_norm(channels: int) -> nn.GroupNorm:
    """Return a norm of 32 groups, as published, or of as many as divide the channels with two or more in each.

    A group of one channel cannot be normalised where a map is a single pixel.
    """
    groups = math.gcd(32, channels)
    return nn.GroupNorm(groups if groups < channels else max(1, channels // 2), channels)


class MSDeformAttnPixelDecoder(nn.Module):
    """Features of a backbone in, per-pixel embeddings and three maps for the transformer decoder out.

    Args:
        input_shapes: measured channels and strides of the backbone's outputs.
        in_features: which of them to use; ``transformer_in_features``: which of those the encoder works on. The
            others, finer ones, are joined top-down as in an FPN until ``common_stride`` is reached; with none, the
            encoder's finest map becomes the per-pixel embeddings.
        conv_dim: channels of the encoder. mask_dim: channels of the per-pixel embeddings.
        feedforward, layers, heads, points, dropout: of the encoder.
        norm: "GN" or "" (none) in the FPN part.
    """

    def __init__(
        self,
        input_shapes: Mapping[str, FeatureShape],
        *,
        in_features: Sequence[str] = ("res2", "res3", "res4", "res5"),
        transformer_in_features: Sequence[str] = ("res3", "res4", "res5"),
        conv_dim: int = 256,
        mask_dim: int = 256,
        feedforward: int = 1024,
        layers: int = 6,
        heads: int = 8,
        points: int = 4,
        dropout: float = 0.0,
        norm: str = "GN",
        common_stride: int = 4,
    ):
        super().__init__()
        missing = [name for name in in_features if name not in input_shapes]
        if missing:
            raise ValueError(f"{', '.join(missing)} is to be decoded but the backbone gives {', '.join(input_shapes)}")
        by_stride = sorted(in_features, key=lambda name: (input_shapes[name].stride, name))
        # The encoder works from coarse to fine, as the transformer decoder will.
        self.encoder_features = [name for name in reversed(by_stride) if name in transformer_in_features]
        finest = min(input_shapes[name].stride for name in self.encoder_features)
        self.fpn_features = [
            name for name in reversed(by_stride) if common_stride <= input_shapes[name].stride < finest
        ]
        if len(self.encoder_features) != 3:
            raise ValueError(f"the transformer decoder takes three maps, not {transformer_in_features}")
        self.dim = conv_dim
        self.input_proj = nn.ModuleList(
            nn.Sequential(nn.Conv2d(input_shapes[name].channels, conv_dim, 1), group_norm(conv_dim))
            for name in self.encoder_features
        )
        for projection in self.input_proj:
            nn.init.xavier_uniform_(projection[0].weight)
            nn.init.zeros_(projection[0].bias)
        self.level_embed = nn.Parameter(torch.randn(len(self.encoder_features), conv_dim))
        self.layers = nn.ModuleList(
            DeformableEncoderLayer(
                conv_dim,
                feedforward=feedforward,
                dropout=dropout,
                levels=len(self.encoder_features),
                heads=heads,
                points=points,
            )
            for _ in range(layers)
        )
        self.lateral_convs = nn.ModuleList(
            _ConvNorm(input_shapes[name].channels, conv_dim, 1, norm) for name in self.fpn_features
        )
        self.output_convs = nn.ModuleList(_ConvNorm(conv_dim, conv_dim, 3, norm) for _ in self.fpn_features)
        self.mask_features = nn.Conv2d(conv_dim, mask_dim, 1)
        nn.init.kaiming_uniform_(self.mask_features.weight, a=1)
        nn.init.zeros_(self.mask_features.bias)

    def forward(self, features: Mapping[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
        """{name: (B, C, H, W)} -> embeddings (B, mask_dim, H/4, W/4), and 3 maps (B, conv_dim, h, w), coarse first."""
        maps = [
            projection(features[name]) for projection, name in zip(self.input_proj, self.encoder_features, strict=True)
        ]
        shapes = [(m.shape[2], m.shape[3]) for m in maps]
        # Positions are at least float32 under autocast, and float64 where the model is.
        factory = {"device": maps[0].device, "dtype": torch.promote_types(maps[0].dtype, torch.float32)}
        position = torch.cat(
            [
                sine_position_encoding(*shape, self.dim, **factory).flatten(1).T + embed
                for shape, embed in zip(shapes, self.level_embed, strict=True)
            ]
        )
        reference_points = torch.cat([_pixel_centres(*shape, **factory) for shape in shapes])
        x = torch.cat([m.flatten(2).transpose(1, 2) for m in maps], 1)
        for layer in self.layers:
            x = layer(x, position, reference_points, shapes)
        parts = x.split([height * width for height, width in shapes], 1)
        maps = [part.transpose(1, 2).unflatten(2, shape) for part, shape in zip(parts, shapes, strict=True)]

        fine = maps[-1]
        for name, lateral, output in zip(self.fpn_features, self.lateral_convs, self.output_convs, strict=True):
            skip = lateral(features[name])
            fine = F.interpolate(fine, size=skip.shape[-2:], mode="bilinear", align_corners=False).to(skip.dtype)
            fine = F.relu(output(skip + fine))
        return self.mask_features(fine), maps


def _pixel_centres(height: int, width: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(height * width, 2) ``dtype`` as (x, y) in (0, 1), row by row."""
    y = (torch.arange(height, dtype=dtype, device=device) + 0.5) / height
    x = (torch.arange(width, dtype=dtype, device=device) + 0.5) / width
    return torch.stack([x.expand(height, width), y[:, None].expand(height, width)], -1).flatten(0, 1)
