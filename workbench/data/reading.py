"""Reading a COCO instances JSON without trusting it."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from workbench.data.formats.detect import COCO, COCO_RESULTS, detect_format
from workbench.errors import WorkbenchError, all_numbers, is_number

_LISTS = ("images", "annotations", "categories")
_SHARED_FLOATS = 1 << 20
_HEAD = 1 << 16  # characters that tell a file's format


class _SharedFloats(dict):
    """Numbers by their text. Coordinates repeat: one object for each value takes a fifth of the memory and half of the
    time."""

    def __missing__(self, text: str) -> float:
        value = float(text)
        if len(self) < _SHARED_FLOATS:
            self[text] = value
        return value


@contextmanager
def collector_paused() -> Iterator[None]:
    """Pause the garbage collector: among millions of new lists without a cycle it would take half of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@collector_paused()
def read_json(path: Path | str) -> Any:
    """Return the content of a JSON file.

    WorkbenchError, in one sentence, where the file is absent, empty, not UTF-8 or not JSON; text of another annotation
    format is named as such.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise WorkbenchError(f"There is no annotation file {path}.") from None
    except OSError as error:
        raise WorkbenchError(f"The annotation file {path} cannot be read: {error.strerror or error}.") from error
    except UnicodeDecodeError:
        raise WorkbenchError(f"The annotation file {path} is not UTF-8 text.") from None
    if not text or text.isspace():
        raise WorkbenchError(f"The annotation file {path} is empty.")
    try:
        return json.loads(text, parse_float=_SharedFloats().__getitem__)
    except (ValueError, RecursionError) as error:
        refuse_other_formats(path, text[:_HEAD])
        where = f" (line {error.lineno}, column {error.colno})" if isinstance(error, json.JSONDecodeError) else ""
        said = error.msg if isinstance(error, json.JSONDecodeError) else error
        raise WorkbenchError(f"The annotation file {path} is not valid JSON: {said}{where}.") from None


def read_coco_json(path: Path | str) -> dict:
    """Return the content of a COCO instances file: a dict whose ``images``, ``annotations`` and ``categories`` are
    lists.

    What is inside the lists is not looked at: that is :func:`workbench.data.checking.check`.

    Raises:
        WorkbenchError: as :func:`read_json`, or the content is not of that form; a file of another annotation format is
            named as such.
    """
    content = read_json(path)
    wrong = [key for key in _LISTS if not (isinstance(content, dict) and isinstance(content.get(key), list))]
    if wrong:
        refuse_other_formats(path, content)
        if not isinstance(content, dict):
            raise WorkbenchError(f"The annotation file {path} is not in COCO's form: its top level is no object.")
        raise WorkbenchError(
            f"The annotation file {path} is not in COCO's form: it has no list of {' or '.join(wrong)}."
        )
    return content


def refuse_other_file(path: Path | str) -> None:
    """Raise WorkbenchError where a file that is no JSON holds the annotations of another program."""
    try:
        with open(path, encoding="utf-8-sig", errors="replace") as file:
            head = file.read(_HEAD)
    except OSError:
        return
    refuse_other_formats(path, head)


def refuse_other_formats(path: Path | str, content: object) -> None:
    """Raise WorkbenchError where the content of a file, parsed or its beginning as text, is of another format."""
    name = detect_format(content)
    if name == COCO_RESULTS:
        raise WorkbenchError(
            f"{path} is a COCO results file, which holds predictions; `workbench eval --predictions` scores it."
        )
    if name not in (None, COCO):
        raise WorkbenchError(f"{path} is a {name} file, not a COCO JSON; `workbench import {path} OUT` reads it.")


def is_integer(value: object) -> bool:
    """Return whether a value read from a file is a whole number of at most 64 bits; true and false are none."""
    return type(value) is int and -(2**63) <= value < 2**63


def is_box(value: object) -> bool:
    """Return whether a value read from a file is [x, y, width, height], finite numbers, no size or area below 0."""
    return (
        isinstance(value, (list, tuple))
        and len(value) == 4
        and all(map(is_number, value))
        and value[2] >= 0 <= value[3]
        and is_number(value[2] * value[3])
    )


def all_boxes(values: Sequence[object]) -> bool:
    """Return whether :func:`is_box` is true of each value, in a fraction of the time."""
    if not (set(map(type, values)) <= {list} and set(map(len, values)) <= {4} and all_numbers(chain(*values))):
        return all(map(is_box, values))
    sizes = np.array(values, dtype=np.float64).reshape(-1, 4)[:, 2:]
    with np.errstate(over="ignore"):
        return bool((sizes >= 0).all() and np.isfinite(sizes.prod(axis=1)).all())


def image_path(images: Path | str, file_name: str) -> str | None:
    """Path of an image named in a dataset file, or None where the name leads out of the ``images`` folder.

    The comparison is of names, links are not followed: a folder of links to images is the user's own, a
    name with ``..`` in it comes from whoever wrote the JSON.
    """
    folder = os.path.abspath(images)
    path = os.path.normpath(os.path.join(folder, file_name))
    if "\0" in file_name or not path.startswith(os.path.join(folder, "")):
        return None
    return path
