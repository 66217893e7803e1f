"""Notebooks run as papermill runs them, and looked through."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import papermill

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"


def run(name: str, executed: Path, /, **parameters: Any) -> nbformat.NotebookNode:
    """Run ``notebooks/<name>.ipynb`` from the folder that ``executed``, the notebook it makes, lies in."""
    papermill.execute_notebook(
        NOTEBOOKS / f"{name}.ipynb",
        executed,
        parameters={
            key: str(value) if isinstance(value, Path) else value for key, value in parameters.items()
        },
        progress_bar=False,
        kernel_name="python3",
        cwd=executed.parent,
    )
    return nbformat.read(executed, as_version=4)


def pictures(notebook: nbformat.NotebookNode) -> int:
    """How many pictures a notebook shows."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return sum("image/png" in output.get("data", {}) for output in outputs)


def text(notebook: nbformat.NotebookNode) -> str:
    """Everything a notebook printed or showed as text."""
    parts = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            parts += [output.get("text", ""), data.get("text/html", ""), data.get("text/plain", "")]
    return "\n".join(parts)
