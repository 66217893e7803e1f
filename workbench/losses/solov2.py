"""Label assignment and losses of SOLOv2 (Wang et al., 2020), with one more loss for each subcategory.

The image is divided into a grid of S x S cells at each level of the pyramid, and a cell predicts the object whose
centre falls into it:

    L = L_cate + lambda L_mask,    L_mask = 1 / N_pos sum over positive cells of d_dice(m, m*),
    d_dice(p, q) = 1 - 2 sum(p q) / (sum(p^2) + sum(q^2)),    lambda = 3,

where L_cate is the focal loss of the categories of all cells (Lin et al., 2017).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import sigmoid_focal_loss

from workbench.losses.criterion import mean_over_processes

SCALE_RANGES = ((1, 96), (48, 192), (96, 384), (192, 768), (384, 2048))
MASK_STRIDE = 4
_UNLABELLED = -1  # of an object's subcategory, and of a cell without an object
_MASKS_AT_ONCE = 32  # bounds the memory of reducing the masks of an image
_DICE_SMOOTHING = 0.001  # added to both sums of squares, as in the published code


def centres_of_mass(masks: Tensor) -> Tensor:
    """(N, H, W) bool -> (N, 2) float32: mean x and y of each mask's pixels, counted from 0; zeros for empty masks."""
    height, width = masks.shape[-2:]
    x, y = (torch.arange(size, device=masks.device, dtype=torch.float64) for size in (width, height))
    columns, rows = masks.sum(1).double(), masks.sum(2).double()
    sums = torch.stack([columns @ x, rows @ y], 1)
    return sums.float() / rows.sum(1, keepdim=True).clamp(min=1).float()


def assign_cells(
    masks: Tensor,
    boxes: Tensor,
    *,
    grids: Sequence[int],
    scale_ranges: Sequence[Sequence[float]] = SCALE_RANGES,
    sigma: float = 0.2,
) -> tuple[Tensor, Tensor]:
    """Return the cells that each object of an image takes (SOLO, Wang et al., 2020, "Label assignment").

    An object belongs to every level whose scale range holds the square root of its box's area. There it takes the cells
    that its centre region touches: ``sigma`` times its box, around its centre of mass, and no further than one cell
    from the cell of that centre. An empty mask takes no cell. Objects may take the same cell.

    Args:
        masks: (N, H, W) bool, over the padded image, which the grids divide.
        boxes: (N, 4) float XYXY in pixels.
        grids: cells along a side of each level. scale_ranges: (least, largest) size in pixels of each level.

    Returns:
        cells (P,) int64 and objects (P,) int64: P pairs. Cells are numbered row by row, level after level.
    """
    extent = masks.new_tensor([masks.shape[2], masks.shape[1]], dtype=torch.float32)
    sizes = boxes[:, 2:] - boxes[:, :2]
    scale = sizes.prod(1).sqrt()
    centre, half = centres_of_mass(masks), 0.5 * sizes * sigma
    present = masks.flatten(1).any(1)
    cells, objects, first = [], [], 0
    for grid, (least, largest) in zip(grids, scale_ranges, strict=True):
        # The published code divides by 1 / grid in float32, so a centre on an edge may count to the cell before it.
        low, middle, high = (
            (at / extent).div(1 / grid, rounding_mode="floor") for at in (centre - half, centre, centre + half)
        )
        around = middle.unsqueeze(2) + torch.arange(-1, 2, device=masks.device)  # (N, 2, 3): columns and rows
        inside = (around >= low.clamp(min=0).unsqueeze(2)) & (around <= high.clamp(max=grid - 1).unsqueeze(2))
        belongs = present & (scale >= least) & (scale <= largest)
        taken = inside[:, 1, :, None] & inside[:, 0, None, :] & belongs[:, None, None]  # (N, 3, 3): row, column
        numbers = around[:, 1, :, None] * grid + around[:, 0, None, :]
        cells.append(first + numbers[taken].long())
        objects.append(taken.nonzero()[:, 0])
        first += grid**2
    return torch.cat(cells), torch.cat(objects)


def reduce_masks(masks: Tensor, image_size: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Return masks at a quarter of the image's size, bit for bit as the published code makes them with OpenCV.

    OpenCV interpolates 8-bit images in whole numbers: weights are 2048ths, and what each of two rows adds to a pixel is
    cut to quarters before their sum is rounded. At sides that are no multiples of 4 this clears some pixels of the
    outline that exact interpolation would set. Such a side is rounded, which stretches the mask by less than a pixel.

    Args:
        masks: (N, H, W) bool, over the padded image. image_size: the (height, width) that is image.
        size: (height, width) of the result, padded with False.

    Returns:
        (N, *size) float32, 0 or 1.
    """
    quarter = tuple(max(1, int(side / MASK_STRIDE + 0.5)) for side in image_size)
    (upper, lower, above, below), (left, right, near, far) = (
        _taps(side, part, masks.device) for side, part in zip(image_size, quarter, strict=True)
    )
    reduced = masks.new_zeros((len(masks), *size), dtype=torch.float32)
    for chunk, target in zip(masks.split(_MASKS_AT_ONCE), reduced.split(_MASKS_AT_ONCE), strict=True):
        quarters = 2
        for rows, share in ((upper, above), (lower, below)):
            across = chunk[:, rows][..., left] * near + chunk[:, rows][..., right] * far
            quarters = quarters + (((across >> 4) * share[:, None]) >> 16)
        target[:, : quarter[0], : quarter[1]] = quarters >> 2
    return reduced


def _taps(source: int, target: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the two source pixels of each of ``target`` pixels, and their weights in 2048ths, each (target,) int."""
    place = ((torch.arange(target, dtype=torch.float64) + 0.5) * (source / target) - 0.5).float()
    first = place.floor()
    share = (place - first).where((first >= 0) & (first < source - 1), 0)
    weights = ((part * 2048).round().int() for part in (1 - share, share))
    pixels = (pixel.long().clamp(0, source - 1) for pixel in (first, first + 1))
    return tuple(values.to(device) for values in (*pixels, *weights))


def dice_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """d_dice of each mask: logits and targets (N, ...) float -> (N,)."""
    probabilities, targets = logits.sigmoid().flatten(1), targets.flatten(1)
    squares = probabilities.square().sum(1) + targets.square().sum(1) + 2 * _DICE_SMOOTHING
    return 1 - 2 * (probabilities * targets).sum(1) / squares


class SOLOv2Criterion(nn.Module):
    """Assign cells to objects, then add up the losses.

    Args:
        grids, scale_ranges, sigma: of :func:`assign_cells`.
        focal_alpha, focal_gamma, focal_weight: of the focal loss.
        dice_weight: lambda.
        subcategory_weight: weight of each subcategory's loss; 0 leaves subcategories out altogether.
    """

    def __init__(
        self,
        *,
        grids: Sequence[int],
        scale_ranges: Sequence[Sequence[float]] = SCALE_RANGES,
        sigma: float = 0.2,
        focal_alpha: float = 0.25,
        focal_gamma: float = 2.0,
        focal_weight: float = 1.0,
        dice_weight: float = 3.0,
        subcategory_weight: float = 1.0,
    ):
        super().__init__()
        if len(grids) != len(scale_ranges):
            raise ValueError(f"{len(grids)} grids and {len(scale_ranges)} scale ranges: each level has one of both")
        self.grids, self.scale_ranges, self.sigma = tuple(grids), tuple(scale_ranges), sigma
        self.focal_alpha, self.focal_gamma, self.focal_weight = focal_alpha, focal_gamma, focal_weight
        self.dice_weight = dice_weight
        self.subcategory_weight = subcategory_weight

    def forward(
        self,
        outputs: Mapping[str, Any],
        targets: Sequence[Mapping[str, Any]],
        image_sizes: Sequence[tuple[int, int]],
    ) -> dict[str, Tensor]:
        """Weighted losses of one batch.

        Args:
            outputs: raw outputs of :class:`~workbench.models.solov2.SOLOv2`: ``pred_logits`` (B, cells, K),
                ``pred_kernels`` (B, cells, E), ``mask_features`` (B, E, h, w), ``pred_subcategories``
                {name: (B, cells, K_s+1)}.
            targets: B mappings: ``labels`` (N,) int64, ``masks`` (N, H, W) bool over the padded image, ``boxes`` (N, 4)
                XYXY, ``subcategories`` {name: (N,) int64}, -1 unlabelled.
            image_sizes: (height, width) of each image within the padded batch.

        Returns:
            ``loss_cate``: the focal loss over all cells, divided by the cells with an object, plus one; ``loss_ins``:
            the dice loss, averaged over pairs of cell and object; ``loss_subcategory_<name>``: cross-entropy, averaged
            over the cells whose object is labelled. Each is a scalar, already multiplied by its weight, and normalised
            over the batches of all processes.
        """
        logits, features = outputs["pred_logits"].float(), outputs["mask_features"]
        owners = torch.full(logits.shape[:2], -1, device=logits.device)  # the object of each cell, or -1
        dice = []
        for image, (target, image_size) in enumerate(zip(targets, image_sizes, strict=True)):
            settings = {"grids": self.grids, "scale_ranges": self.scale_ranges, "sigma": self.sigma}
            with torch.no_grad():
                cells, objects = assign_cells(target["masks"], target["boxes"], **settings)
                # The last of several objects gives a cell its category; the cell's kernel learns all their masks.
                owners[image].scatter_reduce_(0, cells, objects, "amax")
                distinct, row = objects.unique(return_inverse=True)
                truth = reduce_masks(target["masks"][distinct], image_size, features.shape[-2:])[row]
            masks = torch.einsum("pe,ehw->phw", outputs["pred_kernels"][image, cells], features[image])
            dice.append(dice_losses(masks.float(), truth))
        dice = torch.cat(dice)

        positive = owners >= 0
        wanted = torch.zeros_like(logits)
        wanted[positive] = F.one_hot(_of_cells("labels", targets, owners)[positive], logits.shape[-1]).to(wanted)
        focal = sigmoid_focal_loss(logits, wanted, self.focal_alpha, self.focal_gamma, reduction="sum")
        terms = {
            "loss_cate": (self.focal_weight, focal, positive.sum(), 1),
            "loss_ins": (self.dice_weight, dice.sum(), logits.new_tensor(len(dice)), 0),
        }
        if self.subcategory_weight:
            for name, head in outputs["pred_subcategories"].items():
                labels = _of_cells(name, [target["subcategories"] for target in targets], owners)
                total = F.cross_entropy(
                    head.float().flatten(0, 1), labels.flatten(), ignore_index=_UNLABELLED, reduction="sum"
                )
                terms[f"loss_subcategory_{name}"] = (self.subcategory_weight, total, (labels >= 0).sum(), 0)
        counts = torch.stack([count.float() for _, _, count, _ in terms.values()])
        normalisers = mean_over_processes(counts, counts.new_tensor([extra for *_, extra in terms.values()]))
        return {
            key: weight * total / normaliser
            for (key, (weight, total, _, _)), normaliser in zip(terms.items(), normalisers.unbind(), strict=True)
        }


def _of_cells(key: str, targets: Sequence[Mapping[str, Tensor]], owners: Tensor) -> Tensor:
    """(B, cells) int64: the label of each cell's object, or -1 where it has none."""
    padded = [F.pad(target[key], (0, 1), value=_UNLABELLED) for target in targets]  # index -1 is "no object"
    return torch.stack([labels[owner] for labels, owner in zip(padded, owners, strict=True)])
