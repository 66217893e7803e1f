"""01_environment, 02_backbone_surgery and 05_query_analysis, and what they say where there is little to show."""

from __future__ import annotations

import ast
import json
import shutil
from pathlib import Path

import papermill
import pytest

from tests.notebooks.running import NOTEBOOKS, pictures, run, run_here
from workbench.errors import WorkbenchError

PATHS = sorted(NOTEBOOKS.glob("*.ipynb"))


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def test_01_says_what_the_machine_can_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_OPS", "reference")
    said = run_here("01_environment", output=tmp_path / "run", device="cpu")
    assert "torchvision" in said and "check reference on cpu: passed" in said
    figures = tmp_path / "run" / "figures"
    assert json.loads((figures / "machine.json").read_text())["torch"]["version"]
    assert (figures / "threads.png").exists()
    assert "cpu,cpu" in (figures / "device.csv").read_text()


def test_01_names_a_device_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(WorkbenchError, match="cuda:63"):
        run_here("01_environment", output=tmp_path / "run", device="cuda:63")


def test_02_needs_no_download(tmp_path: Path) -> None:
    said = run_here("02_backbone_surgery", output=tmp_path / "run", size=96)
    assert "without renaming: 0 loaded" in said and "with renaming:    302 loaded; 0 missing" in said
    assert "257 missing" in said and "Of the 302 loaded, 257 are weights and statistics. The other 45 count" in said
    assert "taps [3, 6, 10, 12]" in said and "stage of stride 16" in said
    for name in ("backbone_layers", "backbone_differences", "backbone_features", "resnet_layers"):
        assert (tmp_path / "run" / "figures" / f"{name}.png").stat().st_size > 5000


def test_05_shows_how_queries_are_used(tiny_run: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    copy = shutil.copytree(tiny_run, tmp_path / "other")
    executed = run(
        "05_query_analysis",
        tmp_path / "05.ipynb",
        ckpt=tiny_run,
        compare=[copy],
        output=output,
        counts=[1, 30],
        repeats=1,
    )
    assert pictures(executed) == 7
    for name in (
        "objects_and_queries",
        "query_use",
        "query_masks",
        "detection_limits",
        "scores",
        "saturation",
    ):
        assert (output / "figures" / f"{name}.png").stat().st_size > 1500, name
    assert len((output / "figures" / "query_counts.csv").read_text().splitlines()) == 3
    assert not (copy / "figures" / "saturation.png").exists()


def test_05_without_ground_truth(tiny_run: Path, shapes_root: Path, tmp_path: Path) -> None:
    content = json.loads((shapes_root / "shapes" / "annotations" / "val.json").read_text())
    shutil.copytree(shapes_root / "shapes" / "val", tmp_path / "images")
    file = tmp_path / "annotations.json"
    file.write_text(json.dumps({**content, "images": content["images"][:1], "annotations": []}))
    said = run_here("05_query_analysis", ckpt=tiny_run, dataset=file, output=tmp_path / "out")
    assert "Without ground truth nothing can be said" in said
    assert "No object of this dataset is whole" in said


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_every_notebook_is_a_story_with_typed_and_explained_parameters(path: Path) -> None:
    cells = json.loads(path.read_text())["cells"]
    tagged = [cell for cell in cells if "parameters" in cell["metadata"].get("tags", ())]
    assert len(tagged) == 1
    for line in filter(str.strip, tagged[0]["source"]):
        name, _, rest = line.partition(":")
        assert name.isidentifier() and "=" in rest and "  # " in rest, line
        assert '= ""' not in rest, f"{name} is None where it names nothing"
    known = papermill.inspect_notebook(path)
    assert len(known) == len(list(filter(str.strip, tagged[0]["source"])))
    assert all(each["inferred_type_name"] not in ("None", "") and each["help"] for each in known.values())
    assert cells[0]["cell_type"] == "markdown" and cells[0]["source"][0].startswith(f"# {path.stem[1]} ")
    assert "".join(cells[-1]["source"]).startswith("## What to try next")
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)
    assert json.loads(path.read_text())["metadata"]["kernelspec"]["name"] == "python3"


# A cell assigns what it calls for, shows it, and decides nothing.
ALLOWED = (
    *(ast.Module, ast.Import, ast.ImportFrom, ast.alias, ast.Assign, ast.AnnAssign, ast.Expr, ast.With, ast.withitem),
    *(ast.Call, ast.keyword, ast.Name, ast.Attribute, ast.Constant, ast.JoinedStr, ast.FormattedValue),
    *(ast.List, ast.Tuple, ast.Dict, ast.Starred, ast.Subscript, ast.Slice, ast.UnaryOp, ast.USub),
    *(ast.Load, ast.Store),
)
IMPORTS = {"workbench", "workbench.notebook", "workbench.visualization"}


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_cells_import_little_and_hold_no_logic(path: Path) -> None:
    for number, cell in enumerate(c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"):
        for node in ast.walk(ast.parse("".join(cell["source"]))):
            assert isinstance(node, ALLOWED), f"code cell {number}: {ast.unparse(node)}"
            assert not isinstance(node, ast.Import), f"code cell {number}: {ast.unparse(node)}"
            assert not isinstance(node, ast.ImportFrom) or node.module in IMPORTS, f"code cell {number}: {node.module}"
