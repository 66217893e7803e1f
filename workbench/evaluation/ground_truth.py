"""The COCO ground truth of a loaded dataset: what its files say, less what loading left out."""

from __future__ import annotations

from workbench.data.coco import CocoDataset
from workbench.errors import WorkbenchError
from workbench.evaluation.columns import read_inputs


def check_ground_truth(dataset: CocoDataset) -> None:
    """Raise WorkbenchError where an evaluation on ``dataset`` would: so a training asks before its first step."""
    try:
        read_inputs(ground_truth(dataset), [])
    except WorkbenchError as error:
        names = ", ".join(str(entry.annotations) for entry in dataset.entries)
        raise WorkbenchError(f"{names} cannot be evaluated on: {error}") from None


def ground_truth(dataset: CocoDataset) -> dict:
    """Return ``dataset`` as one COCO instances dict.

    Areas, boxes and masks are the files' own; attributes are classes of ``dataset.vocabulary`` and category ids are its
    ``category_ids``. WorkbenchError where several files use the same image id, as no prediction could say which is
    meant.
    """
    vocabulary = dataset.vocabulary
    if len({item["image_id"] for item in dataset.dicts}) < len(dataset.dicts):
        names = ", ".join(entry.name for entry in dataset.entries)
        raise WorkbenchError(f"The datasets {names} use the same image ids, so they cannot be evaluated together.")
    images, annotations = [], []
    for item in dataset.dicts:
        size = {"height": item["height"], "width": item["width"]}
        images.append({"id": item["image_id"], "file_name": item["name"], **size})
        for annotation in item["annotations"]:
            numbers = annotation["subcategories"].items()
            values = {
                "id": annotation["id"],
                "image_id": item["image_id"],
                "category_id": vocabulary.category_ids[annotation["category_id"]],
                "attributes": {name: vocabulary.subcategories[name][k] for name, k in numbers if k >= 0},
            }
            given = {key: annotation[key] for key in ("segmentation", "area", "bbox", "iscrowd")}
            annotations.append(values | {key: value for key, value in given.items() if value is not None})
    return {
        "images": images,
        "annotations": annotations,
        "categories": [
            {"id": number, "name": name}
            for number, name in zip(vocabulary.category_ids, vocabulary.categories, strict=True)
        ],
        "subcategories": [
            {"name": name, "classes": list(classes)} for name, classes in vocabulary.subcategories.items()
        ],
    }
