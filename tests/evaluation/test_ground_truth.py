"""The ground truth of a loaded dataset, and that no file is read twice for it."""

from __future__ import annotations

import io
import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.evaluation.scenes import VOCABULARY, random_case
from workbench import cli
from workbench.data.coco import load_dataset
from workbench.data.validate import validate
from workbench.errors import WorkbenchError
from workbench.evaluation.evaluate import evaluate_results
from workbench.evaluation.ground_truth import check_ground_truth, ground_truth


def _content(seed: int) -> dict:
    content, _ = random_case(seed)
    content["subcategories"] = [{"name": name, "classes": list(c)} for name, c in VOCABULARY.subcategories.items()]
    return content


def test_ground_truth_is_the_file_less_what_loading_left_out(tmp_path):
    gt = _content(6)
    gt["annotations"][0]["area"] = 1234.5
    del gt["annotations"][2]["area"], gt["annotations"][2]["bbox"]
    bad = gt["annotations"][1]["id"]
    gt["annotations"][1]["segmentation"] = []
    path = tmp_path / "a.json"
    path.write_text(json.dumps(gt))
    dataset = load_dataset(f"{path}@{tmp_path}", skip_faults=True, check_images=False)
    truth = ground_truth(dataset)
    expected = [annotation for annotation in gt["annotations"] if annotation["id"] != bad]
    for annotation in expected:
        annotation["attributes"] = {k: v for k, v in annotation.get("attributes", {}).items() if v is not None}
    assert truth["annotations"] == expected
    assert truth["images"] == gt["images"]
    assert evaluate_results(truth, [], dataset.vocabulary)["images"] == 6


def test_files_with_other_category_ids_are_joined(tmp_path):
    first, second = _content(6), _content(7)
    other = {category["id"]: 100 - category["id"] for category in second["categories"]}
    for category in second["categories"]:
        category["id"] = other[category["id"]]
    for image in second["images"]:
        image["id"] += 1000
    for annotation in second["annotations"]:
        annotation |= {"image_id": annotation["image_id"] + 1000, "category_id": other[annotation["category_id"]]}
    for name, content in (("a", first), ("b", second)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    truth = ground_truth(load_dataset([f"{tmp_path}/{name}.json@{tmp_path}" for name in "ab"], check_images=False))
    back = {new: old for old, new in other.items()}
    assert [image["id"] for image in truth["images"]] == [i["id"] for i in first["images"] + second["images"]]
    assert [annotation["category_id"] for annotation in truth["annotations"]] == [
        *(annotation["category_id"] for annotation in first["annotations"]),
        *(back[annotation["category_id"]] for annotation in second["annotations"]),
    ]


_ODD = [None, True, 0, -1, 1.0, 1.5, 2**63, 10**400, float("nan"), "", "x", "\ud800", [], [1], [1, 1, -3, 4], {}]
_ODD += [[0, 0, 1e308, 1e308], [48.0, 48.0], [-48, -48], {"size": [48.0, 48.0], "counts": [2304]}, "1" * 400, [[1] * 6]]


@given(st.data())
def test_what_validation_passes_can_be_evaluated_on(tmp_path_factory, data):
    content = _content(6)
    for _ in range(data.draw(st.integers(1, 2))):
        value = content
        while True:  # walk to some place in the file, and put something odd there
            key = data.draw(st.sampled_from(list(value) if isinstance(value, dict) else range(len(value))))
            if not isinstance(value[key], (dict, list)) or not value[key] or data.draw(st.booleans()):
                break
            value = value[key]
        value[key] = data.draw(st.sampled_from(_ODD))
    path = tmp_path_factory.mktemp("odd") / "a.json"
    path.write_text(json.dumps(content))
    try:
        refused = validate([path], check_images=False)[0].stops
    except WorkbenchError:
        refused = True
    if refused:
        with pytest.raises(WorkbenchError):
            check_ground_truth(load_dataset(path, check_images=False))
    else:
        check_ground_truth(load_dataset(path, check_images=False))


def test_two_files_with_the_same_image_ids_are_refused(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.json").write_text(json.dumps(_content(6)))
    dataset = load_dataset([f"{tmp_path}/{name}.json@{tmp_path}" for name in "ab"], check_images=False)
    with pytest.raises(WorkbenchError, match="same image ids"):
        ground_truth(dataset)


@pytest.fixture
def reads(tmp_path, monkeypatch) -> Callable[[], tuple[int, int]]:
    """How often data/labels.json was opened, and how often JSON was parsed."""
    folder = tmp_path / "data"
    (folder / "images").mkdir(parents=True)
    content = _content(6)
    for image in content["images"]:
        image["file_name"] = f"{image['id']}.png"
        Image.new("RGB", (image["width"], image["height"])).save(folder / "images" / image["file_name"])
    (folder / "labels.json").write_text(json.dumps(content))
    (folder / "catalog.yaml").write_text("mine: {annotations: labels.json, images: images}\n")
    monkeypatch.chdir(tmp_path)
    opened, parsed = [], []
    plain_open, plain_loads = io.open, json.loads

    def count_open(file, *args, **kwargs):
        opened.extend([file] if str(file).endswith("labels.json") else [])
        return plain_open(file, *args, **kwargs)

    def count_loads(text, **kwargs):
        parsed.append(len(text))
        return plain_loads(text, **kwargs)

    for module in ("io", "builtins"):
        monkeypatch.setattr(f"{module}.open", count_open)
    monkeypatch.setattr(json, "loads", count_loads)
    return lambda: (len(opened), len(parsed))


NAMES = ["mine", "data/labels.json", "data/labels.json@data/images"]


@pytest.mark.parametrize("name", NAMES)
def test_a_file_is_read_once_for_loading_and_ground_truth(reads, name):
    assert len(ground_truth(load_dataset(name))["images"]) == 6
    assert reads() == (1, 1)


@pytest.mark.parametrize("name", NAMES)
def test_a_file_is_read_once_for_validation(reads, name):
    assert validate([name])[0].faults == []
    assert reads() == (1, 1)
    assert cli.main(["validate", name]) == 0
    assert reads() == (2, 2)
