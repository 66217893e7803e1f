"""Swin Transformer over timm's blocks, with the padding and the output norms of Mask2Former's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.models.swin_transformer import PatchMerging, SwinTransformerBlock
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from workbench.models.backbones.pyramid import STAGES, freeze_stages

_PATCH = 4


class _Block(SwinTransformerBlock):
    """timm shifts the map and then pads it to whole windows; the published weights learned the other order.

    Sizes are a number of windows times their side throughout: torch.export cannot simplify what timm derives from
    padded sizes, and does not end.
    """

    def __init__(self, dim: int, resolution: int, **settings) -> None:
        # The mask of shifted windows is made for each input's size, and small maps get whole windows too.
        super().__init__(dim, (resolution, resolution), always_partition=True, dynamic_mask=True, **settings)

    def _attn(self, x: Tensor) -> Tensor:
        batch, height, width, channels = x.shape
        side, shift = self.window_size[0], self.shift_size[0]
        rows, columns = ((size + side - 1) // side for size in (height, width))
        beyond = (0, 0, 0, columns * side - width, 0, rows * side - height)
        x = F.pad(x, beyond)
        if shift:
            x = x.roll((-shift, -shift), (1, 2))
        windows = x.view(batch, rows, side, columns, side, channels).transpose(2, 3).reshape(-1, side**2, channels)
        windows = self.attn(windows, mask=self._mask(rows, columns, x) if shift else None)
        x = windows.view(batch, rows, columns, side, side, channels).transpose(2, 3)
        x = x.reshape(batch, rows * side, columns * side, channels)
        if shift:
            x = x.roll((shift, shift), (1, 2))
        return F.pad(x, [-size for size in beyond])

    def _mask(self, rows: int, columns: int, x: Tensor) -> Tensor:
        """Return (windows, side^2, side^2): -100 where a shifted window joins two edges of the map, else 0."""
        side, shift = self.window_size[0], self.shift_size[0]
        parts = []
        for number in (rows, columns):
            place = torch.arange(number * side, device=x.device)
            part = (place >= (number - 1) * side).int() + (place >= number * side - shift).int()
            parts.append(part.view(number, side))
        vertical, horizontal = parts
        regions = 3 * vertical[:, None, :, None] + horizontal[None, :, None, :]
        regions = regions.reshape(rows * columns, side**2)
        return (regions[:, :, None] != regions[:, None, :]).to(x.dtype) * -100.0


class _PatchEmbed(nn.Module):
    def __init__(self, dim: int, norm: bool) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, _PATCH, _PATCH)
        self.norm = nn.LayerNorm(dim) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, ceil(H / 4), ceil(W / 4), dim)."""
        x = F.pad(x, (0, -x.shape[3] % _PATCH, 0, -x.shape[2] % _PATCH))
        return self.norm(self.proj(x).permute(0, 2, 3, 1))


class _Stage(nn.Module):
    def __init__(self, downsample: nn.Module, blocks: Sequence[nn.Module], checkpointed: bool) -> None:
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.Sequential(*blocks)
        self.checkpointed = checkpointed

    def forward(self, x: Tensor) -> Tensor:
        x = self.downsample(x)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.checkpointed and self.training else block(x)
        return x


class SwinBackbone(nn.Module):
    """Swin Transformer (Liu et al., 2021) for images of any size.

    Parameters have timm's names (``patch_embed``, ``layers.0.blocks.0.attn.qkv``; a stage begins with its
    ``downsample``), and ``norm0`` to ``norm3`` normalise the four outputs as in Mask2Former.

    Args:
        embed_dim: channels of res2; each stage has twice those of the one before.
        depths: blocks of each stage.
        num_heads: attention heads of each stage.
        window_size: side of a window, in positions.
        mlp_ratio: width of a block's MLP over its channels.
        qkv_bias: whether queries, keys and values have biases.
        drop_rate, attn_drop_rate: dropout of projections and MLPs, and of attention.
        drop_path_rate: stochastic depth of the last block; it rises linearly from 0 at the first.
        patch_norm: whether the patch embedding is normalised.
        checkpointed: recompute blocks in the backward pass, which saves memory.
        freeze_at: 1 freezes the patch embedding, 2 res2 as well, up to 5; 0 freezes nothing.
    """

    def __init__(
        self,
        *,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: int = 7,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.3,
        patch_norm: bool = True,
        checkpointed: bool = False,
        freeze_at: int = 0,
    ):
        super().__init__()
        self.patch_embed = _PatchEmbed(embed_dim, patch_norm)
        self.pos_drop = nn.Dropout(drop_rate)
        rates = iter(torch.linspace(0, drop_path_rate, sum(depths), device="cpu").tolist())
        self.layers = nn.ModuleList()
        for index, (depth, heads) in enumerate(zip(depths, num_heads, strict=True)):
            dim = embed_dim * 2**index
            blocks = [
                _Block(
                    dim,
                    2 * window_size,  # any size: it decides nothing for windows that are always whole
                    num_heads=heads,
                    window_size=window_size,
                    shift_size=window_size // 2 if block % 2 else 0,
                    mlp_ratio=mlp_ratio,
                    qkv_bias=qkv_bias,
                    proj_drop=drop_rate,
                    attn_drop=attn_drop_rate,
                    drop_path=next(rates),
                )
                for block in range(depth)
            ]
            self.layers.append(_Stage(PatchMerging(dim // 2) if index else nn.Identity(), blocks, checkpointed))
            self.add_module(f"norm{index}", nn.LayerNorm(dim))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        stages = [(f"layers.{index}", f"norm{index}") for index in range(len(depths))]
        freeze_stages(self, [("patch_embed",), *stages], freeze_at)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) -> {"res2": (B, embed_dim, ceil(H/4), ceil(W/4)), ...}, twice the channels at half the size."""
        x = self.pos_drop(self.patch_embed(x))
        outputs = {}
        for index, (name, stage) in enumerate(zip(STAGES, self.layers, strict=False)):
            x = stage(x)
            outputs[name] = getattr(self, f"norm{index}")(x).permute(0, 3, 1, 2).contiguous()
        return outputs
