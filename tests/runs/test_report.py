"""The HTML report of a run."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path

import nbformat
import numpy as np
import pytest
from PIL import Image

from workbench.errors import WorkbenchError
from workbench.runs.report import write_report


def _picture() -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (200, 30, 30)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def _notebook(path: Path, title: str, *outputs: dict) -> None:
    code = nbformat.v4.new_code_cell("secret_call()", outputs=list(outputs))
    cells = [nbformat.v4.new_markdown_cell(f"# {title}\n\n$x^2$"), nbformat.v4.new_code_cell("setup()"), code]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)


def test_words_and_pictures_in_order_without_code_and_standing_alone(tmp_path: Path) -> None:
    shown = nbformat.v4.new_output("display_data", {"image/png": _picture()})
    said = nbformat.v4.new_output("stream", name="stdout", text="AP 41.5")
    bar = nbformat.v4.new_output("stream", name="stdout", text="\rtraining: 3%\rtraining: 4%")
    warned = nbformat.v4.new_output("stream", name="stderr", text="a warning")
    _notebook(tmp_path / "04_eval.ipynb", "Evaluate", shown, said)
    _notebook(tmp_path / "03_train.ipynb", "Train", bar, warned)
    _notebook(tmp_path / "scratch.ipynb", "Not numbered")
    html = write_report(tmp_path).read_text(encoding="utf-8")
    assert html.index('<h1 id="Train">') < html.index('<h1 id="Evaluate">')
    assert _picture() in html and "AP 41.5" in html
    for gone in ("secret_call", "training: 4%", "a warning", "Not numbered"):
        assert gone not in html
    assert "<script" not in html and "Content-Security-Policy" in html[:1024]
    assert not re.findall(r"<(?:script|link|img)[^>]*(?:src|href)=\"(?!data:)[^\"]+", html)


def test_it_opens_with_the_run_its_scores_and_the_contents(tmp_path: Path) -> None:
    _notebook(tmp_path / "04_eval.ipynb", "4 · Evaluate\n\n## 2 · Precision <b>")
    (tmp_path / "config.yaml").write_text("SEED: 7\nDATASETS:\n  TRAIN: [some_train]\n")
    scores = {"segm": {"AP": 41.25}, "joint": {"AP": 30.0}, "dataset": "some<test>", "images": 3, "instances": 9}
    (tmp_path / "metrics.json").write_text(json.dumps(scores | {"subcategories": {"colour": {"accuracy": 88.0}}}))
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "worst.png").write_bytes(base64.b64decode(_picture()))
    html = write_report(tmp_path).read_text(encoding="utf-8")
    beginning = html[html.index("<body") : html.index('<h1 id="4')]
    for words in ("some_train", "<td>41.2</td>", "<td>30.0</td>", "colour accuracy", "SEED", "some&lt;test&gt;"):
        assert words in beginning
    assert f'src="data:image/png;base64,{_picture()}"' in beginning
    links = re.findall(r'<a href="#([^"]+)">([^<]+)', beginning)
    assert [title for _, title in links] == ["4 · Evaluate", "4.2 · Precision &lt;b&gt;"]
    assert all(f'id="{anchor}"' in html for anchor, _ in links)


def test_large_pictures_are_made_smaller(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (600, 2400, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    _notebook(tmp_path / "04_eval.ipynb", "Evaluate", nbformat.v4.new_output("display_data", {"image/png": data}))
    html = write_report(tmp_path).read_text(encoding="utf-8")
    (shown,) = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', html)
    assert Image.open(io.BytesIO(base64.b64decode(shown))).size == (1600, 400)


def test_a_run_without_notebooks_or_with_a_broken_one(tmp_path: Path) -> None:
    with pytest.raises(WorkbenchError, match="no executed notebooks"):
        write_report(tmp_path)
    (tmp_path / "03_train.ipynb").write_text("{")
    with pytest.raises(WorkbenchError, match="03_train.ipynb cannot be read"):
        write_report(tmp_path)
