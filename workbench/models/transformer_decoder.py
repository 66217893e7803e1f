"""Masked-attention transformer decoder (Mask2Former, Cheng et al., 2022, section 3.2) with subcategory heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workbench.models.position_encoding import sine_position_encoding


class Attention(nn.Module):
    """Multi-head attention whose parameters are named as in ``torch.nn.MultiheadAttention``.

    Unlike that module it takes one mask for all heads, so the mask is never expanded to heads x Q x HW.
    """

    def __init__(self, dim: int, heads: int):
        super().__init__()
        if dim % heads:
            raise ValueError(f"{dim} channels cannot be shared among {heads} heads")
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.xavier_uniform_(self.out_proj.weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None = None) -> Tensor:
        """query (B, Q, C), key and value (B, S, C), allowed (B, Q, S) bool -> (B, Q, C)."""
        projections = zip((query, key, value), self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3), strict=True)
        q, k, v = (F.linear(x, w, b).unflatten(2, (self.heads, -1)).transpose(1, 2) for x, w, b in projections)
        mask = allowed.unsqueeze(1) if allowed is not None else None
        return self.out_proj(F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2))


class DecoderLayer(nn.Module):
    """Masked cross-attention, self-attention, feed-forward network: the order of Mask2Former.

    Args:
        pre_norm: normalise before each of the three instead of after its residual.
    """

    def __init__(self, dim: int, *, heads: int, feedforward: int, pre_norm: bool):
        super().__init__()
        self.cross_attn = Attention(dim, heads)
        self.self_attn = Attention(dim, heads)
        self.linear1 = nn.Linear(dim, feedforward)
        self.linear2 = nn.Linear(feedforward, dim)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(3))
        self.pre_norm = pre_norm
        for linear in (self.linear1, self.linear2):
            nn.init.xavier_uniform_(linear.weight)

    def forward(
        self, queries: Tensor, query_position: Tensor, memory: Tensor, memory_position: Tensor, allowed: Tensor
    ) -> Tensor:
        """queries (B, Q, C), query_position (Q, C), memory (B, S, C), memory_position (S, C), allowed (B, Q, S)."""
        keys = memory + memory_position

        def cross(x: Tensor) -> Tensor:
            return self.cross_attn(x + query_position, keys, memory, allowed)

        def own(x: Tensor) -> Tensor:
            return self.self_attn(x + query_position, x + query_position, x)

        def feedforward(x: Tensor) -> Tensor:
            return self.linear2(F.relu(self.linear1(x)))

        for step, norm in zip((cross, own, feedforward), self.norms, strict=True):
            if self.pre_norm:
                queries = queries + step(norm(queries))
            else:
                queries = norm(queries + step(queries))
        return queries


class MLP(nn.Sequential):
    """Linear layers with ReLU between them."""

    def __init__(self, inputs: int, hidden: int, outputs: int, layers: int):
        sizes = [inputs, *[hidden] * (layers - 1), outputs]
        modules: list[nn.Module] = []
        for size_in, size_out in zip(sizes, sizes[1:], strict=False):
            modules += [nn.Linear(size_in, size_out), nn.ReLU()]
        super().__init__(*modules[:-1])


class MaskedTransformerDecoder(nn.Module):
    """Learnable queries attend to the maps in turn, each within the mask it predicted one layer before.

    Args:
        num_classes: main categories K; the head has K + 1 outputs, the last one for no object.
        subcategories: {name: K_s}; each gets a head of K_s + 1 outputs, the last one for no object.
        in_channels: channels of the maps. mask_dim: channels of the per-pixel embeddings.
        hidden_dim, num_queries, heads, feedforward, pre_norm: of the transformer.
        layers: decoder layers; the queries before the first also predict, so there are layers + 1 predictions.
        always_project: put a 1x1 convolution before the decoder even where the channels agree.
    """

    NUM_LEVELS = 3

    def __init__(
        self,
        *,
        num_classes: int,
        subcategories: Mapping[str, int],
        in_channels: int = 256,
        mask_dim: int = 256,
        hidden_dim: int = 256,
        num_queries: int = 100,
        heads: int = 8,
        feedforward: int = 2048,
        layers: int = 9,
        pre_norm: bool = False,
        always_project: bool = False,
    ):
        super().__init__()
        self.hidden_dim = hidden_dim
        self.query_feat = nn.Embedding(num_queries, hidden_dim)
        self.query_embed = nn.Embedding(num_queries, hidden_dim)
        self.level_embed = nn.Embedding(self.NUM_LEVELS, hidden_dim)
        project = in_channels != hidden_dim or always_project
        self.input_proj = nn.ModuleList(
            nn.Conv2d(in_channels, hidden_dim, 1) if project else nn.Identity() for _ in range(self.NUM_LEVELS)
        )
        self.layers = nn.ModuleList(
            DecoderLayer(hidden_dim, heads=heads, feedforward=feedforward, pre_norm=pre_norm) for _ in range(layers)
        )
        self.decoder_norm = nn.LayerNorm(hidden_dim)
        self.class_embed = nn.Linear(hidden_dim, num_classes + 1)
        self.mask_embed = MLP(hidden_dim, hidden_dim, mask_dim, 3)
        # Last, so that a seed gives the shared parameters the same values whatever subcategories there are.
        self.subcategory_embed = nn.ModuleDict(
            {module_name(name): nn.Linear(hidden_dim, classes + 1) for name, classes in subcategories.items()}
        )
        self.subcategory_names = tuple(subcategories)

    @property
    def num_classes(self) -> int:
        """Main categories K, without no-object."""
        return self.class_embed.out_features - 1

    @property
    def num_subcategory_classes(self) -> dict[str, int]:
        """K_s of each subcategory, without no-object."""
        return {name: self._subcategory_head(name).out_features - 1 for name in self.subcategory_names}

    def forward(self, maps: Sequence[Tensor], mask_features: Tensor, *, every_layer: bool = True) -> dict[str, Any]:
        """Run the decoder.

        Args:
            maps: three (B, C, h, w), coarse to fine. mask_features: (B, mask_dim, H/4, W/4).
            every_layer: also return what the earlier layers predict, for deep supervision.

        Returns:
            The raw outputs of the last layer: ``pred_logits`` (B, Q, K+1), ``pred_masks`` (B, Q, H/4, W/4) logits,
            ``pred_subcategories`` {name: (B, Q, K_s+1)}; and ``aux_outputs``, a list of the same, one an earlier
            prediction (empty unless ``every_layer``).
        """
        shapes = [m.shape[-2:] for m in maps]
        factory = {"device": mask_features.device, "dtype": torch.promote_types(mask_features.dtype, torch.float32)}
        positions = [sine_position_encoding(*shape, self.hidden_dim, **factory).flatten(1).T for shape in shapes]
        memories = [
            projection(m).flatten(2).transpose(1, 2) + level
            for projection, m, level in zip(self.input_proj, maps, self.level_embed.weight, strict=True)
        ]
        # The mask of attention is the predicted mask, shrunk. Shrinking is linear, so where the whole mask is not
        # wanted, the few shrunken embeddings give the same numbers for much less work.
        shrunken = None if every_layer else [_shrink(mask_features, shape) for shape in shapes]
        queries = self.query_feat.weight.expand(mask_features.shape[0], -1, -1)
        aux_outputs = []
        for index, layer in enumerate(self.layers):
            level = index % self.NUM_LEVELS
            normed = self.decoder_norm(queries)
            if every_layer:
                aux_outputs.append(self._predict(normed, mask_features))
                logits = _shrink(aux_outputs[-1]["pred_masks"].detach(), shapes[level])
            else:
                logits = torch.einsum("bqc,bchw->bqhw", self.mask_embed(normed), shrunken[level])
            allowed = logits.flatten(2) >= 0
            # A query whose mask is empty would attend to nothing and become NaN: it attends to everything instead.
            allowed = allowed | ~allowed.any(-1, keepdim=True)
            queries = layer(queries, self.query_embed.weight, memories[level], positions[level], allowed)
        return {**self._predict(self.decoder_norm(queries), mask_features), "aux_outputs": aux_outputs}

    def _predict(self, normed: Tensor, mask_features: Tensor) -> dict[str, Any]:
        return {
            "pred_logits": self.class_embed(normed),
            "pred_masks": torch.einsum("bqc,bchw->bqhw", self.mask_embed(normed), mask_features),
            "pred_subcategories": {name: self._subcategory_head(name)(normed) for name in self.subcategory_names},
        }

    def _subcategory_head(self, name: str) -> nn.Linear:
        return self.subcategory_embed[module_name(name)]


def _shrink(maps: Tensor, shape: Sequence[int]) -> Tensor:
    return F.interpolate(maps, size=tuple(shape), mode="bilinear", align_corners=False)


def module_name(name: str) -> str:
    """Return the name of a subcategory's head within a ``ModuleDict``."""
    # Module names may not hold a dot, nor be those of ModuleDict's own methods ("keys", "type").
    return "head_" + name.replace("%", "%25").replace(".", "%2E")
