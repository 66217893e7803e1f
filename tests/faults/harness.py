"""Runs commands on a copy of a small workplace that a case has broken, each in a process of its own, and judges them.

A case is forked from a process that has imported everything, so it costs what the command costs. It cannot hurt the
next one: its memory and its time are limited, and what it writes is thrown away.
"""

from __future__ import annotations

import gc
import json
import os
import re
import resource
import select
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

KINDS = ("clear", "traceback", "silent", "lost", "hung")
ERROR = "workbench: error: "
SECONDS = 180  # the longest case of a healthy workbench takes some ten, on a machine with nothing else to do
MEMORY = 3 * 2**30  # bytes that a case may have on top of what the imports take

# Words of Python, numpy and torch that tell a user nothing.
JARGON = re.compile(
    r"Traceback|NoneType|has no attribute|not subscriptable|unhashable|index out of range|object is not|unsupported "
    r"operand|positional argument|keyword argument|must be real number|argument must be|cannot convert float|"
    r"could not convert string|invalid literal|not supported between|expected str|Errno|\b[A-Z]\w+(Error|Exception)\b"
)


class Outcome(NamedTuple):
    """How a case ended: one of ``KINDS``, and why where it is not clear."""

    kind: str
    reason: str = ""


@dataclass(frozen=True)
class Case:
    """Something broken, and the commands that meet it.

    place, value: what is broken and how; together the name of the case.
    argv: command lines, run in turn; the exit code of the last counts.
    names: the sentence of a refusal holds one of them.
    expected: "refused" (exit 2 with a sentence), "works" (exit 0) or "either".
    break_it: changes the workplace, the working directory, before the commands.
    wrong: called after exit 0 with what was printed; returns what is wrong with the result, "" if nothing.
    kept: files and folders of the workplace that no command may change; None for all that ``break_it`` left.
    """

    place: str
    value: str
    argv: Sequence[Sequence[str]]
    names: Sequence[str]
    expected: str = "either"
    break_it: Callable[[], None] = lambda: None
    wrong: Callable[[str], str] = lambda printed: ""
    kept: Sequence[str] | None = None
    memory: int = MEMORY
    environment: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.place}: {self.value}"


def attempt(case: Case, workplace: Path) -> Outcome:
    """Run a case on a copy of ``workplace`` in a forked process and judge it."""
    with tempfile.TemporaryDirectory(prefix="faults-", dir=fast_folder()) as folder:
        scratch = Path(folder)
        shutil.copytree(workplace, scratch / "work", symlinks=True)
        code = run_forked(lambda: _run_case(case, scratch), scratch / "work", case.memory)
        if code is None:
            return Outcome("hung", f"no end within {SECONDS} s")
        said = (scratch / "stderr").read_text(errors="replace") if (scratch / "stderr").exists() else ""
        reason = (scratch / "reason").read_text() if (scratch / "reason").exists() else ""
        return _judge(case, code, said, reason)


def run_forked(function: Callable[[], int], folder: Path, memory: int = MEMORY, seconds: float = SECONDS) -> int | None:
    """Return the exit code of ``function`` in a forked process in ``folder``; a signal is negative, None a hang."""
    process = start_forked(function, folder, memory)
    return wait_for(process, seconds)


def start_forked(function: Callable[[], int], folder: Path, memory: int = MEMORY) -> int:
    """Start ``function`` in a forked process in ``folder`` and return its id; its exit code is what it returns."""
    sys.stdout.flush()
    sys.stderr.flush()
    process = os.fork()
    if process:
        return process
    code = 99
    try:
        os.setsid()
        gc.disable()  # objects of the parent stay shared
        os.chdir(folder)
        tempfile.tempdir = None
        os.environ["TMPDIR"] = str(folder.parent)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        _limit_memory(memory)
        code = function()
    except BaseException as error:  # of the harness itself
        print(f"the harness failed: {type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr)
    finally:
        with suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def wait_for(process: int, seconds: float = SECONDS) -> int | None:
    """Return the exit code of a process of :func:`start_forked`; kill its group and return None after ``seconds``."""
    handle = os.pidfd_open(process)
    try:
        ended = select.select([handle], [], [], seconds)[0]
    finally:
        os.close(handle)
    if not ended:
        os.killpg(process, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process, signal.SIGKILL)  # workers that it left
    return code if ended else None


def call_quietly(scratch: Path, argv: Sequence[str]) -> int:
    """Run one command in this process, its output in files of ``scratch``, and return its exit code."""
    from workbench import cli

    for name, number in (("stdout", 1), ("stderr", 2)):
        file = os.open(scratch / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)
        os.close(file)
    return cli.main([str(word) for word in argv])


def contents(*places: str | Path) -> dict[str, bytes]:
    """Return every file below ``places`` with its content."""
    files: dict[str, bytes] = {}
    for place in map(Path, places):
        for path in [place] if place.is_file() else place.rglob("*"):
            if path.is_file():
                files[str(path)] = path.read_bytes()
    return files


def _run_case(case: Case, scratch: Path) -> int:
    os.environ.update(case.environment)
    case.break_it()
    before = contents(*(["."] if case.kept is None else case.kept))
    code = 0
    for argv in case.argv:
        code = call_quietly(scratch, argv)
    reason = ""
    changed = [name for name, content in before.items() if not _holds(name, content)]
    if changed:
        reason = f"lost {', '.join(sorted(changed)[:3])}"
    elif code == 0:
        sys.stdout.flush()
        reason = case.wrong((scratch / "stdout").read_text(errors="replace"))
    if reason:
        (scratch / "reason").write_text(reason)
    return code


def _holds(name: str, content: bytes) -> bool:
    try:
        now = Path(name).read_bytes()
    except OSError:
        return False
    return now == content or (Path(name).name == "metrics.json" and _untimed(now) == _untimed(content))


def _untimed(content: bytes) -> object:
    """Return what a metrics.json says, but for how long it took: the same evaluation may be made again."""
    try:
        return {**json.loads(content), "seconds": None}
    except (ValueError, TypeError):
        return content


def _judge(case: Case, code: int, said: str, reason: str) -> Outcome:
    lines = [line for line in re.split(r"[\r\n]+", said) if line.strip()]
    sentences = [line for line in lines if line.startswith(ERROR)]
    last = sentences[-1] if sentences else (lines or [""])[-1]
    if reason.startswith("lost "):
        return Outcome("lost", reason)
    if code == 99:
        return Outcome("traceback", f"the harness: {last}")
    if code not in (0, 2):
        return Outcome("traceback", f"exit {code}: {last[:300]}")
    if "Traceback (most recent" in said:
        return Outcome("traceback", f"exit {code} with a traceback: {last[:300]}")
    if code == 0:
        if case.expected == "refused":
            return Outcome("silent", "accepted")
        return Outcome("silent", reason) if reason else Outcome("clear")
    if case.expected == "works":
        return Outcome("silent", f"refused: {last[:300]}")
    if len(sentences) != 1:
        return Outcome("traceback", f"{len(sentences)} sentences: {said[-300:]}")
    if JARGON.search(last):
        return Outcome("traceback", f"jargon: {last[:400]}")
    if not any(name in last for name in case.names):
        return Outcome("traceback", f"names none of {list(case.names)[:4]}: {last[:300]}")
    return Outcome("clear")


def _limit_memory(memory: int) -> None:
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + memory, used + memory))


def fast_folder() -> str | None:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


class Table:
    """Counts of the outcomes, a row for each kind of place."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, int]] = {}
        self.faults: list[str] = []

    def add(self, case: object, group: str, outcome: Outcome) -> None:
        """Count an outcome and keep what is not clear."""
        row = self.rows.setdefault(group, dict.fromkeys(("tried", *KINDS), 0))
        row["tried"] += 1
        row[outcome.kind] += 1
        if outcome.kind != "clear":
            self.faults.append(f"{outcome.kind:<9} {group}: {case}: {outcome.reason}")
            print(self.faults[-1], flush=True)

    def text(self) -> str:
        """Return the table, its sum last."""
        columns = ("tried", *KINDS)
        total = {name: sum(row[name] for row in self.rows.values()) for name in columns}
        lines = [f"{'':<14}" + "".join(f"{name:>10}" for name in columns)]
        for group, row in [*self.rows.items(), ("all", total)]:
            lines.append(f"{group:<14}" + "".join(f"{row[name]:>10}" for name in columns))
        return "\n".join(lines)
