"""TensorBoard's event file, written row by row in the thread of the training.

torch's SummaryWriter writes from a second thread, where a full disk ends in a traceback, and takes ten times as long
for the fifty numbers of a step.
"""

from __future__ import annotations

import io
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams.summary_v2 import hparams_pb
from tensorboard.summary.writer.record_writer import RecordWriter

_CONSTANT = ("images", "instances")  # of the validation set, which no step changes


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
        """Append the numbers of ``row`` at its ``step``, constants aside; OSError where the disk is full."""
        values = [
            Summary.Value(tag=f"losses/{name}" if "loss" in name else name, simple_value=value)
            for name, value in row.items()
            if name not in ("step", *_CONSTANT) and isinstance(value, (int, float))
        ]
        self._append(Event(wall_time=time.time(), step=row["step"], summary=Summary(value=values)))

    def write_settings(self, settings: Mapping[str, bool | float | str], run: str) -> None:
        """Append the settings of ``run``, which TensorBoard lists beside those of others under HPARAMS."""
        self._append(Event(wall_time=time.time(), summary=hparams_pb(dict(settings), trial_id=run)))

    def write_picture(self, name: str, picture: np.ndarray, step: int) -> None:
        """Append an (H, W, 3) uint8 picture; OSError where the disk is full."""
        data = io.BytesIO()
        Image.fromarray(picture).save(data, "JPEG", quality=90)
        height, width = picture.shape[:2]
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=data.getvalue())
        summary = Summary(value=[Summary.Value(tag=name, image=image)])
        self._append(Event(wall_time=time.time(), step=step, summary=summary))

    def close(self) -> None:
        self._file.close()

    def _append(self, event: Any) -> None:
        self._records.write(event.SerializeToString())
        self._file.flush()
