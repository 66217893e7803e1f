"""Turn another tool's annotations into a COCO dataset with its images: ``workbench import``."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from workbench.data.formats.builder import Imported
from workbench.data.formats.cvat import read_cvat
from workbench.data.formats.detect import (
    COCO,
    CVAT_XML,
    LABEL_STUDIO,
    LABELME,
    PASCAL_VOC,
    SUPERVISELY,
    VIA,
    YOLO,
    detect_format,
)
from workbench.data.formats.labelme import read_labelme
from workbench.data.formats.labelstudio import read_label_studio
from workbench.data.formats.source import Source, reading
from workbench.data.formats.supervisely import read_supervisely
from workbench.data.formats.via import read_via
from workbench.data.formats.voc import find_voc, read_voc
from workbench.data.formats.yolo import find_yaml, read_yolo
from workbench.data.vocabulary import collected_subcategories
from workbench.errors import WorkbenchError, counted
from workbench.files import replacing, write_json

READERS: dict[str, Callable[[Source], Imported]] = {
    CVAT_XML: read_cvat,
    LABELME: read_labelme,
    VIA: read_via,
    LABEL_STUDIO: read_label_studio,
    YOLO: read_yolo,
    PASCAL_VOC: read_voc,
    SUPERVISELY: read_supervisely,
}
FORMATS = {  # what --format takes
    "cvat": CVAT_XML,
    "labelme": LABELME,
    "via": VIA,
    "labelstudio": LABEL_STUDIO,
    "yolo": YOLO,
    "voc": PASCAL_VOC,
    "supervisely": SUPERVISELY,
}
_NAMES = ", ".join(FORMATS)
_START = 65536  # bytes by which a file that is not JSON is recognised


def import_dataset(
    path: str | Path,
    output: str | Path,
    *,
    format: str | None = None,
    images: str | Path | None = None,
    category: str | None = None,
    copy: bool = False,
) -> tuple[list[Path], Imported]:
    """Read annotations of another tool and write them as COCO, with their images, into a new folder.

    Args:
        path: the file or folder that the tool exported.
        output: a folder that is empty or not there. It gets ``images/`` and ``annotations.json``, or a JSON for each
            of train, val and test where the export has them.
        format: a key of :data:`FORMATS`; recognised where it is None.
        images: a folder with the images, where they are not with the annotations.
        category: the attribute that is the main category, for VIA.
        copy: copy the images; they are otherwise hard links, or symbolic links where those are not possible.

    Returns:
        the JSON files written, and the dataset with its notes.

    Raises:
        WorkbenchError: the format is unknown, a record is malformed, or nothing can be used.
    """
    output = Path(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise WorkbenchError(f"{output} is not an empty folder; name a new one.")
    source = Source(_unwrapped(Path(path)), None if images is None else Path(images), category)
    if format is not None and format not in FORMATS:
        raise WorkbenchError(f"There is no format {format!r}; known are {_NAMES}.")
    with reading(str(source.path)):
        imported = READERS[detect_source(source) if format is None else FORMATS[format]](source)
    try:
        return _write(imported, output, copy), imported
    except BaseException:  # a full disk, Ctrl-C: the same command is to find an empty folder again
        shutil.rmtree(output, ignore_errors=True)
        raise


def _write(imported: Imported, output: Path, copy: bool) -> list[Path]:
    """Write the images and a JSON for each part; return the JSON files."""
    for name, image in imported.files.items():
        _place(image, output / "images" / name, copy)
    collected = collected_subcategories(imported.content, exported=False)  # readers leave out what tools add
    subcategories = [{"name": n, "classes": list(c)} for n, c in collected.items() if len(c) > 1]
    written = []
    for split, content in _by_split(imported.content).items():
        written.append(output / f"{split}.json")
        write_json(written[-1], {**content, "subcategories": subcategories})
    return written


def _unwrapped(path: Path) -> Path:
    """Return the folder that an archive was packed from, where it holds nothing but that folder."""
    while path.is_dir():
        inside = [item for item in path.iterdir() if not item.name.startswith((".", "__MACOSX"))]
        if len(inside) != 1 or not inside[0].is_dir() or inside[0].is_symlink():
            break
        path = inside[0]
    return path


def detect_source(source: Source) -> str:
    """Return the key of :data:`READERS` for a file or folder, by what is in it. WorkbenchError where none fits."""
    if source.path.suffix.lower() in (".zip", ".tar", ".gz", ".tgz", ".rar", ".7z"):
        raise WorkbenchError(f"{source.path} is an archive; unpack it and name the folder.")
    if source.path.is_file():
        known = _detect_file(source, source.path)
    else:
        known = _detect_folder(source)
    if known == COCO:
        raise WorkbenchError(f"{source.path} is in COCO's form already; `workbench validate` and training read it.")
    if known not in READERS:
        raise WorkbenchError(f"The format of {source.path} is not recognised; name it with --format: {_NAMES}.")
    return known


def _detect_file(source: Source, path: Path) -> str | None:
    suffix = path.suffix.lower()
    if suffix == ".json":
        return detect_format(source.read_json(path))
    if suffix not in (".xml", ".yaml", ".yml"):
        return None
    with path.open("rb") as file:
        return detect_format(file.read(_START).decode("utf-8", "replace"))


def _detect_folder(source: Source) -> str | None:
    if find_yaml(source) is not None:
        return YOLO
    if (source.folder / "meta.json").is_file():
        return SUPERVISELY
    if find_voc(source) is not None:
        return PASCAL_VOC
    for suffix in (".xml", ".json"):
        for path in source.files(suffix)[:20]:  # an export may have other files beside its annotations
            known = _detect_file(source, path)
            if known is not None:
                return known
    return None


def _place(image: Path | bytes, target: Path, copy: bool) -> None:
    """Link, copy or write one image."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(image, bytes):
        with replacing(target) as draft:
            draft.write_bytes(image)
        return
    image = image.resolve()
    if not copy:
        for link in (os.link, os.symlink):
            try:
                link(image, target)
                return
            except OSError:  # another file system, or one without links
                continue
    shutil.copyfile(image, target)


def _by_split(content: dict) -> dict[str, dict]:
    """Return the dataset as one file, ``annotations``, or in the parts that its images name."""
    splits = {image["id"]: image.pop("split", "annotations") for image in content["images"]}
    return {
        split: {
            "images": [image for image in content["images"] if splits[image["id"]] == split],
            "annotations": [each for each in content["annotations"] if splits[each["image_id"]] == split],
            "categories": content["categories"],
        }
        for split in dict.fromkeys(splits.values())
    }


def describe_import(written: list[Path], imported: Imported) -> str:
    """Return what was written, what it holds and what was left out, as lines of text."""
    content = imported.content
    names = {item["id"]: item["name"] for item in content["categories"]}
    counts = Counter(names[each["category_id"]] for each in content["annotations"])
    lines = [
        f"{counted(len(content['images']), 'image')}, {counted(len(content['annotations']), 'object')}: "
        + ", ".join(f"{name} {count}" for name, count in counts.most_common())
    ]
    values: dict[str, Counter] = {}
    for each in content["annotations"]:
        for name, value in each["attributes"].items():
            values.setdefault(name, Counter())[str(value)] += 1
    for name, given in values.items():
        shown = ", ".join(f"{value!r} {count}" for value, count in given.most_common(8))
        lines.append(f"  attribute {name}: {shown}{', ...' if len(given) > 8 else ''}")
    lines += [f"  note: {note}" for note in imported.notes]
    lines += [f"Wrote {path}" for path in written]
    return "\n".join([*lines, f"Next: workbench validate {written[0]}"])
