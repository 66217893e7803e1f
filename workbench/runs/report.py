"""A run's executed notebooks as one HTML file, which opens without this package or Jupyter."""

from __future__ import annotations

import base64
import binascii
import html
import io
import json
import re
from datetime import datetime
from pathlib import Path
from typing import Any

import nbformat
from nbconvert import HTMLExporter
from nbformat import NotebookNode
from PIL import Image

from workbench.config import changes, get_cfg, load_config
from workbench.errors import WorkbenchError, counted, errors_as
from workbench.files import write_text
from workbench.runs.directory import SEGMENT_SCORES, RunDirectory, read_metrics_json

REPORT = "report.html"
# The browser runs no script and fetches nothing, whatever an output holds: pictures and styles are in the file.
POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; font-src data:; base-uri 'none'; form-action 'none'"
)
_STYLE = """
.jp-RenderedImage img, .jp-MarkdownOutput img { max-width: 100%; height: auto; }
.jp-RenderedHTMLCommon nav ul { columns: 3; padding: 0; }
.jp-RenderedHTMLCommon nav li { list-style: none; }
nav .level-1 { font-weight: bold; }
nav .level-2 { padding-left: 1em; }
.jp-MarkdownOutput table { margin-left: 0; }
@media print {
  h1 { break-before: page; }
  .jp-Cell { break-inside: avoid; }
}
"""
_TEMPLATE = f"""{{%- extends 'lab/index.html.j2' -%}}
{{%- block html_head -%}}
<meta charset="utf-8" />
<meta http-equiv="Content-Security-Policy" content="{POLICY}" />
{{{{ super() }}}}
<style>{_STYLE}</style>
{{%- endblock -%}}
{{%- block html_head_js -%}}{{%- endblock -%}}
{{%- block html_head_js_mathjax -%}}{{%- endblock -%}}
{{%- block html_head_js_mermaidjs -%}}{{%- endblock -%}}
"""
_WIDEST = 1600  # pixels of a picture
_LARGE = 150_000  # bytes from which a picture is written anew, as JPEG
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
    contents: list[tuple[str, str, int]] = []
    for path in paths:
        cells = _shown_cells(_read(path))
        whole.cells += [_numbered(cell, path.name[:2].lstrip("0"), contents) for cell in cells]
    whole.cells.insert(0, nbformat.v4.new_markdown_cell(_opening(run, contents)))
    for number, cell in enumerate(whole.cells):
        cell.id = f"cell-{number}"  # ids are unique within one notebook only
    exporter = HTMLExporter(raw_template=_TEMPLATE)
    exporter.exclude_input = exporter.exclude_input_prompt = exporter.exclude_output_prompt = True
    page, _ = exporter.from_notebook_node(whole)
    target = run / REPORT
    with errors_as(f"The report {target} cannot be written", OSError):
        write_text(target, page)
    return target


def _opening(run: Path, contents: list[tuple[str, str, int]]) -> str:
    """Return the beginning: what was trained on what, its scores, a picture, the keys that were set, the contents."""
    metrics = read_metrics_json(run) or {}
    lines = [f"# {html.escape(run.name)}", ""]
    cfg = load_config(run / "config.yaml", saved=True) if (run / "config.yaml").is_file() else None
    facts: dict[str, Any] = {"date": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"), "run": run.absolute()}
    facts |= _versions(run)
    if cfg is not None:
        facts |= {split.lower(): ", ".join(cfg.DATASETS[split]) or "-" for split in ("TRAIN", "VAL", "TEST")}
    rows = "".join(f"<tr><th>{html.escape(str(k))}</th><td>{html.escape(str(v))}</td></tr>" for k, v in facts.items())
    lines += [f"<table>{rows}</table>", "", _headline(metrics), ""]
    for name in ("contact_sheet", "worst"):  # of notebooks 06 and 04
        picture = run / "figures" / f"{name}.png"
        if picture.is_file():
            data = _small(base64.b64encode(picture.read_bytes()).decode("ascii"))
            kind = "jpeg" if data.startswith("/9j/") else "png"
            lines += [f'<img alt="{name.replace("_", " ")}" src="data:image/{kind};base64,{data}" />', ""]
            break
    if cfg is not None:
        different = changes(cfg, get_cfg())
        keys = "".join(
            f"<tr><th>{html.escape(key)}</th><td>{html.escape(str(value))}</td></tr>"
            for key, (value, _) in different.items()
        )
        lines += [f"<details><summary>{len(different)} config keys that were set</summary><table>{keys}</table>"]
        lines += ["</details>", ""]
    entries = "".join(
        f'<li class="level-{level}"><a href="#{anchor}">{html.escape(title)}</a></li>'
        for anchor, title, level in contents
    )
    return "\n".join([*lines, f"<nav><h2>Contents</h2><ul>{entries}</ul></nav>"])


def _versions(run: Path) -> dict[str, str]:
    """Return the versions that the best checkpoint was made with; reading the checkpoint itself would need torch."""
    try:
        described = json.loads((RunDirectory(run).best / "model.json").read_text(encoding="utf-8"))
        return dict(described["versions"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}


def _headline(metrics: dict[str, Any]) -> str:
    """Return the scores as one table; nothing where there are none."""
    scores = metrics.get("segm") or metrics.get("bbox") or {}
    values = {name: scores.get(name) for name in ("AP", "AP50", "AP75")}
    values["joint AP"] = (metrics.get("joint") or {}).get("AP")
    values |= {score: (metrics.get(kind) or {}).get(score) for kind, score in SEGMENT_SCORES.items()}
    for name, each in (metrics.get("subcategories") or {}).items():
        values[f"{name} accuracy"] = each.get("accuracy")
    known = {name: value for name, value in values.items() if isinstance(value, (int, float))}
    if not known:
        return "This run has no scores yet."
    heads = "".join(f"<th>{html.escape(name)}</th>" for name in known)
    cells = "".join(f"<td>{value:.1f}</td>" for value in known.values())
    where = f"On {html.escape(str(metrics.get('dataset')))}: "
    where += f"{counted(metrics.get('images', 0), 'image')}, {counted(metrics.get('instances', 0), 'object')}"
    return f"{where}.\n\n<table><tr>{heads}</tr><tr>{cells}</tr></table>"


def _numbered(cell: NotebookNode, notebook: str, contents: list[tuple[str, str, int]]) -> NotebookNode:
    """Give the headings of a notebook's cell anchors and the sections its number ("4.2"), and list them."""
    if cell.cell_type != "markdown":
        return cell

    def heading(match: re.Match) -> str:
        marks, title = match[1], match[2].strip()
        section = re.match(r"(\d+) · (.*)", title)
        if len(marks) == 2 and section:
            title = f"{notebook}.{section[1]} · {section[2]}"
        anchor = f"section-{len(contents) + 1}"
        contents.append((anchor, title, len(marks)))
        return f'<a id="{anchor}"></a>\n\n{marks} {title}'

    cell.source = re.sub(r"^(#{1,2}) (.+)$", heading, cell.source, flags=re.MULTILINE)
    return cell


def _small(data: str) -> str:
    """Return a large picture, base64, as JPEG of at most ``_WIDEST`` pixels across; a small or damaged one as it is."""
    if len(data) * 3 // 4 < _LARGE:
        return data
    try:
        with Image.open(io.BytesIO(base64.b64decode(data)), formats=["PNG", "JPEG"]) as opened:
            picture = opened.convert("RGB")
    except (OSError, ValueError, binascii.Error, SyntaxError, Image.DecompressionBombError):
        return data
    picture.thumbnail((_WIDEST, 100 * _WIDEST))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=80)
    smaller = base64.b64encode(buffer.getvalue()).decode("ascii")
    return min(data, smaller, key=len)


def _read(path: Path) -> NotebookNode:
    """Return a notebook that keeps to the schema of its format."""
    sentence = f"The notebook {path} cannot be read"
    with errors_as(sentence, OSError):
        text = path.read_bytes()
    try:
        notebook = nbformat.reads(text, as_version=4)
        nbformat.validate(notebook)
    except Exception:  # older versions of the format are read by looking for keys, which raises errors of many kinds
        raise WorkbenchError(f"{sentence}: it does not keep to the notebook format") from None
    return notebook


def _shown_cells(notebook: NotebookNode) -> list[NotebookNode]:
    """Return the text cells, and the code cells that have output other than progress bars."""
    cells = []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            for output in cell.outputs:
                for kind in _SCRIPTS:
                    output.get("data", {}).pop(kind, None)
                _shrink(output.get("data", {}))
            cell.outputs = [output for output in cell.outputs if output.get("data") != {} and not _is_progress(output)]
            if not cell.outputs:
                continue
        cell.metadata = {}
        cells.append(cell)
    return cells


def _shrink(data: dict[str, Any]) -> None:
    for kind in ("image/png", "image/jpeg"):
        if kind in data:
            small = _small("".join(data[kind]))
            data["image/jpeg" if small.startswith("/9j/") else "image/png"] = small
    if "image/jpeg" in data:
        data.pop("image/png", None)


def _is_progress(output: NotebookNode) -> bool:
    return output.output_type == "stream" and (output.name == "stderr" or "\r" in output.text)
