"""A traced step: its numbers are the step's own, tracing changes none of them, and what cannot be opened says so."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from tests.notebook.steps import overrides
from workbench.config import load_config
from workbench.errors import WorkbenchError
from workbench.notebook import by_model, inside_mask2former, inside_mask_rcnn, inside_solov2, trace
from workbench.notebook.inside import Step, open_step, open_steps, opens
from workbench.runs.directory import read_metrics
from workbench.training.optimizer import build_optimizer, clip_gradients
from workbench.workflows.train import train

STEPS = ("former_step", "rcnn_step", "solo_step")


@pytest.fixture(params=STEPS)
def step(request: pytest.FixtureRequest) -> Step:
    return request.getfixturevalue(request.param)


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_it_is_the_first_step_of_the_training(tiny_config: Path, tiny_run: Path) -> None:
    traced = open_step(load_config(tiny_config)).trace
    row = {name: float(value) for name, value in read_metrics(tiny_run / "metrics.csv")[0].items() if value}
    assert traced.losses and traced.losses == {name: row[name] for name in traced.losses}
    assert traced.norm == row["grad_norm"]
    assert traced.loss_table().value["total"] == row["total_loss"]


def test_tracing_changes_no_number_of_the_step(step: Step) -> None:
    model, plain = copy.deepcopy(step.model), copy.deepcopy(step.model).train()
    before, state = _state(model), torch.get_rng_state()
    traced = trace(model, step.batch, step.cfg, depth=9, keep=".*")
    assert torch.equal(state, torch.get_rng_state())
    assert not model.training and all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())

    losses = plain(step.batch)
    assert traced.losses == {name: value.item() for name, value in losses.items()}
    sum(losses.values()).backward()
    for name, parameter in plain.named_parameters():
        row = traced.gradients.loc[name.rpartition(".")[0]]
        assert parameter.grad is None or row.largest >= parameter.grad.abs().max().item()
    for module, row in traced.gradients.iterrows():
        own = [p.grad for p in plain.get_submodule(module).parameters(recurse=False) if p.grad is not None]
        assert not own or row.gradient == nn.utils.get_total_norm(own).item()

    weights = {name: parameter.detach().clone() for name, parameter in plain.named_parameters()}
    optimizer = build_optimizer(plain, step.cfg)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert traced.norm == clip_gradients(parameters, step.cfg).item()
    optimizer.step()
    moved = {name: parameter.detach() - weights[name] for name, parameter in plain.named_parameters()}
    for group, (_, row) in zip(optimizer.param_groups, traced.updates.iterrows(), strict=True):
        assert row["update"] == nn.utils.get_total_norm([moved[name] for name in group["names"]]).item() > 0
        assert row["update / weight"] == row["update"] / row["weight"]


def test_the_table_holds_what_the_modules_put_out(former_step: Step) -> None:
    model, seen = copy.deepcopy(former_step.model), {}
    model.backbone.register_forward_hook(lambda module, inputs, outputs: seen.update(outputs))
    model.train()(former_step.batch)
    table = former_step.trace.stages.set_index(["stage", "call", "tensor"])
    assert table.index.is_unique
    for name, tensor in seen.items():
        row = table.loc["backbone", 1, name]
        assert row["shape"] == " x ".join(map(str, tensor.shape)) and row["dtype"] == "float32"
        assert (row.least, row.largest) == (tensor.min().item(), tensor.max().item())
        assert row["mean"] == pytest.approx(tensor.double().mean().item(), rel=1e-12)
        assert row.zeros == pytest.approx(100 * (tensor == 0).double().mean().item()) and row["NaN"] == 0
    assert table.loc["input", 1, ""]["shape"] == "2 x 3 x 64 x 64"
    layers = len(model.transformer_decoder.layers)
    assert table.loc["transformer_decoder.class_embed"].index.get_level_values("call").tolist() == [
        *range(1, layers + 2)
    ]


def test_more_parts_of_names_are_more_stages(former_step: Step) -> None:
    deep = trace(former_step.model, former_step.batch, former_step.cfg, depth=3).stages
    assert "pixel_decoder.layers.0.self_attn" in set(deep.stage) - set(former_step.trace.stages.stage)
    assert deep.merge(former_step.trace.stages).shape == former_step.trace.stages.shape


def test_what_is_not_a_number_is_found_where_it_begins(former_step: Step) -> None:
    model = copy.deepcopy(former_step.model)
    with torch.no_grad():
        model.pixel_decoder.input_proj[1][0].weight[0] = math.nan
    stages = trace(model, former_step.batch, former_step.cfg, depth=3).stages
    first = stages[stages["NaN"] > 0].iloc[0]
    assert first.stage == "pixel_decoder.input_proj.1.0" and first["NaN"] == 2 * 4 * 4
    assert math.isfinite(first.least) and math.isfinite(first["mean"])


def test_a_checkpoints_weights_take_the_place_of_the_first_ones(tiny_run: Path, tiny_config: Path) -> None:
    (opened,) = open_steps([tiny_run])
    assert opened.source == str(tiny_run) and opened.model.training is False
    from_config = open_step(load_config(tiny_config), tiny_run, images=2).trace
    assert from_config.losses == opened.trace.losses
    assert from_config.losses != open_step(load_config(tiny_config), images=2).trace.losses


def test_frozen_weights_have_no_gradient(former_step: Step) -> None:
    model = copy.deepcopy(former_step.model)
    model.backbone.requires_grad_(False)
    table = trace(model, former_step.batch, former_step.cfg).gradients
    frozen = table[table.index.str.startswith("backbone")]
    assert frozen.gradient.isna().all() and (frozen.without == frozen.weights).all()
    assert (table[~table.index.str.startswith("backbone")].without == 0).all()


class Own(nn.Module):
    """A model of a user's own: one number, which the images' mean is to be."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(1, 1)

    def forward(self, batch: list[dict[str, Any]]) -> Any:
        means = torch.stack([each["image"].float().mean() for each in batch])
        error = (self.head(means[:, None] / 255) ** 2).mean()
        return {"loss_own": error} if self.training else error


class Mute(Own):
    def forward(self, batch: list[dict[str, Any]]) -> Any:
        return super().forward(batch)["loss_own"]


def test_a_model_of_none_of_the_three_kinds_is_traced_and_has_no_pictures(former_step: Step) -> None:
    traced = trace(Own(), former_step.batch)
    assert [*traced.losses] == ["loss_own"] and traced.gradients.index.tolist() == ["head"]
    step = Step("own.yaml", former_step.cfg, Own(), former_step.vocabulary, former_step.batch, traced)
    assert by_model([step]) == (None, None, None)
    for draw in (inside_mask2former.query_layers, inside_mask_rcnn.anchor_chart, inside_solov2.cell_chart):
        assert draw(None) is None
        with pytest.raises(WorkbenchError, match=r"own.yaml is a Own, and this shows the inside of a \w+"):
            draw(step)


def test_a_model_without_losses_is_one_sentence(former_step: Step) -> None:
    with pytest.raises(WorkbenchError, match="Mute gives no losses in training mode"):
        trace(Mute(), former_step.batch)
    frozen = Own().requires_grad_(False)
    with pytest.raises(WorkbenchError, match="at least one weight must be trained"):
        trace(frozen, former_step.batch)


def _without_objects(step: Step) -> Step:
    batch = []
    for inputs in step.batch:
        targets = inputs["targets"]
        none = {key: targets[key][:0] for key in ("labels", "masks", "annotation_ids") if key in targets}
        none["subcategories"] = {name: values[:0] for name, values in targets["subcategories"].items()}
        batch.append(inputs | {"targets": none})
    traced = trace(step.model, batch, step.cfg, keep=".*")
    return Step(step.source, step.cfg, step.model, step.vocabulary, batch, traced)


def pictures(step: Step) -> list[Any]:
    """Return every picture and table of a step."""
    former, rcnn, solo = inside_mask2former, inside_mask_rcnn, inside_solov2
    functions = {
        "Mask2Former": (
            former.stage_maps,
            former.sampling_points,
            former.query_layers,
            former.cost_chart,
            former.assignment_chart,
            former.row_chart,
            former.rows,
        ),
        "MaskRCNN": (rcnn.stage_maps, rcnn.anchor_chart, rcnn.proposal_chart, rcnn.sample_chart, rcnn.region_chart),
        "SOLOv2": (
            solo.stage_maps,
            solo.cell_chart,
            solo.kernel_chart,
            solo.suppression_chart,
            solo.suppression_masks,
        ),
    }[type(step.model).__name__]
    return [draw(step, image) for draw in functions for image in range(len(step.batch))]


def test_a_batch_without_objects_is_opened(step: Step) -> None:
    empty = _without_objects(step)
    assert all(math.isfinite(value) for value in empty.trace.losses.values())
    assert empty.trace.stages["NaN"].sum() == 0
    for picture in pictures(empty):
        assert picture is not None
        if hasattr(picture, "canvas"):
            picture.canvas.draw()


def test_every_picture_is_drawn(step: Step) -> None:
    for picture in pictures(step):
        assert picture is not None and (not isinstance(picture, pd.DataFrame) or len(picture))
        if hasattr(picture, "canvas"):
            assert picture.axes
            picture.canvas.draw()


def test_an_image_outside_the_batch_is_one_sentence(step: Step) -> None:
    with pytest.raises(WorkbenchError, match="image 2 is not in the batch, whose images are 0 to 1"):
        step.picture(2)
    with pytest.raises(WorkbenchError, match="image -1 is not in the batch"):
        step.picture(-1)


@pytest.mark.parametrize("model", ["GeneralizedRCNN", "SOLOv2"])
def test_subcategories_that_a_baselines_checkpoint_lacks(model: str, tiny_config: Path, tmp_path: Path) -> None:
    """As a checkpoint it has the ones it was trained on; as MODEL.WEIGHTS it leaves the others' heads as they are."""
    bare = ["MODEL.SUBCATEGORIES", "['colour']", "OUTPUT_DIR", str(tmp_path / "bare"), "SOLVER.MAX_ITER", "1"]
    run = train(load_config(tiny_config, [*overrides(model), *bare]))
    opened = open_step(load_config(tiny_config, overrides(model)), run, images=2)
    assert "loss_subcategory_colour" in opened.trace.losses
    assert [*opened.vocabulary.subcategories] == ["colour"] and "loss_subcategory_texture" not in opened.trace.losses
    started = open_step(load_config(tiny_config, [*overrides(model), "MODEL.WEIGHTS", str(run)]), images=2)
    assert math.isfinite(started.trace.losses["loss_subcategory_texture"])


def test_a_checkpoint_of_another_model_is_one_sentence(tiny_config: Path, tiny_run: Path) -> None:
    with pytest.raises(WorkbenchError, match="does not fit the model of its config"):
        open_step(load_config(tiny_config, overrides("SOLOv2")), tiny_run)


@pytest.mark.parametrize(("size", "pixels"), [((8, 8), 1), ((20, 12), 0)])
def test_images_smaller_than_a_grid_or_a_stride_are_opened(step: Step, size: tuple[int, int], pixels: int) -> None:
    """So are objects smaller than a cell and boxes of no area: every object is a single pixel, or none."""
    batch = []
    for inputs in step.batch:
        targets = dict(inputs["targets"])
        count = len(targets["labels"])
        targets["masks"] = torch.zeros(count, *size, dtype=torch.bool)
        targets["masks"][:, 3, 5] = bool(pixels)
        image = inputs["image"][:, : size[0], : size[1]]
        batch.append(inputs | {"image": image, "height": size[0], "width": size[1], "targets": targets})
    traced = trace(step.model, batch * 4, step.cfg, keep=".*")
    assert all(math.isfinite(value) for value in traced.losses.values())
    for picture in pictures(Step("small", step.cfg, step.model, step.vocabulary, batch, traced)):
        assert isinstance(picture, (np.ndarray, pd.DataFrame)) or picture.canvas.draw() is None


def test_the_decorator_lets_its_own_kind_through(former_step: Step) -> None:
    assert opens(type(former_step.model))(lambda step, more: (step.source, more))(former_step, 3) == ("MaskFormer", 3)
