"""How many more steps a training takes in the same minutes with the compiled deformable attention.

    python benchmarks/deform_attn_training.py                       configs/shapes/demo.yaml
    python benchmarks/deform_attn_training.py --config configs/shapes/mobilenet.yaml

`workbench train` runs the config from the same seed twice, with WORKBENCH_OPS=cpu and =reference, each in a process of
its own. A step is all of it: the images, forward, losses, backward, clipping, the optimiser. Its time is the median
over all but the first quarter of the steps. Needs data/shapes (`workbench shapes`).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd


def train(config: str, backend: str, steps: int, output: Path) -> pd.DataFrame:
    """The rows of metrics.csv after that many steps with a back end."""
    command = [sys.executable, "-m", "workbench.cli", "train", "--config", config, "--output", str(output)]
    command += ["SOLVER.MAX_ITER", str(steps), "DATASETS.TEST", "()"]
    environment = {**os.environ, "WORKBENCH_OPS": backend}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return pd.read_csv(output / "metrics.csv")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/shapes/demo.yaml")
    parser.add_argument("--steps", type=int, default=200)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        ours, peer = (
            train(arguments.config, name, arguments.steps, Path(folder) / name) for name in ("cpu", "reference")
        )
    mine, its = (1e3 * table["seconds"].iloc[arguments.steps // 4 :].median() for table in (ours, peer))
    first = abs(ours["total_loss"][0] / peer["total_loss"][0] - 1)
    print(f"{arguments.config}, a step: ours {mine:.0f} ms, reference {its:.0f} ms, {its / mine:.2f}x as many steps")
    print(f"the loss of the first step differs by {first:.1e}, relatively")


if __name__ == "__main__":
    main()
