"""Reading and augmenting photos: images a second and memory, at reduced size against whole, and torchvision's reading.

    python benchmarks/loading.py
    python benchmarks/loading.py --image-size 192 --objects 26 --size 4000 3000

Each row runs in a process of its own with one thread. "evaluation" reads a JPEG and resizes its shorter side to the
image size, which torchvision's ``decode_image`` and ``v2.Resize`` do too. "training" is the mapper with its objects'
masks and large-scale jitter (0.1 to 2). "whole" reads every image at full size, as torchvision does. "cache" is
``DATALOADER.CACHE True``, from the second time on. Images a second are of CPU time, which a busy machine changes
little; memory is the peak resident size above that before the first image.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.io import decode_image
from torchvision.transforms import v2

from workbench.data import mapper as mappers
from workbench.data.image_files import ImageRules
from workbench.data.masks import encode_mask

SIZES = ((640, 480), (2048, 1536), (4000, 3000))
WAYS = ("torchvision", "evaluation, whole", "evaluation", "training, whole", "training", "training, cache")


def make_photo(path: Path, width: int, height: int, objects: int) -> dict:
    """Write a JPEG with the detail of a photo (about 3 bits a pixel) and return its dataset dict, with ellipses."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 255, (height // 16, width // 16, 3), dtype=np.uint8))
    picture = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
    picture = np.clip(picture + rng.normal(0, 4, picture.shape), 0, 255).astype(np.uint8)
    Image.fromarray(picture).save(path, quality=90)
    y, x = np.ogrid[:height, :width]
    annotations = []
    for number in range(objects):
        (down, across), (high, wide) = rng.uniform(0, 1, 2), rng.uniform(0.03, 0.15, 2)
        mask = ((y / height - down) / high) ** 2 + ((x / width - across) / wide) ** 2 < 1
        thing = {"id": number, "category_id": 0, "iscrowd": 0, "subcategories": {}}
        annotations.append(thing | {"segmentation": encode_mask(mask)})
    size = {"height": height, "width": width}
    return {"file_name": str(path), "image_id": 1, "subcategories": (), "annotations": annotations, **size}


def reader(way: str, image_size: int, folder: Path) -> Callable[[dict, int], object]:
    """Return what reads one image, given its dataset dict and a seed."""
    if way == "torchvision":
        resize = v2.Resize(image_size, antialias=True)
        return lambda record, seed: resize(decode_image(record["file_name"], mode="RGB"))
    if way.endswith("whole"):
        mappers.reduction_for = lambda height, width, size: 1
    if way.startswith("evaluation"):
        mapper = mappers.TestMapper(min_size=image_size, max_size=0)
        return lambda record, seed: mapper(record)
    rules = ImageRules(cache=folder / "cache" if way.endswith("cache") else None)
    return mappers.TrainMapper(mappers.LargeScaleJitter(image_size, 0.1, 2.0), rules=rules)


def measure(way: str, image_size: int, record: dict, repeats: int) -> dict:
    """Return the median CPU seconds an image, and the memory in MB, of one way in this process."""
    torch.set_num_threads(1)
    read = reader(way, image_size, Path(record["file_name"]).parent)
    if way.endswith("cache"):
        read(record, 0)
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    times = []
    for seed in range(repeats):
        start = time.process_time()
        read(record, seed)
        times.append(time.process_time() - start)
    return {"seconds": statistics.median(times), "megabytes": _resident("VmHWM") - before}


def _resident(line: str) -> float:
    """Return a line of this process's status in MB."""
    status = Path("/proc/self/status").read_text()
    return float(re.search(rf"{line}:\s+(\d+)", status)[1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", type=int, nargs=2, action="append", metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--image-size", type=int, default=512)
    parser.add_argument("--objects", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--measure", nargs=2, metavar=("WAY", "FILE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        way, file = args.measure
        print(json.dumps(measure(way, args.image_size, json.loads(Path(file).read_text()), args.repeats)))
        return
    print(f"image size {args.image_size}, {args.objects} objects, {args.repeats} images a row, one thread")
    print("| photo | way | images a second | ratio | memory |\n| --- | --- | --- | --- | --- |")
    for width, height in args.size or SIZES:
        with tempfile.TemporaryDirectory() as folder:
            record = make_photo(Path(folder) / "photo.jpg", width, height, args.objects)
            (Path(folder) / "record.json").write_text(json.dumps(record))
            reference = 0.0
            for way in WAYS:
                options = ["--image-size", str(args.image_size), "--repeats", str(args.repeats)]
                command = [sys.executable, __file__, *options, "--measure", way, f"{folder}/record.json"]
                environment = {**os.environ, "OMP_NUM_THREADS": "1"}
                process = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
                row = json.loads(process.stdout)
                # Rows are compared with the one that reads the same whole: evaluation with torchvision.
                reference = row["seconds"] if way in ("torchvision", "training, whole") else reference
                ratio = f"{reference / row['seconds']:.1f}x"
                print(f"| {width}x{height} | {way} | {1 / row['seconds']:.1f} | {ratio} | {row['megabytes']:.0f} MB |")


if __name__ == "__main__":
    main()
