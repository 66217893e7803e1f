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
from PIL import Image

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "06_visualize.ipynb"
CONTROLS = ":is(input, select, button, [role=slider])"
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
            const rows = document.querySelectorAll(".wv-counts tr");
            if (rows.length < 2) return false;
            const place = [...rows[0].cells].findIndex(cell => cell.innerText === "drawn");
            return rows[1].cells[place]?.innerText === String(count);
        }""",
        arg=count,
        timeout=patience,
    )


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
    """The pixels of the predictions as the browser shows them, once they are none of those seen before."""
    return page.wait_for_function(
        """seen => {  // not async: a promise would count as true
            const canvas = [...document.querySelectorAll(".wv-root canvas")].at(-1);
            if (!canvas?.width || !document.querySelector(".wv-root").dataset.image) return false;
            const pixels = canvas.toDataURL();
            return seen.includes(pixels) ? false : pixels;
        }""",
        arg=list(other_than),
        polling=100,
    ).json_value()


def look_closely(page, before: str) -> None:
    """Point, click, zoom and fit; ``before`` is the whole picture."""
    canvas, root = page.locator(".wv-root canvas").last, page.locator(".wv-root")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    middles = [(x / 12 + 1 / 24, y / 12 + 1 / 24) for y in range(12) for x in range(12)]
    for x, y in middles:  # until there is an object
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
        if page.locator(".wv-tip:not([hidden])").count():
            break
    assert "score" in page.locator(".wv-tip").inner_text() and "judged" in page.locator(".wv-tip").inner_text()
    page.mouse.down()
    page.mouse.up()
    assert root.get_attribute("data-isolated").startswith("1:")
    page.keyboard.press("+")
    page.keyboard.press("+")
    zoomed = picture(page, other_than=(before,))
    assert float(root.get_attribute("data-zoom")) == pytest.approx(1.25**2, abs=1e-3)
    page.keyboard.press("ArrowRight")
    picture(page, other_than=(before, zoomed))
    page.keyboard.press("Escape")
    page.keyboard.press("0")
    page.mouse.move(0, 0)
    page.wait_for_function("document.querySelector('.wv-root').dataset.zoom === '1.000'")
    assert root.get_attribute("data-isolated") == ""


def test_narrow_and_dark_windows_cut_nothing_off(page, tmp_path: Path) -> None:
    page, complaints = page
    page.set_viewport_size({"width": 1000, "height": 1000})
    page.locator(".jp-Notebook").wait_for()
    page.get_by_role("menuitem", name="Settings", exact=True).click()
    page.get_by_text("Theme", exact=True).hover()
    page.get_by_text("JupyterLab Dark", exact=True).first.click()
    page.get_by_text("Python 3").first.wait_for()
    lab.run_all_cells(page)
    page.locator(".wv-root[data-image]").wait_for()
    wide = page.evaluate(
        """() => {
            const panel = document.querySelector(".workbench-browser").closest(".jp-OutputArea-output");
            const right = panel.getBoundingClientRect().right + 1;
            const parts = ".wv-root canvas, .wv-toolbar *, .workbench-navigation > *, .widget-slider";
            return [...panel.querySelectorAll(parts)]
                .filter(part => part.getBoundingClientRect().right > right).map(part => part.outerHTML.slice(0, 80));
        }"""
    )
    assert wide == []
    faint = page.evaluate(
        """() => {
            const linear = c => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
            const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
            const rgba = colour => [...colour.match(/[\\d.]+/g).map(Number), 1].slice(0, 4);
            const over = (under, [r, g, b, a]) => [r, g, b].map((c, i) => a * c + (1 - a) * under[i]);
            const behind = part => {
                const under = part ? behind(part.parentElement) : [255, 255, 255];
                return part ? over(under, rgba(getComputedStyle(part).backgroundColor)) : under;
            };
            const speaks = part => part.innerText?.trim() && part.getClientRects().length && !part.children.length;
            const parts = [...document.querySelector(".workbench-browser").querySelectorAll("*")].filter(speaks);
            const contrast = part => {
                const under = behind(part);
                const [a, b] = [light(over(under, rgba(getComputedStyle(part).color))), light(under)];
                return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
            };
            return parts.filter(part => contrast(part) < 4.5).map(part => part.outerHTML.slice(0, 120));
        }"""
    )
    assert faint == []
    page.get_by_role("button", name="Export PNG").click()
    page.locator(".workbench-status", has_text="visualize_").wait_for()
    (exported,) = (tmp_path / "out" / "figures").glob("visualize_*.png")
    picture = Image.open(exported).convert("RGB")
    assert max(picture.getpixel((picture.width - 1, 0))) < 64  # as dark as the screen
    assert complaints == []


def test_moving_the_score_slider_changes_picture_and_counts(page, tiny_run: Path, tmp_path: Path) -> None:
    page, complaints = page
    page.locator(".jp-Notebook").wait_for()
    page.get_by_text("Python 3").first.wait_for()  # the kernel's name, once there is one
    lab.run_all_cells(page)

    failed = page.locator("[data-mime-type='application/vnd.jupyter.error']")
    page.locator(".wv-root[data-image]").or_(failed).first.wait_for()
    assert failed.count() == 0, failed.all_inner_texts()
    rows = json.loads((tiny_run / "predictions.json").read_text())
    scores = [row["score"] for row in rows if row["image_id"] == rows[0]["image_id"]]
    assert scores
    wait_until_drawn(page, len(scores))
    before = picture(page)
    assert page.locator(".wv-counts th", has_text="in the ground truth").count() == 1
    assert (
        page.locator(f".workbench-browser {CONTROLS}:not([aria-label], [title])").evaluate_all(
            "parts => parts.filter(part => !part.labels?.length && !part.innerText.trim()).map(part => part.outerHTML)"
        )
        == []
    )
    look_closely(page, before)

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
    page.get_by_role("button", name="Export PNG").click()
    page.locator(".workbench-status", has_text="visualize_").wait_for()
    page.get_by_role("button", name="Save settings").click()
    page.locator(".workbench-status", has_text="filters.json").wait_for()
    assert (tmp_path / "out" / "filters.json").is_file()
    (exported,) = (tmp_path / "out" / "figures").glob("visualize_*.png")
    assert Image.open(exported).width > 400

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
