"""Questions to the operating system: the processor, the cores this process may use, files and commands."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path

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
