"""transformers' Mask2Former, an independent implementation, given the weights of this one."""

from __future__ import annotations

import re
from collections.abc import Iterator

from torch import Tensor
from transformers import Mask2FormerConfig, SwinConfig
from transformers import SwinBackbone as SwinPeer
from transformers.models.mask2former.modeling_mask2former import (
    Mask2FormerPixelDecoder,
    Mask2FormerTransformerModule,
)

from workbench.models.backbones import SwinBackbone
from workbench.models.pixel_decoder import MSDeformAttnPixelDecoder
from workbench.models.transformer_decoder import MaskedTransformerDecoder

_ENCODER = {"norm1": "self_attn_layer_norm", "norm2": "final_layer_norm", "linear1": "fc1", "linear2": "fc2"}
_DECODER = {
    "norms.0": "cross_attn_layer_norm",
    "norms.1": "self_attn_layer_norm",
    "norms.2": "final_layer_norm",
    "linear1": "fc1",
    "linear2": "fc2",
}


def pixel_decoder(
    decoder: MSDeformAttnPixelDecoder, channels: list[int], config: Mask2FormerConfig
) -> Mask2FormerPixelDecoder:
    """The peer's pixel decoder with the weights of ``decoder``."""
    peer = Mask2FormerPixelDecoder(config, feature_channels=channels)
    state = {}
    for name, tensor in decoder.state_dict().items():
        name = re.sub(r"^input_proj\.", "input_projections.", name)
        name = re.sub(r"^mask_features\.", "mask_projection.", name)
        name = re.sub(r"^lateral_convs\.0", "adapter_1", name)
        name = re.sub(r"^output_convs\.0", "layer_1", name)
        if name.startswith("layers."):
            name = "encoder." + _renamed(name, _ENCODER)
        state[name] = tensor
    peer.load_state_dict(state)
    return peer.eval()


def transformer(decoder: MaskedTransformerDecoder, config: Mask2FormerConfig) -> Mask2FormerTransformerModule:
    """The peer's transformer decoder with the weights of ``decoder``; its class heads are outside this module."""
    peer = Mask2FormerTransformerModule(in_features=config.feature_size, config=config)
    peer.load_state_dict(dict(_transformer_state(decoder)))
    return peer.eval()


def _transformer_state(decoder: MaskedTransformerDecoder) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in decoder.state_dict().items():
        head = name.split(".")[0]
        if head in ("class_embed", "subcategory_embed"):
            continue
        if head == "mask_embed":
            _, index, kind = name.split(".")
            yield f"decoder.mask_predictor.mask_embedder.{int(index) // 2}.0.{kind}", tensor
        elif head == "decoder_norm":
            yield name.replace("decoder_norm", "decoder.layernorm"), tensor
        elif head == "layers":
            renamed = "decoder." + _renamed(name, _DECODER)
            if "self_attn.in_proj_" in renamed:  # the peer keeps the three apart
                for part, piece in zip("qkv", tensor.chunk(3), strict=True):
                    yield re.sub(r"in_proj_(\w+)", rf"{part}_proj.\1", renamed), piece
            else:
                yield renamed, tensor
        else:
            renames = {"query_embed": "queries_embedder", "query_feat": "queries_features"}
            yield name.replace(head, renames.get(head, head)), tensor


def _renamed(name: str, table: dict[str, str]) -> str:
    for name_here, name_there in table.items():
        name = name.replace(f".{name_here}.", f".{name_there}.")
    return name


def swin(backbone: SwinBackbone, window_size: int) -> SwinPeer:
    """The peer's Swin with the weights of ``backbone``."""
    depths = [len(stage.blocks) for stage in backbone.layers]
    config = SwinConfig(
        embed_dim=backbone.patch_embed.proj.out_channels,
        depths=depths,
        num_heads=[stage.blocks[0].attn.num_heads for stage in backbone.layers],
        window_size=window_size,
        out_features=[f"stage{index + 1}" for index in range(len(depths))],
    )
    peer = SwinPeer(config)
    spare = {name: tensor for name, tensor in peer.state_dict().items() if name.startswith("swin.layernorm.")}
    peer.load_state_dict(dict(_swin_state(backbone)) | spare)  # ours ends with the norms of its outputs
    return peer.eval()


def _swin_state(backbone: SwinBackbone) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in backbone.state_dict().items():
        name = re.sub(r"^norm(\d)", lambda found: f"hidden_states_norms.stage{int(found[1]) + 1}", name)
        # A stage begins with its downsampling here and ends with the next stage's there.
        name = re.sub(r"^layers\.(\d)\.downsample", lambda found: f"layers.{int(found[1]) - 1}.downsample", name)
        name = re.sub(r"^layers\.", "swin.encoder.layers.", name)
        name = name.replace("patch_embed.proj", "swin.embeddings.patch_embeddings.projection")
        name = name.replace("patch_embed.norm", "swin.embeddings.norm")
        name = _renamed(
            name, {"norm1": "layernorm_before", "norm2": "layernorm_after", "attn.proj": "attention.o_proj"}
        )
        name = name.replace(
            "attn.relative_position_bias_table", "attention.relative_position_bias.relative_position_bias_table"
        )
        if ".attn.qkv." in name:  # the peer keeps the three apart
            for part, piece in zip("qkv", tensor.chunk(3), strict=True):
                yield name.replace("attn.qkv", f"attention.{part}_proj"), piece
        else:
            yield name, tensor
