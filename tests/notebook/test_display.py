"""What notebooks begin with and show their results through."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from IPython.core.interactiveshell import InteractiveShell
from matplotlib.figure import Figure

from workbench import notebook


def test_relative_paths_mean_the_repository_from_anywhere_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("repository/notebooks", "repository/configs", "elsewhere"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "repository" / "notebooks")
    for folder, root in (("repository/notebooks", "repository"), ("repository", "repository"), ("elsewhere",) * 2):
        monkeypatch.chdir(tmp_path / folder)
        notebook.start()
        assert Path.cwd() == tmp_path / root


def test_a_notebook_imports_parts_of_the_users_own(tmp_path: Path) -> None:
    part = tmp_path / "own_part.py"
    part.write_text("from workbench.registry import MAPPERS\nMAPPERS.register('own_mapper')(lambda cfg: None)\n")
    # In a process of its own: what is imported stays, and is recorded in every run that follows.
    program = "from workbench import notebook, registry; notebook.start(imports={!r}); print(*registry.MAPPERS)"
    done = _python(program.format([str(part)]))
    assert "own_mapper" in done.stdout.split()
    assert "nowhere.py" in _python(program.format(["nowhere.py"])).stderr.splitlines()[-1]


def _python(program: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)


def test_an_error_of_the_users_shows_as_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    shell = InteractiveShell()
    monkeypatch.setattr("workbench.notebook.display.get_ipython", lambda: shell)
    notebook.start()
    result = shell.run_cell(
        "from workbench.errors import WorkbenchError\nraise WorkbenchError('the file is not there')"
    )
    assert not result.success
    assert capsys.readouterr().out.strip() == "WorkbenchError: the file is not there"
    shell.run_cell("1 / 0")
    assert "Traceback" in capsys.readouterr().out


def test_pictures_and_tables_are_written_where_they_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    page, figures = notebook.start(tmp_path), tmp_path / "figures"
    page.show(np.zeros((4, 6, 3), np.uint8), "black")
    figure = Figure(figsize=(3, 2))
    figure.subplots().plot([0, 1])
    page.show({"a": figure, "b": figure}, "line")
    assert {p.name for p in figures.iterdir()} == {"black.png", "line_a.png", "line_b.png"}
    assert [image.format for image in shown] == ["jpeg", "png", "png"]  # of photographs a fifth of the bytes
    frame = pd.DataFrame({"AP": [10.0, float("nan")], "n": [3, 4]}, index=pd.Index(["a", "b"], name="category"))
    page.table(frame, "scores", best="max", rows=1)
    assert "font-weight" not in shown[-1].to_html() and shown[-1].index.tolist() == ["a"]
    page.table(frame, "scores", best="max", rows=[1, 0])
    bold, _, _ = shown[-1].to_html().partition("font-weight: bold")
    assert bold.count("#T_") == 1 and "_row0_col1 {" in bold  # of "n"; one known value of AP is no best
    assert pd.read_csv(figures / "scores.csv", index_col="category").loc["a", "n"] == 3
    page.table([{"device": "cpu", "seconds": 0.25, "agrees": True}], "devices")
    assert (figures / "devices.csv").read_text().splitlines() == ["device,seconds,agrees", "cpu,0.25,True"]
    assert ">yes</td>" in shown[-1].to_html()
    page.save({"torch": "2"}, "machine")
    assert json.loads((figures / "machine.json").read_text()) == {"torch": "2"}


def test_names_from_data_are_text_in_tables_and_stay_in_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    page, name = notebook.start(tmp_path / "run"), "<script>1</script>"
    index = pd.Index([name, "b"], name=name)
    page.table(pd.DataFrame({name: [1.25, None], "x": [name, [name]], "n": [1, 2]}, index=index), "../../table")
    html = shown[-1].to_html()
    assert "<script" not in html and html.count("&lt;script&gt;1&lt;/script&gt;") == 5
    assert ">1.2<" in html and ">-<" in html
    page.show({"../../../x": np.zeros((4, 6, 3), np.uint8)}, "confusion")
    assert {path.parent for path in tmp_path.rglob("*") if path.is_file()} == {tmp_path / "run" / "figures"}


def test_an_empty_result_is_a_sentence_and_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    page = notebook.start(tmp_path)
    page.table(None, "gpus", empty="no GPU")
    page.table([], "gpus", empty="no GPU")
    page.show({}, "confusion", empty="no subcategory <1>\nhere")
    page.show(None, "nothing")
    assert [html.data for html in shown] == ["<p>no GPU</p>"] * 2 + ["<p>no subcategory &lt;1&gt;<br>here</p>"]
    assert not (tmp_path / "figures").exists()


def test_without_a_run_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    monkeypatch.chdir(tmp_path)
    page = notebook.start()
    page.show(np.zeros((4, 6, 3), np.uint8), "black")
    page.table(pd.DataFrame({"a": [1]}), "a")
    assert len(shown) == 2 and page.figures is None and not list(tmp_path.iterdir())


def test_everything_that_notebooks_use_is_there() -> None:
    assert set(dir(notebook)) == set(notebook.__all__)
    assert all(callable(getattr(notebook, name)) for name in notebook.__all__)
    with pytest.raises(AttributeError, match="no attribute 'shwo'"):
        notebook.shwo  # noqa: B018


def test_the_import_is_quick() -> None:
    program = "import sys; from workbench import notebook; print('torch' in sys.modules, 'pandas' in sys.modules)"
    assert _python(program).stdout.split() == ["False", "False"]
