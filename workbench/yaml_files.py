"""YAML from outside, read with limits on size, depth and numbers; the one place."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from workbench.errors import WorkbenchError

_BYTES = 4 * 2**20
_DEPTH = 50
_DIGITS = 100
_TAG = "tag:yaml.org,2002:"
# The one expression in Mask2Former's published configs: the shares of an edge, by tenths.
_EDGES = re.compile(r"\[int\(x \* 0\.1 \* (\d{1,5})\) for x in range\((\d{1,3}), (\d{1,3})\)\]")


def read_yaml(path: Path, title: str) -> Any:
    """Return the content of a YAML file: mappings, lists, text, numbers, booleans and None.

    Dates stay text, and so do whole numbers with a leading zero or colons, which YAML 1.1 takes for octal and
    sexagesimal ones. Anchors and aliases are refused, since a few lines of them can stand for any amount of data.

    Args:
        path: the file, UTF-8.
        title: begins the error's sentence, as in "The catalog data/catalog.yaml".

    Raises:
        WorkbenchError: the file cannot be read, is no YAML, or exceeds a limit.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_BYTES + 1)
    except (OSError, ValueError) as error:  # a ValueError: the path holds a null character
        raise WorkbenchError(f"{title} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if len(content) > _BYTES:
        raise WorkbenchError(f"{title} is larger than {_BYTES // 2**20} MiB, which no such file needs")
    try:
        return yaml.load(content.decode("utf-8"), _Loader)
    except (yaml.YAMLError, ValueError, LookupError) as error:  # "!!int x" is a ValueError, "!!bool x" a KeyError
        text = " ".join(str(error).split())[:300]
        hint = "; no code is evaluated: write the value out" if f"{_TAG}python" in text else ""
        raise WorkbenchError(f"{title} is not readable YAML: {text}{hint}") from None


class _Loader(yaml.SafeLoader):
    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            raise yaml.MarkedYAMLError(
                problem="anchors and aliases are not read: write the value out", problem_mark=event.start_mark
            )
        self.depth += 1
        if self.depth > _DEPTH:
            raise yaml.MarkedYAMLError(
                problem=f"lists and mappings are nested more than {_DEPTH} deep", problem_mark=event.start_mark
            )
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_scalar(self, node: yaml.ScalarNode) -> str:
        value = super().construct_scalar(node)
        if re.search("[\ud800-\udfff]", value):  # an escape may name one; no file and no path can hold it
            raise yaml.MarkedYAMLError(problem="half of a character", problem_mark=node.start_mark)
        return value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key is a list or a mapping", problem_mark=key.start_mark)
        return super().construct_mapping(node, deep)

    def read_int(self, node: yaml.ScalarNode) -> int:
        if len(node.value) > _DIGITS:
            raise yaml.MarkedYAMLError(problem=f"a number of more than {_DIGITS} digits", problem_mark=node.start_mark)
        return self.construct_yaml_int(node)

    def read_edges(self, node: yaml.Node) -> list[int]:
        """Return the list that ``[int(x * 0.1 * EDGE) for x in range(FIRST, END)]`` stands for, unevaluated."""
        values = self.construct_sequence(node) if isinstance(node, yaml.SequenceNode) else []
        match = _EDGES.fullmatch(values[0]) if len(values) == 1 and isinstance(values[0], str) else None
        if match is None:
            return self.construct_undefined(node)
        edge, first, end = map(int, match.groups())
        return [int(x * 0.1 * edge) for x in range(first, end)]


_Loader.yaml_constructors = {
    tag: construct for tag, construct in yaml.SafeLoader.yaml_constructors.items() if tag != f"{_TAG}timestamp"
}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.removeprefix(_TAG) in ("bool", "float", "null")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_constructor(f"{_TAG}int", _Loader.read_int)
_Loader.add_constructor(f"{_TAG}python/object/apply:eval", _Loader.read_edges)
_Loader.add_implicit_resolver(
    f"{_TAG}int", re.compile(r"[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F_]+|0b[01_]+)$"), list("-+0123456789")
)
