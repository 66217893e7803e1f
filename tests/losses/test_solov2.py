"""SOLOv2's label assignment beside slow loops over cells, and its losses beside the paper's formulas."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from torch.nn.functional import pad

from workbench.losses.solov2 import SOLOv2Criterion, assign_cells, dice_losses, reduce_masks

GRIDS, RANGES = (12, 9, 5), ((1, 24), (16, 48), (40, 400))


def blobs(count: int, height: int, width: int, seed: int) -> torch.Tensor:
    """Ellipses of all sizes, some cut by the border."""
    draw = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    cy, cx, ry, rx = (
        torch.rand(4, count, 1, 1, generator=draw) * torch.tensor([height, width, 40, 40])[:, None, None, None]
    ) + 1
    return ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1


def boxes_of(masks: torch.Tensor) -> torch.Tensor:
    boxes = torch.zeros(len(masks), 4)
    for box, mask in zip(boxes, masks, strict=True):
        if mask.any():
            y, x = mask.nonzero().T
            box[:] = torch.tensor([x.min(), y.min(), x.max() + 1, y.max() + 1])
    return boxes


def slow_assignment(masks: torch.Tensor, sigma: Fraction) -> set[tuple[int, int]]:
    """Pairs of cell and object, by exact arithmetic: every cell asks every object whether it takes the cell."""
    pairs, first = set(), 0
    for grid, (least, largest) in zip(GRIDS, RANGES, strict=True):
        for number, mask in enumerate(masks):
            pixels = mask.nonzero().tolist()
            if not pixels:
                continue
            places, sides = [], []
            for axis, extent in enumerate(mask.shape):
                values = [pixel[axis] for pixel in pixels]
                sides.append(max(values) + 1 - min(values))
                centre = Fraction(sum(values), len(values)) / extent * grid  # in cells
                half = sigma * sides[axis] / 2 / extent * grid
                near = [cell for cell in range(grid) if abs(cell - math.floor(centre)) <= 1]
                places.append([cell for cell in near if centre - half < cell + 1 and centre + half >= cell])
            if least <= math.sqrt(sides[0] * sides[1]) <= largest:
                pairs |= {(first + row * grid + column, number) for row in places[0] for column in places[1]}
        first += grid**2
    return pairs


@pytest.mark.parametrize("seed", range(4))
def test_cells_are_those_that_touch_the_centre_region(seed: int) -> None:
    masks = blobs(9, 93, 121, seed)
    masks[4] = False
    cells, objects = assign_cells(masks, boxes_of(masks), grids=GRIDS, scale_ranges=RANGES, sigma=0.3)
    pairs = list(zip(cells.tolist(), objects.tolist(), strict=True))
    assert len(pairs) > 10
    assert len(pairs) == len(set(pairs)) and set(pairs) == slow_assignment(masks, Fraction(3, 10))


def test_an_object_smaller_than_a_cell_takes_one_and_a_large_one_no_more_than_nine() -> None:
    masks = torch.zeros(2, 96, 96, dtype=torch.bool)
    masks[0, 50, 50] = True
    masks[1] = True
    cells, objects = assign_cells(masks, boxes_of(masks), grids=(12,), scale_ranges=[(1, 200)], sigma=1.0)
    assert cells[objects == 0].tolist() == [6 * 12 + 6] and (objects == 1).sum() == 9


def test_masks_are_reduced_to_where_half_of_the_middle_is_covered() -> None:
    masks = blobs(5, 40, 56, 0)
    middle = masks[:, 1::4] | False, masks[:, 2::4]
    covered = sum(part[..., offset::4].int() for part in middle for offset in (1, 2))
    assert torch.equal(reduce_masks(masks, (40, 56), (10, 14)), (covered >= 2).float())
    padded = reduce_masks(pad(masks, (0, 8, 0, 24)), (40, 56), (16, 16))
    assert torch.equal(padded[:, :10, :14], (covered >= 2).float())
    assert not padded[:, 10:].any() and not padded[..., 14:].any()
    assert reduce_masks(torch.ones(1, 32, 32, dtype=torch.bool), (1, 3), (8, 8)).sum() == 1


def test_masks_of_odd_sizes_are_reduced_as_opencv_does() -> None:
    y, x = torch.meshgrid(torch.arange(43), torch.arange(50), indexing="ij")
    mask = (3 * y + 5 * x) % 11 < 6
    # cv2.resize(mask.astype(np.uint8), (13, 11), interpolation=cv2.INTER_LINEAR); exact interpolation sets 25 more.
    expected = [
        "...##..#..#.#",
        "..###.......#",
        "...##...#..#.",
        "#..###.##....",
        "#...##.###..#",
        "##..######...",
        "##...#..###..",
        ".##..#..###..",
        ".##......###.",
        ".###..#..##..",
        ".###......#..",
    ]
    reduced = reduce_masks(pad(mask[None], (0, 14, 0, 21)), (43, 50), (16, 16))[0]
    assert ["".join(".#"[int(v)] for v in row[:13]) for row in reduced[:11]] == expected
    assert not reduced[11:].any() and not reduced[:, 13:].any()


def raw(images: int = 2, classes: int = 3, grids: tuple[int, ...] = GRIDS) -> dict:
    draw = torch.Generator().manual_seed(1)
    cells = sum(grid**2 for grid in grids)
    return {
        "pred_logits": torch.randn(images, cells, classes, generator=draw).requires_grad_(),
        "pred_kernels": torch.randn(images, cells, 8, generator=draw).requires_grad_(),
        "mask_features": torch.rand(images, 8, 16, 24, generator=draw).requires_grad_(),
        "pred_subcategories": {"colour": torch.randn(images, cells, 5, generator=draw).requires_grad_()},
    }


def target(count: int, seed: int = 0, colour: int | None = None) -> dict:
    masks = blobs(count, 64, 96, seed)
    colours = torch.arange(count) % 4 if colour is None else torch.full((count,), colour)
    labels = torch.arange(count) % 3
    return {"masks": masks, "boxes": boxes_of(masks), "labels": labels, "subcategories": {"colour": colours}}


def criterion(**changes: object) -> SOLOv2Criterion:
    return SOLOv2Criterion(grids=GRIDS, scale_ranges=RANGES, **changes)


def test_losses_are_the_papers() -> None:
    """Focal, dice and cross-entropy losses by loops over cells and objects; two objects share cells."""
    outputs, targets, sizes = raw(), [target(4), target(3, 5)], [(64, 96), (60, 90)]
    for key in ("masks", "boxes"):
        targets[0][key][2] = targets[0][key][1]
    targets[1]["masks"] &= pad(torch.ones(60, 90, dtype=torch.bool), (0, 6, 0, 4))
    targets[1]["boxes"] = boxes_of(targets[1]["masks"])
    targets[0]["subcategories"]["colour"][3] = -1
    focal, dice, cross, positive = 0.0, [], [], 0
    for image, (each, size) in enumerate(zip(targets, sizes, strict=True)):
        cells, objects = assign_cells(each["masks"], each["boxes"], grids=GRIDS, scale_ranges=RANGES)
        small = reduce_masks(each["masks"], size, (16, 24))
        owners = {}
        for cell, number in zip(cells.tolist(), objects.tolist(), strict=True):
            owners[cell] = max(number, owners.get(cell, 0))
            mask = (outputs["pred_kernels"][image, cell, :, None, None] * outputs["mask_features"][image]).sum(0)
            p, q = mask.sigmoid(), small[number]
            dice.append(1 - 2 * (p * q).sum() / (p.square().sum() + q.square().sum() + 0.002))
        positive += len(owners)
        for cell, logits in enumerate(outputs["pred_logits"][image]):
            for label, p in enumerate(logits.sigmoid()):
                if cell in owners and each["labels"][owners[cell]] == label:
                    focal -= 0.25 * (1 - p) ** 2 * p.log()
                else:
                    focal -= 0.75 * p**2 * (1 - p).log()
        for cell, number in owners.items():
            colour = each["subcategories"]["colour"][number]
            if colour >= 0:
                cross.append(-outputs["pred_subcategories"]["colour"][image, cell].log_softmax(0)[colour])
    losses = criterion(subcategory_weight=2.0)(outputs, targets, sizes)
    assert list(losses) == ["loss_cate", "loss_ins", "loss_subcategory_colour"]
    torch.testing.assert_close(losses["loss_cate"], focal / (positive + 1))
    torch.testing.assert_close(losses["loss_ins"], 3 * torch.stack(dice).mean())
    torch.testing.assert_close(losses["loss_subcategory_colour"], 2 * torch.stack(cross).mean())


def test_unlabelled_objects_have_no_loss_and_weight_zero_no_entry() -> None:
    outputs, sizes = raw(1), [(64, 96)]
    losses = criterion()(outputs, [target(4, colour=-1)], sizes)
    assert losses["loss_subcategory_colour"] == 0
    sum(losses.values()).backward()
    assert not outputs["pred_subcategories"]["colour"].grad.any()
    assert "loss_subcategory_colour" not in criterion(subcategory_weight=0)(raw(1), [target(4)], sizes)


def test_a_batch_without_objects_still_teaches_that_cells_are_empty() -> None:
    outputs = raw()
    losses = criterion()(outputs, [target(0), target(0)], [(64, 96)] * 2)
    assert losses["loss_ins"] == 0 and losses["loss_cate"] > 0
    sum(losses.values()).backward()
    tensors = [*(v for v in outputs.values() if torch.is_tensor(v)), outputs["pred_subcategories"]["colour"]]
    assert all(t.grad is not None and t.grad.isfinite().all() for t in tensors)


def test_more_objects_than_cells() -> None:
    """All masks are learned; the last object of a cell gives it its category."""
    masks = torch.zeros(30, 64, 96, dtype=torch.bool)
    masks[:, 20:30, 20:30] = True
    each = {"masks": masks, "boxes": boxes_of(masks), "labels": torch.arange(30) % 3, "subcategories": {}}
    each["labels"][-1] = 1
    outputs = raw(1, grids=(2,)) | {"pred_subcategories": {}}
    assert len(assign_cells(masks, each["boxes"], grids=(2,), scale_ranges=[(1, 99)])[0]) == 30
    loss = SOLOv2Criterion(grids=(2,), scale_ranges=[(1, 99)])(outputs, [each], [(64, 96)])["loss_cate"]
    sure = torch.full((1, 4, 3), -30.0)
    sure[0, 0, 1] = 30
    outputs["pred_logits"] = sure
    assert SOLOv2Criterion(grids=(2,), scale_ranges=[(1, 99)])(outputs, [each], [(64, 96)])["loss_cate"] < 1e-6 < loss


def test_dice_of_a_perfect_mask_is_nearly_zero() -> None:
    truth = blobs(3, 32, 32, 2).float()
    assert (dice_losses(truth * 60 - 30, truth) < 1e-4).all() and (dice_losses(30 - truth * 60, truth) > 0.99).all()


def test_levels_are_counted() -> None:
    with pytest.raises(ValueError, match="2 grids and 3 scale ranges"):
        SOLOv2Criterion(grids=(4, 2), scale_ranges=RANGES)
