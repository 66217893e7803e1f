import pytest
import torch

from workbench.models.backbones import PyramidError, SwinBackbone, measure

SMALL = {"embed_dim": 16, "depths": (2, 2, 2, 1), "num_heads": (1, 2, 4, 8), "window_size": 5}


def _small(**settings):
    torch.manual_seed(0)
    backbone = SwinBackbone(**SMALL, **settings)
    for parameter in backbone.parameters():  # none may stay at a value that hides a mistake, such as zero
        with torch.no_grad():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return backbone.eval()


# Whole windows; maps that are padded on both sides; an odd size, smaller than a window in the last stages.
@pytest.mark.parametrize("size", [(160, 160), (128, 224), (61, 107)])
def test_swin_computes_what_the_peer_computes(size):
    pytest.importorskip("transformers")
    from tests.models import peer

    backbone = _small()
    image = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        features = backbone(image)
        expected = peer.swin(backbone, SMALL["window_size"])(image).feature_maps
    assert list(features) == ["res2", "res3", "res4", "res5"]
    for name, wanted in zip(features, expected, strict=True):
        torch.testing.assert_close(features[name], wanted, rtol=1e-5, atol=1e-5)


def test_the_published_sizes_have_their_channels_and_parameters():
    """Channels as in Liu et al. (2021), table 7; parameters of timm's features and of four output norms."""
    backbone = SwinBackbone()
    assert list(measure(backbone).values()) == [(96, 4), (192, 8), (384, 16), (768, 32)]
    assert sum(p.numel() for p in backbone.parameters()) == 27_517_818 + 2 * (96 + 192 + 384 + 768)


def test_stochastic_depth_rises_over_all_blocks():
    backbone = SwinBackbone(**SMALL, drop_path_rate=0.6)
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for stage in backbone.layers for block in stage.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6])


def test_checkpointing_changes_no_gradient():
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    gradients = []
    for checkpointed in (False, True):
        backbone = _small(checkpointed=checkpointed, drop_path_rate=0.0).train()
        backbone(image)["res5"].square().sum().backward()
        gradients.append([p.grad for p in backbone.parameters() if p.grad is not None])
    assert len(gradients[0]) > 50
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, again)


def test_freezing_takes_the_embedding_first():
    backbone = SwinBackbone(**SMALL, freeze_at=2)
    frozen = {".".join(n.split(".")[:2]) for n, p in backbone.named_parameters() if not p.requires_grad}
    assert frozen == {"patch_embed.proj", "patch_embed.norm", "layers.0", "norm0.weight", "norm0.bias"}
    with pytest.raises(PyramidError, match="5 stages"):
        SwinBackbone(**SMALL, freeze_at=6)
