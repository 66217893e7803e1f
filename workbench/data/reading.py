"""Reading a COCO instances JSON without trusting it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from workbench.errors import WorkbenchError


def read_json(path: Path | str) -> Any:
    """Return the content of a JSON file.

    WorkbenchError, in one sentence, where the file is absent, empty, not UTF-8 or not JSON.
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
    if not text.strip():
        raise WorkbenchError(f"The annotation file {path} is empty.")
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise WorkbenchError(
            f"The annotation file {path} is not valid JSON: {error.msg} (line {error.lineno}, column {error.colno})."
        ) from None
    except (ValueError, RecursionError) as error:
        raise WorkbenchError(f"The annotation file {path} is not valid JSON: {error}.") from None


def read_coco_json(path: Path | str) -> dict:
    """The content of a COCO instances file: a dict whose ``images``, ``annotations`` and ``categories`` are
    lists.

    WorkbenchError, in one sentence, where the file is absent, empty, not JSON or not of that form. What is
    inside the lists is not looked at: that is :func:`workbench.data.validate.validate`.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise WorkbenchError(f"The annotation file {path} is not in COCO's form: its top level is no object.")
    wrong = [key for key in ("images", "annotations", "categories") if not isinstance(content.get(key), list)]
    if wrong:
        raise WorkbenchError(
            f"The annotation file {path} is not in COCO's form: it has no list of {' or '.join(wrong)}."
        )
    return content


def is_integer(value: object) -> bool:
    """Return whether a value read from a file is a whole number of at most 64 bits; true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63


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
