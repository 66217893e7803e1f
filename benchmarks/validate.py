"""Time and memory of `workbench validate` on a dataset of COCO train2017's size, made by repeating a small one.

    python benchmarks/validate.py small.json [--images 118000] [--folder DIR]

The small file's images are not needed: each size gets one generated JPEG, and every image is a hard link to it, so that
all files are opened, as in a real run, from a warm cache. Asked for is at most 60 s and 3 GB.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

LINKS = 30_000  # to one file; file systems allow about twice as many


def repeat(source: Path, folder: Path, images: int) -> tuple[int, int]:
    """Write folder/labels.json and folder/images with the images and annotations of ``source``, each repeated with new
    ids; return how many images and annotations that is."""
    small = json.loads(source.read_text())
    times = -(-images // len(small["images"]))
    strides = {key: max(item["id"] for item in small[key]) + 1 for key in ("images", "annotations")}
    (folder / "images").mkdir(parents=True)
    with (folder / "labels.json").open("w") as file:
        file.write(f'{{"categories": {json.dumps(small["categories"])}, "images": [')
        file.write(
            ",".join(_image(item, k * strides["images"], folder) for k in range(times) for item in small["images"])
        )
        file.write('], "annotations": [')
        for k in range(times):
            for number, item in enumerate(small["annotations"]):
                ids = {
                    "id": item["id"] + k * strides["annotations"],
                    "image_id": item["image_id"] + k * strides["images"],
                }
                file.write(", " * (k + number > 0) + json.dumps(item | ids))
        file.write("]}")
    return times * len(small["images"]), times * len(small["annotations"])


def _image(item: dict, offset: int, folder: Path) -> str:
    number, size = item["id"] + offset, (item["width"], item["height"])
    name = f"{number:012}.jpg"
    _link(size, folder / "images" / name, folder)
    return json.dumps(item | {"id": number, "file_name": name})


_links: dict[tuple[int, int], int] = {}


def _link(size: tuple[int, int], path: Path, folder: Path) -> None:
    made = _links.get(size, 0)
    original = folder / f"{size[0]}x{size[1]}_{made // LINKS}.jpg"
    if made % LINKS == 0:
        noise = np.random.default_rng(0).integers(0, 255, (size[1] // 8 + 1, size[0] // 8 + 1, 3), dtype=np.uint8)
        Image.fromarray(noise).resize(size).save(original)
    os.link(original, path)
    _links[size] = made + 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="a small COCO instances JSON")
    parser.add_argument("--images", type=int, default=118_000)
    parser.add_argument("--folder", type=Path, help="where the large dataset is made (a temporary folder)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        images, annotations = repeat(args.source, folder, args.images)
        file = folder / "labels.json"
        print(f"{images:,} images, {annotations:,} annotations, {file.stat().st_size / 1e6:.0f} MB", flush=True)
        command = [sys.executable, "-m", "workbench.cli", "validate", str(file)]
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - start
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        print("\n".join(line[:200] for line in (done.stdout + done.stderr).splitlines()))
        processor, memory = used.ru_utime + used.ru_stime, used.ru_maxrss * 1024 / 1e9
        print(f"workbench validate: {seconds:.1f} s ({processor:.1f} s of processor time), peak {memory:.2f} GB")


if __name__ == "__main__":
    main()
