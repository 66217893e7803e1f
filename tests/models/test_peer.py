"""Our decoders against an independent implementation with the same weights."""

import pytest
import torch

from workbench.models.backbones import FeatureShape
from workbench.models.pixel_decoder import MSDeformAttnPixelDecoder
from workbench.models.transformer_decoder import MaskedTransformerDecoder

pytest.importorskip("transformers")
from tests.models import peer  # noqa: E402

CHANNELS = [8, 12, 16, 20]


@pytest.fixture(scope="module")
def config():
    return peer.Mask2FormerConfig(
        feature_size=64,
        mask_feature_size=32,
        hidden_dim=64,
        encoder_feedforward_dim=96,
        dim_feedforward=80,
        encoder_layers=2,
        decoder_layers=5,
        num_attention_heads=4,
        num_queries=7,
        feature_strides=[4, 8, 16, 32],
        common_stride=4,
        dropout=0.0,
        pre_norm=False,
    )


@pytest.fixture(scope="module")
def decoders():
    torch.manual_seed(0)
    shapes = {f"res{i + 2}": FeatureShape(c, s) for i, (c, s) in enumerate(zip(CHANNELS, (4, 8, 16, 32), strict=True))}
    pixel = MSDeformAttnPixelDecoder(shapes, conv_dim=64, mask_dim=32, feedforward=96, layers=2, heads=4)
    decoder = MaskedTransformerDecoder(
        num_classes=5,
        subcategories={"colour": 3},
        in_channels=64,
        mask_dim=32,
        hidden_dim=64,
        num_queries=7,
        heads=4,
        feedforward=80,
        layers=4,
    )
    for module in (pixel, decoder):  # no parameter may stay at a value that hides a mistake, such as zero
        for parameter in module.parameters():
            with torch.no_grad():
                parameter.add_(0.05 * torch.randn_like(parameter))
    return pixel.eval(), decoder.eval()


@pytest.fixture(scope="module")
def features():
    generator = torch.Generator().manual_seed(1)
    return {
        f"res{i + 2}": torch.randn(2, c, 96 // s, 160 // s, generator=generator)
        for i, (c, s) in enumerate(zip(CHANNELS, (4, 8, 16, 32), strict=True))
    }


def test_the_pixel_decoder_computes_what_the_peer_computes(config, decoders, features):
    reference = peer.pixel_decoder(decoders[0], CHANNELS, config)
    with torch.no_grad():
        mask_features, maps = decoders[0](features)
        expected = reference(list(features.values()), return_dict=True)
    torch.testing.assert_close(mask_features, expected.mask_features, rtol=1e-4, atol=1e-5)
    for map_, wanted in zip(maps, expected.multi_scale_features, strict=True):
        torch.testing.assert_close(map_, wanted, rtol=1e-4, atol=1e-5)


def test_the_transformer_decoder_computes_what_the_peer_computes(config, decoders, features):
    reference = peer.transformer(decoders[1], config)
    with torch.no_grad():
        mask_features, maps = decoders[0](features)
        outputs = decoders[1](maps, mask_features)
        expected = reference(maps, mask_features)
    predicted = [*(aux["pred_masks"] for aux in outputs["aux_outputs"]), outputs["pred_masks"]]
    assert len(predicted) == len(expected.masks_queries_logits) == 5
    for masks, wanted in zip(predicted, expected.masks_queries_logits, strict=True):
        torch.testing.assert_close(masks, wanted, rtol=1e-3, atol=1e-4)
    logits = decoders[1].class_embed(expected.intermediate_hidden_states[-1].transpose(0, 1))
    torch.testing.assert_close(outputs["pred_logits"], logits, rtol=1e-3, atol=1e-4)
