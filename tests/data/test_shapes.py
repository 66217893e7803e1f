"""The generated dataset: reproducible, complete, recognisable, and not to be guessed from colour."""

from __future__ import annotations

import colorsys
import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scipy import ndimage

from workbench.data.catalog import get_entry
from workbench.data.masks import decode_mask, encode_mask
from workbench.data.shapes import generate as shapes
from workbench.data.shapes.generate import draw_scene, generate_shapes
from workbench.data.shapes.rendering import (
    COLOURS,
    HUES,
    SHAPES,
    TEXTURES,
    outline_area,
    render_background,
    render_object,
)
from workbench.data.validate import validate
from workbench.errors import WorkbenchError

SETTINGS = {"train": 5, "val": 2, "test": 2, "image_size": 64}


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def scenes() -> list[tuple[np.ndarray, list[dict]]]:
    return [draw_scene(0, "test", index, image_size=128, crowded=False) for index in range(150)]


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    assert generate_shapes(tmp_path / "a", seed=3, **SETTINGS)
    assert generate_shapes(tmp_path / "b", seed=3, **SETTINGS)
    assert generate_shapes(tmp_path / "c", seed=4, **SETTINGS)
    a, b, c = (_files(tmp_path / name) for name in "abc")
    assert a == b
    assert a.keys() == c.keys() and all(a[name] != c[name] for name in a)
    assert len(a) == 5 + 2 + 2 + 3 + 1


def test_an_image_depends_on_its_number_alone(tmp_path: Path) -> None:
    generate_shapes(tmp_path / "a", **SETTINGS)
    generate_shapes(tmp_path / "b", **{**SETTINGS, "train": 2, "val": 0})
    a, b = _files(tmp_path / "a"), _files(tmp_path / "b")
    pictures = [name for name in b if name.endswith(".png")]
    assert len(pictures) == 4
    assert all(a[name] == b[name] for name in pictures)
    assert a["train/000001.png"] != a["test/000001.png"]


def test_a_second_call_reuses_and_other_settings_are_refused(tmp_path: Path) -> None:
    output = tmp_path / "shapes"
    (tmp_path / "shapes.partial").mkdir()  # what a killed run leaves
    assert generate_shapes(output, **SETTINGS)
    before = _files(tmp_path)
    assert not generate_shapes(output, **SETTINGS)
    with pytest.raises(WorkbenchError, match="seed 0 there, 1 asked"):
        generate_shapes(output, seed=1, **SETTINGS)
    assert _files(tmp_path) == before


@pytest.mark.parametrize("there", ["notes.txt", "shapes.json"])
def test_a_folder_of_other_files_is_left_alone(tmp_path: Path, there: str) -> None:
    (tmp_path / there).write_text("mine")
    with pytest.raises(WorkbenchError, match="other files"):
        generate_shapes(tmp_path, **SETTINGS)
    assert _files(tmp_path) == {there: b"mine"}


def test_unwritable_output_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkbenchError, match="cannot be written"):
        generate_shapes(tmp_path / "file" / "shapes", **SETTINGS)


def test_the_format_is_exercised(scenes: list) -> None:
    annotations = [a for _, found in scenes for a in found]
    forms = {
        "polygon" if isinstance(a["segmentation"], list) else type(a["segmentation"]["counts"]).__name__
        for a in annotations
        if not a["iscrowd"]
    }
    assert forms == {"polygon", "str", "list"}
    assert any(a["iscrowd"] for a in annotations)
    assert any(not found for _, found in scenes)
    assert max(len(found) for _, found in scenes) >= shapes.OBJECTS[1]
    plain = [a for a in annotations if not a["iscrowd"]]
    for name in ("colour", "texture"):
        unlabelled = sum(name not in a["attributes"] for a in plain) / len(plain)
        assert 0.02 < unlabelled < 0.09
    assert {a["category_id"] for a in plain} == set(range(1, len(SHAPES) + 1))
    assert {a["attributes"].get("colour") for a in plain} == {*COLOURS, None}
    assert {a["attributes"].get("texture") for a in plain} == {*TEXTURES, None}
    smallest = min(outline_area(shape, shapes.SIZES[0]) for shape in SHAPES)
    assert min(a["area"] for a in plain) >= 0.9 * shapes.LEAST_VISIBLE * smallest


def test_polygons_reproduce_the_drawn_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    original = shapes._segmentation

    def record(mask: np.ndarray, form: float, crowd: bool) -> list | dict:
        drawn.append((mask, original(mask, form, crowd)))
        return drawn[-1][1]

    monkeypatch.setattr(shapes, "_segmentation", record)
    for index in range(40):
        draw_scene(1, "train", index, image_size=128, crowded=False)
    polygons = [form for _, form in drawn if isinstance(form, list)]
    assert len(polygons) > 0.55 * len(drawn)
    assert all(np.array_equal(decode_mask(form, *mask.shape), mask) for mask, form in drawn)


def test_annotations_agree_with_their_masks_and_do_not_overlap(scenes: list) -> None:
    for picture, found in scenes[:40]:
        covered = np.zeros(picture.shape[:2], dtype=int)
        for annotation in found:
            mask = decode_mask(annotation["segmentation"], *picture.shape[:2])
            covered += mask
            x, y, w, h = annotation["bbox"]
            assert mask.sum() == annotation["area"]
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            assert [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1] == [x, y, x + w, y + h]
        assert covered.max() <= 1


def test_what_is_generated_validates(shapes_root: Path) -> None:
    checked = validate(["shapes_train"], root=shapes_root, held_out=["shapes_val", "shapes_test"])
    assert [item.faults for item in checked] == [[], [], []]


def test_colours_and_textures_are_recognisable(scenes: list) -> None:
    """Each object's typical hue is nearest to its own class, and patterns stand out from plain."""
    right, contrast = [], {texture: [] for texture in TEXTURES}
    for picture, found in scenes:
        for annotation in found:
            if annotation["iscrowd"] or len(annotation["attributes"]) < 2:
                continue
            mask = ndimage.binary_erosion(decode_mask(annotation["segmentation"], *picture.shape[:2]), iterations=2)
            if mask.sum() < 40:
                continue
            pixels = picture[mask] / 255
            hue = colorsys.rgb_to_hsv(*np.median(pixels, axis=0))[0] * 360
            nearest = min(COLOURS, key=lambda name: abs((hue - HUES[name] + 180) % 360 - 180))
            right.append(nearest == annotation["attributes"]["colour"])
            light = np.sort(pixels.max(axis=1))
            contrast[annotation["attributes"]["texture"]].append(
                (light[int(0.95 * light.size)] - light[int(0.05 * light.size)]) / np.median(light)
                + np.ptp(np.percentile(pixels.min(axis=1), [5, 95]))
            )
    assert len(right) > 300
    assert np.mean(right) > 0.99
    plain = np.percentile(contrast["plain"], 90)
    for texture in TEXTURES[1:]:
        assert np.percentile(contrast[texture], 10) > plain


def _guess_by_colour(picture: np.ndarray) -> list[tuple[np.ndarray, float]]:
    """What a colour histogram finds: connected regions of one palette colour, the more saturated and
    compact the better, holes filled."""
    hsv = np.asarray(Image.fromarray(picture).convert("HSV")).astype(float)
    colour = np.round(hsv[..., 0] * 6 / 255).astype(int) % 6
    strong = (hsv[..., 1] > 128) & (hsv[..., 2] > 51)
    found = []
    for number in range(6):
        regions, _ = ndimage.label(strong & (colour == number))
        sizes = np.bincount(regions.ravel())
        for part, window in enumerate(ndimage.find_objects(regions), 1):
            if sizes[part] < 25:
                continue
            mask = ndimage.binary_fill_holes(regions == part)
            if 50 <= mask.sum() <= 3500:
                fullness = mask.sum() / np.prod([side.stop - side.start for side in window])
                found.append((mask, float(hsv[..., 1][mask].mean() / 255 * fullness)))
    return sorted(found, key=lambda region: -region[1])[:15]


def _ap(truth: dict, results: list[dict], *, categories: bool) -> float:
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        scorer = COCOeval(coco, coco.loadRes([dict(row) for row in results]), "segm")
        scorer.params.useCats = int(categories)
        scorer.evaluate()
        scorer.accumulate()
        scorer.summarize()
    return 100 * scorer.stats[0]


def test_colour_alone_does_not_find_the_objects(scenes: list) -> None:
    truth = {"images": [], "annotations": [], "categories": [{"id": n + 1} for n in range(len(SHAPES))]}
    truth["info"] = {}
    results = []
    for number, (picture, found) in enumerate(scenes[:40], 1):
        truth["images"].append({"id": number, "height": 128, "width": 128})
        for annotation in found:
            segmentation = encode_mask(decode_mask(annotation["segmentation"], 128, 128))
            extra = {"id": len(truth["annotations"]) + 1, "image_id": number, "segmentation": segmentation}
            truth["annotations"].append({**annotation, **extra})
        for mask, score in _guess_by_colour(picture):
            for category in range(1, len(SHAPES) + 1):  # a colour says nothing about the shape: guess them all
                row = {"image_id": number, "category_id": category, "segmentation": encode_mask(mask)}
                results.append({**row, "score": score})
    assert 0 < _ap(truth, results, categories=True) < 20
    assert _ap(truth, results[::5], categories=False) < 35  # not even where the shape is given for free


def test_crowded_images_hold_many_objects() -> None:
    counts = []
    for index in range(6):
        picture, found = draw_scene(0, "train", index, image_size=256, crowded=True)
        assert picture.shape == (256, 256, 3)
        counts.append(len(found))
    assert max(counts) > 60 and max(counts) <= 101


def test_crowded_dataset_is_in_the_catalog(tmp_path: Path) -> None:
    generate_shapes(tmp_path / "shapes_crowded", train=1, val=0, test=0, crowded=True)
    entry = get_entry("shapes_crowded_train", tmp_path)
    content = json.loads(entry.annotations.read_text())
    assert (content["images"][0]["height"], content["images"][0]["width"]) == (256, 256)
    assert (entry.images / content["images"][0]["file_name"]).is_file()


@pytest.mark.parametrize("shape", SHAPES)
def test_render_object_draws_what_it_says(shape: str) -> None:
    canvas = np.full((80, 90, 3), 40, dtype=np.float32)
    before = canvas.copy()
    mask = render_object(canvas, shape, "red", "plain", centre=(50.5, 38.5), size=45.0, angle=0)
    assert mask.shape == (80, 90)
    assert abs(mask.sum() / outline_area(shape, 45.0) - 1) < 0.03
    assert np.array_equal(mask[:, 11:90], mask[:, 11:90][:, ::-1])
    assert (canvas[~ndimage.binary_dilation(mask, iterations=4)] == 40).all()
    inside = ndimage.binary_erosion(mask, iterations=2)
    assert (canvas[inside][:, 0] > 200).all() and (canvas[inside][:, 1:] < 60).all()
    turned = render_object(before.copy(), shape, "red", "plain", centre=(50.5, 38.5), size=45.0, angle=20)
    assert abs(int(turned.sum()) - int(mask.sum())) < 0.03 * mask.sum()
    assert shape in ("circle", "ring") or not np.array_equal(turned, mask)


def test_render_object_off_the_canvas_and_unknown_names() -> None:
    canvas = np.zeros((20, 20, 3), dtype=np.float32)
    assert not render_object(canvas, "cross", "blue", "dots", centre=(-60, 10), size=20).any()
    assert not canvas.any()
    with pytest.raises(ValueError, match="hexagon"):
        render_object(canvas, "hexagon", "blue", "plain", centre=(10, 10), size=10)
    with pytest.raises(ValueError, match="fur"):
        render_object(canvas, "cross", "blue", "fur", centre=(10, 10), size=10)


def test_the_background_holds_every_hue_of_the_objects() -> None:
    rng = np.random.default_rng(0)
    counts = np.zeros(6)
    for _ in range(20):
        canvas = np.clip(render_background(rng, 128, 128), 0, 255).astype(np.uint8)
        hsv = np.asarray(Image.fromarray(canvas).convert("HSV")).astype(float)
        strong = hsv[..., 1] > 128
        counts += np.bincount((np.round(hsv[..., 0][strong] * 6 / 255).astype(int) % 6), minlength=6)
    assert counts.min() > 0.07 * counts.sum()
