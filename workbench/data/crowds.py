"""Crowd regions, and single objects that annotation tools write as such."""

from __future__ import annotations

from collections import Counter

from workbench.data.faults import Fault


def crowds_to_objects(annotations: list) -> list[Fault]:
    """Set ``iscrowd`` 1 to 0 in place and return a mended fault for each."""
    faults = []
    for annotation in annotations:
        if isinstance(annotation, dict) and annotation.get("iscrowd") == 1:
            annotation["iscrowd"] = 0
            numbers = (annotation.get("image_id"), annotation.get("id"))
            faults.append(Fault("crowd", "it is marked as a crowd and taken as an object", *numbers, mended=True))
    return faults


def brush_masks(content: dict) -> list[str]:
    """Return a sentence, with the remedy, for the categories whose crowds look like masks of single objects.

    CVAT exports every mask that was drawn with a brush, or by SAM, as an RLE with ``iscrowd`` 1. In COCO itself a few
    in a hundred annotations are crowds, and none has CVAT's attribute ``occluded``.
    """
    names = {item["id"]: item["name"] for item in content["categories"]}
    total, crowds, of_cvat = Counter(), Counter(), Counter()
    for annotation in content["annotations"]:
        category = annotation.get("category_id") if isinstance(annotation, dict) else None
        if not isinstance(category, int) or category not in names:
            continue
        total[category] += 1
        if annotation.get("iscrowd") == 1 and isinstance(annotation.get("segmentation"), dict):
            crowds[category] += 1
            attributes = annotation.get("attributes")
            of_cvat[category] += isinstance(attributes, dict) and "occluded" in attributes
    likely = [number for number in names if crowds[number] > total[number] / 2 or of_cvat[number]]
    if not likely:
        return []
    listed = ", ".join(f"{crowds[number]:,} of {total[number]:,} {names[number]}" for number in likely)
    return [
        f"masks marked as crowds (iscrowd 1), which are not trained on: {listed}. CVAT marks every mask of its brush "
        "and of SAM so. If they are single objects, set DATASETS.CROWDS_ARE_OBJECTS True (validate: "
        "--crowds-are-objects)."
    ]
