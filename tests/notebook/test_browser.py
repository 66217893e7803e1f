"""The browser for predictions: every control changes what is drawn, counted and saved."""

from __future__ import annotations

import importlib.util
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from workbench.errors import WorkbenchError
from workbench.evaluation.filters import FilterSettings, SubcategoryFilter
from workbench.notebook.browser import PredictionBrowser
from workbench.notebook.gallery import Gallery, counts_table

spec = importlib.util.spec_from_file_location("candidates", Path(__file__).parents[1] / "evaluation" / "candidates.py")
made = importlib.util.module_from_spec(spec)
spec.loader.exec_module(made)
VOCABULARY, annotation, row, truth = made.VOCABULARY, made.annotation, made.row, made.truth

OPEN = FilterSettings(score=0.0)


def gallery_of(folder: Path, rows: list[dict], gt: dict | None, images: int = 2) -> Gallery:
    files = {}
    for number in range(1, images + 1):
        files[number] = str(folder / f"{number}.png")
        Image.fromarray(np.full((64, 64, 3), 60 * number, np.uint8)).save(files[number])
    return Gallery(VOCABULARY, files, rows, gt, folder / "run")


@pytest.fixture
def gallery(tmp_path: Path) -> Gallery:
    rows = [
        row(5, 5, 0.9),
        row(6, 5, 0.6, category="box"),
        row(40, 40, 0.3, side=4, attributes={"colour": None, "texture": "dots"}),
        row(20, 20, 0.8, image_id=2),
    ]
    return gallery_of(tmp_path, rows, truth(annotation(1, 5, 5), images=2))


def counts(browser: PredictionBrowser) -> dict[str, int]:
    names = re.findall(r"<th[^>]*>(.*?)</th>", browser._counts.value)
    values = re.findall(r"<td[^>]*>(.*?)</td>", browser._counts.value)
    return {name: abs(int(value.replace("−", "-"))) for name, value in zip(names, values, strict=True)}


def test_it_shows_what_the_settings_say(gallery):
    browser = PredictionBrowser(gallery, OPEN)
    assert counts(browser) == {"predictions": 3, "score": 0, "drawn": 3, "in the ground truth": 1}
    picture = Image.open(io.BytesIO(browser._picture.value))
    assert picture.format == "JPEG"
    difference = np.abs(np.asarray(picture, np.int16) - browser.scene.picture(browser.settings, 17)).mean()
    assert difference < 4  # what JPEG loses


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (lambda b: setattr(b._score, "value", 0.5), "score"),
        (lambda b: setattr(b._main_score, "value", 0.5), "main score"),
        (lambda b: setattr(b._categories, "value", ("box",)), "category"),
        (lambda b: setattr(b._subcategories["colour"][2], "value", True), "colour no-object"),
        (lambda b: setattr(b._subcategories["colour"][1], "value", 0.95), "colour probability"),
        (lambda b: setattr(b._area, "value", 50), "area"),
        (lambda b: setattr(b._nms, "value", "across"), "overlap"),
    ],
)
def test_every_control_redraws_and_counts(gallery, change, rule):
    browser = PredictionBrowser(gallery, OPEN)
    before = browser._picture.value
    change(browser)
    assert counts(browser)[rule] > 0
    assert counts(browser)["drawn"] == 3 - counts(browser)[rule]
    assert browser._picture.value != before
    assert f"Why {counts(browser)[rule]} are not drawn" in browser._dropped.value
    assert gallery.scene(1).filtered(browser.settings).counts[rule] == counts(browser)[rule]


def test_settings_go_in_and_come_out(gallery):
    settings = FilterSettings(
        0.25,
        0.125,
        ("box",),
        min_area=5000.0,
        nms="across",
        nms_iou=0.5,
        subcategories={"colour": SubcategoryFilter(8.5, "logit", True), "texture": SubcategoryFilter(0.25)},
    )
    browser = PredictionBrowser(gallery)
    assert browser.settings == FilterSettings(
        subcategories={name: SubcategoryFilter() for name in VOCABULARY.subcategories}
    )
    browser.settings = settings
    assert browser.settings == settings
    assert PredictionBrowser(gallery, settings).settings == settings
    with pytest.raises(WorkbenchError, match="did you mean 'disc'"):
        browser.settings = FilterSettings(categories=("disk",))


def test_the_lowest_logit_means_no_limit_and_a_new_measure_starts_there(gallery):
    browser = PredictionBrowser(gallery, OPEN)
    measure, threshold, _ = browser._subcategories["colour"]
    threshold.value = 0.95
    assert counts(browser)["drawn"] == 0
    measure.value = "logit"
    assert counts(browser)["drawn"] == 3 and browser.settings.subcategories["colour"].threshold is None
    assert threshold.min < 9 < threshold.max
    threshold.value = 9.5
    assert counts(browser) == {"predictions": 3, "score": 0, "colour logit": 3, "drawn": 0, "in the ground truth": 1}


def test_next_and_previous_stop_at_the_ends(gallery):
    browser = PredictionBrowser(gallery, OPEN)
    assert browser._before.disabled and not browser._after.disabled
    before = browser._picture.value
    browser._after.click()
    assert (browser._image.value, browser._place.value) == (1, "2 of 2")
    assert browser._picture.value != before
    assert counts(browser) == {"predictions": 1, "score": 0, "drawn": 1, "in the ground truth": 0}
    assert browser._after.disabled and not browser._before.disabled
    browser.go(1)
    assert browser._image.value == 1
    browser._before.click()
    assert browser._picture.value == before


def test_export_and_save(gallery, tmp_path):
    browser = PredictionBrowser(gallery, OPEN)
    browser._score.value = 0.5
    browser._export.click()
    path = tmp_path / "run" / "figures" / "visualize_1.png"
    assert str(path) in browser._status.value
    assert (np.asarray(Image.open(path)) == browser.scene.picture(browser.settings)).all()
    browser._path.value = str(tmp_path / "mine.json")
    browser._save.click()
    assert FilterSettings.load(tmp_path / "mine.json") == browser.settings
    (tmp_path / "file").write_text("")
    for wrong in (str(tmp_path / "file" / "x.json"), " "):
        browser._path.value = wrong
        browser._save.click()
        assert "settings" in browser._status.value and "Wrote" not in browser._status.value


def test_nothing_above_the_threshold_one_image_and_no_ground_truth(tmp_path):
    browser = PredictionBrowser(gallery_of(tmp_path, [row(5, 5, 0.2)], None, images=1))
    assert counts(browser) == {"predictions": 1, "score": 1, "drawn": 0}
    assert browser._before.disabled and browser._after.disabled
    alone = browser.scene.picture(browser.settings).shape[1]
    assert alone * 2 < gallery_of(tmp_path, [], truth(), images=1).scene(1).picture(OPEN).shape[1]
    empty = PredictionBrowser(gallery_of(tmp_path, [], truth(), images=1), OPEN)
    assert counts(empty) == {"predictions": 0, "score": 0, "drawn": 0, "in the ground truth": 0}


def test_what_cannot_be_done_is_said_under_the_controls(tmp_path):
    plain = {key: row(5, 5, 0.9)[key] for key in ("image_id", "category_id", "segmentation", "score")}
    browser = PredictionBrowser(gallery_of(tmp_path, [plain], None, images=1))
    assert browser._subcategories["colour"][0].options == (("probability", "probability"),)
    browser._subcategories["colour"][1].value = 0.5
    assert "no attribute_scores for colour" in browser._status.value
    browser._subcategories["colour"][1].value = 0
    assert browser._status.value == ""


def test_names_are_shown_as_text(tmp_path):
    gallery = gallery_of(tmp_path, [row(5, 5, 0.2)], None, images=1)
    words = VOCABULARY.__class__((3, 7), ("<b>disc", "box"), VOCABULARY.subcategories)
    browser = PredictionBrowser(Gallery(words, gallery.files, gallery.results, None, tmp_path))
    assert "&lt;b&gt;disc" in browser._dropped.value and "<b>disc" not in browser._dropped.value


def test_without_a_kernel_the_picture_stands(gallery):
    browser = PredictionBrowser(gallery, OPEN)
    bundle = browser._repr_mimebundle_()
    bundle = bundle[0] if isinstance(bundle, tuple) else bundle
    assert {"application/vnd.jupyter.widget-view+json", "image/jpeg"} <= bundle.keys()


def test_all_images_at_once(gallery):
    table = counts_table(gallery.filtered(FilterSettings(score=0.7, categories=("disc",))))
    assert table.loc["score"].tolist() == ["at least 0.7", 2, 2]
    assert table.loc["category"].tolist() == ["disc", 0, 2]
    assert table.left.iloc[-1] == 2
    sheet = gallery.contact_sheet(OPEN, count=5)
    assert sheet.ndim == 3 and sheet.shape[1] > 4 * 64
