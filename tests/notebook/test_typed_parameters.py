"""The parameters of the notebooks: a wrong one is a sentence that names it."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import nbformat
import pytest

from tests.notebooks.running import NOTEBOOKS as FOLDER
from tests.notebooks.running import run_here
from workbench.errors import WorkbenchError
from workbench.notebook.typed_parameters import NOTEBOOKS, parameters


def _defaults(name: str) -> dict[str, Any]:
    cells = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4).cells
    (source,) = [cell.source for cell in cells if "parameters" in cell.metadata.get("tags", ())]
    return {line.target.id: ast.literal_eval(line.value) for line in ast.parse(source).body}


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)
def test_every_parameter_has_its_type_and_is_checked_first(path: Path) -> None:
    defaults = _defaults(path.stem)
    assert set(NOTEBOOKS[path.stem].__dataclass_fields__) == set(defaults)
    variables = dict(defaults)
    parameters(path.stem, variables)
    assert variables == defaults
    code = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    calls = [line for line in code[1].splitlines() if line and not line.startswith(("from", "import"))]
    assert calls[0] == f'notebook.parameters("{path.stem}", globals())'


@pytest.mark.parametrize(
    ("name", "parameter", "value", "wanted"),
    [
        ("01_environment", "output", None, "it must be text"),
        ("01_environment", "output", "", "it must be not empty"),
        ("02_backbone_surgery", "size", "abc", "it must be a whole number"),
        ("02_backbone_surgery", "size", 10**10, "it must be at most 8192"),
        ("02_backbone_surgery", "size", 0, "it must be at least 32"),
        ("03_train", "config", ["a"], "it must be text"),
        ("03_train", "resume", "yes", "it must be true or false"),
        ("03_train", "resume", 1, "it must be true or false"),
        ("03_train", "samples", 1e3, "it must be a whole number"),
        ("03_train", "samples", True, "it must be a whole number"),
        ("03_train", "overrides", "[SEED, 3]", "it must be a list; papermill takes lists with -y"),
        ("03_train", "imports", [["a.py"]], "it must be text"),
        ("04_eval", "score_threshold", 1.5, "it must be at most 1"),
        ("04_eval", "score_threshold", float("nan"), "it must be a finite number"),
        ("04_eval", "images", -1, "it must be at least 1"),
        ("04_eval", "max_images", "all", "it must be a whole number"),
        ("05_query_analysis", "counts", [], "it must be not empty"),
        ("05_query_analysis", "counts", [1, "x"], "it must be a whole number"),
        ("05_query_analysis", "overlap_iou", None, "it must be a finite number"),
        ("06_visualize", "dataset", {"a": 1}, "it must be text, or a list of texts"),
        ("06_visualize", "subcategories", "colour", "it must be keys and values"),
        ("06_visualize", "images", ["x"], "it must be a whole number"),
        ("06_visualize", "output", b"a\\ud800".decode("unicode_escape"), "it must be text without"),
    ],
)
def test_a_wrong_parameter_is_one_sentence(name: str, parameter: str, value: object, wanted: str) -> None:
    with pytest.raises(
        WorkbenchError, match=f"^The parameters of {name}: {parameter}(\\[\\d\\])? is .*; {wanted}"
    ) as error:
        parameters(name, {**_defaults(name), parameter: value})
    assert "\n" not in str(error.value)


def test_numbers_and_paths_that_are_names_become_text() -> None:
    variables = {**_defaults("03_train"), "output": 2024, "config": Path("c.yaml"), "overrides": ["SEED", 3]}
    parameters("03_train", variables)
    assert (variables["output"], variables["config"], variables["overrides"]) == ("2024", "c.yaml", ["SEED", "3"])


def test_a_notebook_stops_at_its_first_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WorkbenchError, match="^The parameters of 02_backbone_surgery: size is 'big'"):
        run_here("02_backbone_surgery", output=tmp_path / "run", size="big")
    assert not (tmp_path / "run").exists()
