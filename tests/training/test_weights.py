"""MODEL.WEIGHTS: which weights arrived, and that a mostly missing backbone is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.training.toy import ToyModel
from workbench.config import load_config
from workbench.errors import WorkbenchError
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
