"""JSON of the workbench's own, read with limits; and content of files and notebooks held against its declared types.

The types are dataclasses with annotations that pydantic reads, each beside the code that owns the file. Importing
pydantic takes a quarter of a second, so that commands which answer at once import this module where they need it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, Strict, TypeAdapter, ValidationError

from workbench.errors import WorkbenchError, errors_as, nearest, shown

T = TypeVar("T")
_DEPTH = 50
# Of a dataclass, as ``__pydantic_config__``: for files that a person writes. Without it unknown fields are ignored, as
# a later version may write more of them.
OWN: dict[str, Any] = {"extra": "forbid", "allow_inf_nan": False}


def _unicode(text: str) -> str:
    if "\0" in text or not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError("it must be text without null characters and halves of surrogate pairs")
    return text


# Without pydantic's conversions, such as "1" to 1, 1 to True and True to 1.0.
Text = Annotated[str, Strict(), AfterValidator(_unicode)]
Place = Annotated[Path, BeforeValidator(lambda value: _unicode(value) if isinstance(value, str) else value)]
Flag = Annotated[bool, Strict()]
Number = Annotated[float, Strict()]
Whole = Annotated[int, Strict(), Field(ge=-(2**63), lt=2**63)]
Count = Annotated[int, Strict(), Field(ge=0, lt=2**63)]
_WANTED = {
    "dataclass_type": "keys and values",
    "dict_type": "keys and values",
    "list_type": "a list",
    "tuple_type": "a list",
    "too_short": "not empty",
    "string_type": "text",
    "path_type": "a path",
    "int_type": "a whole number",
    "float_type": "a finite number",
    "bool_type": "true or false",
    "greater_than": "above {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than": "below {lt:g}",
    "less_than_equal": "at most {le:g}",
}


def read_json(path: Path, title: str) -> Any:
    """Return the content of a JSON file, UTF-8, nested at most 50 deep.

    Args:
        path: the file.
        title: begins the error's sentence, as in "the filter settings f.json".

    Raises:
        WorkbenchError: the file cannot be read, is no JSON, or exceeds a limit.
    """
    with errors_as(f"{title} cannot be read", OSError, ValueError):  # a ValueError: the path holds a null character
        content = path.read_bytes()
    with errors_as(f"{title} is not valid JSON, or was cut off", ValueError, RecursionError):
        value = json.loads(content.decode("utf-8-sig"))
    if not _within(value, _DEPTH):
        raise WorkbenchError(f"{title} is nested more than {_DEPTH} deep")
    return value


def _within(value: Any, depth: int) -> bool:
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return depth > 0 and all(_within(item, depth - 1) for item in items)


@lru_cache(maxsize=64)  # 30 ms each, and a checkpoint's description is read many times
def _adapter(kind: type) -> TypeAdapter:
    return TypeAdapter(kind)


def check_type(kind: type[T] | Any, value: Any, title: str, unknown: str = "key") -> T:
    """Return a value from outside as ``kind``, a dataclass or another type that pydantic reads.

    Args:
        kind: the type.
        value: plain content, as JSON and YAML hold it.
        title: begins the error's sentence.
        unknown: what the fields are, for the sentence.

    Raises:
        WorkbenchError: the value is not of that type. The sentence names the first field at fault, what it holds and
            what it should hold, and how many more faults there are.
    """
    checked = _adapter(kind) if isinstance(kind, type) else TypeAdapter(kind)
    try:
        return checked.validate_python(value)
    except ValidationError as error:
        faults = error.errors(include_url=False)
        known = _names(checked.json_schema()) if faults[0]["type"] == "unexpected_keyword_argument" else ()
        more = f" (the first of {len(faults)} faults)" if len(faults) > 1 else ""
        raise WorkbenchError(f"{title}: {_sentence(faults[0], known, unknown)}{more}") from None


def load_typed(kind: type[T] | Any, path: Path, title: str) -> T:
    """Return the content of a JSON file as ``kind``: :func:`read_json` and :func:`check_type`."""
    return check_type(kind, read_json(path, title), title)


def _sentence(fault: Mapping[str, Any], known: Iterable[str], unknown: str) -> str:
    location = fault["loc"]
    if fault["type"] == "missing":
        return f"the {unknown} {_place(location)} is missing"
    if fault["type"] == "unexpected_keyword_argument":
        inside = f" in {_place(location[:-1])}" if location[1:] else ""
        return f"unknown {unknown} {shown(location[-1])}{inside}{nearest(str(location[-1]), known)}"
    what = _place(location) or "the content"
    if "[key]" in location:  # of a mapping's key pydantic names the key and then itself
        what = f"a key of {_place(location[: location.index('[key]') - 1]) or 'the content'}"
    template = _WANTED.get(fault["type"])
    wanted = template and f"it must be {template.format_map(fault.get('ctx', {}))}"
    wanted = wanted or fault["msg"].removeprefix("Value error, ").replace("Input should be", "it must be")
    return f"{what} is {shown(fault['input'])}; {wanted}"


def _place(location: Iterable[str | int]) -> str:
    """Return the way to a field, as in ``subcategories.colour.threshold`` or ``overrides[3]``."""
    place = ""
    for part in location:
        text = str(part)
        text = text if text.replace(".", "").replace("_", "").isalnum() and text.isascii() else shown(part, 60)
        place += f"[{part}]" if isinstance(part, int) else f".{text}" if place else text
    return place


def _names(schema: Mapping[str, Any]) -> set[str]:
    """Return the names of all fields in a JSON schema."""
    parts = [schema, *schema.get("$defs", {}).values()]
    return {name for part in parts for name in part.get("properties", ())}
