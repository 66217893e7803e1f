"""Small experiments on this machine: how many threads help, and until when CUDA_VISIBLE_DEVICES has an effect."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import Any

import pandas as pd
import torch
from torch import nn

from workbench.environment.system import usable_cores

_WHEN = {
    "before the import of torch": "set(); import torch",
    "after the import, before CUDA is used": "import torch; set()",
    "after CUDA was used": "import torch; torch.cuda.is_available() and torch.zeros(1, device='cuda'); set()",
}
_PROGRAM = """
import json, os
def set():
    os.environ["CUDA_VISIBLE_DEVICES"] = {value!r}
{steps}
names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
print(json.dumps(names))
"""


def visibility_trial(value: str, python: str = sys.executable, timeout: float = 120) -> pd.DataFrame:
    """Set CUDA_VISIBLE_DEVICES to ``value`` at three moments, each in a new process that starts without the variable.

    Returns:
        a table with one row a moment: "visible", how many GPUs torch sees, and "GPUs", their names or the error.
    """
    environment = {name: text for name, text in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    rows = {}
    for moment, steps in _WHEN.items():
        program = _PROGRAM.format(value=value, steps=steps)
        try:
            done = subprocess.run(
                [python, "-c", program], capture_output=True, text=True, env=environment, timeout=timeout
            )
            names = json.loads(done.stdout)
            rows[moment] = {"visible": len(names), "GPUs": ", ".join(names) or "none"}
        except (OSError, subprocess.SubprocessError, ValueError) as error:
            rows[moment] = {"visible": None, "GPUs": f"could not be tried: {type(error).__name__}"}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("CUDA_VISIBLE_DEVICES set")


def visible_gpus(machine: dict[str, Any], value: str) -> pd.DataFrame | None:
    """Return :func:`visibility_trial` of ``value``; None where ``machine`` has no GPU to hide."""
    return visibility_trial(value) if machine["gpus"] else None


def thread_trial(most: int | None = None, seconds: float = 0.5) -> pd.DataFrame:
    """Measure a small convolution network on the CPU with 1, 2, 4, ... ``most`` threads.

    Args:
        most: the largest number of threads; the number of usable cores by default.
        seconds: how long each number is measured for, about.

    Returns:
        a table with the columns "threads" and "images a second". torch's number of threads is restored.
    """
    most = most or usable_cores()
    counts = sorted({*(2**n for n in range(most.bit_length())), most})
    network = nn.Sequential(
        nn.Conv2d(3, 32, 3, 2, 1), nn.ReLU(), nn.Conv2d(32, 64, 3, 2, 1), nn.ReLU(), nn.Conv2d(64, 64, 3, 1, 1)
    )
    images = torch.rand(8, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    before, rates = torch.get_num_threads(), []
    try:
        with torch.inference_mode():
            for count in counts:
                torch.set_num_threads(count)
                network(images)
                done, began = 0, time.perf_counter()
                while (passed := time.perf_counter() - began) < seconds:
                    network(images)
                    done += len(images)
                rates.append(done / passed)
    finally:
        torch.set_num_threads(before)
    return pd.DataFrame({"threads": counts, "images a second": rates})
