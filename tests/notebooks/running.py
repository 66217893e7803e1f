"""Notebooks run as papermill runs them, or, which is faster, cell by cell in this process; and looked through."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any
from unittest import mock

import nbformat
import papermill

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"


def run(name: str, executed: Path, /, **parameters: Any) -> nbformat.NotebookNode:
    """Run ``notebooks/<name>.ipynb`` from the folder that ``executed``, the notebook it makes, lies in."""
    papermill.execute_notebook(
        NOTEBOOKS / f"{name}.ipynb",
        executed,
        parameters={key: _plain(value) for key, value in parameters.items()},
        progress_bar=False,
        kernel_name="python3",
        cwd=executed.parent,
    )
    return nbformat.read(executed, as_version=4)


def run_here(name: str, /, **parameters: Any) -> str:
    """Run the cells of ``notebooks/<name>.ipynb`` in this process; all that they print and show, as text."""
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    names: dict[str, Any] = {"__name__": "__main__"}
    shown = io.StringIO()

    def display(*items: Any, **_: Any) -> None:
        for item in items:
            html = getattr(item, "_repr_html_", lambda item=item: repr(item))()
            print(html or repr(item))

    with mock.patch("IPython.display.display", display), contextlib.redirect_stdout(shown):
        for number, cell in enumerate(c for c in notebook.cells if c.cell_type == "code"):
            exec(compile(cell.source, f"{name}, code cell {number}", "exec"), names)
            if "parameters" in cell.metadata.get("tags", ()):
                unknown = parameters.keys() - names.keys()
                assert not unknown, f"{name} has no parameter {unknown}"
                names |= {key: _plain(value) for key, value in parameters.items()}
    return shown.getvalue()


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def pictures(notebook: nbformat.NotebookNode) -> int:
    """How many pictures a notebook shows."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return sum(bool({"image/png", "image/jpeg"} & set(output.get("data", {}))) for output in outputs)


def text(notebook: nbformat.NotebookNode) -> str:
    """Everything a notebook printed or showed as text."""
    parts = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            parts += [output.get("text", ""), data.get("text/html", ""), data.get("text/plain", "")]
    return "\n".join(parts)
