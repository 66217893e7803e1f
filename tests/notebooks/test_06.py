"""Notebook 06 as papermill runs it: on a run, and where something is missing."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pandas as pd
import pytest

from workbench.errors import WorkbenchError
from workbench.evaluation.filters import FilterSettings, SubcategoryFilter
from workbench.notebook.gallery import open_gallery

spec = importlib.util.spec_from_file_location("running", Path(__file__).with_name("running.py"))
running = importlib.util.module_from_spec(spec)
spec.loader.exec_module(running)


def test_it_filters_counts_draws_and_suggests(tiny_run: Path, tmp_path: Path) -> None:
    notebook = running.run(
        "06_visualize",
        tmp_path / "06.ipynb",
        ckpt=tiny_run,
        output=tmp_path / "out",
        num_images=2,
        score=0.0,
        nms="across",
        subcategories={"colour": {"threshold": 0.1, "drop_no_object": True}},
    )
    names = {path.name for path in (tmp_path / "out" / "figures").iterdir()}
    assert names >= {"contact_sheet.png", "filter_counts.csv", "filtered_rows.csv", "suggested_thresholds.png"}
    assert running.pictures(notebook) == 3  # beside the sliders, the contact sheet, the suggested thresholds
    assert "6 images, 60 predictions" in running.text(notebook)
    saved = FilterSettings.load(tmp_path / "out" / "filters.json")
    assert saved.subcategories["colour"] == SubcategoryFilter(0.1, drop_no_object=True)
    assert (saved.score, saved.nms, saved.categories) == (0.0, "across", None)
    assert (tmp_path / "out" / "filters_suggested.json").is_file()
    figures = tmp_path / "out" / "figures"
    compared = pd.read_csv(figures / "thresholds_compared.csv", index_col="thresholds")
    assert compared.drawn["in use"] == pd.read_csv(figures / "filter_counts.csv").left.iloc[-1]
    assert list(compared) == ["drawn", "precision", "recall", "F1"] and "suggested" in compared.index


def test_nothing_above_the_threshold_one_image_and_no_ground_truth(
    tiny_run: Path, shapes_root: Path, tmp_path: Path
) -> None:
    image = sorted((shapes_root / "shapes" / "val").glob("*.png"))[0]
    notebook = running.run(
        "06_visualize", tmp_path / "06.ipynb", ckpt=tiny_run, dataset=image, output=tmp_path / "out", score=1.0
    )
    said = running.text(notebook)
    assert "There is no ground truth beside them: single images have none." in said
    assert "On shapes_val: " in said  # thresholds are chosen there, whatever is looked at
    assert "no ground truth to compare the thresholds on" in said


def test_a_dataset_with_other_classes_shows_its_images(tiny_run: Path, shapes_root: Path, tmp_path: Path) -> None:
    content = json.loads((shapes_root / "shapes" / "annotations" / "val.json").read_text())
    content["categories"][0]["name"] = "tractor"
    file = tmp_path / "other.json"
    file.write_text(json.dumps(content))
    place = f"{file}@{shapes_root / 'shapes' / 'val'}"
    gallery = open_gallery(tiny_run, place, num_images=3, output=tmp_path / "out")
    assert gallery.truth is None and "tractor" in gallery.note
    assert len(gallery.files) == 3 and len(gallery.results) == 30
    assert gallery.contact_sheet(FilterSettings(score=0.0), 3).ndim == 3

    content = json.loads((shapes_root / "shapes" / "annotations" / "val.json").read_text())
    file.write_text(json.dumps({**content, "annotations": []}))
    gallery = open_gallery(tiny_run, place, num_images=1, output=tmp_path / "out")
    assert gallery.truth is None and "no annotations" in gallery.note and len(gallery.files) == 1


def test_earlier_predictions_are_taken_and_overrides_predict_anew(tiny_run: Path, tmp_path: Path) -> None:
    before = open_gallery(tiny_run, output=tmp_path)
    assert len(before.files) == 6 and "predictions.json" in before.note
    rows = json.loads((tiny_run / "predictions.json").read_text())
    assert before.results == rows
    anew = open_gallery(tiny_run, num_images=2, output=tmp_path, overrides=["TEST.DETECTIONS_PER_IMAGE", "4"])
    assert len(anew.files) == 2 and len(anew.results) == 8 and anew.truth is not None
    assert {a["image_id"] for a in anew.truth["annotations"]} <= set(anew.files)


@pytest.mark.parametrize(
    ("ckpt", "dataset", "message"),
    [
        ("nowhere", None, "checkpoint nowhere does not exist"),
        (None, "shapes_vall", "did you mean 'shapes_val'"),
        (None, "nowhere/*.png", "names no image"),
        (None, "nowhere.json", "nowhere.json"),
    ],
)
def test_what_is_not_there_is_one_sentence(ckpt, dataset, message, tiny_run: Path) -> None:
    with pytest.raises(WorkbenchError, match=message):
        open_gallery(ckpt or tiny_run, dataset)
