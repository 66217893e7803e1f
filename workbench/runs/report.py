"""A run's executed notebooks as one HTML file, which opens without this package or Jupyter."""

from __future__ import annotations

from pathlib import Path

import nbformat
from nbconvert import HTMLExporter
from nbformat import NotebookNode

from workbench.errors import WorkbenchError, errors_as
from workbench.files import write_text

REPORT = "report.html"
# The browser runs no script and fetches nothing, whatever an output holds: pictures and styles are in the file.
POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; font-src data:; base-uri 'none'; form-action 'none'"
)
_TEMPLATE = f"""{{%- extends 'lab/index.html.j2' -%}}
{{%- block html_head -%}}
<meta charset="utf-8" />
<meta http-equiv="Content-Security-Policy" content="{POLICY}" />
{{{{ super() }}}}
{{%- endblock -%}}
{{%- block html_head_js -%}}{{%- endblock -%}}
{{%- block html_head_js_mathjax -%}}{{%- endblock -%}}
{{%- block html_head_js_mermaidjs -%}}{{%- endblock -%}}
"""
_SCRIPTS = ("application/javascript", "application/vnd.jupyter.widget-view+json")  # kinds of output


def write_report(run: str | Path) -> Path:
    """Join the executed notebooks ``NN_*.ipynb`` of a run directory, in their order, into ``report.html`` there.

    Text, pictures and tables stay; code, progress bars and scripts are left out. The file contains its pictures,
    fetches nothing when it is opened, and tells the browser to run no script.

    Raises:
        WorkbenchError: the run has no executed notebook, one cannot be read, or the report cannot be written.
    """
    run = Path(run)
    paths = sorted(run.glob("[0-9][0-9]_*.ipynb"))
    if not paths:
        raise WorkbenchError(f"There are no executed notebooks in {run}; run one there with papermill first.")
    whole = nbformat.v4.new_notebook()
    whole.metadata["title"] = f"Report on {run.name}"
    for path in paths:
        with errors_as(f"The notebook {path} cannot be read", OSError, ValueError, KeyError, AttributeError):
            whole.cells += _shown_cells(nbformat.read(path, as_version=4))
    for number, cell in enumerate(whole.cells):
        cell.id = f"cell-{number}"  # ids are unique within one notebook only
    exporter = HTMLExporter(raw_template=_TEMPLATE)
    exporter.exclude_input = exporter.exclude_input_prompt = exporter.exclude_output_prompt = True
    html, _ = exporter.from_notebook_node(whole)
    target = run / REPORT
    with errors_as(f"The report {target} cannot be written", OSError):
        write_text(target, html)
    return target


def _shown_cells(notebook: NotebookNode) -> list[NotebookNode]:
    """Return the text cells, and the code cells that have output other than progress bars."""
    cells = []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            for output in cell.outputs:
                for kind in _SCRIPTS:
                    output.get("data", {}).pop(kind, None)
            cell.outputs = [output for output in cell.outputs if output.get("data") != {} and not _is_progress(output)]
            if not cell.outputs:
                continue
        cell.metadata = {}
        cells.append(cell)
    return cells


def _is_progress(output: NotebookNode) -> bool:
    return output.output_type == "stream" and (output.name == "stderr" or "\r" in output.text)
