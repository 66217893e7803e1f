"""Atomic writes of text and JSON, and of anything else through :func:`replacing`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path beside ``path`` to write to, and rename it to ``path`` at the end.

    A reader sees the old file or the new one, never a part, and so does a machine that lost its power. After an
    error the old file is left and the new one removed. Missing folders are made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")  # two processes may write the same file
    try:
        yield draft
        sync(draft)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def write_text(path: Path, text: str | Iterable[str]) -> None:
    """Replace a file by ``text``, or by its pieces in turn. UTF-8; line ends stay as they are.

    Raises:
        OSError: the disk is full or not writable.
    """
    with replacing(path) as draft, draft.open("w", encoding="utf-8", newline="") as file:
        file.writelines([text] if isinstance(text, str) else text)


def write_json(path: Path, value: Any, **options: Any) -> None:
    """Replace a file by ``value`` as JSON; ``options`` are those of ``json.dumps``. Errors as :func:`write_text`."""
    write_text(path, json.dumps(value, ensure_ascii=False, **options) + "\n")


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
