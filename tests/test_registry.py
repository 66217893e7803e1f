"""Parts of the user's own: registered, imported when asked for, recorded, and never imported by a file."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from workbench import registry
from workbench.cli import main
from workbench.config import keys_without_effect, load_config
from workbench.data.mapper import build_mapper
from workbench.errors import WorkbenchError
from workbench.models import build_model
from workbench.registry import BACKBONES, MAPPERS, MODELS, Part, Registry, check_parts, import_parts, imported_parts
from workbench.runs.checkpoint import load_model, save_checkpoint
from workbench.runs.directory import RunDirectory, read_metrics

ROOT = Path(__file__).parents[1]
BACKBONE = """
from workbench.models.backbones import SmallResNet
from workbench.registry import BACKBONES

@BACKBONES.register("narrow")
def build_narrow(cfg, pretrained):
    return SmallResNet(widths=(8, 8, 8, 8))
"""


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Each test starts, in its own folder, like a process that has imported nothing of the user's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_imported", {})
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # a file rewritten within a second is read again
    assert build_mapper and build_model  # their modules have registered the built-in parts
    for kind in (BACKBONES, MODELS, MAPPERS):
        monkeypatch.setattr(kind, "_entries", dict(kind._entries))
    yield
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


def _forget(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    """As in a new process."""
    monkeypatch.setattr(registry, "_imported", {})
    BACKBONES._entries.pop("narrow", None)
    sys.modules.pop(module, None)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_name_is_registered_once() -> None:
    kinds = Registry("MODEL.KIND")

    @kinds.register("one", "first")
    def build() -> int:
        return 1

    assert kinds["one"] is kinds["first"] is build and list(kinds) == ["one", "first"]

    @kinds.register()
    def other() -> int:
        return 2

    assert kinds["other"] is other
    with pytest.raises(WorkbenchError, match=r"other cannot be registered as MODEL.KIND 'one': .*build has that name"):
        kinds.register("one")(other)
    assert kinds["one"] is build

    def build_again() -> int:
        return 3

    build_again.__qualname__ = build.__qualname__  # a notebook cell that is run again
    kinds.register("one")(build_again)
    assert kinds["one"] is build_again


def test_an_unknown_name_lists_the_known_and_the_nearest() -> None:
    kinds = Registry("MODEL.KIND")
    kinds.register("small_resnet")(dict)
    kinds.register("large_resnet")(list)
    with pytest.raises(WorkbenchError) as error:
        kinds["smal_resnet"]
    assert "MODEL.KIND is 'smal_resnet' (did you mean 'small_resnet'?)" in str(error.value)
    assert "small_resnet, large_resnet" in str(error.value) and "--import" in str(error.value)


def test_a_file_is_imported_once_and_again_when_it_changes(tmp_path: Path) -> None:
    file = tmp_path / "parts" / "mine.py"
    file.parent.mkdir()
    (file.parent / "neighbour.py").write_text("WIDTH = 8\n")
    count = "import builtins, neighbour\nbuiltins.times_imported = getattr(builtins, 'times_imported', 0) + 1\n"
    file.write_text(count)
    import builtins

    import_parts(["parts/mine.py"])
    import_parts([str(file)])
    assert builtins.times_imported == 1
    assert imported_parts() == [Part("parts/mine.py", _sha256(file))]
    file.write_text(count + "builtins.times_imported += 10\n")
    import_parts(["parts/mine.py"])
    assert builtins.times_imported == 12
    assert imported_parts() == [Part("parts/mine.py", _sha256(file))]
    del builtins.times_imported


def test_a_module_is_imported_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "my_package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "parts.py").write_text(BACKBONE)
    monkeypatch.syspath_prepend(tmp_path)
    import_parts(["my_package.parts"])
    assert "narrow" in BACKBONES
    assert imported_parts() == [Part("my_package.parts", _sha256(package / "parts.py"))]


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [
        ("nowhere.py", None, "--import nowhere.py: there is no such file"),
        ("no_such_package.parts", None, "there is no such module"),
        ("mine", "", "there is no such module; did you mean mine.py?"),
        ("json.py", "", "another module is called json; rename the file"),
        ("mine.py", "\n\n1 / 0\n", "mine.py, line 3 cannot be imported: ZeroDivisionError: division by zero"),
        ("mine.py", "def (", "mine.py cannot be imported: SyntaxError: invalid syntax (mine.py, line 1)"),
        ("mine.py", BACKBONE.replace('"narrow"', '"build_resnet_backbone"'), "build_narrow cannot be registered as"),
    ],
)
def test_what_cannot_be_imported_is_one_sentence(
    name: str, code: str | None, said: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    if code is not None:
        (tmp_path / f"{name.removesuffix('.py')}.py").write_text(code)
    assert main(["train", "--config", "c.yaml", "--import", name]) == 2
    assert said in capsys.readouterr().err
    assert imported_parts() == []


def test_a_run_with_an_import_is_recorded_and_asks_for_it(
    tiny_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, run = tmp_path / "narrow_parts.py", RunDirectory(tmp_path / "run")
    file.write_text(BACKBONE)
    argv = ["train", "--config", str(tiny_config), "--output", "run", "MODEL.BACKBONE.NAME", "narrow"]
    assert main([*argv, "--import", "narrow_parts.py"]) == 0
    recorded = [{"name": "narrow_parts.py", "sha256": _sha256(file)}]
    assert json.loads(run.imports.read_text()) == recorded
    for checkpoint in (run.last, run.best):
        assert json.loads((checkpoint / "model.json").read_text())["imports"] == recorded
    assert f"narrow_parts.py, sha256 {_sha256(file)}" in run.log.read_text()

    _forget(monkeypatch, "narrow_parts")
    capsys.readouterr()
    asked = f"was made with parts of narrow_parts.py (sha256 {_sha256(file)}): pass --import narrow_parts.py\n"
    assert main(["eval", "--ckpt", "run"]) == 2 and capsys.readouterr().err.endswith(asked)
    pictures = str(tiny_config)  # not reached
    assert main(["predict", "--ckpt", "run", "--output", "out", pictures]) == 2
    assert capsys.readouterr().err.endswith(asked)
    assert main([*argv, "SOLVER.MAX_ITER", "4"]) == 2 and capsys.readouterr().err.endswith(asked)

    os.renames(file, tmp_path / "elsewhere" / "renamed.py")  # the same code under another name
    assert main(["eval", "--ckpt", "run", "--import", "elsewhere/renamed.py"]) == 0


def test_a_changed_file_is_warned_of_with_both_hashes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "mine.py"
    file.write_text("A = 1\n")
    import_parts(["mine.py"])
    recorded, before = imported_parts(), _sha256(file)
    with caplog.at_level(logging.WARNING):
        check_parts(recorded, "checkpoint c")
        assert not caplog.records
        _forget(monkeypatch, "mine")
        file.write_text("A = 2\n")
        import_parts(["mine.py"])
        check_parts(recorded, "checkpoint c")
    (record,) = caplog.records
    assert before in record.getMessage() and _sha256(file) in record.getMessage()


def test_nothing_is_imported_because_a_checkpoint_or_config_names_it(
    tiny_run: Path, tiny_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Names of importable files in every place of a checkpoint and a config that could lead to an import."""
    marker = tmp_path / "imported"
    (tmp_path / "evil.py").write_text(f"open({str(marker)!r}, 'w')\n")
    monkeypatch.syspath_prepend(tmp_path)
    copy = shutil.copytree(tiny_run, tmp_path / "run")
    for directory in (copy / "checkpoints" / "best", copy / "checkpoints" / "last"):
        description = json.loads((directory / "model.json").read_text())
        description["imports"] = [{"name": name, "sha256": "0" * 64} for name in ("evil.py", "evil")]
        (directory / "model.json").write_text(json.dumps(description))
    (copy / "imports.json").write_text(json.dumps(description["imports"]))
    with pytest.raises(WorkbenchError, match="--import evil.py --import evil$"):
        load_model(copy)
    assert main(["eval", "--ckpt", str(copy)]) == 2
    config = yaml.safe_load((copy / "config.yaml").read_text())
    config["OUTPUT_DIR"] = str(copy)
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    assert main(["train", "--config", "c.yaml"]) == 2
    assert "pass --import evil.py" in capsys.readouterr().err

    for key in ("MODEL.BACKBONE.NAME", "MODEL.META_ARCHITECTURE", "INPUT.DATASET_MAPPER_NAME"):
        for name in ("evil", "evil.py", "./evil.py", "evil.build"):
            argv = ["train", "--config", str(tiny_config), "--output", f"{key}{name.replace('/', '')}", key, name]
            assert main(argv) == 2
            assert f"config key {key} is {name!r}" in capsys.readouterr().err
    for key in ("imports", "IMPORTS", "MODEL.IMPORTS"):
        (tmp_path / "c.yaml").write_text(f"{key}: [evil.py]\n")
        assert main(["train", "--config", "c.yaml"]) == 2
        assert f"unknown config key {key}" in capsys.readouterr().err
    assert not marker.exists() and "evil" not in sys.modules


@pytest.mark.parametrize("garbled", [[1], [{"name": "x"}], {"name": "x"}, 5, ["x"]])
def test_a_garbled_list_of_imports_is_named(garbled: object, tiny_run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_run / "checkpoints" / "best", tmp_path / "c")
    description = json.loads((copy / "model.json").read_text())
    (copy / "model.json").write_text(json.dumps(description | {"imports": garbled}))
    with pytest.raises(WorkbenchError, match="model.json: .*imports"):
        load_model(copy)


def test_a_checkpoint_without_imports_needs_none(tiny_run: Path, tmp_path: Path) -> None:
    model, checkpoint = load_model(tiny_run)
    assert checkpoint.imports == []
    config = json.loads((checkpoint.path / "model.json").read_text())["config"]
    place = save_checkpoint(tmp_path / "c", model, config=config, vocabulary=checkpoint.vocabulary, step=0)
    description = json.loads((place / "model.json").read_text())
    del description["imports"]  # as older checkpoints are
    (place / "model.json").write_text(json.dumps(description))
    assert load_model(place)[1].imports == []


EXAMPLES = dict(
    re.findall(r"```python\n# (\S+\.py)\n(.*?)```", (ROOT / "docs/extending.md").read_text(encoding="utf-8"), re.DOTALL)
)


@pytest.mark.parametrize(
    ("name", "settings", "weight"),
    [
        ("my_backbone.py", ["MODEL.BACKBONE.NAME", "patches"], "backbone.stages.0.weight"),
        ("my_model.py", ["MODEL.META_ARCHITECTURE", "PooledQueries"], "queries"),
        ("my_loss.py", ["MODEL.META_ARCHITECTURE", "Mask2FormerArea"], None),
        ("my_mapper.py", ["INPUT.DATASET_MAPPER_NAME", "noisy", "DATALOADER.NUM_WORKERS", "1"], None),
    ],
)
def test_the_documented_examples_train_and_evaluate(
    name: str,
    settings: list[str],
    weight: str | None,
    tiny_config: Path,
    tiny_run: Path,
    shapes_root: Path,
    tmp_path: Path,
) -> None:
    """docs/extending.md, each example as the whole file that it is, on the command line."""
    (tmp_path / name).write_text(EXAMPLES[name])
    imported = ["--import", name]
    assert main(["train", "--config", str(tiny_config), "--output", "run", *imported, *settings]) == 0
    rows, plain = (read_metrics(run / "metrics.csv") for run in (tmp_path / "run", tiny_run))
    assert len(rows) == 4 and all(math.isfinite(float(row["total_loss"])) for row in rows)
    assert rows[0]["total_loss"] != plain[0]["total_loss"]  # the part was used
    assert main(["eval", "--ckpt", "run", "--output", "scored", *imported]) == 0
    assert json.loads((tmp_path / "scored" / "metrics.json").read_text())["images"] == 6
    assert weight is None or weight in load_model("run")[1].state_dict
    assert "INPUT.DATASET_MAPPER_NAME" not in keys_without_effect(load_config("run/config.yaml"))
    picture = str(shapes_root / "shapes" / "val" / "000001.png")
    assert main(["predict", "--ckpt", "run", "--output", "out", *imported, picture]) == 0


def test_every_example_of_the_documentation_is_tested() -> None:
    assert sorted(EXAMPLES) == ["my_backbone.py", "my_loss.py", "my_mapper.py", "my_model.py"]
