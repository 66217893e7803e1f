"""One run, one training: a lock on the run directory, held while it is written to."""

from __future__ import annotations

import json
import os
import socket
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from types import TracebackType

from filelock import FileLock, Timeout

from workbench.errors import WorkbenchError, errors_as
from workbench.files import write_json


class RunLock:
    """The lock of a run directory, which the system releases when the process dies.

    ``.lock`` is what is locked; ``.lock.json`` says who holds it: process id, host and start.
    """

    def __init__(self, run: Path) -> None:
        self.run, self.holder = run, run / ".lock.json"
        self._lock = FileLock(run / ".lock")

    def acquire(self) -> RunLock:
        """Take the lock; WorkbenchError naming the holder where another process has it."""
        with errors_as(f"OUTPUT_DIR {self.run} cannot be written", OSError):
            self.run.mkdir(parents=True, exist_ok=True)
            try:
                self._lock.acquire(blocking=False)
            except Timeout:
                raise WorkbenchError(
                    f"OUTPUT_DIR {self.run} is being trained in by {self._describe_holder()}; wait for its end, or "
                    "choose another OUTPUT_DIR"
                ) from None
            since = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
            write_json(self.holder, {"pid": os.getpid(), "host": socket.gethostname(), "since": since})
        return self

    def release(self) -> None:
        """Give the lock back if it is held."""
        if self._lock.is_locked:
            with suppress(OSError):  # the file only serves a message
                self.holder.unlink(missing_ok=True)
            self._lock.release()

    def __enter__(self) -> RunLock:
        return self.acquire()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.release()

    def _describe_holder(self) -> str:
        try:
            holder = json.loads(self.holder.read_text(encoding="utf-8"))
            return f"process {holder['pid']} on {holder['host']} since {holder['since']}"
        except (
            OSError,
            ValueError,
            KeyError,
            TypeError,
            RecursionError,
        ):  # it was released, or is being written, at this moment
            return "another process"
