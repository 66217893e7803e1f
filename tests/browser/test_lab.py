"""Notebook 06 as a person meets it: in JupyterLab, in a browser, with the hand on a slider."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import nbformat
import pytest
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "06_visualize.ipynb"
PATIENCE = 180_000  # milliseconds; only a test that hangs waits so long

spec = importlib.util.spec_from_file_location("lab", Path(__file__).with_name("lab.py"))
lab = importlib.util.module_from_spec(spec)
spec.loader.exec_module(lab)

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = list(lab.MARKS)


@pytest.fixture
def workspace(tiny_run: Path, tmp_path: Path) -> Path:
    """A folder with the notebook, its parameters set to a tiny run."""
    notebook = load_notebook_node(str(NOTEBOOK))
    settings = {
        "ckpt": str(tiny_run),
        "output": str(tmp_path / "out"),
        "score": 0.0,
        "nms": "off",
        "num_images": 2,
    }
    notebook = parameterize_notebook(notebook, settings, kernel_name="python3", language="python")
    nbformat.write(notebook, tmp_path / "06_visualize.ipynb")
    return tmp_path


@pytest.fixture
def page(workspace: Path):
    """The notebook opened in JupyterLab, and what the browser's console and the page complained about."""
    with lab.jupyter_lab(workspace) as address, playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=lab.find_chromium(), args=list(lab.FLAGS))
        try:
            page = browser.new_page(viewport={"width": 1400, "height": 1000})
            page.set_default_timeout(PATIENCE)
            complaints: list[str] = []
            page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.goto(address.format("06_visualize.ipynb"))
            yield page, complaints
        finally:
            page.screenshot(path=workspace / "page.png")  # what a failure looked like
            browser.close()


def wait_until_drawn(page, count: int, patience: int = PATIENCE) -> None:
    """Until the counts say so."""
    page.wait_for_function(
        """count => {
            const rows = document.querySelectorAll(".workbench-counts table tr");
            if (rows.length < 2) return false;
            const place = [...rows[0].cells].findIndex(cell => cell.innerText === "drawn");
            return rows[1].cells[place]?.innerText === String(count);
        }""",
        arg=count,
        timeout=patience,
    )


def run_all_cells(page) -> None:
    """Through the menu, until a cell says that it runs: before the kernel listens, the command does nothing."""
    begun = page.locator(".jp-InputPrompt", has_text=re.compile(r"\[(\*|\d+)\]")).first
    for _ in range(8):
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        try:
            begun.wait_for(timeout=20_000)
        except playwright.TimeoutError:
            page.keyboard.press("Escape")
            continue
        return
    raise AssertionError("no cell began to run")


def settled(page, scores: list[float]) -> int:
    """How many are drawn at the score that the slider ends at: on a busy machine it still moves after the last key."""
    for _ in range(60):
        threshold = float(page.locator(".workbench-score .widget-readout").inner_text())
        left = sum(score >= threshold for score in scores)
        try:
            wait_until_drawn(page, left, patience=3000)
        except playwright.TimeoutError:
            continue
        return left
    raise AssertionError(f"the counts never became those of a score of {threshold}: {left}")


def picture(page, other_than: tuple[str, ...] = ()) -> str:
    """The pixels of the picture as the browser shows them, once they are none of those seen before."""
    return page.wait_for_function(
        """seen => {  // not async: a promise would count as true
            const image = document.querySelector("img.workbench-picture");
            if (!image?.complete || !image.naturalWidth) return false;
            const canvas = document.createElement("canvas");
            [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
            canvas.getContext("2d").drawImage(image, 0, 0);
            const pixels = canvas.toDataURL();
            return seen.includes(pixels) ? false : pixels;
        }""",
        arg=list(other_than),
        polling=100,
    ).json_value()


def test_moving_the_score_slider_changes_picture_and_counts(page, tiny_run: Path, tmp_path: Path) -> None:
    page, complaints = page
    page.locator(".jp-Notebook").wait_for()
    page.get_by_text("Python 3").first.wait_for()  # the kernel's name, once there is one
    run_all_cells(page)

    failed = page.locator("[data-mime-type='application/vnd.jupyter.error']")
    page.locator("img.workbench-picture").or_(failed).first.wait_for()
    assert failed.count() == 0, failed.all_inner_texts()
    rows = json.loads((tiny_run / "predictions.json").read_text())
    scores = [row["score"] for row in rows if row["image_id"] == rows[0]["image_id"]]
    assert scores
    wait_until_drawn(page, len(scores))
    before = picture(page)
    assert page.locator(".workbench-counts th", has_text="in the ground truth").count() == 1

    handle = page.locator(".workbench-score .noUi-handle")
    handle.scroll_into_view_if_needed()
    handle.focus()
    while float(page.locator(".workbench-score .widget-readout").inner_text()) <= min(scores):
        handle.press("ArrowRight")
    left = settled(page, scores)
    assert 0 < left < len(scores)
    after = picture(page, other_than=(before,))

    handle.press("End")  # nothing scores 1
    wait_until_drawn(page, 0)
    picture(page, other_than=(before, after))

    page.get_by_role("button", name="Next").click()
    page.get_by_text(re.compile(r"^2 of ")).wait_for()
    page.get_by_role("button", name="Save settings").click()
    page.locator(".workbench-status", has_text="filters.json").wait_for()
    assert (tmp_path / "out" / "filters.json").is_file()

    # every cell has run, and none has failed
    page.locator(".jp-Cell").last.scroll_into_view_if_needed()
    page.get_by_text("Suggested: ").last.wait_for()
    with page.expect_response(lambda response: response.request.method == "PUT" and ".ipynb" in response.url):
        page.keyboard.press("Control+s")
    saved = nbformat.read(tmp_path / "06_visualize.ipynb", as_version=4)
    cells = [cell for cell in saved.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in cells)
    assert not [output for cell in cells for output in cell.outputs if output.output_type == "error"]
    assert complaints == []
