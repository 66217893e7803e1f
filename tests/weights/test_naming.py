"""Every published tensor gets a place in our models, and comes back from it bit by bit."""

from __future__ import annotations

import pytest
import torch

from tests.weights import published
from workbench.config import load_config
from workbench.data.vocabulary import Vocabulary
from workbench.models import build_model
from workbench.runs.sources import settings_of_shapes
from workbench.weights.naming import MASK2FORMER, recognise

SMALL = ["MODEL.MASK_FORMER.NHEADS", "4", "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS", "4"]
R50 = (3, 4, 6, 3)


def built_for(state: dict[str, torch.Tensor], classes: int) -> torch.nn.Module:
    settings = settings_of_shapes(state)
    overrides = [part for key, value in settings.items() for part in (key, str(value))]
    return build_model(load_config(None, [*SMALL, *overrides]), Vocabulary(tuple(range(classes)), tuple("abc")))


@pytest.fixture(scope="module")
def zoo() -> dict[str, torch.Tensor]:
    return published.random_state(published.mask2former(published.resnet(R50), (256, 512, 1024, 2048), classes=3))


def test_a_file_of_the_model_zoo_fills_the_model_that_its_shapes_describe(zoo: dict) -> None:
    recognised = recognise(zoo)
    assert recognised.kind == "Mask2Former" and recognised.is_whole
    assert recognised.state.keys() == built_for(recognised.state, 3).state_dict().keys()
    adapter = zoo["sem_seg_head.pixel_decoder.adapter_1.norm.weight"]
    assert recognised.state["pixel_decoder.lateral_convs.0.1.weight"] is adapter


def test_the_model_zoo_comes_back_bit_by_bit(zoo: dict) -> None:
    written, without = MASK2FORMER.write(recognise(zoo).state)
    assert not without
    assert written.keys() == zoo.keys() - {"criterion.empty_weight"}
    assert all(torch.equal(tensor, zoo[name]) for name, tensor in written.items())


def test_a_resnet_of_detectron2_is_a_backbone() -> None:
    state = published.random_state(published.resnet((3, 4, 23, 3)))
    recognised = recognise({**state, "stem.fc.weight": torch.ones(1000, 2048)})
    assert recognised.kind == "detectron2 ResNet" and not recognised.is_whole
    assert settings_of_shapes(recognised.state)["MODEL.RESNETS.DEPTH"] == 101
    assert torch.equal(recognised.state["backbone.layer3.22.bn3.bias"], state["res4.22.conv3.norm.bias"])


def test_a_resnet_of_caffe2_is_turned_to_rgb_and_gets_its_statistics() -> None:
    state = published.random_state(published.resnet(R50))
    extra = {"conv1_b": torch.zeros(64), "pred_w": torch.ones(1000, 2048), "pred_b": torch.ones(1000)}
    recognised = recognise({**published.caffe2_resnet(state), **extra})
    reference = recognise(state).state
    assert recognised.fused and recognised.pixel_std == (1.0, 1.0, 1.0)
    assert recognised.state.keys() == reference.keys()
    for name, tensor in recognised.state.items():
        if "running" in name:
            expected = torch.zeros_like(tensor) if name.endswith("mean") else torch.full_like(tensor, 1 - 1e-5)
            assert torch.equal(tensor, expected)
        else:
            assert torch.equal(tensor, reference[name])


def test_names_of_several_processes_are_stripped(zoo: dict) -> None:
    assert recognise({f"module.{name}": tensor for name, tensor in zoo.items()}).kind == "Mask2Former"
