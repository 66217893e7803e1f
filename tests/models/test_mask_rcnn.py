"""Mask R-CNN: torchvision's outputs with torchvision's weights; subcategories; inputs at the edge of what is legal."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN as Reference
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import FrozenBatchNorm2d

from workbench.config import load_config
from workbench.data.vocabulary import Vocabulary
from workbench.errors import WorkbenchError
from workbench.models import build_model
from workbench.models.mask_rcnn import MaskRCNN, subcategory_targets
from workbench.models.weights import load_state

SUBCATEGORIES = {"colour": ("red", "green", "blue"), "surface.kind": ("plain", "dots")}
SMALL = {
    "MODEL.META_ARCHITECTURE": "GeneralizedRCNN",
    "MODEL.BACKBONE.NAME": "build_small_resnet_backbone",
    "MODEL.SMALL_RESNET.WIDTHS": "[8, 8, 8, 8]",
    "MODEL.FPN.OUT_CHANNELS": "8",
    "MODEL.ANCHOR_GENERATOR.SIZES": "[[16], [24], [32], [48], [64]]",
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": "50",
    "MODEL.RPN.PRE_NMS_TOPK_TEST": "50",
    "MODEL.ROI_BOX_HEAD.FC_DIM": "16",
    "MODEL.ROI_MASK_HEAD.CONV_DIM": "8",
    "MODEL.ROI_MASK_HEAD.NUM_CONV": "1",
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": "0.0",
}


def _build(classes: int = 3, subcategories: dict[str, tuple[str, ...]] = SUBCATEGORIES, **settings: str) -> MaskRCNN:
    torch.manual_seed(0)
    changes = SMALL | {key.replace("__", "."): value for key, value in settings.items()}
    cfg = load_config(None, [part for pair in changes.items() for part in pair])
    names = tuple(f"category {index}" for index in range(classes))
    return build_model(cfg, Vocabulary(tuple(range(1, classes + 1)), names, dict(subcategories)), pretrained=False)


def _published(num_classes: int, norm: type[nn.Module], size: tuple[int, int]) -> Reference:
    """torchvision's own model with random weights that tell objects apart, for images of 0-255 that keep their size."""
    torch.manual_seed(1)
    backbone = resnet_fpn_backbone(backbone_name="resnet18", weights=None, norm_layer=norm)
    how = {"image_mean": [123.675, 116.28, 103.53], "image_std": [58.395, 57.12, 57.375]}
    how |= {"rpn_post_nms_top_n_test": 60, "box_detections_per_img": 20, "min_size": min(size), "max_size": max(size)}
    heads = {"box_head": TwoMLPHead(256 * 7**2, 16), "box_predictor": FastRCNNPredictor(16, num_classes)}
    heads |= {"mask_head": MaskRCNNHeads(256, [16, 16], 1), "mask_predictor": MaskRCNNPredictor(16, 16, num_classes)}
    reference = Reference(backbone, **heads, **how)
    for parameter in reference.roi_heads.box_predictor.parameters():
        parameter.data.mul_(10)
    return reference.to(memory_format=torch.channels_last).eval()


RESNET18 = {
    "MODEL.META_ARCHITECTURE": "GeneralizedRCNN",
    "MODEL.RESNETS.DEPTH": "18",
    "MODEL.ROI_BOX_HEAD.FC_DIM": "16",
    "MODEL.ROI_MASK_HEAD.NUM_CONV": "2",
    "MODEL.ROI_MASK_HEAD.CONV_DIM": "16",
    "MODEL.RPN.POST_NMS_TOPK_TEST": "60",
    "TEST.DETECTIONS_PER_IMAGE": "20",
}


def _resnet18(classes: int, norm: str) -> MaskRCNN:
    cfg = load_config(None, [part for pair in RESNET18.items() for part in pair] + ["MODEL.RESNETS.NORM", norm])
    names = tuple(map(str, range(classes)))
    return build_model(cfg, Vocabulary(tuple(range(1, classes + 1)), names, {}), pretrained=False).eval()


def test_the_outputs_are_torchvisions() -> None:
    reference, model = _published(91, nn.BatchNorm2d, (96, 130)), _resnet18(90, "BN")
    report = load_state(model, model.adapt_state(reference.state_dict()))
    assert not report.missing and not report.unexpected and not report.mismatched
    image = torch.randint(256, (3, 96, 130), dtype=torch.uint8)
    with torch.inference_mode():
        (expected,), (rows,) = reference([image.float()]), model([{"image": image}])
    assert len(expected["scores"]) > 10
    assert torch.equal(rows["scores"], expected["scores"])
    assert torch.equal(rows["main_scores"] * rows["mask_scores"], expected["scores"])
    assert torch.equal(rows["labels"], expected["labels"] - 1)
    assert torch.equal(rows["roi_boxes"], expected["boxes"])
    assert torch.equal(rows["masks"], expected["masks"][:, 0] > 0.5)


def test_masks_have_the_size_of_the_original() -> None:
    """torchvision enlarges the normalised image; here the mapper has enlarged the image."""
    reference, model = _published(4, nn.BatchNorm2d, (128, 192)), _resnet18(3, "BN")
    load_state(model, reference.state_dict())
    small = torch.randint(256, (3, 64, 96)).float()
    with torch.inference_mode():
        (expected,) = reference([small])
        (rows,) = model([{"image": reference.transform.resize(small, None)[0], "height": 64, "width": 96}])
    torch.testing.assert_close(rows["roi_boxes"], expected["boxes"], rtol=0, atol=1e-2)
    assert rows["masks"].shape[1:] == (64, 96)
    assert (rows["masks"] != (expected["masks"][:, 0] > 0.5)).float().mean() < 1e-3
    for mask, box in zip(rows["masks"], rows["boxes"].tolist(), strict=True):
        ys, xs = mask.nonzero(as_tuple=True)
        assert box == ([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1] if len(xs) else [0, 0, 0, 0])


def _first_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names of torchvision's first release of these weights."""
    renamed = {}
    for name, tensor in state.items():
        if "num_batches_tracked" in name:
            continue
        for block in ("inner_blocks", "layer_blocks"):
            for level in range(4):
                name = name.replace(f"fpn.{block}.{level}.0.", f"fpn.{block}.{level}.")
        for layer in range(4):
            name = name.replace(f"roi_heads.mask_head.{layer}.0.", f"roi_heads.mask_head.mask_fcn{layer + 1}.")
        renamed[name.replace("rpn.head.conv.0.0.", "rpn.head.conv.")] = tensor
    return renamed


def test_the_first_release_of_published_weights_loads_by_name() -> None:
    reference, model = _published(91, FrozenBatchNorm2d, (64, 64)), _resnet18(90, "FrozenBN")
    for module in reference.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.eps = 0.0  # as torchvision does with these weights
            module.running_var.uniform_(1e-4, 1e-3)
            module.weight.copy_(module.running_var.sqrt())
    state = _first_names(reference.state_dict())
    report = load_state(model, model.adapt_state(state))
    assert not report.missing and not report.unexpected and not report.mismatched
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        for name, expected in zip(("p2", "p5"), (reference.backbone(images)[key] for key in "03"), strict=True):
            torch.testing.assert_close(model.backbone(images)[name], expected)


def test_a_model_of_cocos_80_categories_takes_their_outputs_of_91() -> None:
    reference, model = _published(91, nn.BatchNorm2d, (64, 64)), _resnet18(80, "BN")
    report = load_state(model, model.adapt_state(reference.state_dict()))
    assert not report.missing and not report.mismatched
    published, taken = reference.roi_heads, model.roi_heads
    for index, category_id in {0: 0, 1: 1, 12: 13, 80: 90}.items():  # 0 is the background
        box = slice(4 * category_id, 4 * category_id + 4)
        assert torch.equal(
            taken.box_predictor.cls_score.weight[index], published.box_predictor.cls_score.weight[category_id]
        )
        assert torch.equal(
            taken.box_predictor.bbox_pred.weight[4 * index : 4 * index + 4],
            published.box_predictor.bbox_pred.weight[box],
        )
        masks = (each.mask_predictor.mask_fcn_logits.bias for each in (taken, published))
        assert torch.equal(next(masks)[index], next(masks)[category_id])


def _object(top: int, left: int, size: int, side: int = 64) -> Tensor:
    mask = torch.zeros(side, side, dtype=torch.bool)
    mask[top : top + size, left : left + size] = True
    return mask


def _inputs(masks: list[Tensor], labels: list[int], colours: list[int], side: int = 64) -> dict[str, Any]:
    masks_tensor = torch.stack(masks) if masks else torch.zeros(0, side, side, dtype=torch.bool)
    subcategories = {"colour": torch.tensor(colours, dtype=torch.int64)}
    subcategories["surface.kind"] = torch.zeros(len(masks), dtype=torch.int64)
    targets = {"labels": torch.tensor(labels, dtype=torch.int64), "masks": masks_tensor, "subcategories": subcategories}
    return {"image": torch.randint(256, (3, side, side), dtype=torch.uint8), "image_id": 7, "targets": targets}


def test_a_row_has_the_subcategories_of_its_own_region() -> None:
    model = _build().eval()
    seen = {}
    original = model.roi_heads.predict

    def predict(*arguments: Any) -> tuple:
        class_logits, box_regression, logits = original(*arguments)
        box_regression = torch.zeros_like(box_regression)  # rows keep their region's box
        seen["boxes"], seen["colour"] = arguments[1][0], logits["colour"]
        return class_logits, box_regression, logits

    model.roi_heads.predict = predict
    with torch.inference_mode():
        (rows,) = model([_inputs([], [], [])])
    assert rows["image_id"] == 7 and "query" not in rows and "no_object_fraction" not in rows
    assert len(rows["scores"]) > 5 and rows["subcategories"]["colour"].shape == (len(rows["scores"]), 4)
    for box, logits in zip(rows["roi_boxes"], rows["subcategory_logits"]["colour"], strict=True):
        region = (seen["boxes"] - box).abs().sum(1).argmin()
        assert torch.equal(logits, seen["colour"][region])
    assert torch.equal(rows["subcategories"]["colour"], rows["subcategory_logits"]["colour"].softmax(-1))


def test_ranking_by_subcategories_orders_the_rows_by_it() -> None:
    inputs = [_inputs([], [], [])]
    with torch.inference_mode():
        (by_main,) = _build().eval()(inputs)
        (ranked,) = _build(TEST__RANK_BY="geometric_mean").eval()(inputs)
    parts = [ranked["main_scores"], *(each[:, :-1].amax(1) for each in ranked["subcategories"].values())]
    torch.testing.assert_close(ranked["scores"], torch.stack(parts).prod(0) ** (1 / 3))
    assert (ranked["scores"].diff() <= 0).all() and (by_main["scores"].diff() <= 0).all()
    assert not torch.equal(ranked["main_scores"], by_main["main_scores"])


def test_regions_without_an_object_are_no_object_and_unlabelled_ones_have_no_loss() -> None:
    values = [torch.tensor([2, -1]), torch.tensor([], dtype=torch.int64)]
    matched = [torch.tensor([0, 1, 0, 1]), torch.tensor([0, 0])]
    labels = [torch.tensor([1, 2, 0, 0]), torch.tensor([0, 0])]
    wanted = subcategory_targets(values, matched, labels, no_object=3)
    assert wanted.tolist() == [2, -1, 3, 3, 3, 3]
    heads = _build().roi_heads
    logits = torch.randn(6, 4, requires_grad=True)
    heads._subcategory_loss(logits, wanted).backward()
    assert logits.grad[1].abs().sum() == 0 and (logits.grad[[0, 2, 3, 4, 5]].abs().sum(1) > 0).all()
    assert heads._subcategory_loss(logits, torch.full((6,), -1)) == 0


def _losses(model: MaskRCNN, *inputs: dict[str, Any]) -> dict[str, Tensor]:
    torch.manual_seed(3)
    losses = model.train()(list(inputs))
    sum(losses.values()).backward()
    assert all(each.isfinite() for each in losses.values())
    return losses


TWO = ([_object(4, 4, 20), _object(30, 30, 24)], [0, 2], [1, -1])


def test_losses_have_their_names_and_reach_every_parameter() -> None:
    model = _build()
    losses = _losses(model, _inputs(*TWO))
    assert list(losses) == [
        *("loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg", "loss_mask"),
        *("loss_subcategory_colour", "loss_subcategory_surface.kind"),
    ]
    assert [name for name, each in model.named_parameters() if each.grad is None] == []


def test_weight_zero_means_off() -> None:
    inputs = _inputs(*TWO)
    off, without = _build(MODEL__ROI_HEADS__SUBCATEGORY_WEIGHT="0.0"), _build(subcategories={})
    load_state(without, off.state_dict())
    inputs_without = inputs | {"targets": inputs["targets"] | {"subcategories": {}}}
    losses, expected = _losses(off, inputs), _losses(without, inputs_without)
    assert losses.keys() == expected.keys()
    assert all(torch.equal(each, expected[name]) for name, each in losses.items())
    shared = dict(off.named_parameters())
    for name, parameter in without.named_parameters():
        assert torch.equal(shared[name].grad, parameter.grad), name


def test_a_batch_without_objects_is_trained_on() -> None:
    model = _build(MODEL__ROI_MASK_HEAD__NORM="BN")
    counts: list[int] = []
    model.roi_heads.mask_head.register_forward_pre_hook(lambda head, inputs: counts.append(len(inputs[0])))
    losses = _losses(model, _inputs([], [], []), _inputs([], [], []))
    assert counts[0] > 0  # of which batch norms of several processes take the mean
    assert losses["loss_mask"] == 0 and losses["loss_box_reg"] == 0 and losses["loss_classifier"] > 0
    assert [name for name, each in model.named_parameters() if each.grad is None] == []
    _losses(model, _inputs(*TWO), _inputs([], [], []))


def test_objects_without_a_pixel_are_left_out_and_one_pixel_is_enough() -> None:
    nothing, pixel = torch.zeros(64, 64, dtype=torch.bool), _object(10, 12, 1)
    inputs = _inputs([nothing, pixel], [0, 1], [0, 1])
    losses = _losses(_build(), inputs)
    alone = _inputs([pixel], [1], [1]) | {"image": inputs["image"]}
    expected = _losses(_build(), alone)
    assert all(torch.equal(each, expected[name]) for name, each in losses.items())


@pytest.mark.parametrize("side", [1, 5, 40])
def test_images_smaller_than_the_strides(side: int) -> None:
    model = _build()
    _losses(model, *[_inputs([_object(0, 0, 1, side)], [1], [0], side)] * 2)
    with torch.inference_mode():
        (rows,) = model.eval()([_inputs([], [], [], side) | {"height": 2 * side, "width": 3 * side}])
    assert rows["masks"].shape[1:] == (2 * side, 3 * side)
    # A small first image changes nothing for the next ones.
    large = [_inputs([], [], [])]
    with torch.inference_mode():
        (after,), (fresh,) = model(large), _with(model)(large)
    assert torch.equal(after["scores"], fresh["scores"])


def _with(model: MaskRCNN) -> MaskRCNN:
    copy = _build().eval()
    copy.load_state_dict(model.state_dict())
    return copy


def test_no_rows_are_an_empty_prediction() -> None:
    model = _build(MODEL__ROI_HEADS__SCORE_THRESH_TEST="1.0").eval()
    for encode, masks in ((None, (0, 64, 64)), (list, [])):
        model.encode_masks = encode
        with torch.inference_mode():
            (rows,) = model([_inputs([], [], [])])
        assert rows["boxes"].shape == (0, 4) and (rows["masks"].shape if encode is None else rows["masks"]) == masks


def test_encoded_masks_are_the_same_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = _build().eval(), [_inputs([], [], [])]
    with torch.inference_mode():
        (whole,) = model(inputs)
        monkeypatch.setattr("workbench.models.mask_rcnn._CHUNK_PIXELS", 7 * 64 * 64)
        model.encode_masks = list
        (parts,) = model(inputs)
    assert len(whole["masks"]) > 7 and torch.equal(torch.stack(parts["masks"]), whole["masks"])
    assert torch.equal(parts["boxes"], whole["boxes"])


def test_a_wrong_label_is_named() -> None:
    with pytest.raises(WorkbenchError, match=r"image 7, object 0: label 3 of the main category is outside 0\.\.2"):
        _build().train()([_inputs([_object(0, 0, 8)], [3], [0])])


def test_mixed_precision_keeps_coordinates_in_float32() -> None:
    model = _build().eval()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        (rows,) = model([_inputs([], [], [])])
    assert rows["roi_boxes"].dtype == rows["scores"].dtype == torch.float32
    assert not torch.equal(rows["roi_boxes"], rows["roi_boxes"].bfloat16().float())
    with torch.autocast("cpu", torch.bfloat16):
        _losses(model, _inputs(*TWO))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("ANCHOR_GENERATOR__SIZES", "[[16], [32]]", "anchor sizes are given for 2 maps, and the pyramid has p2, p3"),
        ("ANCHOR_GENERATOR__SIZES", "[[8], [16], [32], [64, 90], [128]]", "the same number of anchor sizes"),
        (
            "ANCHOR_GENERATOR__SIZES",
            "[[0]]",
            "SIZES is .*a list of values, each a list of values, each above 0",
        ),
        ("ROI_HEADS__IOU_THRESHOLDS", "[0.5, 0.6]", "IOU_THRESHOLDS is .*a list of 1 values"),
    ],
)
def test_keys_that_do_not_fit_are_one_sentence(key: str, value: str, message: str) -> None:
    with pytest.raises(WorkbenchError, match=message):
        _build(**{f"MODEL__{key}": value})
