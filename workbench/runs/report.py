"""One HTML file out of a run's executed notebooks, to send to somebody who has none of this installed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from workbench.errors import WorkbenchError
from workbench.files import write_text

if TYPE_CHECKING:
    from nbformat import NotebookNode

REPORT = "report.html"


def write_report(run: str | Path) -> Path:
    """Joins the executed notebooks ``NN_*.ipynb`` of a run directory, in their order, into ``report.html`` there.

    Words, pictures and tables stay, code and progress bars go. The file stands alone: pictures are inside it, and
    nothing is fetched when it is opened.

    Raises WorkbenchError when the run has no executed notebook, or one that cannot be read.
    """
    import nbformat
    from nbconvert import HTMLExporter
    from traitlets.config import Config

    run = Path(run)
    paths = sorted(run.glob("[0-9][0-9]_*.ipynb"))
    if not paths:
        raise WorkbenchError(f"There are no executed notebooks in {run}; run one there with papermill first.")
    whole = nbformat.v4.new_notebook()
    whole.metadata["title"] = f"Report on {run.name}"
    for path in paths:
        try:
            whole.cells += _for_readers(nbformat.read(path, as_version=4))
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise WorkbenchError(f"The notebook {path} cannot be read: {error}") from None
    for number, cell in enumerate(whole.cells):
        cell.id = f"cell-{number}"  # they were unique within their own notebook only
    elsewhere = ("mathjax_url", "require_js_url", "jquery_url", "mermaid_js_url")  # scripts a browser would fetch
    exporter = HTMLExporter(config=Config({"HTMLExporter": dict.fromkeys(elsewhere, "")}))
    exporter.exclude_input = exporter.exclude_input_prompt = exporter.exclude_output_prompt = True
    html, _ = exporter.from_notebook_node(whole)
    target = run / REPORT
    try:
        write_text(target, html)
    except OSError as error:
        raise WorkbenchError(f"The report {target} cannot be written: {error.strerror}") from None
    return target


def _for_readers(notebook: NotebookNode) -> list[NotebookNode]:
    """The cells that say something without their code."""
    cells = []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if not _is_progress(output)]
            if not cell.outputs:
                continue
        cell.metadata = {}
        cells.append(cell)
    return cells


def _is_progress(output: NotebookNode) -> bool:
    return output.output_type == "stream" and (output.name == "stderr" or "\r" in output.text)
