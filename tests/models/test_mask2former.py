import copy

import pytest
import torch

from workbench.config import load_config
from workbench.errors import WorkbenchError
from workbench.models import build_model
from workbench.models.backbones import check_pyramid, measure

TINY = [
    "MODEL.BACKBONE.NAME",
    "build_small_resnet_backbone",
    "MODEL.SMALL_RESNET.WIDTHS",
    "[8,8,16,16]",
    "MODEL.SMALL_RESNET.NORM",
    "GN",
    "MODEL.SEM_SEG_HEAD.CONVS_DIM",
    "16",
    "MODEL.SEM_SEG_HEAD.MASK_DIM",
    "16",
    "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS",
    "1",
    "MODEL.SEM_SEG_HEAD.TRANSFORMER_DIM_FEEDFORWARD",
    "32",
    "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS",
    "4",
    "MODEL.MASK_FORMER.HIDDEN_DIM",
    "16",
    "MODEL.MASK_FORMER.NHEADS",
    "4",
    "MODEL.MASK_FORMER.DIM_FEEDFORWARD",
    "32",
    "MODEL.MASK_FORMER.DEC_LAYERS",
    "4",
    "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES",
    "6",
    "MODEL.MASK_FORMER.TRAIN_NUM_POINTS",
    "64",
]


class Vocabulary:
    def __init__(self, **subcategories):
        self.num_classes = 3
        self.num_subcategory_classes = subcategories
        self.stuff_labels = ()


def tiny(*overrides, **subcategories):
    torch.manual_seed(0)
    cfg = load_config(None, [*TINY, *overrides])
    return build_model(cfg, Vocabulary(**(subcategories or {"colour": 4, "state.of.damage": 2})))


def example(objects=2, height=40, width=56, seed=0, names=("colour", "state.of.damage")):
    generator = torch.Generator().manual_seed(seed)
    masks = torch.zeros(objects, height, width, dtype=torch.bool)
    for index in range(objects):
        masks[index, 4 * index : 4 * index + 12, 6 * index : 6 * index + 20] = True
    return {
        "image": torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8),
        "height": 2 * height,
        "width": 2 * width,
        "image_id": 40 + seed,
        "file_name": f"{seed}.png",
        "seed": seed,
        "targets": {
            "labels": torch.arange(objects) % 3,
            "masks": masks,
            "subcategories": {name: torch.arange(objects) % 3 - 1 for name in names},
        },
    }


def test_training_gives_losses_and_every_parameter_a_gradient():
    model = tiny().train()
    losses = model([example(2), example(0, 64, 32, seed=1)])
    assert {"loss_ce", "loss_mask", "loss_dice", "loss_subcategory_colour", "loss_ce_0", "loss_ce_2"} <= set(losses)
    assert len(losses) == 5 * 4  # a class, two mask and two subcategory losses for the queries and each layer
    sum(losses.values()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


def test_without_deep_supervision_only_the_last_layer_is_trained():
    losses = tiny("MODEL.MASK_FORMER.DEEP_SUPERVISION", "False").train()([example()])
    assert len(losses) == 5


def test_predictions_are_at_the_original_size():
    model = tiny().eval()
    with torch.inference_mode():
        first, second = model([example(2), example(0, 33, 47, seed=1)])
    assert first["masks"].shape == (18, 80, 112) and second["masks"].shape == (18, 66, 94)
    assert first["masks"].dtype == torch.bool and first["image_id"] == 40
    assert first["subcategories"]["colour"].shape == (18, 5)
    torch.testing.assert_close(first["subcategories"]["state.of.damage"].sum(1), torch.ones(18))


@pytest.mark.parametrize("size", [(1, 1), (1, 70), (31, 33), (64, 64)])
def test_odd_sizes(size):
    model = tiny()
    assert torch.isfinite(sum(model.train()([example(1, *size)]).values()))
    with torch.inference_mode():
        assert model.eval()([example(1, *size)])[0]["masks"].shape[1:] == (2 * size[0], 2 * size[1])


def test_raw_outputs_have_a_no_object_class_in_every_head():
    """Invariant 5."""
    model = tiny().train()
    outputs = model.raw_outputs(torch.randn(2, 3, 64, 96))
    assert outputs["pred_logits"].shape == (2, 6, 4)
    assert outputs["pred_masks"].shape == (2, 6, 16, 24)
    assert {name: head.shape[-1] for name, head in outputs["pred_subcategories"].items()} == {
        "colour": 5,
        "state.of.damage": 3,
    }
    assert len(outputs["aux_outputs"]) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": 3}, r"image 40 \(0.png\), annotation 92: label 3 of the main category is outside 0..2"),
        ({"labels": -1}, "label -1 of the main category"),
        ({"colour": 4}, r"label 4 of subcategory 'colour' is outside -1..3 \(-1 is unlabelled\)"),
        ({"state.of.damage": -2}, "label -2 of subcategory 'state.of.damage'"),
    ],
)
def test_a_label_outside_its_range_is_named_before_the_device_sees_it(change, message):
    """Invariant 5."""
    inputs = example(2)
    inputs["targets"]["annotation_ids"] = torch.tensor([91, 92])
    for name, value in change.items():
        target = inputs["targets"] if name == "labels" else inputs["targets"]["subcategories"]
        target[name][1] = value
    model = tiny().train()
    model.raw_outputs = None  # nothing may be computed
    with pytest.raises(WorkbenchError, match=message):
        model([inputs])


def test_weight_zero_means_off():
    """Invariant 6: losses, matching and gradients of shared parameters are bitwise those without the heads."""
    off = ("MODEL.MASK_FORMER.SUBCATEGORY_WEIGHT", "0.0", "MODEL.MASK_FORMER.SUBCATEGORY_COST", "0.0")
    with_heads, without = tiny(*off).train(), tiny(*off, none=1).train()
    without.transformer_decoder.subcategory_embed.clear()
    without.transformer_decoder.subcategory_names = ()
    batch = [example(3), example(1, seed=1)]
    with_losses, without_losses = with_heads(batch), without(batch)
    assert with_losses.keys() == without_losses.keys()
    for losses in (with_losses, without_losses):
        sum(losses.values()).backward()
    assert all(torch.equal(with_losses[name], without_losses[name]) for name in with_losses)
    shared = dict(with_heads.named_parameters())
    for name, parameter in without.named_parameters():
        assert torch.equal(parameter, shared[name]) and torch.equal(parameter.grad, shared[name].grad), name
    heads = [p for name, p in shared.items() if "subcategory_embed" in name]
    assert heads and all(p.grad is None and not p.requires_grad for p in heads)


def test_inference_depends_on_the_image_not_on_query_weights():
    """Invariant 8: other pixels give other subcategories with the same weights."""
    model = tiny().eval()
    with torch.inference_mode():
        first, second = (model([example(seed=seed)])[0] for seed in (0, 1))
    assert not torch.equal(first["subcategory_logits"]["colour"], second["subcategory_logits"]["colour"])


def test_the_light_path_of_evaluation_predicts_the_same():
    """Shrunken embeddings in evaluation, shrunken masks in training: the same attention masks, the same numbers."""
    model = tiny().eval()
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        mask_features, maps = model.pixel_decoder(model.backbone(image))
        full = model.transformer_decoder(maps, mask_features, every_layer=True)
        light = model.transformer_decoder(maps, mask_features, every_layer=False)
    for name in ("pred_logits", "pred_masks"):
        torch.testing.assert_close(full[name], light[name], rtol=1e-4, atol=1e-4)
    assert light["aux_outputs"] == []


def test_a_batch_is_the_sum_of_its_images():
    """Padding and batching change no prediction of an image that fills the padded size."""
    model = tiny().eval()
    alone, other = example(height=64, width=64), example(height=64, width=64, seed=1)
    with torch.inference_mode():
        one = model([alone])[0]
        both = model([other, alone])[1]
    torch.testing.assert_close(one["scores"], both["scores"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("overrides", "strides"),
    [
        (("MODEL.BACKBONE.NAME", "build_mobilenet_v3_large_backbone"), (4, 8, 16, 32)),
        (
            ("MODEL.BACKBONE.NAME", "build_mobilenet_v3_large_backbone", "MODEL.MOBILENET.DILATED", "True"),
            (4, 8, 16, 16),
        ),
        (("MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.RESNETS.DEPTH", "18"), (4, 8, 16, 32)),
        (
            ("MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.RESNETS.RES5_DILATION", "2"),
            (4, 8, 16, 16),
        ),
    ],
)
def test_any_backbone_with_these_strides_plugs_in(overrides, strides):
    """Invariant 2: the decoder gets the true strides."""
    model = tiny(*overrides).eval()
    shapes = measure(model.backbone)
    check_pyramid(shapes)
    assert tuple(shape.stride for shape in shapes.values()) == strides
    with torch.no_grad():
        _, maps = model.pixel_decoder(model.backbone(torch.randn(1, 3, 64, 64)))
    assert [m.shape[-1] for m in maps] == [64 // stride for stride in strides[:0:-1]]


def test_a_backbone_that_ends_at_res4():
    """The encoder takes strides 4, 8 and 16, nothing is left for the FPN, and every parameter learns."""
    small = ["MODEL.SMALL_RESNET.WIDTHS", "[8, 8, 16]", "MODEL.SMALL_RESNET.DEPTHS", "[1, 1, 1]"]
    with pytest.raises(WorkbenchError, match="res5 is to be decoded but the backbone gives res2, res3, res4"):
        tiny(*small)
    features = "['res2', 'res3', 'res4']"
    head = "MODEL.SEM_SEG_HEAD."
    names = [head + "IN_FEATURES", features, head + "DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES", features]
    model = tiny(*small, *names).train()
    with torch.no_grad():
        embeddings, maps = model.pixel_decoder(model.backbone(torch.randn(2, 3, 64, 64)))
    assert embeddings.shape[-1] == 16 and [m.shape[-1] for m in maps] == [4, 8, 16]
    sum(model([example(2), example(1, seed=1)]).values()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ("MODEL.MOBILENET.TAPS", "[3,6,10,12]"),
            "config key MODEL.MOBILENET.TAPS: (res5 taps layer 12|.*strides 4, 8, 16, 32)",
        ),
        (
            ("MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.RESNETS.DEPTH", "20"),
            "MODEL.RESNETS.DEPTH is 20; it must be one of 18, 34, 50, 101",
        ),
        (("MODEL.SEM_SEG_HEAD.NORM", "BN"), "MODEL.SEM_SEG_HEAD.NORM is 'BN'; it must be one of GN"),
        (("MODEL.MOBILENET.NORM", "LN"), "MODEL.MOBILENET.NORM is 'LN'; it must be one of BN"),
        (("MODEL.MOBILENET.WEIGHTS", "/nowhere/w.pth"), "/nowhere/w.pth does not exist"),
        (
            ("MODEL.BACKBONE.NAME", "build_resnet"),
            "did you mean 'build_resnet_backbone'.*; known are .*build_small_resnet",
        ),
        (("MODEL.META_ARCHITECTURE", "MaskRCNN"), "MODEL.META_ARCHITECTURE is 'MaskRCNN'"),
        (("MODEL.MASK_FORMER.NHEADS", "5"), "16 channels cannot be shared among 5 heads"),
    ],
)
def test_a_config_that_describes_no_model_is_one_sentence(overrides, message):
    with pytest.raises(WorkbenchError, match=message):
        tiny("MODEL.BACKBONE.NAME", "build_mobilenet_v3_large_backbone", *overrides)


def test_the_published_defaults():
    """Mask2Former's published hyper-parameters are what the defaults build."""
    torch.manual_seed(0)
    model = build_model(load_config(None), Vocabulary(colour=2))
    decoder = model.transformer_decoder
    assert (len(model.pixel_decoder.layers), len(decoder.layers)) == (6, 9)
    assert decoder.query_feat.weight.shape == (100, 256)
    criterion = model.criterion
    assert (criterion.class_weight, criterion.mask_weight, criterion.dice_weight) == (2, 5, 5)
    assert (criterion.num_points, criterion.num_candidates, criterion.num_uncertain) == (12544, 37632, 9408)
    assert criterion.no_object_weight == 0.1


@pytest.mark.parametrize(
    ("millions", "keys"),
    [
        (44, "BACKBONE.NAME build_resnet_backbone RESNETS.DEPTH 50"),
        (63, "BACKBONE.NAME build_resnet_backbone RESNETS.DEPTH 101"),
        (47, "BACKBONE.NAME D2SwinTransformer"),
        (69, "BACKBONE.NAME D2SwinTransformer SWIN.DEPTHS [2,2,18,2]"),
        (107, "BACKBONE.NAME D2SwinTransformer SWIN.DEPTHS [2,2,18,2] SWIN.EMBED_DIM 128 SWIN.NUM_HEADS [4,8,16,32]"),
        (
            216,
            "BACKBONE.NAME D2SwinTransformer SWIN.DEPTHS [2,2,18,2] SWIN.EMBED_DIM 192 SWIN.NUM_HEADS [6,12,24,48] "
            "SWIN.WINDOW_SIZE 12 MASK_FORMER.NUM_OBJECT_QUERIES 200",
        ),
    ],
)
def test_published_models_have_their_parameters(millions, keys):
    """R50, R101 and Swin-T, S, B and L on COCO, as the model zoo and the paper have them."""
    words = [part if index % 2 else f"MODEL.{part}" for index, part in enumerate(keys.split())]
    classes = Vocabulary()
    classes.num_classes = 80
    with torch.device("meta"):
        model = build_model(load_config(None, words), classes, pretrained=False)
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6) == millions


def test_the_model_is_left_alone_by_its_inputs():
    """Batched inputs are not changed in place."""
    inputs = example(2)
    before = copy.deepcopy(inputs)
    tiny().train()([inputs])
    assert torch.equal(inputs["image"], before["image"])
    assert torch.equal(inputs["targets"]["masks"], before["targets"]["masks"])
