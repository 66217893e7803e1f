"""Every mismatch of a machine as a sentence with the command that mends it."""

from __future__ import annotations

import copy

import pytest

from workbench.environment.problems import find_problems, format_report, runs_on

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


def test_the_report_offers_the_line_that_sets_cuda_home(good: dict) -> None:
    good["cuda"]["toolkits"] = [
        {"path": "/usr/local/cuda-12.4/bin/nvcc", "version": "12.4", "source": "/usr/local/cuda-12.4"},
        {"path": "/usr/local/cuda/bin/nvcc", "version": "13.0", "source": "/usr/local/cuda"},
    ]
    assert find_problems(good) == []
    assert "not set; builds use /usr/local/cuda (export CUDA_HOME=/usr/local/cuda sets it" in format_report(good)


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
        "supports CUDA 12.4, but torch 2.15.0+cu132 was built for CUDA 13.2: update the driver, or install the newest "
        "build for it, torch 2.13 for CUDA 12.6",
        "make env TORCH_INDEX=",
    ),
    "old driver in conda": (
        {"cuda.driver_cuda": "12.4", "gpus": [], "python.kind": "conda"},
        "let conda choose a torch",
        "conda env update",
    ),
    "driver without any build": ({"cuda.driver_cuda": "11.8", "gpus": []}, "only the CPU works", "MODEL.DEVICE cpu"),
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
    assert runs_on(capability, built_for) is runs
