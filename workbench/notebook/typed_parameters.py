"""The parameters of each notebook: their types and ranges, checked by one call at its top.

Defaults and meanings are in the notebook's parameter cell.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field

from workbench.errors import WorkbenchError
from workbench.notebook.display import show_errors_as_sentences
from workbench.typed_files import OWN, Flag, Number, Text, Whole, check_type


def _written(value: Any) -> Any:
    """Return a path, or a number, for which papermill takes the text 2024, as text."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return str(value) if number or isinstance(value, os.PathLike) else value


def _named(value: Any) -> Any:
    several = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(name, str) and name for name in map(_written, several)):
        raise ValueError("it must be text, or a list of texts")
    return [_written(name) for name in value] if isinstance(value, list) else _written(value)


_Text = Annotated[Text, BeforeValidator(_written)]
_Name = Annotated[_Text, Field(min_length=1)]
_Texts = list[Annotated[str, BeforeValidator(str)]]  # config values are text, whatever YAML takes them for
_Share = Annotated[Number, Field(ge=0, le=1)]
_Size = Annotated[Whole, Field(ge=32, le=8192)]
_Position = Annotated[Whole, Field(ge=0, le=10_000_000)]
_Some = Annotated[Whole, Field(ge=1, le=100_000)]


class _Parameters:
    __pydantic_config__: ClassVar = OWN


@dataclass(frozen=True)
class _Environment(_Parameters):
    output: _Name
    device: _Name
    hide_all_but: _Text


@dataclass(frozen=True)
class _Surgery(_Parameters):
    weights: _Name
    image: _Text | None
    output: _Name
    size: _Size


@dataclass(frozen=True)
class _Train(_Parameters):
    config: _Name
    output: _Name
    overrides: _Texts
    host: _Name
    resume: Flag
    samples: _Some
    imports: list[_Name]


@dataclass(frozen=True)
class _Eval(_Parameters):
    ckpt: _Name
    dataset: _Text | None
    output: _Text | None
    max_images: _Some | None
    overrides: _Texts
    score_threshold: _Share | None
    compare: _Text | None
    images: _Some
    imports: list[_Name]


@dataclass(frozen=True)
class _Queries(_Parameters):
    ckpt: _Name
    compare: list[_Name]
    dataset: _Text | None
    output: _Text | None
    max_images: _Some | None
    overlap_iou: _Share
    score_threshold: _Share | None
    counts: Annotated[list[_Some], Field(min_length=1)]
    repeats: _Some
    imports: list[_Name]


@dataclass(frozen=True)
class _Visualize(_Parameters):
    ckpt: _Name
    dataset: Annotated[Any, BeforeValidator(_named)]
    output: _Text | None
    overrides: _Texts
    num_images: _Some
    images: list[Whole] | None
    order: _Name
    compare: _Text | None
    imports: list[_Name]
    settings: _Text | None
    score: _Share | None
    main_score: _Share | None
    categories: list[_Text] | None
    subcategories: dict[Text, Any] | None  # checked with the filters
    min_area: Annotated[Number, Field(ge=0)] | None
    nms: _Name | None
    nms_iou: _Share | None


@dataclass(frozen=True)
class _Inside(_Parameters):
    ckpt: _Name
    compare: list[_Name]
    overrides: _Texts
    output: _Text | None
    images: _Some
    image: _Position
    test_image: _Position
    depth: _Some
    imports: list[_Name]


@dataclass(frozen=True)
class _Baselines(_Parameters):
    configs: list[_Name]
    runs: list[_Name]
    overrides: _Texts
    dataset: _Text | None
    output: _Text | None
    images: _Some
    score_threshold: _Share | None
    imports: list[_Name]


NOTEBOOKS: dict[str, type] = {
    "01_environment": _Environment,
    "02_backbone_surgery": _Surgery,
    "03_train": _Train,
    "04_eval": _Eval,
    "05_query_analysis": _Queries,
    "06_visualize": _Visualize,
    "07_inside": _Inside,
    "08_baselines": _Baselines,
}


def parameters(name: str, variables: dict[str, Any]) -> None:
    """Check the parameters of a notebook, and write them back in the types that it expects.

    Args:
        name: the notebook's, without its suffix.
        variables: the notebook's ``globals()``.

    Raises:
        WorkbenchError: names the first parameter of a wrong type or range, what it holds and what it should hold.
    """
    show_errors_as_sentences()
    kind, title = NOTEBOOKS[name], f"The parameters of {name}"
    given = {field.name: variables[field.name] for field in fields(kind) if field.name in variables}
    try:
        checked = check_type(kind, given, title, "parameter")
    except WorkbenchError as error:
        hint = "; papermill takes lists with -y, as in -y '{imports: [a.py]}'" if "must be a list" in str(error) else ""
        raise WorkbenchError(f"{error}{hint}") from None
    variables.update(vars(checked))
