"""A sample of each table of ``make faults``: every fault is one clear sentence, and nothing is lost."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the harness forks and reads /proc")


@pytest.mark.parametrize(
    "groups",
    [
        ["config", "command line", "dataset", "images", "checkpoints"],
        ["results", "json", "yaml", "import", "environment", "kills", "stops", "full disk", "two at once", "streams"],
    ],
    ids=["inputs", "files and processes"],
)
def test_a_sample_of_each_table(groups: list[str]) -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults", "--short", *groups],
        cwd=root,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        errors="replace",
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
