"""Questions to the operating system: the processor, the cores this process may use, files and commands."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path
from typing import NamedTuple

import psutil

SIMD_FLAGS = ("avx", "avx2", "fma", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16", "asimd", "sve")


def cpu_name() -> str:
    """Return the processor's model name, or its architecture where the system does not tell."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def simd_flags() -> list[str]:
    """Return those of ``SIMD_FLAGS`` that the processor has; empty where the system does not tell."""
    flags = _cpuinfo("flags|Features").split()
    return [flag for flag in SIMD_FLAGS if flag in flags]


def usable_cores() -> int:
    """Return how many cores this process may use: in a container or batch job fewer than the machine has."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # A container's limit (cgroup v2) is time per period, which the affinity does not show.
    quota, _, period = read_text("/sys/fs/cgroup/cpu.max").strip().partition(" ")
    if quota.isdigit() and period.isdigit():
        cores = min(cores, max(1, int(quota) // int(period)))
    return cores


class Memory(NamedTuple):
    """Bytes of memory: ``free`` without swapping, and ``total`` with all swap space."""

    free: float
    total: float


def usable_memory() -> Memory:
    """Return the memory that this process may use: in a container or batch job less than the machine has."""
    memory, swap = psutil.virtual_memory(), psutil.swap_memory()
    free, total = memory.available, memory.total
    limit, used = (read_text(f"/sys/fs/cgroup/memory.{name}").strip() for name in ("max", "current"))
    if limit.isdigit() and used.isdigit() and int(limit) < total:
        # The group's file cache counts as used, and is given up when memory is short.
        cached = re.search(r"^inactive_file (\d+)$", read_text("/sys/fs/cgroup/memory.stat"), re.MULTILINE)
        total = int(limit)
        free = min(free, total - int(used) + (int(cached[1]) if cached else 0))
    return Memory(free, total + swap.total)


def memory_below_limit() -> int | None:
    """Return how many bytes the limit on this process's addresses (``ulimit -v``) leaves; None where there is none."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return None if limit == resource.RLIM_INFINITY else max(0, limit - psutil.Process().memory_info().vms)


def busy_cores(seconds: float = 0.3) -> float:
    """Return how many cores other processes keep busy, while this one sleeps for ``seconds``."""
    return psutil.cpu_percent(seconds) / 100 * (psutil.cpu_count() or 1)


def read_text(path: str) -> str:
    """Return the text of a file, or "" where it cannot be read."""
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


def run_quietly(*command: str, timeout: float = 20.0) -> str:
    """Return the standard output of a command, or "" if it is missing, fails or takes longer than ``timeout`` s."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, errors="replace")
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _cpuinfo(field: str) -> str:
    match = re.search(rf"^(?:{field})\s*:\s*(.+)$", read_text("/proc/cpuinfo"), re.MULTILINE)
    return match[1].strip() if match else ""
