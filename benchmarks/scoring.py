"""Scoring a results file: ``workbench eval --predictions`` against pycocotools' segm and bbox evaluation alone.

    python benchmarks/scoring.py                          1,000 images, 100,000 masks
    python benchmarks/scoring.py --images 100 --keep DIR  fewer, and the two JSON files stay in DIR

Ours is the whole command in a process of its own: interpreter, imports, both JSON files, checks, masks, boxes, tables.
The peer is pycocotools in a process of its own with the same files: ``evaluate`` and ``accumulate`` of segm and bbox
are timed, reading and indexing the files is not. Both run in turn, ``--repeats`` times; the fastest of each counts.
Memory is the peak resident size of each process.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from pycocotools import mask as coco_mask

HEIGHT, WIDTH = 480, 640
CATEGORIES = 80
SUBCATEGORIES = {"colour": ("red", "green", "blue", "yellow"), "texture": ("plain", "striped", "dotted")}
PREDICTIONS = 100  # an image, the limit of COCO
PEER = """
import contextlib, io, json, sys, time
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

rows = json.load(open(sys.argv[1]))
with contextlib.redirect_stdout(io.StringIO()):
    truth = COCO(sys.argv[2])
    seconds = 0.0
    for kind in ("segm", "bbox"):
        kept = [{k: v for k, v in row.items() if k != "bbox"} for row in rows] if kind == "segm" else rows
        evaluation = COCOeval(truth, truth.loadRes(kept), kind)
        start = time.perf_counter()
        evaluation.evaluate()
        evaluation.accumulate()
        seconds += time.perf_counter() - start
print(seconds)
"""


def make_files(folder: Path, images: int, seed: int = 0) -> tuple[Path, Path]:
    """Write a results file and its annotations: blobs of 8 to 250 pixels, 10 objects an image and 100 predictions, of
    which about half lie on an object, moved and deformed."""
    rng = np.random.default_rng(seed)
    truth = {
        "images": [{"id": i + 1, "file_name": f"{i}.jpg", "height": HEIGHT, "width": WIDTH} for i in range(images)],
        "categories": [{"id": k + 1, "name": f"category {k + 1}"} for k in range(CATEGORIES)],
        "subcategories": [{"name": name, "classes": list(classes)} for name, classes in SUBCATEGORIES.items()],
        "annotations": [],
    }
    results = []
    for image in range(1, images + 1):
        objects = [(*_place(rng), int(rng.integers(CATEGORIES)) + 1) for _ in range(10)]
        for centre, radii, category in objects:
            rle, box = _blob(rng, centre, radii)
            annotation = {"id": len(truth["annotations"]) + 1, "image_id": image, "category_id": category}
            annotation |= {"segmentation": rle, "bbox": box, "iscrowd": int(rng.random() < 0.02)}
            annotation["attributes"] = {name: str(rng.choice(classes)) for name, classes in SUBCATEGORIES.items()}
            truth["annotations"].append(annotation | {"area": int(coco_mask.area(rle))})
        for number in range(PREDICTIONS):
            centre, radii, category = objects[number % 10] if rng.random() < 0.5 else (*_place(rng), 1)
            if rng.random() < 0.3 or category == 1:
                category = int(rng.integers(CATEGORIES)) + 1
            rle, box = _blob(rng, centre + rng.normal(0, 0.08, 2) * radii, radii)
            row = {"image_id": image, "category_id": category, "segmentation": rle, "bbox": box}
            attributes = {name: str(rng.choice(classes)) for name, classes in SUBCATEGORIES.items()}
            results.append(row | {"score": round(float(rng.random()), 6), "attributes": attributes})
    paths = folder / "results.json", folder / "annotations.json"
    for path, content in zip(paths, (results, truth), strict=True):
        path.write_text(json.dumps(content))
    return paths


def _place(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Centre (x, y) and radii of a blob in pixels."""
    return rng.uniform((0, 0), (WIDTH, HEIGHT)), np.exp(rng.uniform(np.log(4), np.log(125))) * rng.uniform(0.6, 1.4, 2)


def _blob(rng: np.random.Generator, centre: np.ndarray, radii: np.ndarray) -> tuple[dict, list[float]]:
    """Compressed RLE and box of a polygon with 24 points around an ellipse."""
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    points = centre + radii * np.stack([np.cos(angles), np.sin(angles)], 1) * rng.uniform(0.85, 1.15, (24, 1))
    points = np.clip(points, 0, (WIDTH, HEIGHT))
    rle = coco_mask.frPyObjects([points.ravel().tolist()], HEIGHT, WIDTH)[0]
    return {"size": [HEIGHT, WIDTH], "counts": rle["counts"].decode()}, coco_mask.toBbox(rle).tolist()


def run(command: list[str]) -> tuple[float, float, str]:
    """Seconds, peak resident memory in MB and standard output of one process."""
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, stdout=output)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        if status:
            raise SystemExit(f"{' '.join(command[:4])} ... failed")
        output.seek(0)
        return seconds, usage.ru_maxrss / 1024, output.read()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--keep", type=Path, help="where the generated files stay, and are taken from if there")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        results, annotations = folder / "results.json", folder / "annotations.json"
        if not (results.exists() and annotations.exists()):
            make_files(folder, args.images)
        files = [str(results), str(annotations)]
        command = [sys.executable, "-m", "workbench.cli", "eval", "--predictions", files[0], "--annotations", files[1]]
        ours, peer = [], []
        for _ in range(args.repeats):
            ours.append(run(command)[:2])
            _, memory, printed = run([sys.executable, "-c", PEER, *files])
            peer.append((float(printed), memory))
    (seconds, memory), (peer_seconds, peer_memory) = min(ours), min(peer)
    print(f"whole command            {seconds:6.2f} s  {memory:6.0f} MB")
    print(f"pycocotools, segm + bbox {peer_seconds:6.2f} s  {peer_memory:6.0f} MB")
    print(f"ratio                    {peer_seconds / seconds:6.1f}")


if __name__ == "__main__":
    main()
