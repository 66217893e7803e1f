"""TensorBoard's event file, written row by row in the thread of the training.

torch's SummaryWriter writes from a second thread, where a full disk ends in a traceback, and takes ten times as long
for the fifty numbers of a step.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter


class EventFile:
    """A new ``events.out.tfevents.*`` in ``directory``, which replaces the events of older ones after ``step``."""

    def __init__(self, directory: Path, step: int) -> None:
        number = len(list(directory.glob("events.out.tfevents.*")))
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}.{number}"
        self._file = (directory / name).open("wb")
        self._records = RecordWriter(self._file)
        self._append(Event(wall_time=time.time(), file_version="brain.Event:2"))
        if step:
            self._append(Event(wall_time=time.time(), step=step + 1, session_log=SessionLog(status=SessionLog.START)))

    def write(self, row: Mapping[str, Any]) -> None:
        """Append the numbers of ``row`` at its ``step``; OSError where the disk is full."""
        values = [
            Summary.Value(tag=f"losses/{name}" if "loss" in name else name, simple_value=value)
            for name, value in row.items()
            if name != "step" and isinstance(value, (int, float))
        ]
        self._append(Event(wall_time=time.time(), step=row["step"], summary=Summary(value=values)))

    def close(self) -> None:
        self._file.close()

    def _append(self, event: Any) -> None:
        self._records.write(event.SerializeToString())
        self._file.flush()
