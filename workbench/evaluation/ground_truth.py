"""The COCO ground truth of a loaded dataset: what its files say, less what loading left out."""

from __future__ import annotations

from workbench.data.coco import CocoDataset
from workbench.data.reading import read_coco_json
from workbench.errors import WorkbenchError


def ground_truth(dataset: CocoDataset) -> dict:
    """One COCO instances dict with the images and annotations that stand in `dataset.dicts`.

    Areas and attributes are the files' own. The files of several datasets are joined, their category ids
    brought to `dataset.vocabulary`; WorkbenchError where they use the same image id, as no prediction could
    say which is meant.
    """
    kept = {item["image_id"]: {annotation["id"] for annotation in item["annotations"]} for item in dataset.dicts}
    if len(kept) < len(dataset.dicts):
        names = ", ".join(entry.name for entry in dataset.entries)
        raise WorkbenchError(f"The datasets {names} use the same image ids, so they cannot be evaluated together.")
    vocabulary = dataset.vocabulary
    ids = dict(zip(vocabulary.categories, vocabulary.category_ids, strict=True))
    images: dict[int, dict] = {}
    annotations: list[dict] = []
    for entry in dataset.entries:
        content = read_coco_json(entry.annotations)
        here = {ids.get(item["name"]): item["id"] for item in content["categories"]}
        category = {theirs: ours for ours, theirs in here.items()}
        for image in content["images"]:
            if isinstance(image, dict) and image.get("id") in kept:
                images.setdefault(image["id"], image)
        annotations += [
            {**annotation, "category_id": category[annotation["category_id"]]}
            for annotation in content["annotations"]
            if isinstance(annotation, dict) and annotation.get("id") in kept.get(annotation.get("image_id"), ())
        ]
    return {
        "images": list(images.values()),
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for name, number in ids.items()],
        "subcategories": [
            {"name": name, "classes": list(classes)} for name, classes in vocabulary.subcategories.items()
        ],
    }
