"""Experiments on this machine, with programs that stand in for torch where it would take a GPU."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from workbench.environment.experiments import thread_trial, visibility_trial


@pytest.fixture
def python_with_two_gpus(tmp_path: Path) -> str:
    """A Python whose torch has two GPUs and reads CUDA_VISIBLE_DEVICES when CUDA is first used, as torch does."""
    (tmp_path / "torch.py").write_text(
        "import os\n"
        "class cuda:\n"
        "    _seen = None\n"
        "    @classmethod\n"
        "    def _visible(cls):\n"
        "        if cls._seen is None:\n"
        "            cls._seen = os.environ.get('CUDA_VISIBLE_DEVICES', '0,1').split(',')\n"
        "        return cls._seen\n"
        "    is_available = classmethod(lambda cls: bool(cls._visible()))\n"
        "    device_count = classmethod(lambda cls: len(cls._visible()))\n"
        "    get_device_name = classmethod(lambda cls, i: 'GPU ' + cls._visible()[i])\n"
        "def zeros(*size, device): pass\n"
    )
    program = tmp_path / "python"
    program.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path} exec {sys.executable} "$@"\n')
    program.chmod(0o755)
    return str(program)


def test_visible_devices_count_until_cuda_is_used(python_with_two_gpus: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # what the notebook itself was started with does not matter
    table = visibility_trial("1", python=python_with_two_gpus)
    assert table["GPUs"].tolist() == ["GPU 1", "GPU 1", "GPU 0, GPU 1"]
    assert table["visible"].tolist() == [1, 1, 2]


def test_a_trial_that_cannot_run_says_so(tmp_path: Path) -> None:
    table = visibility_trial("0", python=str(tmp_path / "no-python"))
    assert table["GPUs"].str.startswith("could not be tried").all()


def test_threads_are_tried_and_put_back() -> None:
    before = torch.get_num_threads()
    table = thread_trial(most=3, seconds=0.01)
    assert table["threads"].tolist() == [1, 2, 3] and (table["images a second"] > 0).all()
    assert torch.get_num_threads() == before
