"""The COCO ground truth of a loaded dataset: what its files say, less what loading left out."""

from __future__ import annotations

from pathlib import Path

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
    meant. An image's ``label_map`` is the file of that name where the dataset has such a folder.
    """
    vocabulary = dataset.vocabulary
    if len({item["image_id"] for item in dataset.dicts}) < len(dataset.dicts):
        names = ", ".join(entry.name for entry in dataset.entries)
        raise WorkbenchError(f"The datasets {names} use the same image ids, so they cannot be evaluated together.")
    images, annotations = [], []
    label_maps = dataset.entries[0].label_maps if len(dataset.entries) == 1 else None
    for item in dataset.dicts:
        image = {"id": item["image_id"], "file_name": item["name"], "height": item["height"], "width": item["width"]}
        images.append(image | ({"label_map": str(label_maps / f"{Path(item['name']).stem}.png")} if label_maps else {}))
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
    return {"images": images, "annotations": annotations, **vocabulary.to_coco()}
