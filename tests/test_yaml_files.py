"""YAML from outside: values as written, and one sentence for all else."""

from __future__ import annotations

from pathlib import Path

import pytest

from workbench.config import get_cfg, load_config, to_yaml
from workbench.errors import WorkbenchError
from workbench.yaml_files import read_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("{a: 1, b: [1.5, true, null, x]}", {"a": 1, "b": [1.5, True, None, "x"]}),
        ("2024-01-31", "2024-01-31"),
        ("[012, 1:30, 0x1F, 1_000, -7, 0]", ["012", "1:30", 31, 1000, -7, 0]),
        ("", None),
        ("\ufeffa: ä", {"a": "ä"}),
    ],
)
def test_values_are_read_as_they_are_written(text: str, value: object, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text, encoding="utf-8")
    assert read_yaml(tmp_path / "a.yaml", "The file a.yaml") == value


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 60 + "]" * 60, "nested more than 50 deep"),
        ("[" * 100_000, "nested more than 50 deep"),
        ("a: &a [1]\nb: [*a, *a]", "aliases"),
        ("a: &a [*a]", "aliases"),
        ("9" * 5000, "more than 100 digits"),
        ("!!int x", "x"),
        ("!!int ''", "not readable YAML"),
        ("!!bool x", "x"),
        ("!!float x", "x"),
        ("!!timestamp x", "timestamp"),
        ("!!python/object/apply:os.system ['true']", "no code is evaluated"),
        ("{[1]: 2}", "a key is a list or a mapping"),
        ("a: 1\n---\nb: 2", "single document"),
        ("a: \x00", "not readable YAML"),
        (" " * (4 * 2**20 + 1), "larger than 4 MiB"),
    ],
)
def test_what_is_beyond_a_limit_is_one_sentence(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(WorkbenchError, match=f"^The file a.yaml .*{said}") as refused:
        read_yaml(tmp_path / "a.yaml", "The file a.yaml")
    assert len(str(refused.value)) < 400 and "\n" not in str(refused.value)


def test_a_file_that_is_not_text_or_not_there(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(b"\xff\xfe\x00")
    for path, said in (
        (tmp_path / "a.yaml", "not readable YAML"),
        (tmp_path, "cannot be read"),
        (tmp_path / "b", "No such"),
    ):
        with pytest.raises(WorkbenchError, match=said):
            read_yaml(path, f"The file {path}")


def test_a_config_whose_keys_share_a_list_is_written_without_aliases(tmp_path: Path) -> None:
    cfg = get_cfg()
    cfg.MODEL.SMALL_RESNET.DEPTHS = cfg.MODEL.SMALL_RESNET.WIDTHS
    (tmp_path / "config.yaml").write_text(to_yaml(cfg))
    assert load_config(tmp_path / "config.yaml") == cfg
