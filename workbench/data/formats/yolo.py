"""YOLO segmentation as ultralytics reads it: ``data.yaml``, ``images/`` and ``labels/`` with a text file an image.

A line is a class number and a polygon, ``class x1 y1 x2 y2 ...``, in fractions of the image's width and height. A line
of five numbers is a box.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from workbench.data.formats.builder import Builder, Frame, Imported
from workbench.data.formats.source import IMAGE_SUFFIXES, Source, reading
from workbench.errors import WorkbenchError, is_number
from workbench.yaml_files import read_yaml

_SPLITS = ("train", "val", "test")


def find_yaml(source: Source) -> Path | None:
    """Return the YAML that describes the dataset: it has ``names``, and ``train`` or ``val``."""
    paths = [source.path] if source.path.is_file() else sorted(p for p in source.folder.glob("*.y*ml") if p.is_file())
    for path in paths:
        content = _read_yaml(path)
        if isinstance(content, dict) and "names" in content and ("train" in content or "val" in content):
            return path
    return None


def read_yolo(source: Source) -> Imported:
    """Read the splits that ``data.yaml`` names. Paths in it that are not here (``/content/...``, ``../train/images``)
    are looked for below its own folder."""
    path = find_yaml(source)
    if path is None:
        raise WorkbenchError(f"{source.path} has no data.yaml with names and train or val.")
    content, name = _read_yaml(path), source.name(path)
    builder = Builder(source)
    with reading(name):
        names = content["names"]
        names = {int(k): str(v) for k, v in (names.items() if isinstance(names, dict) else enumerate(names))}
        builder.declare_categories(names.values())
        for split in _SPLITS:
            places = content.get(split) or []
            for place in [places] if isinstance(places, str) else places:
                images = _images(path, str(content.get("path") or ""), str(place))
                if not images:
                    builder.note("folders or lists of images that are missing or empty", f"{split}: {place} of {name}")
                for image in images:
                    _read_labels(builder, image, names, split)
    return builder.finish()


def _read_yaml(path: Path) -> object:
    return read_yaml(path, f"The file {path}")


def _images(yaml_path: Path, base: str, place: str) -> list[Path]:
    """Return the images of a split: of a folder, or of a text file with their paths. All lie beside ``data.yaml``."""
    folder = yaml_path.parent.resolve()
    place = place.replace("\\", "/")
    parts = [part for part in place.split("/") if part not in ("", ".", "..")]
    ends = [folder.joinpath(*parts[i:]) for i in range(len(parts))]
    for candidate in (folder / base / place, folder / place, folder.joinpath(base, *parts), *ends):
        candidate = candidate.resolve()
        if not candidate.is_relative_to(folder):
            continue
        if candidate.is_dir():
            return sorted(p for p in candidate.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
        if candidate.is_file() and candidate.suffix == ".txt":
            lines = [line.strip() for line in candidate.read_text(encoding="utf-8").splitlines() if line.strip()]
            options = [(candidate.parent / line, folder / line, folder / base / line) for line in lines]
            paths = [next((p.resolve() for p in some if p.is_file()), some[0].resolve()) for some in options]
            return [path for path in paths if path.is_relative_to(folder)]
    return []


def _read_labels(builder: Builder, image: Path, names: dict[int, str], split: str) -> None:
    parts = list(image.parts)
    places = [i for i, part in enumerate(parts[:-1]) if part == "images"]
    if places:
        parts[places[-1]] = "labels"
    labels = Path(*parts).with_suffix(".txt")
    frame = builder.add_image(str(image), builder.source.name(image), split=split)
    if frame is None or not labels.is_file():  # ultralytics too takes an image without a text file as one of nothing
        return
    where = builder.source.name(labels)
    with reading(where):
        lines = labels.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        if line.strip():
            with reading(f"{where}, line {number}"):
                _read_line(frame, line.split(), names, f"{where}, line {number}")


def _read_line(frame: Frame, words: list[str], names: dict[int, str], where: str) -> None:
    values = [float(word) for word in words]
    if values[0] not in names:
        frame.leave_out("lines of a class number that data.yaml does not name", where)
        return
    if len(values) == 5:
        frame.leave_out("boxes", where)
        return
    if len(values) % 2 == 0 or not all(map(is_number, values)):
        raise ValueError("it is not a class number and pairs of finite numbers")
    height, width = frame.size
    points = np.array(values[1:]).reshape(-1, 2)
    if points.max(initial=0) > 2:
        raise ValueError("its coordinates are not fractions of the image")
    frame.add_polygons(names[int(values[0])], [points * (width, height)], where)
