"""The standard streams of a process, and the file that a defect of the workbench leaves."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import TextIO, TypeVar

T = TypeVar("T")
PACKAGES = ("workbench", "torch", "torchvision", "accelerate", "numpy", "hotcoco", "pycocotools", "papermill")


def open_streams() -> None:
    """Make stdin, stdout and stderr usable, whatever the process was started with.

    A closed descriptor is opened on the null device, before a file of the work takes its number. A character that
    stdout's encoding lacks is printed as an escape, as Python does on stderr.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
        if getattr(sys, name) is None:
            mode, errors = ("r", "strict") if number == 0 else ("w", "backslashreplace")
            setattr(sys, name, open(number, mode, encoding="utf-8", errors=errors, closefd=False))  # noqa: SIM115
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")


def discard(stream: TextIO) -> None:
    """Send to the null device what is still written to ``stream``, its buffer and the flush at exit included."""
    with suppress(OSError, ValueError):  # the stream has no descriptor
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


def flush_streams() -> None:
    """Flush stdout and stderr; discard the one that cannot be written, about which the interpreter would complain."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            discard(stream)


def print_line(text: str) -> None:
    """Print a line of a log to stdout, above tqdm's bar.

    A stdout that cannot be written (a broken pipe, a full disk) is discarded with a sentence on stderr.
    """
    from tqdm import tqdm

    stream = sys.stdout
    if stream is None:
        return
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        tqdm.write(text.encode(encoding, "backslashreplace").decode(encoding), file=stream)
        stream.flush()
    except (OSError, ValueError) as error:
        discard(stream)
        reason = getattr(error, "strerror", None) or error
        with suppress(OSError, ValueError):
            print(f"workbench: stdout cannot be written ({reason}); the training goes on", file=sys.stderr)


def in_notebook() -> bool:
    """Return whether this process is the kernel of a notebook."""
    return "ipykernel" in sys.modules


def again() -> str:
    """Return how what was stopped is started again: "the same command", or in a notebook the notebook."""
    return "running the notebook again" if in_notebook() else "the same command"


def notebook_line() -> Callable[[str], None] | None:
    """Return what writes a line of output in a notebook, and writes over it when it is called again; else None.

    A saved notebook then holds the last state of a progress, in one line.
    """
    if not in_notebook():
        return None
    from IPython import display

    handle = display.display(display.Pretty(""), display_id=True)
    return None if handle is None else lambda text: handle.update(display.Pretty(text))


def follow(items: Iterable[T], what: str, unit: str, *, shown: bool = True) -> Iterator[T]:
    """Yield ``items`` and show how many were: as a bar in a terminal, in a notebook as one line.

    ``unit`` is what one of them is called, such as "batch"; with ``shown`` False nothing is shown.
    """
    write = notebook_line() if shown else None
    if write is None:
        from tqdm import tqdm

        yield from tqdm(items, desc=what, unit=unit, disable=None if shown else True)
        return
    began = written = time.monotonic()
    total = f" of {len(items)}" if hasattr(items, "__len__") else ""
    count = 0
    for count, item in enumerate(items, start=1):
        yield item
        if time.monotonic() - written >= 1:
            written = time.monotonic()
            write(f"{what}: {count}{total}, {written - began:.0f} s")
    plural = {"batch": "batches"}.get(unit, f"{unit}s") if count != 1 else unit
    write(f"{what}: {count} {plural} in {time.monotonic() - began:.1f} s")


def report_defect(error: BaseException, command: Sequence[str]) -> str:
    """Write command, versions and traceback of ``error`` to a new temporary file; return the sentence about it."""
    versions = [f"Python {platform.python_version()}, {platform.platform()}"]
    for name in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions.append(f"{name} {importlib.metadata.version(name)}")
    text = "\n".join([shlex.join(command), "", *versions, "", *traceback.format_exception(error)])
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:200].rstrip(": ")
    sentence = f"this is a defect of the workbench ({reason})"
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="workbench-defect-", suffix=".txt", delete=False, encoding="utf-8", errors="backslashreplace"
        ) as file:
            file.write(text)
    except OSError as failure:
        return f"{sentence}; its traceback cannot be written ({failure.strerror}), --debug shows it."
    return f"{sentence}; {file.name} holds the traceback, the versions and the command, and --debug shows it."
