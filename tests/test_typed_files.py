"""Files of the workbench's own: whatever is wrong with one is a sentence that names it and the field."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tests.runs.test_checkpoint import save
from workbench.errors import WorkbenchError
from workbench.evaluation.evaluate import save_metrics
from workbench.evaluation.filters import FilterSettings
from workbench.runs.checkpoint import load_checkpoint
from workbench.runs.continuing import check_data
from workbench.runs.directory import RunDirectory, load_metrics
from workbench.runs.report import write_report
from workbench.typed_files import OWN, Count, Flag, Number, Place, Text, Whole, check_type, load_typed
from workbench.workflows.sweep import load_sweep


@pytest.fixture
def young_run(tmp_path: Path) -> Path:
    """A run directory with a checkpoint and scores."""
    save(tmp_path / "checkpoints" / "last")
    scores = {"AP": 1.5, "AP50": None}
    evaluation = {"dataset": "d", "changed": {"SEED": 3}, "fingerprint": {}, "predictions": "0"}
    save_metrics(
        tmp_path / "metrics.json",
        {
            "segm": scores,
            "bbox": scores,
            "per_category": {"disc": None},
            "subcategories": {"colour": scores},
            "joint": None,
            "no_object_fraction": 0.5,
            "images": 3,
            "instances": 4,
            "rank_by": "main",
            "seconds": 1.5,
            "dataset": "d",
            "checkpoint": "c",
            "evaluation": evaluation,
        },
    )
    return tmp_path


@dataclass(frozen=True)
class _Inner:
    __pydantic_config__: ClassVar = OWN
    size: Number = 1.0


@dataclass(frozen=True)
class _Outer:
    __pydantic_config__: ClassVar = OWN
    name: Text
    count: Count = 0
    number: Whole = 0
    on: Flag = False
    place: Place = Path("x")
    parts: dict[Text, _Inner] = field(default_factory=dict)
    words: tuple[Text, ...] = ()


def test_what_fits_is_read() -> None:
    value = {"name": "é", "count": 3, "on": True, "place": "a/b", "parts": {"p": {"size": 2}}, "words": ["a"]}
    assert check_type(_Outer, value, "f") == _Outer("é", 3, 0, True, Path("a/b"), {"p": _Inner(2.0)}, ("a",))


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ([], "the content is []; it must be keys and values"),
        ({}, "the key name is missing"),
        ({"nam": "a"}, "the key name is missing (the first of 2 faults)"),
        ({"name": "a", "wrods": []}, "unknown key 'wrods' (did you mean 'words'?)"),
        ({"name": "a", "parts": {"p": {"sise": 1}}}, "unknown key 'sise' in parts.p (did you mean 'size'?)"),
        ({"name": 1}, "name is 1; it must be text"),
        (
            {"name": "\ud800"},
            r"name is '\ud800'; it must be text without null characters and halves of",
        ),
        ({"name": "a", "count": -1}, "count is -1; it must be at least 0"),
        ({"name": "a", "count": "1"}, "count is '1'; it must be a whole number"),
        ({"name": "a", "count": True}, "count is True; it must be a whole number"),
        ({"name": "a", "count": 1.0}, "count is 1.0; it must be a whole number"),
        ({"name": "a", "number": 2**63}, "number is 9223372036854775808; it must be below 9.22337e+18"),
        ({"name": "a", "on": 1}, "on is 1; it must be true or false"),
        ({"name": "a", "place": 3}, "place is 3; it must be a path"),
        (
            {"name": "a", "place": "a\0"},
            r"place is 'a\x00'; it must be text without null characters",
        ),
        ({"name": "a", "words": "ab"}, "words is 'ab'; it must be a list"),
        ({"name": "a", "words": ["a", None]}, "words[1] is None; it must be text"),
        ({"name": "a", "parts": {3: {}}}, "a key of parts is 3; it must be text"),
        ({"name": "a", "parts": {"p q": 3}}, "parts.'p q' is 3; it must be keys and values"),
        ({"name": "a", "parts": {"p": {"size": float("nan")}}}, "parts.p.size is nan; it must be a finite number"),
    ],
)
def test_the_first_fault_is_a_sentence(value: object, sentence: str) -> None:
    with pytest.raises(WorkbenchError, match="^the file f: ") as error:
        check_type(_Outer, value, "the file f")
    assert str(error.value).startswith(f"the file f: {sentence}")


_GARBLED: list[bytes | None] = [b"", b"{", b"[]", b"3", b"null", b"\xff\xfe", b"[" * 100_000, b"9" * 5000, b"\0", None]
_GARBLED += [b'{"a": ' * 60 + b"1" + b"}" * 60]


def _checkpoint(run: Path) -> Any:
    return load_checkpoint(run / "checkpoints" / "last")


def _data(run: Path) -> Any:
    return check_data(RunDirectory(run), {"train": None, "selection": None, "report": None}, accept=False)


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("metrics.json", load_metrics),
        ("checkpoints/last/model.json", _checkpoint),
        ("data.json", _data),
        ("sweep.yaml", lambda run: load_sweep(run / "sweep.yaml")),
        ("f.json", lambda run: load_typed(dict[str, _Outer], run / "f.json", f"the file {run / 'f.json'}")),
        ("03_train.ipynb", write_report),
    ],
)
@pytest.mark.parametrize("content", _GARBLED)
def test_a_garbled_file_is_one_sentence(
    name: str, read: Callable[[Path], Any], content: bytes | None, young_run: Path
) -> None:
    path = young_run / name
    path.unlink(missing_ok=True)
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(WorkbenchError, match=re.escape(name.rpartition("/")[2])) as error:
        read(young_run)
    assert "\n" not in str(error.value) and len(str(error.value)) < 1000


@pytest.mark.parametrize("content", [b"", b"[]", b'{"a": 1}', b"\xff", b"[" * 100_000])
def test_filters_that_are_garbled_are_one_sentence(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "f.json").write_bytes(content)
    with pytest.raises(WorkbenchError, match="f.json"):
        FilterSettings.load(tmp_path / "f.json")


_ODD = [None, True, -1, 1.5, 2**64, float("nan"), "x", "\ud800", [], [1], {}, {"x": 1}]


@pytest.mark.parametrize("value", _ODD, ids=repr)
def test_no_field_of_metrics_or_model_json_gives_more_than_a_sentence(value: object, young_run: Path) -> None:
    for name, read in (("metrics.json", load_metrics), ("checkpoints/last/model.json", _checkpoint)):
        path = young_run / name
        content = json.loads(path.read_text())
        for key in content:
            path.write_text(json.dumps({**content, key: value}))
            try:
                read(young_run)
            except WorkbenchError as error:
                assert path.name in str(error) and "\n" not in str(error)
        path.write_text(json.dumps(content))
        read(young_run)
