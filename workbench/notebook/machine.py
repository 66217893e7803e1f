"""What notebooks show of this machine."""

from __future__ import annotations

from typing import Any

import pandas as pd

from workbench.environment.experiments import visibility_trial


def visible_gpus(machine: dict[str, Any], value: str) -> pd.DataFrame | None:
    """Try CUDA_VISIBLE_DEVICES at three moments, see :func:`visibility_trial`; None where there is no GPU to hide."""
    return visibility_trial(value) if machine["gpus"] else None
