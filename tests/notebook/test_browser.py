"""The browser for predictions: every control changes what is drawn, counted and saved."""

from __future__ import annotations

import base64
import importlib.util
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.path import Path as Path2D
from PIL import Image

from workbench.data.masks import decode_mask, encode_mask
from workbench.errors import WorkbenchError
from workbench.evaluation.filters import FilterSettings, SubcategoryFilter
from workbench.evaluation.thresholds import Suggestion
from workbench.notebook.browser import PredictionBrowser
from workbench.notebook.display import Page
from workbench.notebook.gallery import Gallery, counts_table
from workbench.notebook.viewer import trace

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
    return {name: abs(number) for name, number, _ in browser._viewer.counts}


def test_it_shows_what_the_settings_say(gallery):
    browser = PredictionBrowser(gallery, OPEN)
    assert counts(browser) == {"predictions": 3, "score": 0, "drawn": 3, "in the ground truth": 1}
    viewer = browser._viewer
    assert Image.open(io.BytesIO(viewer.picture)).format == "JPEG"
    assert viewer.content["size"] == [64, 64]
    assert [len(panel["objects"]) for panel in viewer.content["panels"]] == [1, 3]
    assert viewer.shown == [[0], [0, 1, 2]]
    assert viewer.verdicts == [{"0": "found"}, {"0": "right", "1": "wrong", "2": "wrong"}]
    best, _, unsure = viewer.content["panels"][1]["objects"]
    assert best["caption"][0] == "disc 0.90" and ["IoU with the ground truth", "1.00"] in best["details"]
    assert (best["dashed"], unsure["dashed"]) == (False, True)
    assert viewer.titles[0]["alt"] == "1.png: 1 object · ground truth; 1 disc; 1 found"
    assert viewer.titles[1]["alt"].endswith("; 2 disc, 1 box; 1 right, 2 wrong")
    assert best["classes"] == {"category": "disc", "colour": "red", "texture": "plain"}
    assert ["colour", "red 0.90, no colour 0.05, green 0.05"] in best["details"]
    names = {name: {word for word, _ in legend} for name, legend in viewer.content["legends"].items()}
    assert all(unsure["classes"][name] in names[name] for name in ("category", "colour", "texture"))


def test_outlines_are_those_of_the_masks(gallery):
    """Rings are filled by the even-odd rule, so a hole is a ring too."""
    mask = np.zeros((20, 30), bool)
    mask[0:12, 5:30] = True
    mask[4:8, 10:15] = False
    rings = trace(mask)
    assert len(rings) == 2 and trace(np.zeros((4, 4), bool)) == []
    y, x = np.mgrid[:20, :30]
    inside = sum(Path2D(ring).contains_points(np.stack([x + 0.5, y + 0.5], -1).reshape(-1, 2)) for ring in rings) % 2
    assert np.array_equal(inside.reshape(mask.shape).astype(bool), mask)


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
    before = browser._viewer.picture
    browser._viewer.explaining = True
    change(browser)
    assert counts(browser)[rule] > 0
    assert counts(browser)["drawn"] == 3 - counts(browser)[rule] == len(browser._viewer.shown[1])
    assert browser._viewer.picture is before  # no picture is sent
    assert browser._viewer.left_out == counts(browser)[rule] == len(browser._viewer.reasons)
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
    before = browser._viewer.picture
    browser._after.click()
    assert (browser._image.value, browser._place.value) == (1, "2 of 2")
    assert browser._viewer.picture != before and browser._viewer.content["key"] == "2"
    assert counts(browser) == {"predictions": 1, "score": 0, "drawn": 1, "in the ground truth": 0}
    assert browser._after.disabled and not browser._before.disabled
    browser.go(1)
    assert browser._image.value == 1
    browser._receive(None, {"go": -1}, [])  # the key p
    assert browser._viewer.picture == before


def test_export_and_save(gallery, tmp_path):
    browser = PredictionBrowser(gallery, OPEN)
    browser._score.value = 0.5
    asked = []
    browser._viewer.send = asked.append
    browser._export_button.click()
    assert asked == [{"export": True}]
    browser._receive(None, {"png": True}, [memoryview(b"the screen")])
    path = tmp_path / "run" / "figures" / "visualize_1.png"
    assert str(path) in browser._status.value and path.read_bytes() == b"the screen"
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


def test_reasons_are_listed_while_they_are_asked_for(gallery):
    browser = PredictionBrowser(gallery, FilterSettings(score=0.7))
    assert browser._viewer.reasons == []
    browser._viewer.explaining = True
    assert browser._viewer.reasons == ["row 1, box 0.60: score 0.600 < 0.7", "row 2, disc 0.30: score 0.300 < 0.7"]


def test_a_move_of_a_slider_is_answered_by_one_message(gallery, monkeypatch):
    browser, sent = PredictionBrowser(gallery, OPEN), []
    monkeypatch.setattr("ipywidgets.Widget._send", lambda self, content, buffers=None: sent.append((self, content)))
    browser._score.set_state({"value": 0.5})  # as the page sets it
    assert [each for each, _ in sent] == [browser._viewer]
    changed = {"shown", "verdicts", "titles", "counts", "left_out"}
    assert sent[0][1]["method"] == "update" and set(sent[0][1]["state"]) == changed


def test_without_a_kernel_the_picture_stands(gallery):
    browser = PredictionBrowser(gallery, OPEN)
    bundle, described = browser._repr_mimebundle_()
    assert {"application/vnd.jupyter.widget-view+json", "image/jpeg"} <= bundle.keys()
    assert described["image/jpeg"]["alt"].startswith("1.png, 1.png: 1 object · ground truth; 1 disc; 1 found")
    sheet = Page(None).image(gallery.contact_sheet(OPEN, 2), "worst")
    bundle, described = PredictionBrowser(gallery, OPEN, still=sheet)._repr_mimebundle_()
    assert bundle["image/jpeg"] == base64.b64encode(sheet.data).decode("ascii")
    assert described["image/jpeg"]["alt"] == "worst"


def test_a_reset_and_the_suggestion_are_one_press_away(gallery):
    suggested = Suggestion(FilterSettings(score=0.75), {"score": pd.DataFrame({"f1": [1.0]})}, "")
    browser = PredictionBrowser(gallery, OPEN, suggestion=suggested)
    browser._use.click()
    assert browser.settings.score == 0.75 and counts(browser)["drawn"] == 1
    browser._reset.click()
    assert browser.settings.score == 0.0
    assert PredictionBrowser(gallery, OPEN)._use.disabled


def test_images_come_in_an_order_that_helps_and_by_what_they_have_in_common(gallery):
    browser = PredictionBrowser(gallery, FilterSettings(score=0.7))
    assert browser.images == [1, 2]
    browser._order.value = "most errors"
    assert browser.images == [2, 1] and browser.image_id == 2  # a false one and none in the other
    browser._order.value = "lowest score drawn"
    assert browser.images == [2, 1]
    browser._only.value = "with disc"
    assert browser.images == [2, 1]
    browser.settings = FilterSettings(score=1.0)
    browser._list_groups_button.click()
    assert "main category: disc missed" in dict(browser._only.options).values()
    browser.settings = OPEN
    browser._list_groups_button.click()
    assert "with box" in dict(browser._only.options).values()
    browser._only.value = "with box"
    assert browser.images == [1]
    assert PredictionBrowser(gallery, OPEN, images=[2], order="most false").images == [2]
    assert PredictionBrowser(gallery, OPEN, images=[2, 1]).images == [2, 1]  # of a table, in its order
    for images, message in (([], "no images to look at"), ([1, 9], "no image with the id 9")):
        with pytest.raises(WorkbenchError, match=message):
            PredictionBrowser(gallery, OPEN, images=images)


def test_two_checkpoints_stand_beside_each_other(gallery):
    other = replace(gallery, results=[row(5, 5, 0.4), row(20, 20, 0.8, image_id=2)], label="second")
    browser = PredictionBrowser(gallery, OPEN, other=other)
    assert browser._viewer.shown == [[0], [0, 1, 2], [0]]
    assert [title["title"].split(":")[0] for title in browser._viewer.titles[1:]] == ["prediction", "second"]
    browser._score.value = 0.5
    assert browser._viewer.shown == [[0], [0, 1], []]


def test_marked_images_and_suspected_errors_become_a_file_for_a_labelling_tool(gallery, tmp_path):
    browser = PredictionBrowser(gallery, OPEN)
    browser._receive(None, {"mark": True}, [])  # the key m
    browser._note.value = "the disc, twice"
    browser.go(1)
    assert not browser._mark.value and browser._note.value == ""
    browser.go(-1)
    assert browser._mark.value and browser._note.value == "the disc, twice"
    browser._save_review.click()
    table = pd.read_csv(tmp_path / "run" / "review.csv")
    assert table.values.tolist()[0] == [1, "1.png", "marked", "the disc, twice"]
    assert "1 marked image, 2 suspected" in browser._status.value
    browser.settings = FilterSettings(score=0.7)
    browser._save_review.click()
    assert "1 marked image, 1 suspected" in browser._status.value
    content = json.loads((tmp_path / "run" / "review.json").read_text())
    assert [image["id"] for image in content["images"]] == [1, 2]
    assert [a.get("attributes", {}).get("suspected") for a in content["annotations"]] == [None, "not annotated"]
    browser._mark.value = False
    assert len(browser.review) == 0


def test_what_labelling_tools_read_has_polygons_a_box_and_an_area(tmp_path):
    """Label Studio's converter reads nothing else, and Datumaro, which CVAT uses, wants a box."""
    holes = np.zeros((64, 64), bool)
    holes[10:40, 20:60] = True
    holes[15:20, 25:30] = holes[30:31, 50:52] = holes[33:36, 55:56] = False
    ring = annotation(1, 0, 0) | {"segmentation": encode_mask(holes)}
    del ring["bbox"], ring["area"]
    square = [5.0, 5.0, 15.0, 5.0, 15.0, 15.0, 5.0, 15.0]
    polygon = annotation(2, 5, 5) | {"segmentation": [square]}
    nothing = annotation(3, 5, 5) | {"segmentation": encode_mask(np.zeros((64, 64), bool)), "iscrowd": 1}
    gallery = gallery_of(tmp_path, [row(20, 50, 0.9)], truth(ring, polygon, nothing), images=1)
    browser = PredictionBrowser(gallery)
    browser._mark.value = True
    browser._save_review.click()
    first, second, third, predicted = json.loads((tmp_path / "run" / "review.json").read_text())["annotations"]
    assert len(first["segmentation"]) > 1
    assert np.array_equal(decode_mask(first["segmentation"], 64, 64), holes)
    assert (first["bbox"], first["area"]) == ([20, 10, 40, 30], holes.sum())
    assert second["segmentation"] == [square] and second["bbox"] == [5, 5, 10, 10]
    assert third["segmentation"] == [] and third["iscrowd"] == 1
    assert np.array_equal(decode_mask(predicted["segmentation"], 64, 64), made.square(20, 50))
    assert (predicted["bbox"], predicted["area"], predicted["iscrowd"]) == ([20, 50, 10, 10], 100, 0)


def test_it_starts_with_what_was_saved_or_else_suggested(gallery, tmp_path):
    nothing, some = Suggestion(OPEN, {}, ""), Suggestion(FilterSettings(score=0.75), {"score": pd.DataFrame()}, "")
    assert gallery.starting_settings(None, nothing)[0] == FilterSettings(nms="within")
    assert gallery.starting_settings(None, some)[0].score == 0.75
    settings, words = gallery.starting_settings(None, some, score=0.25, nms=None)
    assert settings.score == 0.25 and words.endswith("with score as the parameters say.")
    gallery.keep(FilterSettings(score=0.125))
    assert gallery.starting_settings(None, some)[0].score == 0.125
    assert "is left" in gallery.keep(FilterSettings(score=0.5))  # what was saved is not lost
    assert FilterSettings.load(tmp_path / "run" / "filters.json").score == 0.125
    gallery.save(FilterSettings(categories=("other",)), "filters")
    assert "do not fit" in gallery.starting_settings(None, some)[1]


def test_large_photos_are_shown_smaller_with_their_masks(tmp_path):
    Image.fromarray(np.zeros((3000, 2000, 3), np.uint8)).save(tmp_path / "1.png")
    mask = np.zeros((3000, 2000), bool)
    mask[1000:2000, 500:1500] = True
    rows = [row(5, 5, 0.9) | {"segmentation": encode_mask(mask)}]
    image = {"id": 1, "height": 3000, "width": 2000}
    there = truth() | {"images": [image], "annotations": [annotation(1, 5, 5) | {"segmentation": encode_mask(mask)}]}
    viewer = PredictionBrowser(Gallery(VOCABULARY, {1: str(tmp_path / "1.png")}, rows, there, tmp_path))._viewer
    assert viewer.content["size"] == [1000, 1500]
    for panel in viewer.content["panels"]:
        assert panel["objects"][0]["box"] == [250, 500, 750, 1000]
    assert viewer.verdicts == [{"0": "found"}, {"0": "right"}]


def test_all_images_at_once(gallery):
    table = counts_table(gallery.filtered(FilterSettings(score=0.7, categories=("disc",))))
    assert table.loc["score"].tolist() == ["at least 0.7", 2, 2]
    assert table.loc["category"].tolist() == ["disc", 0, 2]
    assert table.left.iloc[-1] == 2
    sheet = gallery.contact_sheet(OPEN, count=5)
    assert sheet.ndim == 3 and sheet.shape[1] > 4 * 64
