"""Mask2Former (Cheng et al., 2022) with a main category and any number of subcategories an object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workbench.errors import WorkbenchError
from workbench.models.pixel_decoder import MSDeformAttnPixelDecoder
from workbench.models.postprocess import instance_inference
from workbench.models.transformer_decoder import MaskedTransformerDecoder


class Mask2Former(nn.Module):
    """Backbone, pixel decoder and transformer decoder; losses in training, instances in evaluation.

    Args:
        backbone: (B, 3, H, W) -> {name: feature map}.
        pixel_decoder, transformer_decoder: the two halves of the head.
        criterion: (raw outputs, targets, seeds) -> {name: weighted loss}.
        pixel_mean, pixel_std: of the three channels, in 0-255.
        size_divisibility: images are padded at the right and bottom to a multiple of it.
        deep_supervision: whether earlier decoder layers are trained on their predictions too.
        top_k, rank_by, one_class_per_query: of :func:`~workbench.models.postprocess.instance_inference`.
    """

    def __init__(
        self,
        backbone: nn.Module,
        pixel_decoder: MSDeformAttnPixelDecoder,
        transformer_decoder: MaskedTransformerDecoder,
        criterion: nn.Module,
        *,
        pixel_mean: Sequence[float] = (123.675, 116.28, 103.53),
        pixel_std: Sequence[float] = (58.395, 57.12, 57.375),
        size_divisibility: int = 32,
        deep_supervision: bool = True,
        top_k: int = 100,
        rank_by: str = "main",
        one_class_per_query: bool = False,
    ):
        super().__init__()
        self.backbone = backbone
        self.pixel_decoder = pixel_decoder
        self.transformer_decoder = transformer_decoder
        self.criterion = criterion
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(3, 1, 1), persistent=False)
        self.size_divisibility = size_divisibility
        self.deep_supervision = deep_supervision
        self.top_k = top_k
        self.rank_by = rank_by
        self.one_class_per_query = one_class_per_query

    @property
    def device(self) -> torch.device:
        """Where the model lies, and where inputs are moved to."""
        return self.pixel_mean.device

    def forward(self, batched_inputs: Sequence[Mapping[str, Any]]) -> dict[str, Tensor] | list[dict[str, Any]]:
        """Losses of a batch in training, predictions for it in evaluation.

        Args:
            batched_inputs: one mapping an image: ``image`` (3, H, W) RGB 0-255, of any dtype and size; ``height``
                and ``width`` of the original image (default: those of ``image``); in training ``targets``: ``labels``
                (N,) int64, ``masks`` (N, H, W) bool, ``subcategories`` {name: (N,) int64, -1 unlabelled}; and,
                optionally, ``seed``, which fixes the points that the losses are sampled at.

        Returns:
            In training, the weighted losses of :class:`~workbench.losses.criterion.SetCriterion`. In evaluation, for
            each image the rows of :func:`~workbench.models.postprocess.instance_inference`, and ``image_id`` if given.

        Raises:
            WorkbenchError: a label outside its range, with the image, the object and the range.
        """
        if self.training:
            check_labels(
                batched_inputs,
                self.transformer_decoder.num_classes,
                self.transformer_decoder.num_subcategory_classes,
            )
        images, sizes = self._collate_images(batched_inputs)
        outputs = self.raw_outputs(images)
        if self.training:
            targets = [self._target(inputs, images.shape[-2:]) for inputs in batched_inputs]
            seeds = [inputs["seed"] for inputs in batched_inputs] if "seed" in batched_inputs[0] else None
            return self.criterion(outputs, targets, seeds)
        return [
            self._predictions(outputs, index, inputs, tuple(images.shape[-2:]), size)
            for index, (inputs, size) in enumerate(zip(batched_inputs, sizes, strict=True))
        ]

    def raw_outputs(self, images: Tensor) -> dict[str, Any]:
        """Normalised images (B, 3, H, W) -> the raw outputs of the transformer decoder, of every layer in training."""
        mask_features, maps = self.pixel_decoder(self.backbone(images))
        every_layer = self.training and self.deep_supervision
        return self.transformer_decoder(maps, mask_features, every_layer=every_layer)

    def _collate_images(self, batched_inputs: Sequence[Mapping[str, Any]]) -> tuple[Tensor, list[tuple[int, int]]]:
        """(B, 3, H, W) normalised, padded with zeros (the mean colour), and each image's (height, width) in it."""
        sizes = [tuple(inputs["image"].shape[-2:]) for inputs in batched_inputs]
        height, width = (
            -(-max(size[axis] for size in sizes) // self.size_divisibility) * self.size_divisibility for axis in (0, 1)
        )
        batch = self.pixel_mean.new_zeros(len(sizes), 3, height, width)
        for image, inputs, (h, w) in zip(batch, batched_inputs, sizes, strict=True):
            pixels = inputs["image"].to(self.device, torch.float32, non_blocking=True)
            image[:, :h, :w] = (pixels - self.pixel_mean) / self.pixel_std
        return batch, sizes

    def _target(self, inputs: Mapping[str, Any], padded_size: Sequence[int]) -> dict[str, Any]:
        target = inputs["targets"]
        masks = target["masks"].to(self.device, non_blocking=True)
        height, width = masks.shape[-2:]
        return {
            "labels": target["labels"].to(self.device, non_blocking=True),
            "masks": F.pad(masks, (0, padded_size[1] - width, 0, padded_size[0] - height)),
            "subcategories": {
                name: target["subcategories"][name].to(self.device, non_blocking=True)
                for name in self.transformer_decoder.subcategory_names
            },
        }

    def _predictions(
        self,
        outputs: Mapping[str, Any],
        index: int,
        inputs: Mapping[str, Any],
        padded_size: tuple[int, int],
        image_size: tuple[int, int],
    ) -> dict[str, Any]:
        predictions = instance_inference(
            outputs["pred_logits"][index],
            outputs["pred_masks"][index],
            {name: head[index] for name, head in outputs["pred_subcategories"].items()},
            padded_size=padded_size,
            image_size=image_size,
            output_size=(inputs.get("height", image_size[0]), inputs.get("width", image_size[1])),
            top_k=self.top_k,
            rank_by=self.rank_by,
            one_class_per_query=self.one_class_per_query,
        )
        if "image_id" in inputs:
            predictions["image_id"] = inputs["image_id"]
        return predictions


def check_labels(
    batched_inputs: Sequence[Mapping[str, Any]], num_classes: int, num_subcategory_classes: Mapping[str, int]
) -> None:
    """Raise WorkbenchError for a label that would index outside a head, before a device can assert on it."""
    for position, inputs in enumerate(batched_inputs):
        targets = inputs["targets"]
        checks = [("the main category", targets["labels"], 0, num_classes - 1)]
        for name, classes in num_subcategory_classes.items():
            if name not in targets["subcategories"]:
                raise WorkbenchError(f"{_where(inputs, position)} has no labels for subcategory {name!r}")
            checks.append((f"subcategory {name!r}", targets["subcategories"][name], -1, classes - 1))
        for what, labels, low, high in checks:
            wrong = ((labels < low) | (labels > high)).nonzero()
            if len(wrong):
                row = int(wrong[0])
                ids = targets.get("annotation_ids")
                annotation = f"annotation {int(ids[row])}" if ids is not None else f"object {row}"
                raise WorkbenchError(
                    f"{_where(inputs, position)}, {annotation}: label {int(labels[row])} of {what} is outside "
                    f"{low}..{high}{' (-1 is unlabelled)' if low < 0 else ''}"
                )


def _where(inputs: Mapping[str, Any], position: int) -> str:
    named = [f"image {inputs['image_id']}" if "image_id" in inputs else f"image at position {position} of the batch"]
    if "file_name" in inputs:
        named.append(f"({inputs['file_name']})")
    return " ".join(named)
