"""What a dataset holds, in a few characters: two datasets with one fingerprint hold the same."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from workbench.data.coco import CocoDataset
from workbench.errors import errors_as


def data_fingerprint(dataset: CocoDataset) -> dict[str, Any]:
    """Return the fingerprint of a dataset: of its content, whatever its files are called and wherever they lie.

    Returns:
        ``annotations``, the SHA-256 of its annotation files; ``pictures``, that of the name and the size in bytes of
        each image file that is used; and the counts ``images`` and ``objects``, for messages.

    Raises:
        WorkbenchError: a file cannot be read.
    """
    content = hashlib.sha256()
    for entry in dataset.entries:
        with errors_as(f"The annotation file {entry.annotations} cannot be read", OSError):
            content.update(hashlib.sha256(Path(entry.annotations).read_bytes()).digest())
    return {
        "annotations": content.hexdigest(),
        "pictures": digest([[item["name"], _size(item["file_name"])] for item in dataset.dicts]),
        "images": len(dataset),
        "objects": dataset.objects,
    }


def digest(value: Mapping | Sequence) -> str:
    """Return the SHA-256 of plain data, in hexadecimal."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def _size(file: str) -> int | None:
    try:
        return os.stat(file).st_size
    except OSError:  # what reads the image says so
        return None
