"""Can the whole chain learn at all? Eight images, no augmentation, the demo's model, scored on the same images.

    python benchmarks/overfit.py              exits with 1 below AP 90

A low number here means a broken mapper, matcher, loss or scorer, never a lack of data.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from workbench.config import load_config
from workbench.data.shapes.generate import generate_shapes
from workbench.workflows.train import train

CONFIG = Path(__file__).parents[1] / "configs/shapes/demo.yaml"
LEAST_AP = 90.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1000)
    steps = str(parser.parse_args().steps)
    with tempfile.TemporaryDirectory() as folder:
        generate_shapes(Path(folder) / "eight", train=8, val=1, test=1)
        dataset = str((f"{folder}/eight/annotations/train.json@{folder}/eight/train",))
        overrides = ["DATASETS.TRAIN", dataset, "DATASETS.TEST", dataset, "SOLVER.MAX_ITER", steps]
        overrides += ["INPUT.MIN_SCALE", "1.0", "INPUT.MAX_SCALE", "1.0", "INPUT.RANDOM_FLIP", "none"]
        start = time.perf_counter()
        run = train(load_config(CONFIG, [*overrides, "OUTPUT_DIR", f"{folder}/run"]))
        metrics = json.loads((run / "metrics.json").read_text())
    ap = metrics["segm"]["AP"]
    took = time.perf_counter() - start
    print(f"AP {ap:.1f} (wanted {LEAST_AP:.0f}), AP50 {metrics['segm']['AP50']:.1f} after {steps} steps, {took:.0f} s")
    return 0 if ap >= LEAST_AP else 1


if __name__ == "__main__":
    sys.exit(main())
