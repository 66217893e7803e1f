"""What notebooks begin with and show their results through."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from IPython.core.interactiveshell import InteractiveShell
from matplotlib.figure import Figure

from workbench.notebook import display as notebook


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


def test_an_error_of_the_users_shows_as_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    shell = InteractiveShell()
    monkeypatch.setattr(notebook, "_shell", lambda: shell)
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
    notebook.show(np.zeros((4, 6, 3), np.uint8), tmp_path / "figures" / "black.png")
    figure = Figure(figsize=(3, 2))
    figure.subplots().plot([0, 1])
    notebook.show(figure, tmp_path / "figures" / "line.png")
    assert {p.name for p in (tmp_path / "figures").iterdir()} == {"black.png", "line.png"}
    assert [image.format for image in shown] == ["jpeg", "png"]  # of photographs a fifth of the bytes
    frame = pd.DataFrame({"AP": [10.0, float("nan")], "n": [3, 4]}, index=pd.Index(["a", "b"], name="category"))
    notebook.table(frame, tmp_path / "table.csv", best={"AP": "max"})
    assert pd.read_csv(tmp_path / "table.csv", index_col="category").loc["a", "n"] == 3
