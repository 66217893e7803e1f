"""The small workplace that every case gets a copy of: a dataset, a config, a finished run, and files of each kind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nbformat
import numpy as np
from PIL import Image

TRAIN, VAL, CONFIG = "shapes/annotations/train.json", "shapes/annotations/val.json", "tiny.yaml"
RUN, RESULTS, FILTERS, SWEEP, CATALOG = "run", "results.json", "filters.json", "sweep.yaml", "catalog.yaml"
PHOTO = "photos/a.png"
EXPORTS = ("cvat", "labelme", "via", "labelstudio", "yolo", "voc", "supervisely")


def make_workplace(config: str) -> None:
    """Fill the working directory. ``config`` is YAML of a tiny model, without its datasets."""
    from workbench.config import load_config
    from workbench.data.shapes.generate import generate_shapes
    from workbench.workflows.train import train

    generate_shapes("shapes", seed=0, train=6, val=3, test=1, image_size=32)
    Path(CONFIG).write_text(f"{config}DATASETS: {{ROOT: '.', TRAIN: [{TRAIN}], TEST: [{VAL}]}}\n")
    train(load_config(CONFIG, ["OUTPUT_DIR", RUN]))
    shutil.rmtree(Path(RUN) / "figures")
    Path(RESULTS).write_text(json.dumps(_good_results()))
    Path(FILTERS).write_text(json.dumps({"score": 0.0, "categories": None, "nms": "within", "nms_iou": 0.5}))
    Path("photos").mkdir()
    shutil.copy(next(Path("shapes/test").glob("*.png")), PHOTO)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# A run"), _code_cell()])
    nbformat.write(notebook, Path(RUN) / "04_eval.ipynb")
    nbformat.write(notebook, "trial.ipynb")
    Path(SWEEP).write_text(
        "notebook: trial.ipynb\noutput: sweep\nparameters: {config: tiny.yaml}\noverrides: [SEED, 3]\n"
        "grid: {SOLVER.BASE_LR: [0.001]}\n"
    )
    folder = Path("sweep/base_lr=0.001")
    folder.mkdir(parents=True)
    (folder / "sweep.json").write_text(json.dumps({"status": "done", "settings": {"SOLVER.BASE_LR": 0.001}}))
    Path(CATALOG).write_text(f"mine:\n  annotations: {VAL}\n  images: shapes/val\n")
    for name in EXPORTS:
        globals()[f"_write_{name}"](Path("exports") / name)


def _good_results() -> list[dict]:
    """Return the objects of VAL as if a model had found them, with every field that the workbench writes."""
    rows = json.loads((Path(RUN) / "predictions.json").read_text())
    truth = json.loads(Path(VAL).read_text())["annotations"]
    for number, (row, annotation) in enumerate(zip(rows, truth, strict=False)):
        row.update({key: annotation[key] for key in ("image_id", "category_id", "bbox", "segmentation")})
        row.update(attributes=annotation["attributes"], score=0.95 - 0.1 * number, query=number)
    return rows[: len(truth) + 2]


def _code_cell() -> nbformat.NotebookNode:
    output = nbformat.v4.new_output("stream", text="AP 1.0\n")
    return nbformat.v4.new_code_cell("print('AP 1.0')", outputs=[output], execution_count=1)


def _image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((60, 80, 3), 90, dtype=np.uint8)).save(path)


def _json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


CORNERS = [[5, 5], [40, 5], [40, 30]]


def _write_cvat(folder: Path) -> None:
    _image(folder / "images" / "a.png")
    label = (
        "<label><name>disc</name><attributes><attribute><name>ripe</name><input_type>select</input_type>"
        "<values>yes&#10;no</values></attribute></attributes></label>"
    )
    points = ";".join(f"{x},{y}" for x, y in CORNERS)
    shapes = (
        f'<polygon label="disc" points="{points}" occluded="0"><attribute name="ripe">yes</attribute></polygon>'
        '<mask label="disc" rle="3, 5, 4" left="2" top="3" width="4" height="3"/>'
        '<ellipse label="disc" cx="30" cy="30" rx="10" ry="5" rotation="30"/>'
    )
    (folder / "annotations.xml").write_text(
        f"<annotations><version>1.1</version><meta><task><labels>{label}</labels></task></meta>"
        f'<image id="0" name="a.png" width="80" height="60">{shapes}</image></annotations>'
    )


def _write_labelme(folder: Path) -> None:
    _image(folder / "a.png")
    shape = {"label": "disc", "points": CORNERS, "group_id": None, "shape_type": "polygon", "flags": {"ripe": True}}
    circle = {**shape, "shape_type": "circle", "points": [[30, 30], [30, 40]]}
    content = {"version": "5.5.0", "flags": {}, "shapes": [shape, circle], "imagePath": "a.png", "imageData": None}
    _json(folder / "a.json", {**content, "imageHeight": 60, "imageWidth": 80})


def _write_via(folder: Path) -> None:
    _image(folder / "a.png")
    xs, ys = zip(*CORNERS, strict=True)
    polygon = {"name": "polygon", "all_points_x": xs, "all_points_y": ys}
    ellipse = {"name": "ellipse", "cx": 40, "cy": 30, "rx": 20, "ry": 8, "theta": 0.5}
    regions = [{"shape_attributes": shape, "region_attributes": {"class": "disc"}} for shape in (polygon, ellipse)]
    _json(folder / "via.json", {"a.png1": {"filename": "a.png", "size": 1, "regions": regions, "file_attributes": {}}})


def _write_labelstudio(folder: Path) -> None:
    _image(folder / "images" / "a.png")
    points = [[x / 0.8, y / 0.6] for x, y in CORNERS]
    size = {"original_width": 80, "original_height": 60, "image_rotation": 0}
    polygon = {"points": points, "polygonlabels": ["disc"]}
    result = {"id": "r", "type": "polygonlabels", "from_name": "l", "to_name": "i", "value": polygon, **size}
    choice = {"id": "r", "type": "choices", "from_name": "ripe", "to_name": "i", "value": {"choices": ["yes"]}, **size}
    _json(
        folder / "project.json", [{"id": 1, "data": {"image": "/a.png"}, "annotations": [{"result": [result, choice]}]}]
    )


def _write_yolo(folder: Path) -> None:
    _image(folder / "images" / "train" / "a.png")
    (folder / "labels" / "train").mkdir(parents=True)
    (folder / "labels" / "train" / "a.txt").write_text("0 0.1 0.1 0.5 0.1 0.5 0.5\n0 0.6 0.6 0.9 0.6 0.9 0.9\n")
    (folder / "data.yaml").write_text("path: .\ntrain: images/train\nnames: {0: disc}\n")


def _write_voc(folder: Path) -> None:
    _image(folder / "JPEGImages" / "a.jpg")
    numbers = np.zeros((60, 80), dtype=np.uint8)
    numbers[10:30, 10:30] = 1
    for name in ("SegmentationObject", "SegmentationClass"):
        (folder / name).mkdir()
        image = Image.fromarray(numbers)
        image.putpalette([0, 0, 0, 128, 0, 0] + [0, 0, 0] * 254)
        image.save(folder / name / "a.png")
    (folder / "Annotations").mkdir()
    box = "<bndbox><xmin>11</xmin><ymin>11</ymin><xmax>30</xmax><ymax>30</ymax></bndbox>"
    (folder / "Annotations" / "a.xml").write_text(
        f"<annotation><object><name>aeroplane</name><pose>Left</pose>{box}</object></annotation>"
    )


def _write_supervisely(folder: Path) -> None:
    _image(folder / "ds" / "img" / "a.png")
    classes = [{"title": "disc", "shape": "polygon"}]
    _json(folder / "meta.json", {"classes": classes, "tags": [{"name": "ripe", "value_type": "none"}]})
    shape = {"classTitle": "disc", "geometryType": "polygon", "tags": [{"name": "ripe", "value": None}]}
    shape["points"] = {"exterior": CORNERS, "interior": []}
    _json(folder / "ds" / "ann" / "a.png.json", {"size": {"height": 60, "width": 80}, "tags": [], "objects": [shape]})
