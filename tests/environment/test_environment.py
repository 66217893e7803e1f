"""Device choice and the machine's report, on machines that this one need not be."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from workbench.environment import facts as environment
from workbench.environment import problems as diagnosis
from workbench.environment.facts import choose_device, inspect_machine, verify_device
from workbench.environment.problems import find_problems, format_report
from workbench.errors import WorkbenchError

NAMES = ("Alpha", "Beta", "Gamma")


@pytest.fixture
def three_gpus(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Three GPUs that nvidia-smi lists in the reverse of torch's order; returns their free MiB by UUID."""
    free = {"GPU-2": 100, "GPU-1": 9000, "GPU-0": 500}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: NAMES[index])
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid=f"{index}", name=NAMES[index])
    )
    monkeypatch.setattr(environment, "free_memory_by_uuid", lambda: free)
    for variable in ("LOCAL_RANK", "WORLD_SIZE", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(variable, raising=False)
    return free


def test_invariant_12_cpu_means_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def touched(*_: object) -> None:
        raise AssertionError("CUDA was touched")

    for name in ("is_available", "device_count", "init", "current_device", "get_device_properties"):
        monkeypatch.setattr(torch.cuda, name, touched)
    monkeypatch.setattr(environment, "run_quietly", touched)
    assert choose_device("cpu") == torch.device("cpu")
    assert verify_device(choose_device("CPU"))["used"] == "cpu"


def test_cpu_starts_no_cuda_in_a_fresh_process() -> None:
    code = (
        "import torch; from workbench.environment.facts import *; verify_device(choose_device('cpu'));"
        "assert not torch.cuda.is_initialized()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_cuda_is_the_freest_gpu_in_torchs_numbering(three_gpus: dict[str, int]) -> None:
    assert choose_device("cuda") == torch.device("cuda", 1)
    three_gpus["GPU-2"] = 20000
    assert choose_device("auto") == torch.device("cuda", 2)


def test_cuda_is_the_first_gpu_where_free_memory_is_unknown(three_gpus: dict[str, int]) -> None:
    three_gpus.clear()
    assert choose_device("cuda") == torch.device("cuda", 0)


def test_cuda_is_the_local_ranks_gpu_among_several_processes(
    three_gpus: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert choose_device("cuda") == torch.device("cuda", 2)
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert choose_device("cuda") == torch.device("cuda", 1)


def test_a_missing_gpu_is_told_with_what_is_there(three_gpus: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,6,7")
    with pytest.raises(WorkbenchError, match=r"cuda:3.*3 GPUs.*'5,6,7'.*cuda:0 \(Alpha\).*cuda:2"):
        choose_device("cuda:3")
    assert choose_device("cuda:2") == torch.device("cuda", 2)


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "cuda:-1", "tpu", ""])
def test_an_unknown_device_is_refused(name: str) -> None:
    with pytest.raises(WorkbenchError, match="none of cpu, cuda"):
        choose_device(name)


def test_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == torch.device("cpu")
    monkeypatch.setattr(environment, "run_quietly", lambda *_: "GPU 0: Alpha")
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(WorkbenchError, match="CUDA_VISIBLE_DEVICES='' hides every GPU; available here: cpu"):
        choose_device("cuda")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    with pytest.raises(WorkbenchError, match="driver is too old"):
        choose_device("cuda:0")
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(WorkbenchError, match="built without CUDA"):
        choose_device("cuda")


def test_free_memory_is_read_by_uuid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "run_quietly", lambda *_: "GPU-a, 1024\nGPU-b, [N/A]\n\nGPU-c, 7")
    assert environment.free_memory_by_uuid() == {"GPU-a": 1024, "GPU-c": 7}


def test_a_missing_failing_or_hanging_command_is_an_empty_answer() -> None:
    assert environment.run_quietly("no-such-command-here") == ""
    assert environment.run_quietly(sys.executable, "-c", "import sys; print(1); sys.exit(3)") == ""
    assert environment.run_quietly(sys.executable, "-c", "input()") == ""
    assert environment.run_quietly(sys.executable, "-c", "while True: pass", timeout=0.5) == ""


def test_this_machine_can_be_inspected() -> None:
    machine = inspect_machine()
    assert json.loads(json.dumps(machine)) == machine
    assert machine["torch"]["version"] == torch.__version__
    assert machine["torchvision"]["error"] is None
    text = format_report(machine)
    for word in ("Python", "torchvision", "NVIDIA driver", "CUDA_VISIBLE_DEVICES", "detectron2"):
        assert word in text


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
    assert environment.find_toolkits()[0] == {"path": str(nvcc), "version": "12.4", "source": "CUDA_HOME"}


GPU = {
    "index": 0,
    "name": "Alpha",
    "capability": "9.0",
    "memory_gib": 139.0,
    "free_gib": 130.0,
    "freest": True,
}


@pytest.fixture
def good() -> dict:
    """The facts of a machine with one GPU on which everything fits together."""
    return {
        "python": {"version": "3.12.1", "executable": "python", "environment": ".venv", "kind": "venv"},
        "system": {
            "platform": "Linux",
            "cpu": "CPU",
            "cores": 8,
            "threads": 8,
            "simd": ["avx2"],
            "memory_gib": 64.0,
            "memory_free_gib": 60.0,
            "directory": "here",
            "disk_free_gib": 100.0,
            "shared_memory_free_gib": 30.0,
        },
        "torch": {
            "version": "2.15.0+cu132",
            "cuda": "13.2",
            "cudnn": 92600,
            "built_for": ["sm_80", "sm_90"],
            "cuda_available": True,
            "cpu_kernels": "AVX2",
            "threads": 8,
            "error": None,
        },
        "torchvision": {"version": "0.29.2", "wants_torch": ">=2.14.0", "error": None},
        "cuda": {
            "driver": "580.95",
            "driver_cuda": "13.2",
            "machine_gpus": ["GPU 0: Alpha"],
            "visible_devices": None,
            "visible_devices_at_start": None,
            "started": False,
            "cuda_home": None,
            "toolkits": [],
        },
        "gpus": [copy.deepcopy(GPU)],
        "detectron2": {"version": None, "error": None},
        "packages": {"numpy": "2.4.6"},
        "problems": [],
    }


def test_a_good_machine_has_no_problems(good: dict) -> None:
    assert find_problems(good) == []
    assert "Everything fits together." in format_report(good)


MISMATCHES = {
    "old python": ({"python.version": "3.9.18"}, "Python 3.9.18 is older than 3.10", "make env PYTHON="),
    "no torch": (
        {"torch.version": None, "torch.error": "ModuleNotFoundError"},
        "torch is not installed",
        "pip",
    ),
    "broken torch": (
        {"torch.error": "OSError: undefined symbol"},
        "does not load (OSError",
        "force-reinstall",
    ),
    "old torch": ({"torch.version": "2.9.1"}, "torch 2.9.1 is older than 2.11", "requirements.lock"),
    "no torchvision": ({"torchvision.version": None, "torchvision.error": "x"}, "torchvision is not", "pip"),
    "mismatched pair": (
        {"torch.version": "2.13.0+cpu", "torchvision.error": "operator torchvision::nms does not exist"},
        "torchvision 0.29.2 does not belong to torch 2.13.0+cpu (operator torchvision::nms does not exist); "
        "it was built for torch >=2.14.0",
        "requirements.lock",
    ),
    "in conda": (
        {"python.kind": "conda", "torchvision.error": "x"},
        "does not belong",
        "environment.yml",
    ),
    "broken detectron2": ({"detectron2.error": "ImportError: _C"}, "detectron2 is installed but", "conda"),
    "cpu torch on a gpu machine": ({"torch.cuda": None, "gpus": []}, "was built without CUDA", "pip install"),
    "old driver": (
        {"cuda.driver_cuda": "12.4", "gpus": []},
        "supports CUDA 12.4, but torch",
        "conda env create",
    ),
    "no usable gpu": ({"gpus": []}, "torch can use no GPU", "nvidia-smi"),
    "all hidden": (
        {"cuda.visible_devices": "-1", "cuda.visible_devices_at_start": "-1", "gpus": []},
        "hides every GPU",
        "unset CUDA_VISIBLE_DEVICES",
    ),
    "hidden one that is not there": (
        {"cuda.visible_devices": "0,4"},
        "names GPU 4, but this machine's last is 0",
        "export CUDA_VISIBLE_DEVICES=0",
    ),
    "set too late": (
        {"cuda.visible_devices": "0", "cuda.started": True},
        "is '0' now and was None when",
        "restart",
    ),
    "unsupported gpu": ({"gpus.0.capability": "7.0"}, "compute capability 7.0, for which torch", "conda"),
    "full gpu": ({"gpus.0.free_gib": 0.4}, "has only 0.4 GiB free", "nvidia-smi"),
    "empty CUDA_HOME": ({"cuda.cuda_home": "/opt/cuda"}, "no working bin/nvcc", "unset CUDA_HOME"),
    "CUDA_HOME of another CUDA": (
        {
            "cuda.cuda_home": "/opt/12",
            "cuda.toolkits": [
                {"path": "/opt/12/bin/nvcc", "version": "12.4", "source": "CUDA_HOME"},
                {"path": "/usr/local/cuda-13/bin/nvcc", "version": "13.0", "source": "/usr/local/cuda-13"},
            ],
        },
        "with CUDA 12.4, but torch was built for CUDA 13.2",
        "export CUDA_HOME=/usr/local/cuda-13",
    ),
    "too many threads": ({"system.threads": 64}, "64 threads on 8 usable cores", "OMP_NUM_THREADS=8"),
    "full disk": ({"system.disk_free_gib": 0.3}, "Only 0.3 GiB of disk", "du -sh"),
    "little memory": ({"system.memory_free_gib": 0.9}, "Only 0.9 GiB of memory", "IMS_PER_BATCH"),
    "little shared memory": ({"system.shared_memory_free_gib": 0.1}, "/dev/shm", "NUM_WORKERS 0"),
}


@pytest.mark.parametrize("case", MISMATCHES)
def test_every_mismatch_is_a_sentence_with_the_command_that_mends_it(good: dict, case: str) -> None:
    changes, sentence, command = MISMATCHES[case]
    for place, value in changes.items():
        *path, last = [int(key) if key.isdigit() else key for key in place.split(".")]
        target = good
        for key in path:
            target = target[key]
        target[last] = value
    (problem,) = find_problems(good)
    assert sentence in problem["sentence"] and problem["sentence"].endswith(".")
    assert command in problem["command"]
    good["problems"] = [problem]
    assert problem["sentence"] in format_report(good)


@pytest.mark.parametrize(
    ("capability", "built_for", "runs"),
    [
        ("8.0", ["sm_80"], True),
        ("8.9", ["sm_80", "sm_90"], True),
        ("8.0", ["sm_86"], False),
        ("7.0", ["sm_75", "sm_80"], False),
        ("12.0", ["sm_90", "compute_90"], True),
        ("12.0", ["sm_120"], True),
        ("9.0", ["sm_90a"], True),
        ("10.0", ["sm_90a"], False),
        ("7.0", ["compute_75"], False),
    ],
)
def test_which_gpus_a_build_runs_on(capability: str, built_for: list[str], runs: bool) -> None:
    assert diagnosis.runs_on(capability, built_for) is runs
