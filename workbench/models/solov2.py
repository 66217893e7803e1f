"""SOLOv2 (Wang et al., 2020, "SOLOv2: Dynamic and Fast Instance Segmentation"): instances by location.

The image is divided into S x S cells at each level of a pyramid. For every cell (i, j) one branch predicts a category,
a second one the kernel G_ij of a convolution; the mask branch predicts one map of features F for the image. The mask of
the object at the cell is

    M_ij = sigmoid(G_ij * F)    ("Dynamic instance segmentation"; a 1 x 1 convolution here, so G_ij has E numbers).

Matrix NMS then lowers the scores of masks that better ones overlap. Parameters of both heads have the names that
AdelaiDet, the authors' code, gives them; a head for each subcategory reads the features of the category branch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workbench.losses.solov2 import MASK_STRIDE
from workbench.models.fpn import PyramidBackbone
from workbench.models.inputs import collate_images, collate_targets
from workbench.models.pixel_decoder import group_norm
from workbench.models.postprocess import boxes_of_masks, enlarged_strips, maps_at_once, masks_of_rows, rank_scores
from workbench.models.transformer_decoder import module_name
from workbench.weights.naming import ADELAIDET

GRIDS = (40, 36, 24, 16, 12)
INSTANCE_STRIDES = (8, 8, 16, 32, 32)
_CHUNK_VALUES = 1 << 25  # of masks at a quarter of the image's size, computed at once


def _convolution(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), group_norm(outputs), nn.ReLU(inplace=True)]


def _initialise(module: nn.Module) -> None:
    for each in module.modules():
        if isinstance(each, nn.Conv2d):
            nn.init.normal_(each.weight, std=0.01)
            if each.bias is not None:
                nn.init.zeros_(each.bias)


def with_coordinates(features: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C + 2, H, W): x and y from -1 to 1 as two more channels (CoordConv, Liu et al., 2018)."""
    batch, _, height, width = features.shape
    y, x = (torch.linspace(-1, 1, size, device=features.device, dtype=features.dtype) for size in (height, width))
    x, y = x.expand(batch, 1, height, width), y[:, None].expand(batch, 1, height, width)
    return torch.cat([features, x, y], 1)


class InstanceHead(nn.Module):
    """Category, subcategories and kernel of every cell, by the same weights at every level.

    Args:
        num_classes: K. subcategories: {name: K_s}; each gets K_s + 1 outputs, the last one for no object.
        in_channels: of the pyramid. channels, convolutions: of the two branches. kernel_size: E.
        grids: cells along a side of each level.
        prior: probability that each category begins with, so that the many empty cells do not rule the first steps.
    """

    def __init__(
        self,
        num_classes: int,
        subcategories: Mapping[str, int],
        *,
        in_channels: int = 256,
        channels: int = 512,
        convolutions: int = 4,
        kernel_size: int = 256,
        grids: Sequence[int] = GRIDS,
        prior: float = 0.01,
    ):
        super().__init__()
        self.num_classes, self.num_subcategory_classes = num_classes, dict(subcategories)
        self.grids = tuple(grids)

        def tower(inputs: int) -> nn.Sequential:
            return nn.Sequential(
                *(part for i in range(convolutions) for part in _convolution(channels if i else inputs, channels))
            )

        self.cate_tower = tower(in_channels)
        self.kernel_tower = tower(in_channels + 2)
        width = channels if convolutions else in_channels
        self.cate_pred = nn.Conv2d(width, num_classes, 3, padding=1)
        self.kernel_pred = nn.Conv2d(channels if convolutions else in_channels + 2, kernel_size, 3, padding=1)
        _initialise(self)
        nn.init.constant_(self.cate_pred.bias, math.log(prior / (1 - prior)))
        # Last, so that a seed gives the other parameters the same values whatever subcategories there are.
        self.subcategory_pred = nn.ModuleDict(
            {module_name(name): nn.Conv2d(width, count + 1, 3, padding=1) for name, count in subcategories.items()}
        )
        _initialise(self.subcategory_pred)

    def forward(self, maps: Sequence[Tensor]) -> dict[str, Any]:
        """Maps (B, C, h, w), one a level -> predictions of all cells, row by row, level after level.

        Returns:
            ``pred_logits`` (B, cells, K); ``pred_kernels`` (B, cells, E); ``pred_subcategories``
            {name: (B, cells, K_s+1)}.
        """
        categories, kernels = [], []
        subcategories: dict[str, list[Tensor]] = {name: [] for name in self.num_subcategory_classes}
        for features, grid in zip(maps, self.grids, strict=True):
            cells = F.interpolate(with_coordinates(features), (grid, grid), mode="bilinear")
            kernels.append(self.kernel_pred(self.kernel_tower(cells)))
            described = self.cate_tower(cells[:, :-2])
            categories.append(self.cate_pred(described))
            for name, levels in subcategories.items():
                levels.append(self.subcategory_pred[module_name(name)](described))

        def of_cells(levels: Sequence[Tensor]) -> Tensor:
            return torch.cat([level.flatten(2) for level in levels], 2).transpose(1, 2)

        return {
            "pred_logits": of_cells(categories),
            "pred_kernels": of_cells(kernels),
            "pred_subcategories": {name: of_cells(levels) for name, levels in subcategories.items()},
        }


class MaskHead(nn.Module):
    """The features F that all masks of an image are convolved from ("Unified mask feature representation").

    Each level is brought to the finest one's size by convolutions, each followed by doubling; the deepest level sees
    coordinates. Their sum goes through one more convolution.

    Args:
        strides: of the levels, finest first.
        in_channels: of the pyramid. channels: of the branch. kernel_size: E, the channels of the result.
    """

    def __init__(self, strides: Sequence[int], *, in_channels: int = 256, channels: int = 128, kernel_size: int = 256):
        super().__init__()
        self.convs_all_levels = nn.ModuleList()
        for level, stride in enumerate(strides):
            doublings = round(math.log2(stride / strides[0]))
            deepest = level > 0 and level == len(strides) - 1
            inputs = in_channels + 2 * deepest
            steps = nn.Sequential()
            for step in range(max(1, doublings)):
                steps.add_module(f"conv{step}", nn.Sequential(*_convolution(channels if step else inputs, channels)))
                if doublings:
                    steps.add_module(f"upsample{step}", nn.Upsample(scale_factor=2, mode="bilinear"))
            self.convs_all_levels.append(steps)
        self.conv_pred = nn.Sequential(
            nn.Conv2d(channels, kernel_size, 1, bias=False), group_norm(kernel_size), nn.ReLU(inplace=True)
        )
        _initialise(self)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps (B, C, h, w), finest first -> (B, E, h, w) at the finest one's size."""
        *others, deepest = maps
        total = 0
        for steps, features in zip(
            self.convs_all_levels, (*others, with_coordinates(deepest) if others else deepest), strict=True
        ):
            total = total + steps(features)
        return self.conv_pred(total)


class SOLOv2(nn.Module):
    """Backbone with a feature pyramid, instance head and mask head; losses in training, instances in evaluation.

    Args:
        backbone: (B, 3, H, W) -> {"p2": feature map, ...}.
        instance_head, mask_head: the two heads.
        criterion: (raw outputs, targets, image sizes) -> {name: weighted loss}.
        instance_features, mask_features: names of the maps that the heads take.
        instance_strides: strides that the maps of the instance head are brought to.
        pixel_mean, pixel_std: of the three channels, in 0-255.
        size_divisibility: images are padded at the right and bottom to a multiple of it.
        inference: settings of :func:`cell_inference`, those of :func:`rank_cells` but the grids and strides included.

    Attributes:
        encode_masks: (n, H, W) bool -> n encoded masks; None keeps the masks of predictions as tensors.
    """

    encode_masks: Callable[[Tensor], Sequence[Any]] | None = None

    def __init__(
        self,
        backbone: PyramidBackbone,
        instance_head: InstanceHead,
        mask_head: MaskHead,
        criterion: nn.Module,
        *,
        instance_features: Sequence[str] = ("p2", "p3", "p4", "p5", "p6"),
        mask_features: Sequence[str] = ("p2", "p3", "p4", "p5"),
        instance_strides: Sequence[int] = INSTANCE_STRIDES,
        pixel_mean: Sequence[float] = (123.675, 116.28, 103.53),
        pixel_std: Sequence[float] = (58.395, 57.12, 57.375),
        size_divisibility: int = 32,
        **inference: Any,
    ):
        super().__init__()
        self.backbone = backbone
        self.ins_head = instance_head
        self.mask_head = mask_head
        self.criterion = criterion
        self.instance_features, self.mask_features = tuple(instance_features), tuple(mask_features)
        self.instance_strides = tuple(instance_strides)
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(3, 1, 1), persistent=False)
        self.size_divisibility = size_divisibility
        self.inference = inference

    @property
    def device(self) -> torch.device:
        """The device of the model, to which inputs are moved."""
        return self.pixel_mean.device

    def forward(self, batched_inputs: Sequence[Mapping[str, Any]]) -> dict[str, Tensor] | list[dict[str, Any]]:
        """Losses of a batch in training, predictions for it in evaluation.

        Args:
            batched_inputs: as for :class:`~workbench.models.mask2former.Mask2Former`; ``seed`` is not read.

        Returns:
            In training, the weighted losses of :class:`~workbench.losses.solov2.SOLOv2Criterion`. In evaluation, for
            each image the rows of :func:`cell_inference`, and ``image_id`` if given.

        Raises:
            WorkbenchError: a label outside its range, with the image, the object and the range.
        """
        images, sizes = collate_images(batched_inputs, self.pixel_mean, self.pixel_std, self.size_divisibility)
        outputs = self.raw_outputs(images)
        if self.training:
            head = self.ins_head
            targets = collate_targets(batched_inputs, images, head.num_classes, head.num_subcategory_classes)
            targets = [target | {"boxes": boxes_of_masks(target["masks"])} for target in targets]
            return self.criterion(outputs, targets, sizes)
        predictions = []
        for image, (inputs, size) in enumerate(zip(batched_inputs, sizes, strict=True)):
            rows = cell_inference(
                outputs["pred_logits"][image],
                outputs["pred_kernels"][image],
                outputs["mask_features"][image],
                {name: head[image] for name, head in outputs["pred_subcategories"].items()},
                grids=self.ins_head.grids,
                strides=self.instance_strides,
                image_size=size,
                output_size=(inputs.get("height", size[0]), inputs.get("width", size[1])),
                encode_masks=self.encode_masks,
                **self.inference,
            )
            predictions.append(rows | {key: inputs[key] for key in ("image_id",) if key in inputs})
        return predictions

    def raw_outputs(self, images: Tensor) -> dict[str, Any]:
        """Normalised images (B, 3, H, W) -> the instance head's outputs, and ``mask_features`` (B, E, H/4, W/4)."""
        maps = self.backbone(images)
        levels = [
            _resize(maps[name], [side // stride for side in images.shape[-2:]])
            for name, stride in zip(self.instance_features, self.instance_strides, strict=True)
        ]
        features = self.mask_head([maps[name] for name in self.mask_features])
        return self.ins_head(levels) | {"mask_features": features}

    def adapt_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a state dict of AdelaiDet's SOLOv2 under this model's names, or ``state`` where it is not one.

        AdelaiDet's models take pixels of 0-255 less their mean, blue first. The first convolution is changed so that
        it takes this model's: divided by ``pixel_std``, and red first unless ``pixel_mean`` begins with blue's.
        """
        if not any(name.startswith("backbone.bottom_up.") for name in state):
            return dict(state)
        adapted = ADELAIDET.read(state)
        stem = adapted.get("backbone.body.conv1.weight")
        if stem is not None:
            red_first = self.pixel_mean[0] > self.pixel_mean[2]
            adapted["backbone.body.conv1.weight"] = (stem.flip(1) if red_first else stem) * self.pixel_std.to(stem)
        return adapted


def _resize(features: Tensor, size: Sequence[int]) -> Tensor:
    return features if list(features.shape[-2:]) == size else F.interpolate(features, size, mode="bilinear")


def point_nms(scores: Tensor) -> Tensor:
    """(K, S, S) -> the same, with 0 where one of the cells above, left or above left has a higher score."""
    return scores * (F.max_pool2d(scores, 2, stride=1, padding=1)[:, :-1, :-1] == scores)


def matrix_nms(masks: Tensor, labels: Tensor, *, kernel: str = "gaussian", sigma: float = 2.0) -> Tensor:
    """Return the factor that each score is multiplied by ("Matrix NMS").

        decay_j = min over i with s_i > s_j of f(iou_ij) / f(iou_.i)
        f(iou_.i) = min over k with s_k > s_i of f(iou_ki)

    with f(iou) = 1 - iou (linear) or exp(-sigma iou^2) (Gaussian; the paper writes exp(-iou^2 / sigma)). Only masks of
    one category lower one another.

    Args:
        masks: (N, P) bool, none empty, by falling score. labels: (N,) int64.

    Returns:
        (N,) float32 in [0, 1].
    """
    if not len(masks):
        return masks.new_zeros(0, dtype=torch.float32)
    pixels = masks.float()
    area, intersection = pixels.sum(1), pixels @ pixels.t()
    iou = intersection / (area[:, None] + area - intersection)
    iou = (iou * (labels[:, None] == labels)).triu(1)  # row i, column j: of i on j, where i is better
    most = iou.amax(0)[:, None]  # iou_.i, of the better mask that overlaps i most
    if kernel == "linear":
        # A copy of a better mask lowers nothing: that one does.
        return ((1 - iou) / (1 - most)).nan_to_num(nan=1.0).amin(0)
    return (torch.exp(-sigma * iou.square()) / torch.exp(-sigma * most.square())).amin(0)


class RankedCells(NamedTuple):
    """Rows of one image around matrix NMS, best first as they were before it.

    Attributes:
        cells, labels: (n,) int64.
        main: (n,) probability of the category. rank: (n,) what :func:`~workbench.models.postprocess.rank_scores` makes
            of it. quality: (n,) mean probability within the mask. Their product is the score before matrix NMS.
        decay: (n,) the factor of matrix NMS.
        maps: (m, h, w) mask probabilities at a quarter of the image's size. row: (n,) int64, the map of each row.
    """

    cells: Tensor
    labels: Tensor
    main: Tensor
    rank: Tensor
    quality: Tensor
    decay: Tensor
    maps: Tensor
    row: Tensor


def rank_cells(
    logits: Tensor,
    kernels: Tensor,
    features: Tensor,
    subcategory_logits: Mapping[str, Tensor],
    *,
    grids: Sequence[int],
    strides: Sequence[int],
    score_threshold: float = 0.1,
    mask_threshold: float = 0.5,
    before_nms: int = 500,
    nms_kernel: str = "gaussian",
    nms_sigma: float = 2.0,
    rank_by: str = "main",
) -> RankedCells:
    """Return the best rows of one image and what matrix NMS makes of them; the arguments are those of
    :func:`cell_inference`."""
    probabilities = logits.float().sigmoid()
    levels = probabilities.t().split([grid**2 for grid in grids], 1)
    peaks = [point_nms(level.unflatten(1, (grid, grid))).flatten(1) for level, grid in zip(levels, grids, strict=True)]
    peaks = torch.cat(peaks, 1).t()
    cells, labels = (peaks > score_threshold).nonzero(as_tuple=True)
    main = peaks[cells, labels]
    rank = rank_scores(main, [head[cells].float().softmax(-1) for head in subcategory_logits.values()], rank_by)

    distinct, row = cells.unique(return_inverse=True)
    size, quality = _measure(kernels[distinct], features, mask_threshold)
    least = torch.cat([size.new_full((grid**2,), stride) for grid, stride in zip(grids, strides, strict=True)])
    quality = quality[row]
    large = (size[row] > least[cells]).nonzero()[:, 0]
    best = large[(rank * quality)[large].argsort(descending=True)][:before_nms]

    distinct, row = cells[best].unique(return_inverse=True)
    maps = soft_masks(kernels[distinct], features)
    decay = matrix_nms((maps > mask_threshold).flatten(1)[row], labels[best], kernel=nms_kernel, sigma=nms_sigma)
    return RankedCells(cells[best], labels[best], main[best], rank[best], quality[best], decay, maps, row)


def cell_inference(
    logits: Tensor,
    kernels: Tensor,
    features: Tensor,
    subcategory_logits: Mapping[str, Tensor],
    *,
    image_size: tuple[int, int],
    output_size: tuple[int, int],
    mask_threshold: float = 0.5,
    update_threshold: float = 0.05,
    top_k: int = 100,
    encode_masks: Callable[[Tensor], Sequence[Any]] | None = None,
    **ranking: Any,
) -> dict[str, Any]:
    """Return the predictions of one image.

    Args:
        logits: (cells, K). kernels: (cells, E). features: (E, h, w). subcategory_logits: {name: (cells, K_s+1)}: this
            image's raw outputs.
        image_size: the (height, width) of the padded image that is image. output_size: the original image's size.
        mask_threshold: probability above which a pixel belongs to a mask.
        update_threshold: a score below it after NMS gives no row.
        top_k: the most rows.
        ranking: of :func:`rank_cells`. ``grids`` and ``strides`` of each level: a mask of no more pixels (at a quarter
            of the image's size) than its level's stride is left out, as in the published code; ``score_threshold``: a
            category below it gives no row; ``before_nms``: rows, best first, that matrix NMS looks at; ``nms_kernel``
            and ``nms_sigma`` of :func:`matrix_nms`; ``rank_by`` of
            :func:`~workbench.models.postprocess.rank_scores`.
        encode_masks: (n, H, W) bool -> n encoded masks.

    Returns:
        ``scores`` (k,): rank score times mask score; ``main_scores`` (k,): probability of the category;
        ``mask_scores`` (k,): mean probability within the mask at a quarter of the image's size, times the factor of
        matrix NMS; ``labels`` (k,) int64; ``masks`` (k, H, W) bool, or k encoded masks, where rows of one cell share
        one; ``boxes`` (k, 4) XYXY in pixels; ``cell`` (k,) int64; ``subcategories`` {name: probabilities
        (k, K_s+1)}; ``subcategory_logits`` the same in logits.
    """
    rows = rank_cells(logits, kernels, features, subcategory_logits, mask_threshold=mask_threshold, **ranking)
    scores = rows.rank * rows.quality * rows.decay
    kept = scores.argsort(descending=True)[:top_k]
    kept = kept[scores[kept] >= update_threshold]

    distinct, row = rows.row[kept].unique(return_inverse=True)
    padded_size = tuple(MASK_STRIDE * side for side in features.shape[-2:])
    pieces = []
    for chunk in rows.maps[distinct].split(maps_at_once(output_size)):
        masks = chunk.new_zeros((len(chunk), *output_size), dtype=torch.bool)
        for index, place, strip in enlarged_strips(chunk, padded_size, image_size, output_size, mask_threshold):
            masks[index][place] = strip > mask_threshold
        pieces.append((masks if encode_masks is None else encode_masks(masks), boxes_of_masks(masks)))
    masks, boxes = zip(*pieces, strict=True)
    cells = rows.cells[kept]
    heads = {name: head.float()[cells] for name, head in subcategory_logits.items()}
    return {
        "scores": scores[kept],
        "main_scores": rows.main[kept],
        "mask_scores": (rows.quality * rows.decay)[kept],
        "labels": rows.labels[kept],
        "masks": masks_of_rows(masks, row),
        "boxes": torch.cat(boxes)[row],
        "cell": cells,
        "subcategories": {name: head.softmax(-1) for name, head in heads.items()},
        "subcategory_logits": heads,
    }


def soft_masks(kernels: Tensor, features: Tensor) -> Tensor:
    """M = sigmoid(G * F): kernels (n, E), features (E, h, w) -> (n, h, w) float32."""
    return torch.einsum("ne,ehw->nhw", kernels, features).float().sigmoid()


def _measure(kernels: Tensor, features: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """Return (n,) pixels above ``threshold`` of each kernel's mask, and (n,) the mean probability of those pixels."""
    sizes, sums = [features.new_zeros(0, dtype=torch.int64)], [features.new_zeros(0, dtype=torch.float32)]
    for chunk in kernels.split(max(1, _CHUNK_VALUES // features[0].numel())):
        maps = soft_masks(chunk, features).flatten(1)
        inside = maps > threshold
        sizes.append(inside.sum(1))
        sums.append((maps * inside).sum(1))
    size = torch.cat(sizes)
    return size, torch.cat(sums) / size.clamp(min=1)
