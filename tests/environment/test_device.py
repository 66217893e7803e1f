"""Device choice, on machines that this one need not be."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from workbench.environment import device
from workbench.environment.device import choose_device, verify_device
from workbench.environment.system import run_quietly
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
    monkeypatch.setattr(device, "free_memory_by_uuid", lambda: free)
    for variable in ("LOCAL_RANK", "WORLD_SIZE", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(variable, raising=False)
    return free


def test_invariant_12_cpu_means_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def touched(*_: object) -> None:
        raise AssertionError("CUDA was touched")

    for name in ("is_available", "device_count", "init", "current_device", "get_device_properties"):
        monkeypatch.setattr(torch.cuda, name, touched)
    monkeypatch.setattr(device, "run_quietly", touched)
    assert choose_device("cpu") == torch.device("cpu")
    assert verify_device(choose_device("CPU"))["used"] == "cpu"


def test_cpu_starts_no_cuda_in_a_fresh_process() -> None:
    code = (
        "import torch; from workbench.environment.device import *; verify_device(choose_device('cpu'));"
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


def test_a_missing_gpu_is_an_error_that_lists_what_is_there(
    three_gpus: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
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
    monkeypatch.setattr(device, "run_quietly", lambda *_: "GPU 0: Alpha")
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
    monkeypatch.setattr(device, "run_quietly", lambda *_: "GPU-a, 1024\nGPU-b, [N/A]\n\nGPU-c, 7")
    assert device.free_memory_by_uuid() == {"GPU-a": 1024, "GPU-c": 7}


def test_a_missing_failing_or_hanging_command_is_an_empty_answer() -> None:
    assert run_quietly("no-such-command-here") == ""
    assert run_quietly(sys.executable, "-c", "import sys; print(1); sys.exit(3)") == ""
    assert run_quietly(sys.executable, "-c", "input()") == ""
    assert run_quietly(sys.executable, "-c", "while True: pass", timeout=0.5) == ""


def test_an_apple_gpu_is_taken_only_where_it_computes_rightly(monkeypatch: pytest.MonkeyPatch) -> None:
    assert device.samples_rightly("cpu")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == torch.device("cpu")  # never unasked
    monkeypatch.setattr(device, "samples_rightly", lambda name: True)
    assert choose_device("mps") == torch.device("mps")
    monkeypatch.undo()
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    plain = torch.nn.functional.grid_sample
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, *_: tensor)
    calls = []
    monkeypatch.setattr(device.F, "grid_sample", lambda *a, **k: plain(*a, **k) + len(calls) + (calls.append(1) or 0))
    with pytest.raises(WorkbenchError, match="samples images wrongly there; set MODEL.DEVICE to cpu"):
        choose_device("mps")


def test_a_limit_that_leaves_hardly_any_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "memory_below_limit", lambda: 100 * 2**20)
    with pytest.raises(WorkbenchError, match=r"ulimit -v\) leaves 100 MiB, and at least 256 MiB"):
        choose_device("cpu")
