"""Recognise the annotation format of a parsed JSON file."""

from __future__ import annotations


def detect_format(content: object) -> str | None:
    """Return ``"coco"``, ``"labelme"``, ``"via"``, ``"labelstudio"`` or ``"supervisely"``; None for anything else."""
    if isinstance(content, list):
        tasks = bool(content) and isinstance(content[0], dict) and "data" in content[0]
        return "labelstudio" if tasks and ("annotations" in content[0] or "completions" in content[0]) else None
    if not isinstance(content, dict):
        return None
    if {"images", "annotations"} <= content.keys():
        return "coco"
    if {"shapes", "imagePath"} <= content.keys():
        return "labelme"
    if {"classes", "tags"} <= content.keys() or {"objects", "size"} <= content.keys():
        return "supervisely"
    first = next(iter(content.values()), None)
    if "_via_img_metadata" in content or (isinstance(first, dict) and {"filename", "regions"} <= first.keys()):
        return "via"
    return None
