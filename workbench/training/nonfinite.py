"""A loss that is not a number stops the run, and what caused it is kept for inspection."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from workbench.config import flatten


def find_nonfinite(values: dict[str, float]) -> list[str]:
    """Names of the values that are infinite or not a number."""
    return [name for name, value in values.items() if not math.isfinite(value)]


def save_batch(directory: Path, batch: list[dict[str, Any]], losses: dict[str, float]) -> Path:
    """Keep a batch as anybody can open it: a PNG an image, the exact tensors, and what each element was.

    Writes ``00.png`` ..., ``tensors.safetensors`` (``00.image``, ``00.masks``, ...) and ``batch.json``.
    """
    from PIL import Image

    directory.mkdir(parents=True, exist_ok=True)
    tensors, elements = {}, []
    for index, element in enumerate(batch):
        plain = {key: value for key, value in element.items() if isinstance(value, (int, float, str))}
        elements.append(plain)
        for name, value in flatten(element).items():
            if isinstance(value, Tensor):
                tensors[f"{index:02d}.{name}"] = value.detach().as_subclass(Tensor).cpu().contiguous().clone()
        image = element.get("image")
        if isinstance(image, Tensor) and image.dim() == 3 and image.shape[0] in (1, 3):
            picture = torch.nan_to_num(image.detach().float().cpu()).clamp(0, 255).to(torch.uint8)
            picture = picture.expand(3, -1, -1).permute(1, 2, 0).contiguous()
            Image.fromarray(picture.numpy()).save(directory / f"{index:02d}.png")
    save_file(tensors, directory / "tensors.safetensors")
    losses = {name: value if math.isfinite(value) else str(value) for name, value in losses.items()}
    (directory / "batch.json").write_text(
        json.dumps({"losses": losses, "images": elements}, indent=1), encoding="utf-8"
    )
    return directory
