"""A training step and an inference: ours against transformers' Mask2Former of the same size.

    python benchmarks/train_step.py                 ResNet-50, 100 queries, two images of 256x256
    python benchmarks/train_step.py --images 1 --size 384 --device cuda

Both have nine decoder layers, six encoder layers, 12544 points and random weights, and see the same images and
objects. A step is forward, losses, backward and AdamW. They take turns; each number is a median.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, ResNetConfig

from workbench.config import load_config
from workbench.models import build_model

CLASSES, OBJECTS = 80, 7


class _Coco:
    num_classes = CLASSES
    num_subcategory_classes: dict[str, int] = {}


def batch(images: int, size: int) -> list[dict]:
    """Noise with rectangles: the time of a step does not depend on what is seen."""
    torch.manual_seed(0)
    found = []
    for seed in range(images):
        masks = torch.zeros(OBJECTS, size, size, dtype=torch.bool)
        for index, mask in enumerate(masks):
            start = index * size // (2 * OBJECTS)
            mask[start : start + size // 3, start : start + size // 4] = True
        labels = torch.randint(CLASSES, (OBJECTS,))
        picture = torch.randint(0, 256, (3, size, size), dtype=torch.uint8)
        targets = {"labels": labels, "masks": masks, "subcategories": {}}
        found.append({"image": picture, "height": size, "width": size, "seed": seed, "targets": targets})
    return found


def ours(inputs: list[dict], device: str) -> tuple[Callable[[], None], Callable[[], None]]:
    """A step and an inference of this project's model."""
    model = build_model(load_config(None, ["MODEL.RESNETS.NORM", "FrozenBN"]), _Coco).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)

    def step() -> None:
        model.train()
        optimizer.zero_grad()
        sum(model(inputs).values()).backward()
        optimizer.step()

    def infer() -> None:
        model.eval()
        with torch.inference_mode():
            model(inputs)

    return step, infer


def peer(inputs: list[dict], device: str) -> tuple[Callable[[], None], Callable[[], None]]:
    """The same of transformers' model, masks brought to the image's size in inference as ours are."""
    backbone = ResNetConfig(out_features=["stage1", "stage2", "stage3", "stage4"])
    config = Mask2FormerConfig(backbone_config=backbone, num_labels=CLASSES, num_queries=100)
    model = Mask2FormerForUniversalSegmentation(config).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    pixels = torch.stack([i["image"].float() / 255 for i in inputs]).to(device)
    masks = [i["targets"]["masks"].float().to(device) for i in inputs]
    labels = [i["targets"]["labels"].to(device) for i in inputs]

    def step() -> None:
        model.train()
        optimizer.zero_grad()
        model(pixel_values=pixels, mask_labels=masks, class_labels=labels).loss.backward()
        optimizer.step()

    def infer() -> None:
        model.eval()
        with torch.inference_mode():
            outputs = model(pixel_values=pixels)
            size = pixels.shape[-2:]
            torch.nn.functional.interpolate(outputs.masks_queries_logits, size, mode="bilinear").gt(0)

    return step, infer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    inputs = batch(options.images, options.size)
    sides = {"ours": ours(inputs, options.device), "transformers": peer(inputs, options.device)}
    threads = torch.get_num_threads()
    print(f"{options.images} x {options.size}², {options.device}, {threads} threads, torch {torch.__version__}")
    for index, what in enumerate(("training step", "inference")):
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for repeat in range(options.repeats + 1):
            for name, calls in sides.items():
                start = time.perf_counter()
                calls[index]()
                if options.device.startswith("cuda"):
                    torch.cuda.synchronize()
                if repeat:  # the first one warms up
                    seconds[name].append(time.perf_counter() - start)
        mine, theirs = (statistics.median(seconds[name]) for name in sides)
        print(f"{what:13}  ours {mine:.3f} s   transformers {theirs:.3f} s   ratio {theirs / mine:.2f}")


if __name__ == "__main__":
    main()
