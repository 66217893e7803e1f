"""The HTML report as the person meets it whom it was sent to, with names and outputs that would run scripts."""

from __future__ import annotations

import base64
import importlib.util
import io
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from PIL import Image

from workbench.notebook import display
from workbench.runs.report import write_report

spec = importlib.util.spec_from_file_location("lab", Path(__file__).with_name("lab.py"))
lab = importlib.util.module_from_spec(spec)
spec.loader.exec_module(lab)

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = list(lab.MARKS)

NAME = "<script>window.ran = 'name'</script><img src=x onerror=\"window.ran = 'name'\">"
OUTPUT = NAME.replace("'name'", "'output'") + "<a href=\"javascript:void(window.ran = 'link')\">link</a>"


@pytest.fixture
def report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A report with a table whose names are hostile, an output that is hostile itself, and a picture."""
    tables: list = []
    monkeypatch.setattr("IPython.display.display", tables.append)
    frame = pd.DataFrame({NAME: [1.0, 2.0], "class": [NAME, [NAME]]}, index=pd.Index([NAME, "b"], name=NAME))
    display.Page().table(frame, "hostile", best=None)
    picture = io.BytesIO()
    Image.new("RGB", (4, 4), (200, 30, 30)).save(picture, "PNG")
    outputs = [
        {"text/html": tables[0].to_html()},
        {"text/html": OUTPUT, "application/javascript": "window.ran = 'output'"},
        {"image/png": base64.b64encode(picture.getvalue()).decode()},
    ]
    cell = nbformat.v4.new_code_cell("", outputs=[nbformat.v4.new_output("display_data", each) for each in outputs])
    nbformat.write(
        nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(OUTPUT), cell]), tmp_path / "04_a.ipynb"
    )
    return write_report(tmp_path)


def test_nothing_in_a_report_runs_or_is_fetched_and_all_is_shown(report: Path) -> None:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=lab.find_chromium(), args=list(lab.FLAGS))
        try:
            page = browser.new_page()
            fetched: list[str] = []
            page.on("requestfinished", lambda request: fetched.append(request.url))
            page.goto(report.as_uri(), wait_until="load")
            assert page.evaluate("window.ran") is None
            page.get_by_text("link").last.click()
            assert page.evaluate("window.ran") is None
            assert [url for url in fetched if not url.startswith("data:")] == [report.as_uri()]
            table = page.locator("table")
            assert table.locator("script, img").count() == 0
            assert table.locator("th", has_text=NAME).count() == 3  # the column, the row, and the name of the rows
            assert table.locator("td").last.inner_text() == str([NAME])
            assert page.locator("img[src^='data:']").evaluate("image => image.naturalWidth") == 4
        finally:
            browser.close()
