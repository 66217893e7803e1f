"""From an export to a dataset that validates: what is written, linked and refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from workbench import cli
from workbench.data.coco import load_dataset
from workbench.data.formats.importing import FORMATS, READERS, import_dataset
from workbench.data.masks import decode_mask
from workbench.errors import WorkbenchError

TRIANGLES = [[[1, 1], [9, 1], [9, 9]], [[20, 20], [40, 20], [40, 40]]]


@pytest.fixture
def export(tmp_path: Path, picture: Callable[..., Path], write_json: Callable[..., Path]) -> Callable[..., Path]:
    """Writes two LabelMe images, in folders of the given names."""

    def write(*folders: str) -> Path:
        source = tmp_path / "source"
        for folder, colour in zip(folders, ("red", "green"), strict=True):
            picture(source / folder / f"{colour}.jpg")
            shapes = [
                {"label": "disc", "points": points, "shape_type": "polygon", "attributes": {"colour": colour}}
                for points in TRIANGLES
            ]
            content = {"shapes": shapes, "imagePath": f"{colour}.jpg", "imageHeight": 60, "imageWidth": 80}
            write_json(source / folder / f"{colour}.json", content)
        return source

    return write


def test_what_is_written_trains(export: Any, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "out"
    assert cli.main(["import", str(export("packed/a", "packed/b")), str(out)]) == 0
    said = capsys.readouterr().out
    assert "2 images, 4 objects: disc 4" in said and "attribute colour: 'red' 2, 'green' 2" in said
    assert f"Next: workbench validate {out / 'annotations.json'}" in said
    dataset = load_dataset(out / "annotations.json")
    assert len(dataset.dicts) == 2 and dataset.vocabulary.subcategories == {"colour": ("green", "red")}
    content = json.loads((out / "annotations.json").read_text())
    for each in content["annotations"]:
        mask = decode_mask(each["segmentation"], 60, 80)
        ys, xs = mask.any(axis=1).nonzero()[0], mask.any(axis=0).nonzero()[0]
        assert each["area"] == mask.sum()
        assert each["bbox"] == [xs[0], ys[0], xs[-1] + 1 - xs[0], ys[-1] + 1 - ys[0]]


def test_splits_are_files_of_one_vocabulary(export: Any, tmp_path: Path) -> None:
    """A colour that only one part has is a class of both."""
    written, _ = import_dataset(export("train", "val"), tmp_path / "out")
    assert [path.name for path in written] == ["train.json", "val.json"]
    for path in written:
        dataset = load_dataset(path)
        assert len(dataset.dicts) == 1 and dataset.vocabulary.subcategories == {"colour": ("green", "red")}


@pytest.mark.parametrize("copy", [True, False])
def test_images_are_linked_or_copied(export: Any, tmp_path: Path, copy: bool) -> None:
    source, out = export("a", "b"), tmp_path / "out"
    import_dataset(source, out, copy=copy)
    image = out / "images" / "a" / "red.jpg"
    assert image.read_bytes() == (source / "a" / "red.jpg").read_bytes()
    assert image.samefile(source / "a" / "red.jpg") != copy


def test_a_full_folder_is_refused(export: Any, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("")
    with pytest.raises(WorkbenchError, match="not an empty folder"):
        import_dataset(export("a", "b"), tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_nothing_is_written_for_a_broken_source(export: Any, tmp_path: Path) -> None:
    source = export("a", "b")
    (source / "b" / "green.json").write_text("{")
    with pytest.raises(WorkbenchError, match="not valid JSON"):
        import_dataset(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("export.zip", "", "is an archive; unpack it"),
        ("a.json", '{"images": [], "annotations": [], "categories": []}', "COCO's form already"),
        ("a.json", "{}", "is not recognised; name it with --format: cvat, labelme"),
        ("a.json", "{", "not valid JSON"),
        ("a.docx", "", "is not recognised"),
    ],
)
def test_what_is_no_source(tmp_path: Path, name: str, text: str, says: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(WorkbenchError, match=says):
        import_dataset(tmp_path / name, tmp_path / "out")
    with pytest.raises(WorkbenchError, match="no file or folder"):
        import_dataset(tmp_path / "none", tmp_path / "out")
    with pytest.raises(WorkbenchError, match="no format 'cvatt'; known are cvat"):
        import_dataset(tmp_path / name, tmp_path / "out", format="cvatt")


def test_every_reader_has_a_name() -> None:
    assert set(FORMATS.values()) == set(READERS)
