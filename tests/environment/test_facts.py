"""What is found out about a machine, this one and broken ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import psutil
import pytest
import torch

from workbench.environment import system
from workbench.environment.facts import find_toolkits, inspect_machine
from workbench.environment.problems import format_report


def test_this_machine_can_be_inspected() -> None:
    machine = inspect_machine()
    assert json.loads(json.dumps(machine)) == machine
    assert machine["torch"]["version"] == torch.__version__
    assert machine["torchvision"]["error"] is None
    text = format_report(machine)
    for word in ("Python", "torchvision", "NVIDIA driver", "CUDA_VISIBLE_DEVICES", "detectron2"):
        assert word in text
    if machine["detectron2"]["version"] is None:
        assert "conda install -c conda-forge detectron2" in text


def test_inspection_survives_a_torch_and_torchvision_that_do_not_load(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # import torch now raises ImportError
    machine = inspect_machine()
    assert machine["torch"]["error"] and machine["torchvision"]["error"]
    assert "does not load" in format_report(machine)


def test_a_toolkit_is_found_under_cuda_home(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 12.4, V12.4.131'\n")
    nvcc.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert find_toolkits()[0] == {"path": str(nvcc), "version": "12.4", "source": "CUDA_HOME"}


def test_the_facts_are_those_of_the_system() -> None:
    machine = inspect_machine()
    total = psutil.virtual_memory().total / 2**30
    assert machine["system"]["memory_gib"] == pytest.approx(total, abs=0.1)
    assert 0 < machine["system"]["memory_free_gib"] <= machine["system"]["memory_gib"]
    assert machine["system"]["cores"] <= len(os.sched_getaffinity(0))


def test_visible_devices_at_start_is_not_what_the_process_set_since() -> None:
    code = (
        "import os; os.environ['CUDA_VISIBLE_DEVICES'] = '1'\n"
        "from workbench.environment.facts import inspect_machine\n"
        "cuda = inspect_machine()['cuda']\n"
        "print(cuda['visible_devices_at_start'], cuda['visible_devices'])"
    )
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "0"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", "1"]


@pytest.mark.parametrize(
    ("limit", "cores"), [("150000 100000", 1), ("200000 100000", 2), ("50000 100000", 1), ("max 100000", 8), ("", 8)]
)
def test_usable_cores_keep_a_containers_limit(limit: str, cores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(system, "read_text", lambda path: limit if path.endswith("cpu.max") else "")
    assert system.usable_cores() == cores


def test_the_processor_is_read_from_the_kernels_text(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "processor : 0\nmodel name\t: Alpha 9\nflags\t\t: fpu avx2 fma avx\n"
    monkeypatch.setattr(system, "read_text", lambda _: text)
    assert system.cpu_name() == "Alpha 9" and system.simd_flags() == ["avx", "avx2", "fma"]
    monkeypatch.setattr(system, "read_text", lambda _: "Features : asimd sve\n")
    assert system.simd_flags() == ["asimd", "sve"]
