import logging
import math

import pytest
import torch

from workbench.losses.criterion import SetCriterion, mask_losses
from workbench.losses.matcher import HungarianMatcher


def criterion(**changes):
    matcher = HungarianMatcher(num_points=64, subcategory_cost=changes.pop("subcategory_cost", 1.0))
    return SetCriterion(matcher, num_points=64, **changes)


def perfect(labels, classes, queries, masks, colours=None):
    """Raw outputs that are (nearly) right for one image, object i at query i."""
    logits = torch.zeros(1, queries, classes + 1)
    logits[0, :, classes] = 20
    pred_masks = torch.full((1, queries, *masks.shape[1:]), -20.0)
    for query, label in enumerate(labels.tolist()):
        logits[0, query] = torch.eye(classes + 1)[label] * 20
        pred_masks[0, query] = masks[query].float() * 40 - 20
    heads = {}
    if colours is not None:
        head = torch.zeros(1, queries, 4)
        head[0, :, 3] = 20
        for query, colour in enumerate(colours.tolist()):
            if colour >= 0:
                head[0, query] = torch.eye(4)[colour] * 20
        heads["colour"] = head
    return {"pred_logits": logits, "pred_masks": pred_masks, "pred_subcategories": heads, "aux_outputs": []}


def blocks(count, size=16):
    masks = torch.zeros(count, size, size, dtype=torch.bool)
    for index in range(count):
        masks[index, :, 4 * index : 4 * index + 4] = True
    return masks


def targets(labels, masks, colours=None):
    return [{"labels": labels, "masks": masks, "subcategories": {} if colours is None else {"colour": colours}}]


def test_a_perfect_prediction_costs_almost_nothing():
    labels, masks, colours = torch.tensor([0, 2]), blocks(2), torch.tensor([1, 0])
    losses = criterion()(perfect(labels, 3, 5, masks, colours), targets(labels, masks, colours), seeds=[0])
    assert set(losses) == {"loss_ce", "loss_mask", "loss_dice", "loss_subcategory_colour"}
    # bilinear sampling blurs truth and prediction alike at the mask's edge, so the mask losses are only small there
    assert losses["loss_ce"] < 1e-6 and losses["loss_subcategory_colour"] < 1e-6
    assert losses["loss_dice"] < 1.0


def test_class_loss_by_hand():
    """One object, three queries, uniform logits over K+1 = 3: every term is log 3, weighted 1, 0.1 and 0.1."""
    labels, masks = torch.tensor([1]), blocks(1)
    outputs = perfect(labels, 2, 3, masks)
    outputs["pred_logits"] = torch.zeros(1, 3, 3)
    loss = criterion(class_weight=2.0)(outputs, targets(labels, masks), seeds=[0])["loss_ce"]
    assert loss.item() == pytest.approx(2 * math.log(3))
    outputs["pred_logits"][0, :, 2] = math.log(2)  # probabilities 1/4, 1/4, 1/2
    loss = criterion(class_weight=1.0)(outputs, targets(labels, masks), seeds=[0])["loss_ce"]
    assert loss.item() == pytest.approx((math.log(4) + 0.2 * math.log(2)) / 1.2)


def test_mask_losses_by_hand():
    logits = torch.tensor([[0.0, 0.0, math.log(3), math.log(3)]])  # probabilities .5 .5 .75 .75
    truth = torch.tensor([[1.0, 0.0, 1.0, 0.0]])
    cross_entropy, dice = mask_losses(logits, truth, 2.0)
    expected = (2 * math.log(2) + math.log(4 / 3) + math.log(4)) / 4
    assert cross_entropy.item() == pytest.approx(expected / 2)
    assert dice.item() == pytest.approx((1 - (2 * 1.25 + 1) / (2.5 + 2 + 1)) / 2)


def test_subcategory_loss_by_hand_and_unlabelled_is_left_out():
    """Two objects, one unlabelled, three queries, uniform over K_s+1 = 4: the unlabelled query teaches nothing."""
    labels, masks, colours = torch.tensor([0, 1]), blocks(2), torch.tensor([2, -1])
    outputs = perfect(labels, 2, 3, masks, colours)
    outputs["pred_subcategories"]["colour"] = torch.zeros(1, 3, 4)
    outputs["pred_subcategories"]["colour"][0, 1] = torch.tensor([9.0, 1.0, -4.0, 3.0])  # the unlabelled one's query
    loss = criterion(subcategory_weight=1.5)(outputs, targets(labels, masks, colours), seeds=[0])
    assert loss["loss_subcategory_colour"].item() == pytest.approx(1.5 * math.log(4))


def test_nothing_labelled_at_all_is_zero_not_nan():
    labels, masks, colours = torch.tensor([0]), blocks(1), torch.tensor([-1])
    outputs = perfect(labels, 2, 1, masks, colours)
    loss = criterion()(outputs, targets(labels, masks, colours), seeds=[0])["loss_subcategory_colour"]
    assert loss.item() == 0


def test_the_no_object_weight_of_subcategories_is_their_own():
    """One object, three queries: log 4 for the object, log 2 for two queries that are taught no-object."""
    labels, masks, colours = torch.tensor([0]), blocks(1), torch.tensor([1])
    outputs = perfect(labels, 2, 3, masks, colours)
    outputs["pred_logits"] = torch.zeros(1, 3, 3)
    outputs["pred_subcategories"]["colour"] = torch.zeros(1, 3, 4)
    outputs["pred_subcategories"]["colour"][0, :, 3] = math.log(3)  # probabilities 1/6, 1/6, 1/6, 1/2
    truth = targets(labels, masks, colours)
    for weight in (1.0, 0.1, 0.0):
        losses = criterion(subcategory_no_object_weight=weight)(outputs, truth, seeds=[0])
        expected = (math.log(6) + 2 * weight * math.log(2)) / (1 + 2 * weight)
        assert losses["loss_subcategory_colour"].item() == pytest.approx(expected)
        assert losses["loss_ce"].item() == pytest.approx(2 * math.log(3))


def test_subcategories_untaught_on_queries_without_object():
    """Weight 0: what a query without an object says reaches neither the loss nor its gradient."""
    labels, masks, colours = torch.tensor([0, 1]), blocks(2), torch.tensor([2, 0])
    outputs = perfect(labels, 2, 4, masks, colours)
    head = torch.randn(1, 4, 4, generator=torch.Generator().manual_seed(0))
    head[0, 3, 0] = 1e4
    outputs["pred_subcategories"]["colour"] = head.requires_grad_()
    loss_of = criterion(subcategory_no_object_weight=0.0)
    loss_of.matcher.subcategory_cost = 0.0
    loss = loss_of(outputs, targets(labels, masks, colours), seeds=[0])["loss_subcategory_colour"]
    assert loss.item() == pytest.approx(torch.nn.functional.cross_entropy(head[0, :2], colours).item())
    loss.backward()
    assert head.grad[0, :2].abs().min() > 0 and torch.equal(head.grad[0, 2:], torch.zeros(2, 4))


def test_untaught_subcategories_have_gradients_without_objects():
    """Several processes wait for the gradient of every parameter, also where nothing is matched."""
    outputs = perfect(torch.tensor([0]), 2, 3, blocks(1), torch.tensor([0]))
    head = outputs["pred_subcategories"]["colour"].requires_grad_()
    empty = targets(torch.zeros(0, dtype=torch.int64), blocks(0), torch.zeros(0, dtype=torch.int64))
    losses = criterion(subcategory_no_object_weight=0.0)(outputs, empty, seeds=[0])
    assert losses["loss_subcategory_colour"].item() == 0
    sum(losses.values()).backward()
    assert torch.equal(head.grad, torch.zeros_like(head))


def test_one_more_loss_is_one_more_entry():
    labels, masks = torch.tensor([0, 1]), blocks(2)
    outputs = perfect(labels, 2, 3, masks)
    outputs["aux_outputs"] = [perfect(labels, 2, 3, masks)]

    def loss_area(layer, targets, matched, generators):
        """Mean difference of the areas of a mask and its object."""
        differences = [
            layer["pred_masks"][i, queries].sigmoid().mean((1, 2)) - targets[i]["masks"][objects].float().mean((1, 2))
            for i, (queries, objects) in enumerate(matched)
        ]
        total = torch.cat(differences).abs().sum()
        return {"loss_area": (3.0, total, total.new_tensor(float(sum(map(len, differences)))))}

    plain = criterion()(outputs, targets(labels, masks), seeds=[0])
    loss_of = criterion()
    loss_of.losses["area"] = loss_area
    outputs["pred_masks"][0, 1, :8] = -20.0  # half of an object that covers a quarter of the image
    losses = loss_of(outputs, targets(labels, masks), seeds=[0])
    assert set(losses) == set(plain) | {"loss_area", "loss_area_0"}
    assert losses["loss_area"].item() == pytest.approx(3 * 0.125 / 2)
    assert losses["loss_area_0"].item() == pytest.approx(0, abs=1e-6)


def test_two_losses_of_one_name_are_refused():
    labels, masks = torch.tensor([0]), blocks(1)
    loss_of = criterion()
    loss_of.losses["again"] = loss_of.loss_labels
    with pytest.raises(ValueError, match="both called loss_ce"):
        loss_of(perfect(labels, 2, 2, masks), targets(labels, masks), seeds=[0])


def test_images_without_objects_train():
    """Invariant 5's sibling: the no-object class is taught, and every output has a finite gradient."""
    outputs = perfect(torch.tensor([0]), 2, 3, blocks(1), torch.tensor([0]))
    leaves = [outputs["pred_logits"], outputs["pred_masks"], outputs["pred_subcategories"]["colour"]]
    for leaf in leaves:
        leaf.requires_grad_()
    empty = targets(torch.zeros(0, dtype=torch.int64), blocks(0), torch.zeros(0, dtype=torch.int64))
    losses = criterion()(outputs, empty, seeds=[0])
    assert losses["loss_mask"] == 0 and losses["loss_dice"] == 0 and losses["loss_ce"] > 1
    sum(losses.values()).backward()
    assert all(torch.isfinite(leaf.grad).all() for leaf in leaves)


def test_more_objects_than_queries_is_said_once(caplog):
    labels, masks = torch.tensor([0, 1, 0]), blocks(3)
    outputs = perfect(labels[:2], 2, 2, masks[:2])
    loss_of = criterion()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            losses = loss_of(outputs, targets(labels, masks), seeds=[0])
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert len(caplog.records) == 1
    assert "3 objects" in caplog.text and "2 queries" in caplog.text
    assert "MODEL." not in caplog.text  # the criterion is plain PyTorch: config keys are not its language


def test_earlier_layers_have_their_own_losses():
    labels, masks = torch.tensor([0]), blocks(1)
    outputs = perfect(labels, 2, 2, masks)
    outputs["aux_outputs"] = [perfect(labels, 2, 2, masks), perfect(labels, 2, 2, masks)]
    losses = criterion()(outputs, targets(labels, masks), seeds=[0])
    assert {"loss_ce", "loss_ce_0", "loss_ce_1", "loss_mask_1", "loss_dice_0"} <= set(losses)


def test_subcategories_whose_names_end_as_layers_do_are_told_apart():
    labels, masks = torch.tensor([0]), blocks(1)
    outputs, truth = perfect(labels, 2, 2, masks), targets(labels, masks)
    for name in ("a", "a_0", "0_a"):
        outputs["pred_subcategories"][name] = torch.zeros(1, 2, 3)
        truth[0]["subcategories"][name] = torch.tensor([1])
    outputs["aux_outputs"] = [dict(outputs)]
    names = {name for name in criterion()(outputs, truth, seeds=[0]) if "subcategory" in name}
    last = {f"loss_subcategory_{name}" for name in ("a", "a_0", "0_a")}
    assert names == last | {f"loss_0_subcategory_{name}" for name in ("a", "a_0", "0_a")}


def test_points_depend_on_the_image_and_not_on_its_place_in_the_batch():
    torch.manual_seed(0)
    one, other = blocks(2), blocks(3)
    heads = {
        "pred_logits": torch.randn(2, 4, 3),
        "pred_masks": torch.randn(2, 4, 16, 16),
        "pred_subcategories": {},
    }
    pair = [*targets(torch.tensor([0, 1]), one), *targets(torch.tensor([1, 0, 1]), other)]

    def swapped(mapping):
        return {k: v.flip(0) if torch.is_tensor(v) else v for k, v in mapping.items()}

    straight = criterion()(heads, pair, seeds=[5, 6])
    reverse = criterion()(swapped(heads), pair[::-1], seeds=[6, 5])
    for name in straight:
        torch.testing.assert_close(straight[name], reverse[name])
    again = criterion()(heads, pair, seeds=[7, 8])
    assert again["loss_mask"] != straight["loss_mask"]


def test_subcategory_names_may_look_like_losses():
    labels, masks = torch.tensor([0]), blocks(1)
    outputs = perfect(labels, 2, 2, masks)
    truth = targets(labels, masks)
    for name in ("mask", "ce", "dice_0"):
        outputs["pred_subcategories"][name] = torch.zeros(1, 2, 3)
        truth[0]["subcategories"][name] = torch.tensor([1])
    losses = criterion(subcategory_weight=0.5)(outputs, truth, seeds=[0])
    assert losses["loss_subcategory_mask"].item() == pytest.approx(0.5 * math.log(3))
    assert len(losses) == 6
