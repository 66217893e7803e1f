"""YOLO segmentation: splits, paths that data.yaml gets wrong, boxes, broken lines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from workbench.errors import WorkbenchError

TRIANGLE = "1 0.1 0.1 0.5 0.1 0.5 0.5"


@pytest.fixture
def export(tmp_path: Path, picture: Callable[..., Path]) -> Callable[..., Path]:
    """Writes images and labels of train and val, and data.yaml."""

    def write(train: str = TRIANGLE, val: str = TRIANGLE, *, yaml: str = "", orientation: int = 1) -> Path:
        for split, lines in (("train", train), ("val", val)):
            picture(tmp_path / "images" / split / f"{split}.jpg", orientation=orientation)
            labels = tmp_path / "labels" / split / f"{split}.txt"
            labels.parent.mkdir(parents=True, exist_ok=True)
            labels.write_text(lines)
        text = yaml or "path: .\ntrain: images/train\nval: images/val\n"
        (tmp_path / "data.yaml").write_text(f"{text}\nnames:\n  0: ring\n  1: disc\n")
        return tmp_path

    return write


def _line(outline: list, width: int = 80, height: int = 60) -> str:
    return "1 " + " ".join(f"{x / width:.6f} {y / height:.6f}" for x, y in outline)


def test_polygons_and_splits(export: Any, scene: Any, read: Any, masks_of: Any, names_of: Any, iou: Any) -> None:
    imported = read(export(_line(scene.outline) + "\n\n0 0.5 0.5 0.1 0.1\n7 0.1 0.1 0.5 0.1 0.5 0.5", val=""))
    assert iou(masks_of(imported)[0], scene.disc) > 0.95
    assert names_of(imported) == ["disc"]
    assert [(image["file_name"], image["split"]) for image in imported.content["images"]] == [
        ("train/train.jpg", "train"),
        ("val/val.jpg", "val"),
    ]
    said = "\n".join(imported.notes)
    assert "boxes, left out" in said and "a class number that data.yaml does not name, left out: 1" in said


def test_exif_turns_the_image_that_was_drawn_on(export: Any, scene: Any, read: Any, masks_of: Any, iou: Any) -> None:
    turned = _line([[60 - y, x] for x, y in scene.outline], width=60, height=80)
    assert iou(masks_of(read(export(turned, orientation=6)))[0], np.rot90(scene.disc, -1)) > 0.95


@pytest.mark.parametrize(
    "yaml",
    [
        "train: ../images/train\nval: ../images/val",
        "train: /content/data/images/train\nval: /content/data/images/val",
        "train: \\images\\train\nval: \\images\\val",
        "path: /content/data\ntrain: train.txt\nval: [images/val]",
        "path: ..\ntrain: images/train\nval: images/val",
    ],
)
def test_paths_of_other_machines(export: Any, read: Any, yaml: str) -> None:
    folder = export(yaml=yaml)
    (folder / "train.txt").write_text("./images/train/train.jpg\n../../etc/passwd.jpg\n")
    names = [Path(name).name for name in read(folder).files]
    assert names == ["train.jpg", "val.jpg"]


def test_boxes_only(export: Any, read: Any) -> None:
    with pytest.raises(WorkbenchError, match=r"boxes only \(2 of them.*labels/train/train.txt, line 1"):
        read(export("0 0.5 0.5 0.1 0.1", "0 0.5 0.5 0.1 0.1"))


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("1 0.1 0.1 0.5 0.1 0.5 0.5 0.5", "pairs of finite numbers"),
        ("1 0.1 0.1 0.5 nan 0.5 0.5", "finite"),
        ("1 0.1 0.1 0.5 A 0.5 0.5", "'A' is no number"),
        ("1 10 10 50 10 50 50", "not fractions"),
    ],
)
def test_a_malformed_line_is_one_sentence(export: Any, read: Any, line: str, says: str) -> None:
    with pytest.raises(WorkbenchError, match=says) as caught:
        read(export(f"{TRIANGLE}\n{line}"))
    assert "labels/train/train.txt, line 2" in str(caught.value)


def test_a_broken_yaml(tmp_path: Path, read: Any) -> None:
    (tmp_path / "data.yaml").write_text("names: !!python/object/apply:os.system ['true']\ntrain: x")
    with pytest.raises(WorkbenchError, match="not readable YAML"):
        read(tmp_path)
