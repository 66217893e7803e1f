"""MODEL.WEIGHTS: which weights arrived, and that a mostly missing backbone is refused."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torchvision.models import mobilenet_v3_large, resnet18

from tests.training.toy import ToyModel
from tests.weights import published
from workbench.config import load_config
from workbench.data.vocabulary import Vocabulary
from workbench.errors import WorkbenchError
from workbench.models import build_model
from workbench.models.build import build_backbone
from workbench.runs.checkpoint import load_model
from workbench.training.weights import load_weights, starting_weights


def other_model() -> ToyModel:
    torch.manual_seed(1)
    return ToyModel()


@pytest.mark.parametrize("form", ["safetensors", "pth", "wrapped"])
def test_every_form_of_file_is_read(tmp_path: Path, form: str) -> None:
    state = other_model().state_dict()
    path = tmp_path / ("weights.safetensors" if form == "safetensors" else "weights.pth")
    if form == "safetensors":
        save_file(state, path)
    else:
        torch.save({"model": state} if form == "wrapped" else state, path)
    model = ToyModel()
    report = load_weights(model, path)
    assert len(report.loaded) == len(state)
    assert not (report.missing or report.unexpected or report.mismatched)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_a_checkpoint_directory_and_a_run_are_read(tiny_run: Path) -> None:
    model, checkpoint = load_model(tiny_run)
    for path in (tiny_run, tiny_run / "checkpoints" / "last"):
        for parameter in model.parameters():
            torch.nn.init.zeros_(parameter)
        assert not load_weights(model, path).missing
        assert model.backbone.state_dict().keys() <= {k.removeprefix("backbone.") for k in checkpoint.state_dict}
        assert any(parameter.any() for parameter in model.parameters())


def test_a_head_for_other_classes_stays_random_and_is_reported(tmp_path: Path) -> None:
    state = {**other_model().state_dict(), "head.weight": torch.ones(9, 6), "extra": torch.ones(1)}
    del state["head.bias"]
    torch.save(state, tmp_path / "w.pth")
    model = ToyModel()
    before = model.head.weight.clone()
    report = load_weights(model, tmp_path / "w.pth")
    assert torch.equal(model.head.weight, before)
    assert report.mismatched == [("head.weight", (3, 6), (9, 6))]
    assert (report.missing, report.unexpected) == (["head.bias"], ["extra"])
    assert "1 missing (head.bias); 1 unexpected (extra); 1 mismatched (head.weight [9, 6] for [3, 6])" in str(report)


def test_a_backbone_that_is_mostly_missing_is_refused(tmp_path: Path) -> None:
    state = {name.replace("backbone.", "body."): value for name, value in other_model().state_dict().items()}
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(WorkbenchError, match="only 0 of the backbone's .* unexpected"):
        load_weights(ToyModel(), tmp_path / "w.pth")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(WorkbenchError, match="w.pth does not exist"):
        load_weights(ToyModel(), tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("name", "same"),
    [
        ("R-101.pkl", "torchvision://resnet101"),
        ("swin_tiny_patch4_window7_224.pkl", "v1.0.0/swin_tiny_patch4_window7_224.pth"),
    ],
)
def test_a_file_that_published_configs_leave_to_make_has_an_address(name: str, same: str) -> None:
    with pytest.raises(WorkbenchError, match=f"{name} does not exist; .*{same} are the same weights"):
        load_weights(ToyModel(), name)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["MODEL.WEIGHTS", "outputs/a"], "the weights outputs/a"),
        (["MODEL.RESNETS.WEIGHTS", "imagenet"], "imagenet weights in the backbone, everything else new"),
        (["MODEL.MOBILENET.WEIGHTS", "imagenet"], "random weights"),  # of a backbone that is not in use
        (["MODEL.BACKBONE.NAME", "build_small_resnet_backbone"], "random weights"),
        (["MODEL.BACKBONE.NAME", "mine"], "the weights that mine brings, everything else new"),
    ],
)
def test_the_start_of_a_training_is_said(overrides: list[str], said: str) -> None:
    assert starting_weights(load_config(None, overrides)) == said


@pytest.fixture(scope="module")
def resnet_model() -> torch.nn.Module:
    small = ["MODEL.MASK_FORMER.NHEADS", "4", "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS", "4"]
    widths = {
        "SEM_SEG_HEAD.CONVS_DIM": 32,
        "SEM_SEG_HEAD.MASK_DIM": 32,
        "SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS": 2,
        "SEM_SEG_HEAD.TRANSFORMER_DIM_FEEDFORWARD": 48,
        "MASK_FORMER.HIDDEN_DIM": 32,
        "MASK_FORMER.NUM_OBJECT_QUERIES": 5,
        "MASK_FORMER.DIM_FEEDFORWARD": 40,
        "MASK_FORMER.DEC_LAYERS": 4,
    }
    overrides = [*small, *(part for key, value in widths.items() for part in (f"MODEL.{key}", str(value)))]
    return build_model(load_config(None, overrides), Vocabulary((1, 2), ("a", "b"))).eval()


def written(path: Path, state: dict[str, torch.Tensor], author: str = "") -> Path:
    arrays = {name: tensor.numpy() for name, tensor in state.items()}
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": author} if author else arrays, protocol=2))
    return path


def test_a_file_of_the_model_zoo_for_other_classes_loses_its_head_only(
    resnet_model: torch.nn.Module, tmp_path: Path
) -> None:
    zoo = published.mask2former(published.resnet((3, 4, 6, 3)), (256, 512, 1024, 2048), classes=4)
    file = written(tmp_path / "model_final.pkl", published.random_state(zoo), "somebody")
    report = load_weights(resnet_model, file)
    assert [name for name, _, _ in report.mismatched] == [
        f"transformer_decoder.class_embed.{kind}" for kind in ("weight", "bias")
    ]
    assert not report.missing and not report.unexpected
    parts = report.parts()
    assert all(loaded == total for part, (loaded, total) in parts.items() if part != "transformer_decoder")
    loaded, total = parts["transformer_decoder"]
    assert total - loaded == 2
    assert f"backbone 265 of 265, pixel_decoder 53 of 53, transformer_decoder {loaded} of {total} tensors" in str(
        report
    )
    assert "of other sizes, so new: transformer_decoder.class_embed;" in str(report)


def test_a_published_backbone_leaves_the_decoders_new(resnet_model: torch.nn.Module, tmp_path: Path) -> None:
    state = published.random_state(published.resnet((3, 4, 6, 3)))
    report = load_weights(resnet_model, written(tmp_path / "R-50.pkl", state, "torchvision"))
    assert report.parts()["backbone"] == (265, 265) and report.parts()["pixel_decoder"] == (0, 53)
    assert torch.equal(resnet_model.backbone.bn1.bias, state["stem.conv1.norm.bias"])


def test_msra_weights_see_the_pixels_that_they_were_trained_on(
    resnet_model: torch.nn.Module, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """BGR of 0-255 less the mean, not divided: what the published convolution makes of a picture, ours makes too."""
    state = published.caffe2_resnet(published.random_state(published.resnet((3, 4, 6, 3))))
    report = load_weights(resnet_model, written(tmp_path / "R-50.pkl", state))
    assert report.parts()["backbone"] == (265, 265)
    assert "strides of stages in the 1x1 convolutions: MODEL.RESNETS.STRIDE_IN_1X1 True fits" in caplog.text
    picture = torch.randint(0, 256, (1, 3, 32, 32)).float()
    expected = F.conv2d(picture.flip(1) - torch.tensor([103.53, 116.28, 123.675]).view(3, 1, 1), state["conv1_w"])
    normalised = (picture - resnet_model.pixel_mean) / resnet_model.pixel_std
    torch.testing.assert_close(F.conv2d(normalised, resnet_model.backbone.conv1.weight), expected, rtol=1e-5, atol=1e-4)


def test_msra_weights_are_for_model_weights(tmp_path: Path) -> None:
    """A backbone alone knows no PIXEL_STD, which its first convolution has to be scaled with."""
    state = published.caffe2_resnet(published.random_state(published.resnet((3, 4, 6, 3))))
    path = written(tmp_path / "R-50.pkl", state)
    with pytest.raises(WorkbenchError, match="name them in MODEL.WEIGHTS"):
        build_backbone(load_config(None, ["MODEL.RESNETS.WEIGHTS", str(path)]))


def test_pixels_that_do_not_fit_are_named(
    resnet_model: torch.nn.Module, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = published.random_state(published.resnet((3, 4, 6, 3)))
    monkeypatch.setattr(resnet_model, "pixel_std", torch.ones(3, 1, 1))
    load_weights(resnet_model, written(tmp_path / "R-50.pkl", state, "torchvision"))
    assert "were trained with MODEL.PIXEL_STD [58.395, 57.12, 57.375], not [1, 1, 1]" in caplog.text


def test_another_architecture_is_refused(resnet_model: torch.nn.Module, tmp_path: Path) -> None:
    torch.save(mobilenet_v3_large(weights=None).state_dict(), tmp_path / "w.pth")
    with pytest.raises(WorkbenchError, match=r"w.pth \(torchvision classification\): only 0 of the backbone's 265"):
        load_weights(resnet_model, tmp_path / "w.pth")


def test_a_published_backbone_goes_below_a_feature_pyramid(tmp_path: Path) -> None:
    overrides = ["MODEL.META_ARCHITECTURE", "GeneralizedRCNN", "MODEL.RESNETS.DEPTH", "18"]
    model = build_model(load_config(None, overrides), Vocabulary((1, 2), ("a", "b")))
    state = resnet18(weights=None).state_dict()
    torch.save(state, tmp_path / "w.pth")
    report = load_weights(model, tmp_path / "w.pth")
    assert not any(name.startswith("backbone.body.") for name in report.missing) and not report.unexpected
    assert torch.equal(model.backbone.body.layer4[1].conv2.weight, state["layer4.1.conv2.weight"])
