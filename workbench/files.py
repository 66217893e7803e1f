"""Names of files, and atomic writes of text and JSON, and of anything else through :func:`replacing`."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_LONGEST_NAME = 160  # bytes; file systems allow 255 with suffixes and the names of drafts


def file_name(name: str) -> str:
    """Return the name of a file, without a suffix, for a name that data gave.

    This is the one place where such a name becomes that of a file. Letters, digits, blanks and ``-_.`` stay, and a name
    of these is returned as it is. Any other character becomes ``_`` and a long name is cut; a hash then follows, which
    keeps different names apart.
    """
    kept = re.sub(r"[^\w .-]", "_", name)
    kept = re.sub(r"^[. ]|[. ]$", "_", kept).encode("utf-8", "replace")[:_LONGEST_NAME].decode("utf-8", "ignore")
    if kept == name and name:
        return name
    return f"{kept}_{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"


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

    Lone surrogates, which names of files that are not UTF-8 hold, are written as JSON and Python escape them.

    Raises:
        OSError: the disk is full or not writable.
    """
    with replacing(path) as draft, draft.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        file.writelines([text] if isinstance(text, str) else text)


def write_json(path: Path, value: Any, **options: Any) -> None:
    """Replace a file by ``value`` as JSON; ``options`` are those of ``json.dumps``. Errors as :func:`write_text`."""
    write_text(path, json.dumps(value, ensure_ascii=False, **options) + "\n")


def cache_folder() -> Path:
    """Return $WORKBENCH_CACHE, else ``workbench`` in the user's cache; it may not exist."""
    chosen = os.environ.get("WORKBENCH_CACHE")
    if chosen:
        return Path(chosen)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "workbench"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "workbench"


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk. Windows cannot wait for a folder."""
    if os.name == "nt" and path.is_dir():
        return
    # Windows refuses to sync what is open for reading only.
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
