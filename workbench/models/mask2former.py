"""Mask2Former (Cheng et al., 2022) with a main category and any number of subcategories an object."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from workbench.models.inputs import collate_images, collate_targets
from workbench.models.pixel_decoder import MSDeformAttnPixelDecoder
from workbench.models.postprocess import INSTANCES, Kinds, batch_inference
from workbench.models.transformer_decoder import MaskedTransformerDecoder


class Mask2Former(nn.Module):
    """Backbone, pixel decoder and transformer decoder; losses in training, predictions in evaluation.

    Args:
        backbone: (B, 3, H, W) -> {name: feature map}.
        pixel_decoder, transformer_decoder: the two halves of the head.
        criterion: (raw outputs, targets, seeds) -> {name: weighted loss}.
        pixel_mean, pixel_std: of the three channels, in 0-255.
        size_divisibility: images are padded at the right and bottom to a multiple of it.
        deep_supervision: whether earlier decoder layers are trained on their predictions too.
        top_k, rank_by, one_class_per_query: of :func:`~workbench.models.postprocess.instance_inference`.
        kinds: what is inferred in evaluation.

    Attributes:
        encode_masks: of the same function; None keeps the masks of predictions as tensors.
    """

    encode_masks: Callable[[Tensor], Sequence[Any]] | None = None

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
        kinds: Kinds = INSTANCES,
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
        self.kinds = kinds

    @property
    def device(self) -> torch.device:
        """The device of the model, to which inputs are moved."""
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
            each image what :func:`~workbench.models.postprocess.batch_inference` returns.

        Raises:
            WorkbenchError: a label outside its range, with the image, the object and the range.
        """
        images, sizes = collate_images(batched_inputs, self.pixel_mean, self.pixel_std, self.size_divisibility)
        if self.training:
            decoder = self.transformer_decoder
            targets = collate_targets(batched_inputs, images, decoder.num_classes, decoder.num_subcategory_classes)
            seeds = [inputs["seed"] for inputs in batched_inputs] if "seed" in batched_inputs[0] else None
            return self.criterion(self.raw_outputs(images), targets, seeds)
        return batch_inference(
            self.raw_outputs(images),
            batched_inputs,
            sizes,
            padded_size=tuple(images.shape[-2:]),
            kinds=self.kinds,
            top_k=self.top_k,
            rank_by=self.rank_by,
            one_class_per_query=self.one_class_per_query,
            encode_masks=self.encode_masks,
        )

    def raw_outputs(self, images: Tensor) -> dict[str, Any]:
        """Normalised images (B, 3, H, W) -> the raw outputs of the transformer decoder, of every layer in training."""
        mask_features, maps = self.pixel_decoder(self.backbone(images))
        every_layer = self.training and self.deep_supervision
        return self.transformer_decoder(maps, mask_features, every_layer=every_layer)
