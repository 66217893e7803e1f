"""A Mask2Former as one function of an image tensor, which torch.export can trace."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workbench.models.mask2former import Mask2Former
from workbench.models.postprocess import boxes_of_masks, rank_scores


class ExportableMask2Former(nn.Module):
    """Images in, the fields of :func:`~workbench.models.postprocess.instance_inference` out, as tensors.

    Args:
        model: in evaluation mode; its ``top_k``, ``rank_by`` and ``one_class_per_query`` are built in.
    """

    def __init__(self, model: Mask2Former):
        super().__init__()
        self.model = model
        self.fields = ["scores", "labels", "masks", "boxes"]
        self.fields += [f"subcategory_{name}" for name in model.transformer_decoder.subcategory_names]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return a batch's ``fields``, k rows an image, best first.

        Args:
            images: (B, 3, H, W) float32 RGB 0-255; H and W are multiples of the model's ``size_divisibility``.

        Returns:
            ``scores`` (B, k) float32, ``labels`` (B, k) int64, ``masks`` (B, k, H, W) uint8 0 or 1, ``boxes``
            (B, k, 4) float32 XYXY, and for each subcategory its probabilities (B, k, K_s+1).
        """
        model = self.model
        # Sizes that are multiples by their form, which torch.export can divide; otherwise each stage of a backbone
        # nests another remainder in its sizes, and tracing does not end. Multiples are not padded.
        images = (images - model.pixel_mean) / model.pixel_std
        height, width = (-(-size // model.size_divisibility) * model.size_divisibility for size in images.shape[2:])
        images = F.pad(images, (0, width - images.shape[3], 0, height - images.shape[2]))
        outputs = model.raw_outputs(images)
        subcategories = {name: head.softmax(-1) for name, head in outputs["pred_subcategories"].items()}
        main = outputs["pred_logits"].softmax(-1)[..., :-1]
        ranks = rank_scores(main, [p.unsqueeze(2) for p in subcategories.values()], model.rank_by)
        queries, classes = main.shape[1], main.shape[2]
        if model.one_class_per_query:
            labels = main.argmax(-1)
            scores, query = ranks.gather(2, labels.unsqueeze(2)).squeeze(2).topk(min(model.top_k, queries))
            labels = labels.gather(1, query)
        else:
            scores, pair = ranks.flatten(1).topk(min(model.top_k, queries * classes))
            query = torch.div(pair, classes, rounding_mode="floor")
            labels = pair - query * classes
        logits = outputs["pred_masks"]
        logits = logits.gather(1, query[:, :, None, None].expand(-1, -1, *logits.shape[2:]))
        logits = F.interpolate(logits, images.shape[2:], mode="bilinear")
        masks = logits > 0
        inside = masks.to(logits.dtype)
        quality = (logits.sigmoid() * inside).sum((2, 3)) / (inside.sum((2, 3)) + 1e-6)
        masks = masks.to(torch.uint8)
        boxes = boxes_of_masks(masks.flatten(0, 1)).unflatten(0, (-1, scores.shape[1]))
        heads = [p.gather(1, query.unsqueeze(2).expand(-1, -1, p.shape[2])) for p in subcategories.values()]
        return scores * quality, labels, masks, boxes, *heads
