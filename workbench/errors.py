"""The one exception a user is meant to read, and what its messages and the checks before them share."""

from __future__ import annotations

import difflib
import math
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

_NO_NUMBER = re.compile(
    r"(?:could not convert string to float|invalid literal for int\(\) with base \d+): (.*)", re.DOTALL
)

_LARGEST = sys.float_info.max  # a whole number in JSON may be larger than any float


class WorkbenchError(Exception):
    """Something the user can mend. The message is one plain sentence that names the file, key, image or
    annotation at fault; the command line prints it to stderr and exits with code 2."""

    printed_elsewhere = False  # in another process of the same training


@contextmanager
def errors_as(sentence: str, *kinds: type[Exception]) -> Iterator[None]:
    """Raise errors of ``kinds`` from the block as WorkbenchErrors: ``sentence``, a colon and the reason in one line."""
    try:
        yield
    except kinds as error:
        raise WorkbenchError(f"{sentence}: {reason_of(error)}") from error


def reason_of(error: Exception) -> str:
    """Return why something failed, in one line that needs no knowledge of Python.

    It has at most 300 characters, but for a WorkbenchError, which is its own sentence.
    """
    if isinstance(error, WorkbenchError):
        return str(error)
    reason = getattr(error, "strerror", None) or str(error)
    if isinstance(error, KeyError) and error.args:
        reason = f"there is no {shown(error.args[0])}"
    elif isinstance(error, (AssertionError, AttributeError, IndexError, RecursionError, TypeError)):
        reason = "a value is missing, or is not of the kind that belongs there"
    elif number := _NO_NUMBER.fullmatch(reason):
        reason = f"{number[1]} is no number"
    return " ".join(reason.split())[:300]


def nearest(word: str, known: Iterable[str], cutoff: float = 0.5) -> str:
    """Return ``" (did you mean 'red'?)"`` for the known word nearest to ``word``, nothing where none is as similar as
    ``cutoff`` (0 to 1)."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=cutoff)
    return f" (did you mean {close[0]!r}?)" if close else ""


def counted(number: int, noun: str, plural: str = "") -> str:
    """Return a number and what it counts, such as ``1 image`` and ``1,200 images``; ``plural`` where it has no s."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def is_number(value: object) -> bool:
    """Return whether a value read from a file is a finite number; true and false are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -_LARGEST <= value <= _LARGEST


def all_numbers(values: Iterable[object]) -> bool:
    """Return whether :func:`is_number` is true of each value, in a fraction of the time."""
    values = list(values)
    if not set(map(type, values)) <= {int, float}:
        return all(map(is_number, values))
    return not values or (-_LARGEST <= min(values) <= max(values) <= _LARGEST and not any(map(math.isnan, values)))


def kind_of(value: object) -> str:
    """Return what a value of JSON is called: "null", "text", "a number", "a list" or "an object"."""
    if isinstance(value, bool):
        return "true or false"
    kinds = {type(None): "null", str: "text", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return kinds.get(type(value), type(value).__name__)


def shown(value: object, most: int = 120) -> str:
    """Return the representation of a value from outside in one line, of at most ``most`` characters."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # Python spells out no number of more than 4300 digits
        return f"a {type(value).__name__} too long to show"
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= most else f"{text[: most - 20]}... ({len(text)} characters)"
