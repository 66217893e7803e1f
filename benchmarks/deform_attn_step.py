"""What the compiled deformable attention does for a whole training step of the demo.

    python benchmarks/deform_attn_step.py                       configs/shapes/demo.yaml
    python benchmarks/deform_attn_step.py --config configs/shapes/mobilenet.yaml

The same model takes the same batch with the compiled back end and with the reference in turn (WORKBENCH_OPS); a step
here is forward, losses and backward; AdamW moves the model on after each pair. Each number is a median.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time

import torch

from workbench.config import load_config
from workbench.data.coco import Vocabulary
from workbench.models import build_model

OBJECTS, SIDE = 5, 24


def make_image(size: int, seed: int) -> dict:
    """A random image with a few square objects, as the training loader gives it."""
    generator = torch.Generator().manual_seed(seed)
    masks = torch.zeros(OBJECTS, size, size, dtype=torch.bool)
    for mask in masks:
        top, left = torch.randint(0, size - SIDE, (2,), generator=generator).tolist()
        mask[top : top + SIDE, left : left + SIDE] = True
    classes = torch.randint(0, 3, (2, OBJECTS), generator=generator)
    return {
        "image": torch.randint(0, 255, (3, size, size), generator=generator, dtype=torch.uint8),
        "height": size,
        "width": size,
        "image_id": seed,
        "file_name": "random",
        "seed": seed,
        "targets": {"labels": classes[0], "masks": masks, "subcategories": {"colour": classes[1]}},
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="configs/shapes/demo.yaml")
    parser.add_argument("--steps", type=int, default=12)
    arguments = parser.parse_args()
    config = load_config(arguments.config)
    names = ("a", "b", "c")
    vocabulary = Vocabulary(category_ids=(1, 2, 3), categories=names, subcategories={"colour": names})
    torch.manual_seed(0)
    model = build_model(config, vocabulary).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    batch = [make_image(config.INPUT.IMAGE_SIZE, seed) for seed in range(config.SOLVER.IMS_PER_BATCH)]
    times, losses = {"cpu": [], "reference": []}, {"cpu": [], "reference": []}
    for _ in range(arguments.steps + 2):
        for name in times:
            os.environ["WORKBENCH_OPS"] = name
            start = time.perf_counter()
            loss = sum(model(batch).values())
            optimizer.zero_grad()
            loss.backward()
            times[name].append(1e3 * (time.perf_counter() - start))
            losses[name].append(loss.item())
        optimizer.step()
    ours, peer = (statistics.median(times[name][2:]) for name in ("cpu", "reference"))
    difference = max(abs(a - b) / abs(b) for a, b in zip(losses["cpu"], losses["reference"], strict=True))
    print(f"{arguments.config}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"step: ours {ours:.0f} ms, reference {peer:.0f} ms, {peer / ours:.2f}x as many steps")
    print(f"largest relative difference of the losses: {difference:.1e}")


if __name__ == "__main__":
    main()
