"""Signals that end a training: noted at once, acted on between two steps, so that a checkpoint can be written."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from workbench.data.loaders import STOP_SIGNALS
from workbench.errors import WorkbenchError
from workbench.training.distributed import world_size


class Interrupted(WorkbenchError):
    """Training was asked to stop and has saved its state."""


class StopRequest:
    """A context in which the first of ``STOP_SIGNALS`` sets ``name``; a second Ctrl-C raises KeyboardInterrupt.

    A signal that the process ignores from its start, such as SIGHUP under ``nohup``, stays ignored. Signals are caught
    in the main thread only; in others it does nothing.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self._before: dict[int, object] = {}
        self._raising = False

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Raise KeyboardInterrupt for a stop at once; with several processes the others would wait forever."""
        self._raising = world_size() == 1
        try:
            yield
        finally:
            self._raising = False

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN or number in (signal.SIGINT, signal.SIGTERM):
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _note(self, number: int, frame: FrameType | None) -> None:
        again = self.name is not None and number == signal.SIGINT
        self.name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        if again or self._raising:
            raise KeyboardInterrupt
