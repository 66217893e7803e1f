"""Atomic writes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from workbench.files import file_name, replacing, sync, write_json, write_text


def test_text_and_json_are_written_as_they_are(tmp_path: Path) -> None:
    write_text(tmp_path / "made" / "a.csv", ["a,b\n", "é\r\n"])
    assert (tmp_path / "made" / "a.csv").read_bytes() == "a,b\né\r\n".encode()
    write_json(tmp_path / "a.json", {"name": "é", "empty": float("nan")}, indent=1)
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{\n "name": "é",\n "empty": NaN\n}\n'


def test_a_reader_sees_the_old_file_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "old")
    with replacing(path) as draft:
        draft.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_an_error_leaves_the_old_file_alone(tmp_path: Path, error: type[BaseException]) -> None:
    write_json(tmp_path / "file", 1)
    with pytest.raises(error), replacing(tmp_path / "file") as draft:
        draft.write_text("half")
        raise error
    assert json.loads((tmp_path / "file").read_text()) == 1 and os.listdir(tmp_path) == ["file"]


def test_what_json_cannot_hold_leaves_the_old_file_alone(tmp_path: Path) -> None:
    write_json(tmp_path / "file", 1)
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "file", float("nan"), allow_nan=False)
    assert (tmp_path / "file").read_text() == "1\n"


HOSTILE = ["../../x", "/etc/passwd", "..", ".", "", ".hidden", "a/b", "a\\b", "a\0b", "a\nb", "\udc80"]
HOSTILE += ["x" * 10_000, "茶" * 999]


@pytest.mark.parametrize("name", HOSTILE)
def test_the_name_of_a_file_stays_in_its_folder(tmp_path: Path, name: str) -> None:
    write_text(tmp_path / f"{file_name(name)}.txt", "text")
    (written,) = tmp_path.iterdir()
    assert written.read_text() == "text" and not written.name.startswith(".")


def test_names_of_files_are_kept_where_they_can_be_and_never_shared() -> None:
    plain = ["colour", "confusion_main category", "Größe", "a-b_c.1"]
    assert list(map(file_name, plain)) == plain
    names = [*HOSTILE, "a_b", "x" * 9_999, "茶" * 998]
    assert len(set(map(file_name, names))) == len(names)


def test_half_a_surrogate_pair_survives_in_json(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"file": "a\udc80.png", "tea": "茶"})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"file": "a\udc80.png", "tea": "茶"}


def test_a_folder_is_not_synced_on_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")
    opened = []
    plain = os.open
    monkeypatch.setattr(
        "workbench.files.os.open", lambda path, flags: opened.append((path, flags)) or plain(path, flags)
    )
    monkeypatch.setattr("workbench.files.os.name", "nt")
    sync(tmp_path)  # Windows cannot open one
    sync(tmp_path / "file")
    monkeypatch.undo()
    assert opened == [(tmp_path / "file", os.O_RDWR)]
