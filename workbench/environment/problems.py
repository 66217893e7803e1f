"""From the facts of ``inspect_machine`` to sentences: what is wrong, and which command mends it.

Every function is pure: facts in, text out, so that each mismatch can be tested on a machine without it.
"""

from __future__ import annotations

import re
from typing import Any

OLDEST_PYTHON, OLDEST_TORCH = (3, 10), (2, 11)
LOW_DISK_GIB, LOW_MEMORY_GIB, LOW_GPU_GIB, LOW_SHARED_GIB = 2.0, 2.0, 3.0, 0.25

Problem = dict[str, str]  # {"sentence": what is wrong, "command": what mends it}


def find_problems(machine: dict[str, Any]) -> list[Problem]:
    """Return every mismatch in the facts of ``inspect_machine``, worst first."""
    return [
        *_package_problems(machine),
        *_driver_problems(machine),
        *_visibility_problems(machine),
        *_gpu_problems(machine),
        *_toolkit_problems(machine),
        *_room_problems(machine["system"]),
    ]


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
        ("CUDA_HOME", _or(cuda["cuda_home"], "not set")),
    ]
    for kit in cuda["toolkits"]:
        rows.append(("CUDA toolkit", f"{kit['version']} at {kit['path']} ({kit['source']})"))
    for gpu in machine["gpus"]:
        rows.append((f"GPU cuda:{gpu['index']}", _gpu(gpu)))
    if not machine["gpus"]:
        rows.append(("GPUs", "none that torch can use; everything runs on the CPU"))
    rows += [
        ("detectron2", detectron2["error"] or _or(detectron2["version"], "not installed (optional)")),
        ("Packages", ", ".join(f"{name} {_or(version, 'missing')}" for name, version in packages.items())),
    ]
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}}  {value}" for name, value in rows]
    lines += ["", "Everything fits together." if not problems else f"{len(problems)} to mend:"]
    for problem in problems:
        lines += [f"- {problem['sentence']}", f"    {problem['command']}"]
    return "\n".join(lines)


def _package_problems(machine: dict[str, Any]) -> list[Problem]:
    python, torch, vision = machine["python"], machine["torch"], machine["torchvision"]
    if python["kind"] == "conda":
        reinstall = "conda env update -f environment.yml --prune"
    else:
        reinstall = "python -m pip install --force-reinstall -r requirements.lock"
    found = []
    if _numbers(python["version"]) < OLDEST_PYTHON:
        found.append(
            _problem(
                f"Python {python['version']} is older than {_dotted(OLDEST_PYTHON)}, which the workbench needs.",
                "rm -rf .venv && make env PYTHON=python3.12",
            )
        )
    if torch["version"] is None:
        found.append(_problem("torch is not installed.", reinstall))
    elif torch["error"]:
        found.append(_problem(f"torch {torch['version']} does not load ({torch['error']}).", reinstall))
    elif _numbers(torch["version"]) < OLDEST_TORCH:
        found.append(
            _problem(
                f"torch {torch['version']} is older than {_dotted(OLDEST_TORCH)}, which the workbench needs.",
                reinstall,
            )
        )
    if vision["version"] is None:
        found.append(_problem("torchvision is not installed.", reinstall))
    elif vision["error"] and not torch["error"]:
        wants = f"; it was built for torch {vision['wants_torch']}" if vision["wants_torch"] else ""
        found.append(
            _problem(
                f"torchvision {vision['version']} does not belong to torch {torch['version']} "
                f"({vision['error']}){wants}.",
                reinstall,
            )
        )
    if machine["detectron2"]["error"]:
        found.append(
            _problem(
                f"detectron2 is installed but does not load ({machine['detectron2']['error']}), most often "
                "because it was built for another torch; the workbench runs without it.",
                "conda env create -f environment.yml",
            )
        )
    return found


def _driver_problems(machine: dict[str, Any]) -> list[Problem]:
    torch, cuda = machine["torch"], machine["cuda"]
    if not (cuda["driver"] or cuda["machine_gpus"]) or torch["error"] or torch["version"] is None:
        return []
    if torch["cuda"] is None:
        return [
            _problem(
                f"This machine has an NVIDIA GPU, but torch {torch['version']} was built without CUDA.",
                "python -m pip install --force-reinstall -r requirements.lock",
            )
        ]
    if cuda["driver_cuda"] and _numbers(cuda["driver_cuda"])[0] < _numbers(torch["cuda"])[0]:
        return [
            _problem(
                f"The NVIDIA driver {_or(cuda['driver'], '')} supports CUDA {cuda['driver_cuda']}, but torch "
                f"{torch['version']} was built for CUDA {torch['cuda']}: update the driver, or let conda choose "
                "a torch for it.",
                "conda env create -f environment.yml && conda activate workbench",
            )
        ]
    if not machine["gpus"] and not _hides_all(cuda["visible_devices"]):
        return [
            _problem(
                "This machine has an NVIDIA driver, but torch can use no GPU: the driver may have been updated "
                "without a restart, or the container was started without GPUs.",
                "nvidia-smi",
            )
        ]
    return []


def _visibility_problems(machine: dict[str, Any]) -> list[Problem]:
    cuda, count = machine["cuda"], len(machine["cuda"]["machine_gpus"])
    value = cuda["visible_devices"]
    if not count:
        return []
    found = []
    if _hides_all(value):
        hidden = f"CUDA_VISIBLE_DEVICES={value!r} hides every GPU."
        found.append(_problem(hidden, "unset CUDA_VISIBLE_DEVICES"))
    elif value is not None:
        missing = [part for part in value.split(",") if part.strip().isdigit() and int(part) >= count]
        if missing:
            found.append(
                _problem(
                    f"CUDA_VISIBLE_DEVICES={value!r} names GPU {missing[0].strip()}, but this machine's last is "
                    f"{count - 1}; CUDA ignores that one and all after it.",
                    f"export CUDA_VISIBLE_DEVICES={','.join(str(index) for index in range(count))}",
                )
            )
    if cuda["started"] and value != cuda["visible_devices_at_start"]:
        found.append(
            _problem(
                f"CUDA_VISIBLE_DEVICES is {value!r} now and was {cuda['visible_devices_at_start']!r} when this "
                "process started; a change after CUDA has started has no effect: set it before anything uses the "
                "GPU.",
                f"restart the kernel or process after: export CUDA_VISIBLE_DEVICES={_or(value, '')}",
            )
        )
    return found


def _gpu_problems(machine: dict[str, Any]) -> list[Problem]:
    found, built_for = [], machine["torch"].get("built_for") or []
    for gpu in machine["gpus"]:
        if built_for and not runs_on(gpu["capability"], built_for):
            found.append(
                _problem(
                    f"GPU cuda:{gpu['index']} ({gpu['name']}) has compute capability {gpu['capability']}, for "
                    f"which torch {machine['torch']['version']} has no code (it has {', '.join(built_for)}).",
                    "conda env create -f environment.yml && conda activate workbench",
                )
            )
        if gpu["freest"] and gpu["free_gib"] is not None and gpu["free_gib"] < LOW_GPU_GIB:
            found.append(
                _problem(
                    f"The freest GPU, cuda:{gpu['index']} ({gpu['name']}), has only {gpu['free_gib']} GiB free.",
                    "nvidia-smi --query-compute-apps=pid,used_memory,name --format=csv",
                )
            )
    return found


def _toolkit_problems(machine: dict[str, Any]) -> list[Problem]:
    torch, cuda = machine["torch"], machine["cuda"]
    home, kits = cuda["cuda_home"], cuda["toolkits"]
    if not home:
        return []
    own = [kit for kit in kits if kit["source"] == "CUDA_HOME"]
    if not own:
        return [_problem(f"CUDA_HOME is {home}, where there is no working bin/nvcc.", "unset CUDA_HOME")]
    wanted = torch.get("cuda")
    if wanted and _numbers(own[0]["version"])[0] != _numbers(wanted)[0]:
        fitting = [kit["path"] for kit in kits if _numbers(kit["version"])[0] == _numbers(wanted)[0]]
        return [
            _problem(
                f"CUDA_HOME is {home} with CUDA {own[0]['version']}, but torch was built for CUDA {wanted}: what "
                "is compiled with it would not load.",
                f"export CUDA_HOME={fitting[0].removesuffix('/bin/nvcc')}" if fitting else "unset CUDA_HOME",
            )
        ]
    return []


def _room_problems(system: dict[str, Any]) -> list[Problem]:
    found = []
    if system["threads"] and system["threads"] > system["cores"]:
        found.append(
            _problem(
                f"torch runs {system['threads']} threads on {system['cores']} usable cores, which slows it down.",
                f"export OMP_NUM_THREADS={system['cores']}",
            )
        )
    if _below(system["disk_free_gib"], LOW_DISK_GIB):
        found.append(
            _problem(
                f"Only {system['disk_free_gib']} GiB of disk is free in {system['directory']}: a checkpoint may "
                "not fit.",
                "du -sh outputs/* data/* | sort -h",
            )
        )
    if _below(system["memory_free_gib"], LOW_MEMORY_GIB):
        found.append(
            _problem(
                f"Only {system['memory_free_gib']} GiB of memory is free: take a smaller batch and fewer workers.",
                "workbench train ... SOLVER.IMS_PER_BATCH 2 DATALOADER.NUM_WORKERS 0",
            )
        )
    if _below(system["shared_memory_free_gib"], LOW_SHARED_GIB):
        found.append(
            _problem(
                f"Shared memory (/dev/shm) has only {system['shared_memory_free_gib']} GiB free, so loader "
                "workers die with a bus error: give the container more, or use no workers.",
                "workbench train ... DATALOADER.NUM_WORKERS 0",
            )
        )
    return found


def runs_on(capability: str, built_for: list[str]) -> bool:
    """Whether code for ``built_for`` (``sm_90``, ``compute_90``) runs on a GPU of this compute capability.

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


def _problem(sentence: str, command: str) -> Problem:
    return {"sentence": sentence, "command": command}


def _numbers(version: str) -> tuple[int, ...]:
    """(major, minor) of a version such as ``2.15.0+cu132`` or ``3.14rc1``."""
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


def _gpu(gpu: dict[str, Any]) -> str:
    free = "" if gpu["free_gib"] is None else f", {gpu['free_gib']} free"
    best = " (freest: MODEL.DEVICE cuda takes this one)" if gpu["freest"] else ""
    return f"{gpu['name']}, compute capability {gpu['capability']}, {gpu['memory_gib']} GiB{free}{best}"
