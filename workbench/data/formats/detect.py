"""Telling annotation formats apart by what a file holds."""

from __future__ import annotations

import re

COCO = "COCO"
COCO_RESULTS = "COCO results"
LABELME = "LabelMe"
VIA = "VIA"
LABEL_STUDIO = "Label Studio"
SUPERVISELY = "Supervisely"
CVAT_XML = "CVAT XML"
PASCAL_VOC = "Pascal VOC"
YOLO = "YOLO"

_CVAT_TAGS = ("<version>", "<meta>", "<image ", "<track ")
_VIA_COLUMNS = ("region_shape_attributes", "region_attributes")
_YOLO_LINE = re.compile(r"\d+(?:\s+[0-9.eE+-]+){4,}\s*")
_YOLO_KEYS = re.compile(r"^(path|train|val|nc)\s*:", re.MULTILINE)
_XML_PREAMBLE = re.compile(r"(?:\s|<\?.*?\?>|<!--.*?-->|<!DOCTYPE[^>]*>)*", re.DOTALL)


def detect_format(content: object) -> str | None:
    """Return which program's annotations ``content`` holds: one of this module's names, or None where it is none.

    Args:
        content: the parsed JSON of a file, or the text of a file that is not JSON (its first kilobytes do).
    """
    if isinstance(content, str):
        return _text_format(content)
    if isinstance(content, list):
        return _list_format(content)
    if isinstance(content, dict):
        return _object_format(content)
    return None


def _object_format(content: dict) -> str | None:
    if isinstance(content.get("images"), list) and isinstance(content.get("annotations"), list):
        return COCO
    if isinstance(content.get("shapes"), list) and ("imagePath" in content or "imageData" in content):
        return LABELME
    if "_via_img_metadata" in content or ({"project", "file", "metadata", "view"} <= content.keys()):
        return VIA
    if content and all(isinstance(item, dict) and {"filename", "regions"} <= item.keys() for item in content.values()):
        return VIA
    if isinstance(content.get("objects"), list) and isinstance(content.get("size"), dict):
        return SUPERVISELY
    if _is_list_of(content.get("classes"), {"title", "shape"}):  # meta.json of a project
        return SUPERVISELY
    if _is_list_of([content], {"data"}) and _has_any(content, ("annotations", "completions", "predictions")):
        return LABEL_STUDIO
    return None


def _list_format(content: list) -> str | None:
    if _is_list_of(content, {"image_id", "category_id", "score"}):
        return COCO_RESULTS
    if _is_list_of(content, {"data"}) and _has_any(content[0], ("annotations", "completions", "predictions")):
        return LABEL_STUDIO
    if _is_list_of(content, {"annotation_id", "lead_time"}):  # its JSON-MIN export
        return LABEL_STUDIO
    return None


def _text_format(text: str) -> str | None:
    text = text.removeprefix("\ufeff")
    root = text[_XML_PREAMBLE.match(text).end() :]
    if re.match(r"<annotations[\s>]", root) and any(tag in root for tag in _CVAT_TAGS):
        return CVAT_XML
    if re.match(r"<annotation[\s>]", root) and ("<filename>" in root or "<object>" in root):
        return PASCAL_VOC
    lines = text.splitlines()
    if lines and all(column in lines[0] for column in _VIA_COLUMNS):
        return VIA
    if lines and _YOLO_LINE.fullmatch(lines[0]):
        return YOLO
    if re.search(r"^names\s*:", text, re.MULTILINE) and _YOLO_KEYS.search(text):  # data.yaml
        return YOLO
    return None


def _is_list_of(value: object, keys: set[str]) -> bool:
    """Return whether ``value`` is a list whose first item is an object with ``keys``."""
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict) and keys <= value[0].keys()


def _has_any(item: dict, keys: tuple[str, ...]) -> bool:
    return any(key in item for key in keys)
