"""Faults of processes: kills, stops, full disks, little memory, broken streams, two trainings in one place."""

from __future__ import annotations

import csv
import errno
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from tests.faults.harness import (
    ERROR,
    JARGON,
    MEMORY,
    Outcome,
    call_quietly,
    contents,
    fast_folder,
    run_forked,
    start_forked,
    wait_for,
)
from tests.faults.tables import RUN, SCORE
from tests.faults.workplace import CONFIG, PHOTO, TRAIN

Tried = Iterator[tuple[str, Outcome]]
_WRITES = ("open", "os.rename", "os.mkdir", "os.link")
_CHANGES = (*_WRITES, "os.remove", "os.rmdir")
NEW = "new"
STEPS = ("SOLVER.MAX_ITER", "5", "SOLVER.CHECKPOINT_PERIOD", "1", "TEST.EVAL_PERIOD", "2", "SOLVER.EMA_DECAY", "0.9")
TRAINING = ("train", "--config", CONFIG, "--output", NEW, *STEPS)
STOPS = [name for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGQUIT") if hasattr(signal, name)]
WRITERS: dict[str, Sequence[str]] = {
    "train": TRAINING,
    "eval": ("eval", "--ckpt", RUN, "TEST.MAX_DETS", "[1]"),
    "predict": ("predict", "--ckpt", RUN, "--output", "out", PHOTO),
    "report": ("report", RUN),
    "split": ("split", TRAIN, "--out", "parts", "--no-images"),
    "import": ("import", "exports/labelme", "imported"),
    "shapes": ("shapes", "--output", "made", "--train", "2", "--val", "1", "--test", "1", "--image-size", "32"),
    "init": ("init", TRAIN, "--out", "made.yaml"),
    "eval file": (*SCORE, "--output", "scores"),
}


class _Place:
    """A copy of the workplace in which several processes run one after the other, or at the same time."""

    def __init__(self, workplace: Path) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="faults-", dir=fast_folder())
        self.scratch = Path(self._folder.name)
        self.work = self.scratch / "work"
        shutil.copytree(workplace, self.work, symlinks=True)

    def __enter__(self) -> _Place:
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    def run(self, argv: Sequence[str], before: Callable[[], object] = bool, memory: int = MEMORY) -> int | None:
        """Run a command after ``before`` and return its exit code."""
        return run_forked(lambda: self._call(argv, before), self.work, memory)

    def start(self, argv: Sequence[str], name: str) -> int:
        """Start a command whose output goes to the folder ``name`` and return the process."""
        (self.scratch / name).mkdir()
        return start_forked(lambda: call_quietly(self.scratch / name, argv), self.work)

    def said(self, name: str = ".") -> str:
        """Return what the last command printed to stderr."""
        return (self.scratch / name / "stderr").read_text(errors="replace")

    def trained(self, run: str = NEW) -> dict[str, Any]:
        """Return what a training left that must not depend on its interruptions."""
        saved = self.work / run / "checkpoints"
        files = {name: content for name, content in contents(saved).items() if name.endswith(".safetensors")}
        state = torch.load(saved / "last" / "training_state.pt", weights_only=True)
        with (self.work / run / "metrics.csv").open() as file:
            rows = [
                {k: v for k, v in row.items() if "seconds" not in k and k != "peak_memory_mb"}
                for row in csv.DictReader(file)
            ]
        return {
            **{os.path.relpath(name, self.work): content for name, content in files.items()},
            "metrics.csv": rows,
            "state": repr(_plain(state)),
        }

    def _call(self, argv: Sequence[str], before: Callable[[], object]) -> int:
        before()
        return call_quietly(self.scratch, argv)


def kills(workplace: Path, seeds: range, short: bool) -> Tried:
    """SIGKILL at random moments, of time and of changes of files; the resumed run is the uninterrupted one."""
    changes, reference = _reference(workplace)
    chosen = random.Random(seeds.start)
    for number in range(4 if short else 50):
        if number % 2:
            at = chosen.randrange(changes)
            name, before = f"at change {at} of files", _at_change(at, lambda: os.kill(os.getpid(), signal.SIGKILL))
        else:
            seconds = chosen.uniform(0.02, 1.0)
            name, before = f"after {seconds:.3f} s of CPU", lambda seconds=seconds: _kill_after(seconds)
        yield name, _resumed(workplace, reference, before, (-signal.SIGKILL, -signal.SIGPROF, 0))


def stops(workplace: Path, seeds: range, short: bool) -> Tried:
    """Signals that ask a training to stop, at random changes of files."""
    changes, reference = _reference(workplace)
    chosen = random.Random(seeds.start)
    for number in range(2 if short else 25):
        name, at = STOPS[number % len(STOPS)], chosen.randrange(changes)
        sent = getattr(signal, name)
        before = _at_change(at, lambda sent=sent: signal.raise_signal(sent))
        # Before the first step there is nothing to save, and the signal ends the process as it ends any other.
        yield f"{name} at change {at} of files", _resumed(workplace, reference, before, (0, 2, -sent))


def _reference(workplace: Path) -> tuple[int, dict[str, Any]]:
    """Return how often an uninterrupted training changes files, and what it leaves."""
    with _Place(workplace) as place:
        return _count_changes(place, TRAINING), place.trained()


def _resumed(
    workplace: Path, reference: dict[str, Any], before: Callable[[], object], codes: tuple[int, ...]
) -> Outcome:
    """Interrupt a training, continue it, and compare what it left with ``reference``."""
    with _Place(workplace) as place:
        code = place.run(TRAINING, before)
        if code is None:
            return Outcome("hung")
        if code not in codes or (code == 2 and not _is_clear(place.said())):
            return Outcome("traceback", f"exit {code}: {place.said()[-300:]}")
        code = place.run(TRAINING)
        if code != 0:
            return Outcome("lost" if code else "hung", f"exit {code}: {place.said()[-300:]}")
        return _compare(place.trained(), reference)


def _compare(after: dict[str, Any], reference: dict[str, Any]) -> Outcome:
    differing = sorted(name for name in {*after, *reference} if after.get(name) != reference.get(name))
    return Outcome("lost", f"{', '.join(differing)} differ") if differing else Outcome("clear")


def full_disk(workplace: Path, seeds: range, short: bool) -> Tried:
    """Each command where the n-th change of files, or a file above a size, finds the disk full."""
    chosen = random.Random(seeds.start)
    for command, argv in WRITERS.items():
        with _Place(workplace) as place:
            changes = _count_changes(place, argv, _WRITES)
        numbers = chosen.sample(range(changes), min(changes, 1 if short else 12))
        ways = [(f"at change {at} of {changes}", _at_change(at, _raise_no_space, _WRITES)) for at in sorted(numbers)]
        # What the command says is written to a file as well, so the limit leaves room for that.
        sizes = (20_000,) if short else (4000, 8000, 20_000, 60_000, 150_000, 300_000)
        ways += [(f"files of {size} bytes at most", lambda size=size: _limit_files(size)) for size in sizes]
        for name, before in ways:
            with _Place(workplace) as place:
                kept = contents(*(place.work / name for name in ("shapes", f"{RUN}/checkpoints", "exports")))
                code = place.run(argv, before)
                lost = [path for path, content in kept.items() if Path(path).read_bytes() != content]
                if code is None:
                    outcome = Outcome("hung")
                elif lost:
                    outcome = Outcome("lost", ", ".join(lost[:3]))
                elif code not in (0, 2) or (code == 2 and not _is_clear(place.said())):
                    outcome = Outcome("traceback", f"exit {code}: {place.said()[-300:]}")
                elif place.run(argv) not in ((0,) if code or command == "train" else (0, 2)):  # the output is there
                    outcome = Outcome("lost", f"the same command, with room: {place.said()[-300:]}")
                else:
                    outcome = Outcome("clear")
            yield f"{command} {name}", outcome


def little_memory(workplace: Path, seeds: range, short: bool) -> Tried:
    """Each command with a few megabytes of memory."""
    for command, argv in WRITERS.items():
        for megabytes in (16,) if short else (1, 2, 4, 8, 12, 16, 24, 32, 64, 128, 256):
            with _Place(workplace) as place:
                code = place.run(argv, memory=megabytes * 2**20)
                if code is None:
                    outcome = Outcome("hung")
                elif code not in (0, 2) or (code == 2 and not _is_clear(place.said())):
                    outcome = Outcome("traceback", f"exit {code}: {place.said()[-300:]}")
                else:
                    outcome = Outcome("clear")
            yield f"{command} with {megabytes} MiB", outcome


def two_at_once(workplace: Path, seeds: range, short: bool) -> Tried:
    """Two trainings in one directory, and one that reads a checkpoint while it is replaced."""
    reference = _reference(workplace)[1]
    for number in range(1 if short else 8):
        with _Place(workplace) as place:
            first, second = (place.start(TRAINING, name) for name in "ab")
            codes = [wait_for(first), wait_for(second)]
            refused = [place.said(name) for name, code in zip("ab", codes, strict=True) if code == 2]
            if None in codes:
                outcome = Outcome("hung")
            elif codes not in ([0, 2], [2, 0], [0, 0]) or any("is being trained in" not in said for said in refused):
                outcome = Outcome("traceback", f"exits {codes}: {refused}")
            else:
                outcome = _compare(place.trained(), reference)
        yield f"two trainings, {number}", outcome
    for number in range(1 if short else 8):
        with _Place(workplace) as place:
            place.run(TRAINING)
            writer = place.start((*TRAINING[:5], "SOLVER.CHECKPOINT_PERIOD", "1", "SOLVER.MAX_ITER", "30"), "a")
            code = run_forked(lambda place=place, writer=writer: _read_until(place, writer), place.work)
            wait_for(writer)
            said = (place.scratch / "stderr").read_text() if (place.scratch / "stderr").exists() else ""
        yield f"read while replaced, {number}", Outcome("clear") if code == 0 else Outcome("lost", said[-300:])


def _read_until(place: _Place, writer: int) -> int:
    """Read a checkpoint until the process that replaces it ends."""
    from workbench.runs.checkpoint import load_checkpoint

    while Path(f"/proc/{writer}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z":
        try:
            load_checkpoint(f"{NEW}/checkpoints/last")
        except Exception as error:
            (place.scratch / "stderr").write_text(f"{type(error).__name__}: {error}")
            return 1
    return 0


def streams(workplace: Path, seeds: range, short: bool) -> Tried:
    """Closed, full and broken standard streams."""
    commands = {"train": TRAINING, "show": ("show", RUN), "eval": SCORE, "refused": ("show", "gone")}
    for command, argv in commands.items():
        for number, stream in ((1, "stdout"), (2, "stderr")):
            for kind in ("closed", "full", "broken pipe"):
                if short and (command, kind) not in (("train", "broken pipe"), ("show", "full"), ("refused", "closed")):
                    continue
                with _Place(workplace) as place:
                    code = run_forked(
                        lambda place=place, argv=argv, number=number, kind=kind: _call_with(place, argv, number, kind),
                        place.work,
                    )
                    said = place.said() if number == 1 else ""
                    wanted = (2,) if command == "refused" else (0, 1, 2) if number == 1 else (0,)
                    if code is None:
                        outcome = Outcome("hung")
                    elif code not in wanted or JARGON.search(said):
                        outcome = Outcome("traceback", f"exit {code}: {said[-300:]}")
                    elif command == "train" and not (place.work / NEW / "metrics.json").exists():
                        outcome = Outcome("lost", f"the training did not end: {said[-300:]}")
                    else:
                        outcome = Outcome("clear")
                yield f"{command}, {stream} {kind}", outcome


def _call_with(place: _Place, argv: Sequence[str], number: int, kind: str) -> int:
    """Run a command whose stdout (1) or stderr (2) is of a ``kind``."""
    from workbench import cli

    for other, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(place.scratch / name, os.O_WRONLY | os.O_CREAT), other)
    if kind == "closed":
        os.close(number)
    elif kind == "full":
        os.dup2(os.open("/dev/full", os.O_WRONLY), number)
    else:
        reader, writer = os.pipe()
        os.dup2(writer, number)
        os.close(reader)
    if kind != "closed":
        sys.stdout, sys.stderr = (open(other, "w", closefd=False) for other in (1, 2))  # noqa: SIM115
    return cli.main(list(argv))


def _is_clear(said: str) -> bool:
    sentences = [line for line in said.splitlines() if line.startswith(ERROR)]
    return len(sentences) == 1 and not JARGON.search(sentences[0]) and "Traceback" not in said


def _plain(value: Any) -> Any:
    """Return a training state with its tensors as lists, whose last bits ``repr`` shows."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return value.tolist() if torch.is_tensor(value) else value


# Changes of files


def _count_changes(place: _Place, argv: Sequence[str], events: Sequence[str] = _CHANGES) -> int:
    """Return how often a command changes files: opens one to write, renames, removes, makes a folder."""
    report = place.scratch / "changes"

    def before() -> None:
        count = [0]

        def note() -> None:
            count[0] += 1
            descriptor = os.open(report, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.write(descriptor, str(count[0]).encode())
            os.close(descriptor)

        _hook(note, events)

    place.run(argv, before)
    return int(report.read_text())


def _at_change(at: int, act: Callable[[], object], events: Sequence[str] = _CHANGES) -> Callable[[], object]:
    """Return a function that lets ``act`` be called at the ``at``-th change of files."""

    def before() -> None:
        left = [at]

        def note() -> None:
            left[0] -= 1
            if left[0] == -1:
                act()

        _hook(note, events)

    return before


def _hook(note: Callable[[], None], events: Sequence[str]) -> None:
    """Call ``note`` at each of the ``events``, but for those of ``note`` itself and of the output."""
    busy = [False]

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if busy[0] or event not in events:
            return
        if event == "open":
            path, _, flags = arguments
            writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR)
            if not writes or not isinstance(path, (str, bytes)) or os.path.basename(os.fsdecode(path)) in _OUTPUTS:
                return
        busy[0] = True
        try:
            note()
        finally:
            busy[0] = False

    sys.addaudithook(audit)


_OUTPUTS = ("stdout", "stderr", "null", "changes")


def _raise_no_space() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _limit_files(size: int) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def _kill_after(seconds: float) -> None:
    """End this process after seconds of CPU time, whatever it does."""
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, seconds)


GROUPS: dict[str, Callable[[Path, range, bool], Tried]] = {
    "kills": kills,
    "stops": stops,
    "full disk": full_disk,
    "memory": little_memory,
    "two at once": two_at_once,
    "streams": streams,
}
