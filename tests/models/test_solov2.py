"""SOLOv2: cells to rows beside slow loops, AdelaiDet's names, and inputs at the edge of what it takes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.models.test_mask2former import TINY, Vocabulary, example
from workbench.config import load_config
from workbench.errors import WorkbenchError
from workbench.models import build_model
from workbench.models.solov2 import cell_inference, matrix_nms, point_nms, with_coordinates
from workbench.training.weights import load_weights

SETTINGS = {
    "META_ARCHITECTURE": "SOLOv2",
    "FPN.OUT_CHANNELS": "8",
    "SOLOV2.INSTANCE_CHANNELS": "8",
    "SOLOV2.NUM_INSTANCE_CONVS": "2",
    "SOLOV2.MASK_CHANNELS": "8",
    "SOLOV2.NUM_KERNELS": "8",
    "SOLOV2.NUM_MASKS": "8",
    "SOLOV2.NUM_GRIDS": "[6, 5, 4, 3, 2]",
    "SOLOV2.FPN_SCALE_RANGES": "[[1, 16], [8, 32], [16, 64], [32, 128], [64, 2048]]",
}


def tiny(*overrides: str, **subcategories: int) -> nn.Module:
    torch.manual_seed(0)
    keys = [part for name, value in SETTINGS.items() for part in (f"MODEL.{name}", value)]
    cfg = load_config(None, [*TINY[:6], *keys, *overrides])
    return build_model(cfg, Vocabulary(**(subcategories or {"colour": 4, "state.of.damage": 2})))


def lively(model: nn.Module) -> nn.Module:
    """The model with weights that tell cells and pixels apart, in evaluation mode."""
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "ins_head" in name and parameter.ndim > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.3)
        model.ins_head.cate_pred.bias.fill_(-1.0)
        model.mask_head.conv_pred[1].bias.fill_(-0.5)
    return model.eval()


def test_training_gives_losses_and_every_parameter_a_gradient() -> None:
    model = tiny().train()
    losses = model([example(2), example(0, 64, 32, seed=1)])
    assert list(losses) == ["loss_cate", "loss_ins", "loss_subcategory_colour", "loss_subcategory_state.of.damage"]
    sum(losses.values()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


def test_a_batch_without_objects_trains_too() -> None:
    model = tiny().train()
    losses = model([example(0), example(0, seed=1)])
    assert [float(losses[name]) for name in list(losses)[1:]] == [0, 0, 0]
    sum(losses.values()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_weight_zero_means_off() -> None:
    """Losses and gradients of shared parameters are bitwise those of a model without subcategories."""
    off = ("MODEL.SOLOV2.LOSS.SUBCATEGORY_WEIGHT", "0.0")
    with_heads, without = tiny(*off).train(), tiny(*off, none=1).train()
    without.ins_head.subcategory_pred.clear()
    without.ins_head.num_subcategory_classes.clear()
    batch = [example(3), example(1, seed=1)]
    results = [model(batch) for model in (with_heads, without)]
    for losses in results:
        sum(losses.values()).backward()
    assert results[0] == results[1] and list(results[0]) == ["loss_cate", "loss_ins"]
    shared = dict(with_heads.named_parameters())
    for name, parameter in without.named_parameters():
        assert torch.equal(parameter, shared[name]) and torch.equal(parameter.grad, shared[name].grad), name
    heads = [p for name, p in shared.items() if "subcategory_pred" in name]
    assert heads and all(p.grad is None and not p.requires_grad for p in heads)


@pytest.mark.parametrize("size", [(1, 1), (1, 70), (31, 33), (64, 64)])
def test_images_smaller_than_a_grid_and_odd_ones(size: tuple[int, int]) -> None:
    model = lively(tiny())
    assert torch.isfinite(sum(model.train()([example(1, *size)]).values()))
    with torch.inference_mode():
        rows = model.eval()([example(1, *size)])[0]
    assert rows["masks"].shape[1:] == (2 * size[0], 2 * size[1])


def test_every_field_of_a_row_comes_from_its_cell() -> None:
    model = lively(tiny())
    inputs = example(height=60, width=90)
    with torch.inference_mode():
        rows = model([inputs])[0]
        images = torch.zeros(1, 3, 64, 96)
        images[0, :, :60, :90] = (inputs["image"].float() - model.pixel_mean) / model.pixel_std
        outputs = model.raw_outputs(images)
    assert len(rows["scores"]) > 5 and rows["image_id"] == 40
    assert (rows["scores"].diff() <= 0).all()
    torch.testing.assert_close(rows["scores"], rows["main_scores"] * rows["mask_scores"])
    for i, cell in enumerate(rows["cell"].tolist()):
        probability = outputs["pred_logits"][0, cell].sigmoid()
        torch.testing.assert_close(rows["main_scores"][i], probability[rows["labels"][i]])
        mask = (outputs["pred_kernels"][0, cell, :, None, None] * outputs["mask_features"][0]).sum(0).sigmoid()
        whole = F.interpolate(mask[None, None], (64, 96), mode="bilinear")[..., :60, :90]
        whole = F.interpolate(whole, (120, 180), mode="bilinear")[0, 0]
        unsure = (whole - 0.5).abs() < 1e-4
        assert torch.equal(rows["masks"][i] | unsure, (whole > 0.5) | unsure)
        for name, head in outputs["pred_subcategories"].items():
            torch.testing.assert_close(rows["subcategory_logits"][name][i], head[0, cell])
            torch.testing.assert_close(rows["subcategories"][name][i], head[0, cell].softmax(0))
    assert rows["subcategories"]["colour"].shape == (len(rows["scores"]), 5)


def test_padding_for_another_image_of_the_batch_does_not_move_masks() -> None:
    model = lively(tiny())
    outputs = model.raw_outputs(torch.randn(1, 3, 128, 192))
    arguments = [outputs[key][0] for key in ("pred_logits", "pred_kernels", "mask_features")]
    settings = {"grids": model.ins_head.grids, "strides": model.instance_strides, "output_size": (128, 192)}
    whole = cell_inference(*arguments, {}, image_size=(128, 192), **settings)
    part = cell_inference(*arguments, {}, image_size=(40, 50), **(settings | {"output_size": (40, 50)}))
    assert len(whole["masks"]) and torch.equal(part["masks"], whole["masks"][:, :40, :50])


def test_encoded_masks_are_one_for_each_cell() -> None:
    model = lively(tiny("MODEL.SOLOV2.SCORE_THR", "0.0", "MODEL.SOLOV2.UPDATE_THR", "0.0"))
    with torch.inference_mode():
        plain = model([example()])[0]
        encoded: list = []
        model.encode_masks = lambda masks: [encoded.append(mask) or mask for mask in masks]
        rows = model([example()])[0]
    assert len(encoded) == len(rows["cell"].unique()) < len(rows["cell"]) == len(rows["masks"])
    assert torch.equal(torch.stack(rows["masks"]), plain["masks"]) and torch.equal(rows["boxes"], plain["boxes"])


@pytest.mark.parametrize("threshold", ["MODEL.SOLOV2.SCORE_THR", "MODEL.SOLOV2.UPDATE_THR"])
def test_no_row_is_an_empty_prediction(threshold: str) -> None:
    with torch.inference_mode():
        rows = lively(tiny(threshold, "1.0"))([example()])[0]
    assert rows["masks"].shape == (0, 80, 112) and rows["boxes"].shape == (0, 4)
    assert rows["subcategories"]["colour"].shape == (0, 5)


def test_rows_are_ranked_as_asked() -> None:
    best = {}
    for rank_by in ("main", "geometric_mean"):
        with torch.inference_mode():
            rows = lively(tiny("TEST.RANK_BY", rank_by))([example()])[0]
        best[rank_by] = rows["scores"]
        factors = [rows["main_scores"], *(p[:, :-1].amax(1) for p in rows["subcategories"].values())]
        rank = factors[0] if rank_by == "main" else torch.stack(factors).prod(0) ** (1 / 3)
        torch.testing.assert_close(rows["scores"], rank * rows["mask_scores"])
    assert not torch.equal(*best.values())


def random_masks(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Masks that overlap a lot, one of them twice, and their categories."""
    draw = torch.Generator().manual_seed(seed)
    masks = F.avg_pool2d(torch.randn(count, 20, 20, generator=draw), 9, stride=1) > 0.02
    masks[4] = masks[1]
    masks[:, 0, 0] = True  # none is empty
    return masks.flatten(1), torch.randint(0, 2, (count,), generator=draw)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kernel", ["gaussian", "linear"])
def test_matrix_nms_by_loops(kernel: str, seed: int) -> None:
    masks, labels = random_masks(14, seed)

    def iou(i: int, j: int) -> float:
        if labels[i] != labels[j]:
            return 0.0
        return float((masks[i] & masks[j]).sum() / (masks[i] | masks[j]).sum())

    def f(overlap: float) -> float:
        return 1 - overlap if kernel == "linear" else float(torch.exp(torch.tensor(-2.0 * overlap**2)))

    expected = []
    for j in range(14):
        factors = [1.0]
        for i in range(j):
            most = min((f(iou(k, i)) for k in range(i)), default=1.0)
            if most > 0:  # a copy of a better mask lowers nothing
                factors.append(f(iou(i, j)) / most)
        expected.append(min(factors))
    decay = matrix_nms(masks, labels, kernel=kernel, sigma=2.0)
    torch.testing.assert_close(decay, torch.tensor(expected), rtol=1e-4, atol=1e-6)
    assert decay[0] == 1 and (decay < 0.9).any()


def test_a_peak_is_no_lower_than_the_cells_above_and_left() -> None:
    scores = torch.randint(0, 6, (2, 7, 7), generator=torch.Generator().manual_seed(0)) / 10
    for label, row, column in torch.cartesian_prod(torch.arange(2), torch.arange(7), torch.arange(7)).tolist():
        around = scores[label, max(0, row - 1) : row + 1, max(0, column - 1) : column + 1]
        expected = scores[label, row, column] if scores[label, row, column] >= around.max() else 0
        assert point_nms(scores)[label, row, column] == expected


def test_coordinates_span_the_image() -> None:
    x, y = with_coordinates(torch.zeros(2, 1, 3, 5))[1, 1:]
    assert x[0].tolist() == [-1, -0.5, 0, 0.5, 1] == x[2].tolist() and y[:, 4].tolist() == [-1, 0, 1]


def published_name(name: str) -> str:
    """AdelaiDet's name of one of the model's tensors."""
    if name.startswith("backbone.fpn."):
        kind, level, rest = name.removeprefix("backbone.fpn.").split(".", 2)
        return f"backbone.fpn_{'lateral' if kind == 'inner_blocks' else 'output'}{int(level) + 2}.{rest[2:]}"
    if not name.startswith("backbone.body."):
        return name
    parts = name.removeprefix("backbone.body.").replace("downsample.0", "shortcut").split(".")
    stage = ["stem"] if parts[0] in ("conv1", "bn1") else [f"res{int(parts.pop(0)[-1]) + 1}", parts.pop(0)]
    if parts[0].startswith("bn"):
        parts[:1] = [f"conv{parts[0][2]}", "norm"]
    if parts[0] == "downsample":
        parts[:2] = ["shortcut", "norm"]
    return ".".join(["backbone.bottom_up", *stage, *parts])


RESNET = ("MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone", "MODEL.RESNETS.DEPTH", "18")


def test_an_adelaidet_checkpoint_loads(tmp_path: Path) -> None:
    """Every tensor arrives; images in RGB give what it gives for the same in BGR."""
    blue_first = ("MODEL.PIXEL_MEAN", "[103.53, 116.28, 123.675]", "MODEL.PIXEL_STD", "[1.0, 1.0, 1.0]")
    original = lively(tiny(*RESNET, *blue_first))
    state = {published_name(name): tensor for name, tensor in original.state_dict().items() if "subcat" not in name}
    assert {"backbone.bottom_up.stem.conv1.norm.weight", "backbone.bottom_up.res3.0.shortcut.norm.bias"} <= set(state)
    assert "backbone.fpn_lateral5.bias" in state
    torch.save({"model": state}, tmp_path / "SOLOv2.pth")

    model = tiny(*RESNET).eval()
    report = load_weights(model, tmp_path / "SOLOv2.pth")
    assert not report.unexpected and not report.mismatched
    assert all("subcategory_pred" in name for name in report.missing) and len(report.missing) == 4
    picture = torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)
    with torch.inference_mode():
        expected, rows = original([{"image": picture.flip(0)}])[0], model([{"image": picture}])[0]
    assert len(rows["scores"]) > 5
    torch.testing.assert_close(rows["scores"], expected["scores"], rtol=1e-3, atol=1e-4)

    same_order = tiny(*RESNET, *blue_first).eval()
    load_weights(same_order, tmp_path / "SOLOv2.pth")
    assert torch.equal(same_order.backbone.body.conv1.weight, original.backbone.body.conv1.weight)


def test_a_backbones_weights_arrive_under_the_pyramid(tmp_path: Path) -> None:
    """Those of a classifier, as the published configs start from them."""
    body = tiny(*RESNET).backbone.body
    torch.save({**body.state_dict(), "fc.weight": torch.zeros(1000, 512)}, tmp_path / "resnet18.pth")
    with torch.no_grad():
        model = tiny(*RESNET)
        model.backbone.body.conv1.weight.zero_()
    load_weights(model, tmp_path / "resnet18.pth")
    assert torch.equal(model.backbone.body.conv1.weight, body.conv1.weight)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("MODEL.SOLOV2.NUM_GRIDS", "[4, 2]"), "a value for each level: .*FPN_SCALE_RANGES has 5, .*NUM_GRIDS has 2"),
        (("MODEL.SOLOV2.NUM_MASKS", "16"), "NUM_KERNELS 8 and MODEL.SOLOV2.NUM_MASKS 16 must be equal"),
        (("MODEL.SOLOV2.MASK_IN_FEATURES", "['p3']"), r"MASK_IN_FEATURES is \['p3'\]; it must begin with p2"),
        (("MODEL.SOLOV2.FPN_SCALE_RANGES", "[[9, 1]]"), "each \\[least, largest\\]"),
        (("MODEL.SOLOV2.NMS_TYPE", "mask"), "MODEL.SOLOV2.NMS_TYPE is 'mask'; it must be one of matrix"),
        (
            ("MODEL.SMALL_RESNET.WIDTHS", "[8, 8, 8]", "MODEL.SMALL_RESNET.DEPTHS", "[1, 1, 1]"),
            "INSTANCE_IN_FEATURES names p6; the pyramid on build_small_resnet_backbone has p2, p3, p4, p5",
        ),
    ],
)
def test_a_config_that_describes_no_model_is_one_sentence(overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(WorkbenchError, match=message):
        tiny(*overrides)


def test_scale_ranges_written_as_tuples_are_the_defaults() -> None:
    written = "((1, 96), (48, 192), (96, 384), (192, 768), (384, 2048))"
    cfg = load_config(None, ["MODEL.SOLOV2.FPN_SCALE_RANGES", written])
    assert load_config(None).MODEL.SOLOV2.FPN_SCALE_RANGES == cfg.MODEL.SOLOV2.FPN_SCALE_RANGES
