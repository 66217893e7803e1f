"""The batch that led to a loss that is not finite, kept for inspection."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from workbench.config import flatten
from workbench.files import write_json


def save_batch(directory: Path, batch: list[dict[str, Any]], losses: dict[str, float]) -> None:
    """Write a batch to ``directory``: a PNG an image, the exact tensors, and the other values of each element.

    The files are ``00.png`` ..., ``tensors.safetensors`` (``00.image``, ``00.targets.masks``, ...) and
    ``batch.json``.

    Raises:
        OSError: the disk is full or not writable.
    """
    directory.mkdir(parents=True, exist_ok=True)
    tensors, elements = {}, []
    for index, element in enumerate(batch):
        elements.append({key: value for key, value in element.items() if isinstance(value, (int, float, str))})
        for name, value in flatten(element).items():
            if isinstance(value, Tensor):
                tensors[f"{index:02d}.{name}"] = value.detach().as_subclass(Tensor).cpu().contiguous().clone()
        image = tensors.get(f"{index:02d}.image")
        if image is not None and image.dim() == 3 and image.shape[0] in (1, 3):
            picture = torch.nan_to_num(image.float()).clamp(0, 255).to(torch.uint8)
            Image.fromarray(picture.expand(3, -1, -1).permute(1, 2, 0).numpy()).save(directory / f"{index:02d}.png")
    save_file(tensors, directory / "tensors.safetensors")
    losses = {name: value if math.isfinite(value) else str(value) for name, value in losses.items()}
    write_json(directory / "batch.json", {"losses": losses, "images": elements}, indent=1)
