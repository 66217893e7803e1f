"""Hostile values, and ways to put them into files."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

HUGE = 10**30
DEEP: Any = None
for _ in range(200):
    DEEP = [DEEP]

# On a command line and in YAML, as Python would write them, between bars.
TEXTS = [
    *[
        r"-1",
        r"0",
        r"1",
        r"2.5",
        r"1e11",
        r"-1e11",
        r"1e-300",
        r"1e400",
        r"nan",
        r"inf",
        r"-inf",
        r"True",
        r"None",
        r"''",
        r"x",
        r"'\ud800'",
        r"'\x00'",
        r"../..",
        r"[]",
        r"[0]",
        r"[-1]",
        r"[None]",
        r"['x']",
        r"[1, 'x']",
        r"[nan]",
        r"[[1]]",
        r"{}",
        r"{'a': 1}",
        r"__import__('os')",
        r"1 if",
        r"res9",
        r"['res2', 'res2']",
        r"[3, 1, 2]",
        r"cuda:7",
    ],
    str(HUGE),
    "9" * 5000,
    "(" * 300,
    str([1] * 2000),
]
YAML_VALUES = [".nan", ".inf", "2020-01-01", "0o17", "~", "{a: 1}", "[[[1]]]", "!!binary aGk=", "&a [*a]"]

# In JSON.
THINGS: list[Any] = [
    *json.loads(
        r"""[null, true, false, -1, 0, 1, 2.5, 1e11, 1e308, -0.0, NaN, Infinity, "", "x", "1", "\ud800", "a\u0000b",
        "../../x", "<script>alert(1)</script>", [], [0], [null], ["x"], [-1, -1, -1, -1], [[1, 2], [3, 4]], {},
        {"a": 1}, [1e308, 1e308, 1e308, 1e308, 1e308, 1e308], [NaN, NaN, NaN, NaN, NaN, NaN], {"counts": [1]},
        {"size": [32, 32], "counts": "x"}]"""
    ),
    HUGE,
    10**400,
    "x" * 10_000,
    DEEP,
]


def shown(value: object, most: int = 40) -> str:
    """Return the start of a value's representation, in ASCII."""
    text = ascii(value) if not isinstance(value, int) or abs(value) < 10**100 else "10**400"
    return text if len(text) <= most else f"{text[:most]}..."


def places(content: Any, most: int = 2) -> Iterator[tuple[Any, ...]]:
    """Yield the way to every value of a JSON document; of lists the first ``most`` elements."""
    yield ()
    children: Any = ()
    if isinstance(content, dict):
        children = content.items()
    elif isinstance(content, list):
        children = list(enumerate(content))[:most]
    for key, value in children:
        for rest in places(value, most):
            yield (key, *rest)


def replaced(content: Any, place: tuple[Any, ...], value: Any) -> Any:
    """Return a copy of a JSON document with another value at ``place``; the key is gone where it is ``GONE``."""
    if not place:
        return {} if value is GONE else value
    first, *rest = place
    copy: Any = dict(content) if isinstance(content, dict) else list(content)
    if value is GONE and not rest:
        del copy[first]
    else:
        copy[first] = replaced(copy[first], tuple(rest), value)
    return copy


GONE = object()


def put_json(path: str, place: tuple[Any, ...], value: Any) -> Callable[[], None]:
    """Return a function that puts a value at a place of a JSON file."""

    def change() -> None:
        content = json.loads(Path(path).read_text())
        text = json.dumps(replaced(content, place, value))
        Path(path).write_text(text, encoding="utf-8", errors="surrogatepass")

    return change


def put_bytes(path: str, change: Callable[[bytes], bytes]) -> Callable[[], None]:
    """Return a function that changes the bytes of a file."""
    return lambda: Path(path).write_bytes(change(Path(path).read_bytes())) and None


def _flip(seed: int) -> Callable[[bytes], bytes]:
    def flip(content: bytes) -> bytes:
        chosen, changed = random.Random(seed), bytearray(content)
        for _ in range(chosen.choice((1, 1, 3, 20))):
            changed[chosen.randrange(len(changed))] ^= 1 << chosen.randrange(8)
        return bytes(changed)

    return flip


def _cut(share: float) -> Callable[[bytes], bytes]:
    return lambda content: content[: int(share * len(content))]


def _zero(seed: int) -> Callable[[bytes], bytes]:
    def zero(content: bytes) -> bytes:
        start = random.Random(seed).randrange(len(content))
        return content[:start] + b"\0" * min(64, len(content) - start) + content[start + 64 :]

    return zero


def _swap(seed: int) -> Callable[[bytes], bytes]:
    def swap(content: bytes) -> bytes:
        chosen = random.Random(seed)
        start, end = sorted(chosen.randrange(len(content)) for _ in range(2))
        return content[:start] + content[end:] + content[start:end]

    return swap


def damages(seeds: range) -> Iterator[tuple[str, Callable[[bytes], bytes]]]:
    """Yield names and functions that damage the bytes of a file: fixed ones, and four kinds for each seed."""
    yield "empty", lambda content: b""
    yield "binary", lambda content: bytes(range(256)) * 4
    yield "with a BOM", lambda content: b"\xef\xbb\xbf" + content
    yield "UTF-16", lambda content: content.decode("latin-1").encode("utf-16")
    yield "twice", lambda content: content * 2
    for share in (0.01, 0.5, 0.9, 0.999):
        yield f"cut at {share}", _cut(share)
    for seed in seeds:
        yield f"flipped, seed {seed}", _flip(seed)
        yield f"zeroed, seed {seed}", _zero(seed)
        yield f"swapped, seed {seed}", _swap(seed)


# What a file can be instead of itself.
def to_folder(path: str) -> Callable[[], None]:
    """Return a function that puts a folder in a file's place."""

    def change() -> None:
        Path(path).unlink()
        Path(path).mkdir()

    return change


def to_loop(path: str) -> Callable[[], None]:
    """Return a function that puts a link to itself in a file's place."""

    def change() -> None:
        Path(path).unlink()
        Path(path).symlink_to(Path(path).name)

    return change


def to_nothing(path: str) -> Callable[[], None]:
    """Return a function that removes a file."""
    return lambda: Path(path).unlink()
