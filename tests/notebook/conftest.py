"""Opened steps of the three models."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.notebook.steps import overrides
from workbench.config import load_config
from workbench.notebook.inside import Step, open_step


def _step(config: Path, model: str, *more: str) -> Step:
    return open_step(load_config(config, [*overrides(model), *more]), images=2, keep=True, source=model)


@pytest.fixture(scope="session")
def former_step(tiny_config: Path) -> Step:
    return _step(tiny_config, "MaskFormer")


@pytest.fixture(scope="session")
def rcnn_step(tiny_config: Path) -> Step:
    return _step(tiny_config, "GeneralizedRCNN", "MODEL.RPN.NMS_THRESH", "0.3")


@pytest.fixture(scope="session")
def solo_step(tiny_config: Path) -> Step:
    return _step(tiny_config, "SOLOv2")
