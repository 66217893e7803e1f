"""Ctrl-C and SIGTERM: noticed at once, obeyed between two steps, so that a checkpoint can be written."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from workbench.errors import WorkbenchError
from workbench.training.distributed import world_size


class Interrupted(WorkbenchError):
    """Training was asked to stop and has saved its state."""


class StopRequest:
    """Turns the first Ctrl-C or SIGTERM within it into ``requested``; a second Ctrl-C stops at once.

    Signals can be caught in the main thread only; elsewhere it does nothing.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self._before: dict[int, object] = {}
        self._raising = False

    @property
    def requested(self) -> bool:
        return self.name is not None

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Within it, a stop raises KeyboardInterrupt at once, unless that left other processes waiting."""
        self._raising = world_size() == 1
        try:
            yield
        finally:
            self._raising = False

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _note(self, number: int, frame: FrameType | None) -> None:
        again = self.name is not None and number == signal.SIGINT
        self.name = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
        if again or self._raising:
            raise KeyboardInterrupt
