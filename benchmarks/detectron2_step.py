"""A training step in both hosts, and the mapper beside detectron2's DatasetMapper.

Needs detectron2, and shapely, with which it crops polygons:

    python benchmarks/detectron2_step.py
    python benchmarks/detectron2_step.py --config configs/shapes/mobilenet.yaml --device cuda

The step is that of one config on the same images, from asking for a batch to asking for the next: the workbench's loop
and detectron2's DefaultTrainer with its default hooks. The mappers turn a 640x480 JPEG with seven objects, as polygons
and as run lengths, into 1024x1024 with bitmasks: flip, large-scale jitter from 0.1 to 2, boxes from the masks. All take
turns in one process. A step's number is a median; a mapper's is the mean of its processor time, as sizes are random.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from PIL import Image

from workbench.config import load_config
from workbench.data.coco import CocoDataset, load_data
from workbench.data.loaders import build_train_loader
from workbench.data.mapper import build_mapper
from workbench.data.masks import decode_mask, encode_mask
from workbench.data.shapes.generate import generate_shapes
from workbench.detectron2 import add_workbench_config, register_datasets
from workbench.detectron2.data import WorkbenchMapper, target_instances
from workbench.detectron2.train_net import Trainer as HostedTrainer
from workbench.models import build_model
from workbench.runs.directory import RunDirectory
from workbench.training.loop import Trainer

WIDTH, HEIGHT, OBJECTS, SIZE = 640, 480, 7, 1024


def pictures(folder: Path, count: int, run_lengths: bool) -> list[dict]:
    """Return dataset dicts of JPEGs of smooth noise, with objects of about a tenth of the image."""
    rng, dicts = np.random.default_rng(0), []
    for number in range(count):
        path = folder / f"{number}.jpg"
        noise = Image.fromarray(rng.integers(0, 256, (HEIGHT // 4, WIDTH // 4, 3), dtype=np.uint8))
        noise.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).save(path, quality=90)
        annotations = []
        for k in range(OBJECTS):
            x, y = rng.uniform(80, WIDTH - 80), rng.uniform(80, HEIGHT - 80)
            angles = np.linspace(0, 2 * np.pi, 30, endpoint=False)
            radii = rng.uniform(40, 75) * rng.uniform(0.8, 1.05, 30)
            corners = np.stack([x + radii * np.cos(angles), y + radii * np.sin(angles)], 1)
            shape: Any = [corners.ravel().tolist()]
            if run_lengths:
                shape = encode_mask(decode_mask(shape, HEIGHT, WIDTH))
            low, high = corners.min(0), corners.max(0)
            box = [*low.tolist(), *(high - low).tolist()]
            annotations.append(
                {"id": k, "category_id": k, "iscrowd": 0, "bbox": box, "bbox_mode": 1, "segmentation": shape}
            )
        about = {"file_name": str(path), "height": HEIGHT, "width": WIDTH, "image_id": number}
        dicts.append({**about, "annotations": annotations})
    return dicts


def mappers() -> dict[str, Callable[[dict], dict]]:
    cfg = get_cfg()
    add_workbench_config(cfg)
    jitter = [T.RandomFlip(), T.ResizeScale(0.1, 2.0, SIZE, SIZE), T.FixedSizeCrop((SIZE, SIZE))]
    options = {"use_instance_mask": True, "instance_mask_format": "bitmask", "recompute_boxes": True}
    peer = DatasetMapper(True, augmentations=jitter, image_format="RGB", **options)
    return {"workbench": WorkbenchMapper(cfg, is_train=True), "detectron2": peer}


def timed(batches: list[list[dict]], times: list[float]) -> Iterator[list[dict]]:
    for batch in batches:
        times.append(time.perf_counter())
        yield [dict(item) for item in batch]


def step_times(config: Any, dataset: CocoDataset, batches: list[list[dict]], host: str) -> list[float]:
    """Return the seconds from one batch to the next in a host, the first two left out."""
    times: list[float] = []
    torch.manual_seed(0)
    if host == "workbench":
        model = build_model(config, dataset.vocabulary)
        run = RunDirectory(config.OUTPUT_DIR)
        run.path.mkdir(parents=True)
        Trainer(config, model, dataset.vocabulary, run, lambda step: timed(batches, times)).train()
    else:
        hosted = [[{**i, "instances": target_instances(i["targets"])} for i in batch] for batch in batches]
        for item in (item for batch in hosted for item in batch):
            del item["targets"]

        class Hosted(HostedTrainer):
            @classmethod
            def build_train_loader(cls, cfg: Any) -> Any:
                return timed(hosted, times)

        cfg = get_cfg()
        add_workbench_config(cfg, config)
        Hosted(cfg).train()
    return np.diff(times)[2:].tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs/shapes/demo.yaml")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--images", type=int, default=96)
    options = parser.parse_args()
    print(f"{options.device}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as scratch:
        for kind in ("polygons", "run lengths"):
            dicts = pictures(Path(scratch), options.images, kind == "run lengths")
            seconds: dict[str, list[float]] = {}
            pair = mappers()
            torch.manual_seed(0)  # the workbench's sizes are drawn from torch, detectron2's from NumPy
            np.random.seed(0)  # noqa: NPY002
            for item in dicts:
                for name, mapper in pair.items():
                    began = time.process_time()
                    mapper({**item, "annotations": [dict(a) for a in item["annotations"]]})
                    seconds.setdefault(name, []).append(time.process_time() - began)
            own, peer = (1 / statistics.mean(seconds[name][2:]) for name in ("workbench", "detectron2"))
            print(
                f"mapper, {kind}: workbench {own:.1f} images/s, detectron2 {peer:.1f} images/s, ratio {own / peer:.2f}"
            )

        generate_shapes(Path(scratch) / "shapes", seed=0, train=64, val=1, test=1)
        keys = ["DATASETS.ROOT", scratch, "DATASETS.TEST", "()", "DATASETS.VAL", "()", "MODEL.DEVICE", options.device]
        keys += ["SOLVER.MAX_ITER", str(options.steps), "SEED", "0", "DATALOADER.NUM_WORKERS", "0"]
        config = load_config(options.config, keys)
        dataset = load_data(config, config.DATASETS.TRAIN, None, for_training=True)
        register_datasets(config)
        size = config.SOLVER.IMS_PER_BATCH
        loader = build_train_loader(dataset, build_mapper(config, True), batch_size=size, seed=0, num_workers=0)
        batches = [next(loader) for _ in range(options.steps)]
        steps: dict[str, list[float]] = {"workbench": [], "detectron2": []}
        for number in range(options.rounds):
            for host, times in steps.items():
                own = load_config(options.config, [*keys, "OUTPUT_DIR", f"{scratch}/{host}{number}"])
                times += step_times(own, dataset, batches, host)
        own, peer = (statistics.median(steps[name]) for name in ("workbench", "detectron2"))
        print(f"step, {options.config}: workbench {own:.3f} s, detectron2 {peer:.3f} s, ratio {peer / own:.2f}")


if __name__ == "__main__":
    main()
