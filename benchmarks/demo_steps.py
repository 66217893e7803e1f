"""How many more steps the demo trains in the same minutes with the compiled attention than with the reference.

    python benchmarks/demo_steps.py            needs data/shapes (`workbench shapes`)

Both train the demo from the same seed, in processes of their own, one after the other; the time of a step is the
median over all but the first quarter of the steps. The losses of both are compared as well.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd

CONFIG = Path(__file__).parents[1] / "configs/shapes/demo.yaml"


def train(backend: str, steps: int, output: Path) -> pd.DataFrame:
    """Train that many steps with a back end and return the rows of metrics.csv."""
    command = [
        sys.executable,
        "-m",
        "workbench.cli",
        "train",
        "--config",
        str(CONFIG),
        "--output",
        str(output),
    ]
    command += ["SOLVER.MAX_ITER", str(steps), "DATASETS.TEST", "()"]
    subprocess.run(
        command, check=True, env={**os.environ, "WORKBENCH_OPS": backend}, stdout=subprocess.DEVNULL
    )
    return pd.read_csv(output / "metrics.csv")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    steps = parser.parse_args().steps
    with tempfile.TemporaryDirectory() as folder:
        tables = {name: train(name, steps, Path(folder) / name) for name in ("cpu", "reference")}
    seconds = {name: table["seconds"].iloc[steps // 4 :].median() for name, table in tables.items()}
    first = [
        abs(a / b - 1) for a, b in zip(*(t["total_loss"].iloc[:10] for t in tables.values()), strict=True)
    ]
    print(f"a step: ours {seconds['cpu']:.3f} s, reference {seconds['reference']:.3f} s, "
          f"ratio {seconds['reference'] / seconds['cpu']:.2f}")  # fmt: skip
    print(f"losses of the first ten steps differ by at most {max(first):.1e}, relatively")


if __name__ == "__main__":
    main()
