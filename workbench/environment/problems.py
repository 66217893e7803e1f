"""From the facts of ``inspect_machine`` to sentences: what is wrong, and which command mends it.

Every function is pure: facts in, text out, so that each mismatch can be tested on a machine without it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

OLDEST_PYTHON, OLDEST_TORCH = (3, 10), (2, 11)
# The last builds for CUDA 12. Each runs with every driver for CUDA 12; only that for 12.8 has code for Blackwell.
CUDA_12_BUILDS = "the newest build for it, torch 2.13 for CUDA 12.6 (for a Blackwell GPU torch 2.11 for CUDA 12.8)"
GET_DETECTRON2 = (
    "install it with `conda install -c conda-forge detectron2`, or from its source; docs/detectron2.md says how"
)
LOW_DISK_GIB, LOW_MEMORY_GIB, LOW_GPU_GIB, LOW_SHARED_GIB = 2.0, 2.0, 3.0, 0.25

Problem = dict[str, str]  # {"sentence": what is wrong, "command": what mends it}
Pairs = Iterator[tuple[str, str]]


def find_problems(machine: dict[str, Any]) -> list[Problem]:
    """Return every mismatch in the facts of ``inspect_machine``, worst first."""
    checks = (
        _package_problems,
        _driver_problems,
        _visibility_problems,
        _gpu_problems,
        _toolkit_problems,
        _space_problems,
    )
    return [{"sentence": sentence, "command": command} for check in checks for sentence, command in check(machine)]


def format_report(machine: dict[str, Any]) -> str:
    """Return the facts as text for a terminal: one aligned line a fact, problems last."""
    system, torch, vision, cuda = machine["system"], machine["torch"], machine["torchvision"], machine["cuda"]
    python, problems = machine["python"], machine["problems"]
    detectron2, packages = machine["detectron2"], machine["packages"]
    threads, simd = _or(system["threads"], "?"), ", ".join(system["simd"]) or "unknown"
    rows = [
        ("Python", f"{python['version']} ({python['kind']}: {python['environment']})"),
        ("System", system["platform"]),
        ("CPU", f"{system['cpu']}, {system['cores']} usable cores, {threads} torch threads"),
        ("CPU vectors", f"{simd} (torch uses {torch.get('cpu_kernels', '?')})"),
        ("Memory", f"{_or(system['memory_free_gib'], '?')} of {_or(system['memory_gib'], '?')} GiB free"),
        ("Disk", f"{_or(system['disk_free_gib'], '?')} GiB free in {system['directory']}"),
        ("torch", f"{torch['version']} ({torch['error'] or _build(torch)})"),
        ("torchvision", f"{vision['version']} ({vision['error'] or 'its nms works with this torch'})"),
        ("NVIDIA driver", _driver(cuda)),
        ("CUDA_VISIBLE_DEVICES", _or(cuda["visible_devices"], "not set: every GPU is visible")),
        ("CUDA_HOME", cuda["cuda_home"] or _unset_cuda_home(cuda["toolkits"], torch.get("cuda"))),
    ]
    for kit in cuda["toolkits"]:
        rows.append(("CUDA toolkit", f"{kit['version']} at {kit['path']} ({kit['source']})"))
    for gpu in machine["gpus"]:
        rows.append((f"GPU cuda:{gpu['index']}", _gpu(gpu)))
    if not machine["gpus"]:
        rows.append(("GPUs", "none that torch can use; everything runs on the CPU"))
    rows += [
        (
            "detectron2",
            detectron2["error"]
            or _or(detectron2["version"], f"not installed; only workbench.detectron2 needs it: {GET_DETECTRON2}"),
        ),
        ("Packages", ", ".join(f"{name} {_or(version, 'missing')}" for name, version in packages.items())),
    ]
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}}  {value}" for name, value in rows]
    lines += ["", "Everything fits together." if not problems else f"{len(problems)} to mend:"]
    for problem in problems:
        lines += [f"- {problem['sentence']}", f"    {problem['command']}"]
    return "\n".join(lines)


def _package_problems(machine: dict[str, Any]) -> Pairs:
    python, torch, vision = machine["python"], machine["torch"], machine["torchvision"]
    reinstall = "python -m pip install --force-reinstall -r requirements.lock"
    if python["kind"] == "conda":
        reinstall = "conda env update -f environment.yml --prune"
    if _numbers(python["version"]) < OLDEST_PYTHON:
        needed = f"older than {_dotted(OLDEST_PYTHON)}, which the workbench needs"
        yield f"Python {python['version']} is {needed}.", "rm -rf .venv && make env PYTHON=python3.12"
    if torch["version"] is None:
        yield "torch is not installed.", reinstall
    elif torch["error"]:
        yield f"torch {torch['version']} does not load ({torch['error']}).", reinstall
    elif _numbers(torch["version"]) < OLDEST_TORCH:
        needed = f"older than {_dotted(OLDEST_TORCH)}, which the workbench needs"
        yield f"torch {torch['version']} is {needed}.", reinstall
    if vision["version"] is None:
        yield "torchvision is not installed.", reinstall
    elif vision["error"] and not torch["error"]:
        wants = f"; it was built for torch {vision['wants_torch']}" if vision["wants_torch"] else ""
        pair = f"torchvision {vision['version']} does not belong to torch {torch['version']}"
        yield f"{pair} ({vision['error']}){wants}.", reinstall
    if machine["detectron2"]["error"]:
        yield (
            f"detectron2 is installed but does not load ({machine['detectron2']['error']}), most often because it was "
            "built for another torch; the workbench runs without it.",
            "conda env create -f environment.yml",
        )


def _driver_problems(machine: dict[str, Any]) -> Pairs:
    torch, cuda = machine["torch"], machine["cuda"]
    if not (cuda["driver"] or cuda["machine_gpus"]) or torch["error"] or torch["version"] is None:
        return
    if torch["cuda"] is None:
        yield (
            f"This machine has an NVIDIA GPU, but torch {torch['version']} was built without CUDA.",
            "python -m pip install --force-reinstall -r requirements.lock",
        )
    elif cuda["driver_cuda"] and _numbers(cuda["driver_cuda"])[0] < _numbers(torch["cuda"])[0]:
        mismatch = (
            f"The NVIDIA driver {_or(cuda['driver'], '')} supports CUDA {cuda['driver_cuda']}, but torch "
            f"{torch['version']} was built for CUDA {torch['cuda']}: update the driver"
        )
        if machine["python"]["kind"] == "conda":
            yield f"{mismatch}, or let conda choose a torch for it.", "conda env update -f environment.yml --prune"
        elif _numbers(cuda["driver_cuda"])[0] == 12:
            yield f"{mismatch}, or install {CUDA_12_BUILDS}.", "make env TORCH_INDEX=<address of the cu126 wheels>"
        else:
            older = f"; every torch from {_dotted(OLDEST_TORCH)} on needs CUDA 12 or newer"
            yield f"{mismatch}{older}, so that only the CPU works until then.", "workbench train ... MODEL.DEVICE cpu"
    elif not machine["gpus"] and not _hides_all(cuda["visible_devices"]):
        yield (
            "This machine has an NVIDIA driver, but torch can use no GPU: the driver may have been updated without a "
            "restart, or the container was started without GPUs.",
            "nvidia-smi",
        )


def _visibility_problems(machine: dict[str, Any]) -> Pairs:
    cuda, count = machine["cuda"], len(machine["cuda"]["machine_gpus"])
    value, before = cuda["visible_devices"], cuda["visible_devices_at_start"]
    if not count:
        return
    if _hides_all(value):
        yield f"CUDA_VISIBLE_DEVICES={value!r} hides every GPU.", "unset CUDA_VISIBLE_DEVICES"
    elif value is not None:
        missing = [part for part in value.split(",") if part.strip().isdigit() and int(part) >= count]
        if missing:
            yield (
                f"CUDA_VISIBLE_DEVICES={value!r} names GPU {missing[0].strip()}, but this machine's last is "
                f"{count - 1}; CUDA ignores that one and all after it.",
                f"export CUDA_VISIBLE_DEVICES={','.join(str(index) for index in range(count))}",
            )
    if cuda["started"] and value != before:
        yield (
            f"CUDA_VISIBLE_DEVICES is {value!r} now and was {before!r} when this process started; a change after CUDA "
            "has started has no effect: set it before anything uses the GPU.",
            f"restart the kernel or process after: export CUDA_VISIBLE_DEVICES={_or(value, '')}",
        )


def _gpu_problems(machine: dict[str, Any]) -> Pairs:
    built_for = machine["torch"].get("built_for") or []
    for gpu in machine["gpus"]:
        name = f"cuda:{gpu['index']} ({gpu['name']})"
        if built_for and not runs_on(gpu["capability"], built_for):
            yield (
                f"GPU {name} has compute capability {gpu['capability']}, for which torch {machine['torch']['version']} "
                f"has no code (it has {', '.join(built_for)}).",
                "conda env create -f environment.yml && conda activate workbench",
            )
        if gpu["freest"] and _below(gpu["free_gib"], LOW_GPU_GIB):
            command = "nvidia-smi --query-compute-apps=pid,used_memory,name --format=csv"
            yield f"The GPU with most free memory, {name}, has only {gpu['free_gib']} GiB free.", command


def _toolkit_problems(machine: dict[str, Any]) -> Pairs:
    home, kits = machine["cuda"]["cuda_home"], machine["cuda"]["toolkits"]
    if not home:
        return
    own = [kit for kit in kits if kit["source"] == "CUDA_HOME"]
    wanted = machine["torch"].get("cuda")
    if not own:
        yield f"CUDA_HOME is {home}, where there is no working bin/nvcc.", "unset CUDA_HOME"
    elif wanted and _numbers(own[0]["version"])[0] != _numbers(wanted)[0]:
        fitting = [kit["path"] for kit in kits if _numbers(kit["version"])[0] == _numbers(wanted)[0]]
        yield (
            f"CUDA_HOME is {home} with CUDA {own[0]['version']}, but torch was built for CUDA {wanted}: what is "
            "compiled with it would not load.",
            f"export CUDA_HOME={fitting[0].removesuffix('/bin/nvcc')}" if fitting else "unset CUDA_HOME",
        )


def _space_problems(machine: dict[str, Any]) -> Pairs:
    system = machine["system"]
    threads, cores, disk = system["threads"], system["cores"], system["disk_free_gib"]
    memory, shared = system["memory_free_gib"], system["shared_memory_free_gib"]
    if threads and threads > cores:
        slow = f"torch runs {threads} threads on {cores} usable cores, which slows it down."
        yield slow, f"export OMP_NUM_THREADS={cores}"
    if _below(disk, LOW_DISK_GIB):
        full = f"Only {disk} GiB of disk is free in {system['directory']}: a checkpoint may not fit."
        yield full, "du -sh outputs/* data/* | sort -h"
    if _below(memory, LOW_MEMORY_GIB):
        yield (
            f"Only {memory} GiB of memory is free: take a smaller batch and fewer workers.",
            "workbench train ... SOLVER.IMS_PER_BATCH 2 DATALOADER.NUM_WORKERS 0",
        )
    if _below(shared, LOW_SHARED_GIB):
        yield (
            f"Shared memory (/dev/shm) has only {shared} GiB free, so loader workers die with a bus error: give the "
            "container more, or use no workers.",
            "workbench train ... DATALOADER.NUM_WORKERS 0",
        )


def runs_on(capability: str, built_for: list[str]) -> bool:
    """Return whether code for ``built_for`` (``sm_90``, ``compute_90``) runs on a GPU of this compute capability.

    Binary code runs on the same major and the same or a later minor version, PTX (``compute_``) on everything
    later, an architecture-specific ``sm_90a`` on exactly that.
    """
    major, minor = _numbers(capability)
    for target in built_for:
        match = re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", target)
        if not match:
            continue
        version = (int(match[2]), int(match[3]))
        if match[4] == "a":
            fits = version == (major, minor)
        elif match[1] == "compute":
            fits = version <= (major, minor)
        else:
            fits = version[0] == major and version[1] <= minor
        if fits:
            return True
    return False


def _numbers(version: str) -> tuple[int, ...]:
    """Return (major, minor) of a version such as ``2.15.0+cu132`` or ``3.14rc1``."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _hides_all(value: str | None) -> bool:
    return value is not None and value.strip() in ("", "-1")


def _below(amount: float | None, limit: float) -> bool:
    return amount is not None and amount < limit


def _or(value: Any, otherwise: str) -> Any:
    return otherwise if value is None else value


def _build(torch: dict[str, Any]) -> str:
    if torch["cuda"] is None:
        return "built without CUDA"
    return f"built for CUDA {torch['cuda']} and {', '.join(torch['built_for'])}, cuDNN {torch['cudnn']}"


def _driver(cuda: dict[str, Any]) -> str:
    if cuda["driver"] is None:
        return "none"
    newest = _or(cuda["driver_cuda"], "?")
    return f"{cuda['driver']}, CUDA up to {newest}, GPUs in the machine: {len(cuda['machine_gpus'])}"


def _unset_cuda_home(toolkits: list[dict[str, str]], wanted: str | None) -> str:
    """Return the value of an unset CUDA_HOME in the report, with the line that sets it to a toolkit of torch's CUDA."""
    for kit in toolkits:
        if (
            wanted
            and kit["source"] not in ("PATH", "PyPI package")
            and _numbers(kit["version"])[:1] == _numbers(wanted)[:1]
        ):
            return f"not set; builds use {kit['source']} (export CUDA_HOME={kit['source']} sets it for all programs)"
    return "not set"


def _gpu(gpu: dict[str, Any]) -> str:
    free = "" if gpu["free_gib"] is None else f", {gpu['free_gib']} free"
    best = " (freest: MODEL.DEVICE cuda takes this one)" if gpu["freest"] else ""
    return f"{gpu['name']}, compute capability {gpu['capability']}, {gpu['memory_gib']} GiB{free}{best}"
