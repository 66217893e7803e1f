"""What a dataset holds, in words: counts, sizes, attributes, and what to think about before training on it."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from workbench.config import reads
from workbench.data import needs
from workbench.data.coco import CocoDataset
from workbench.data.duplicates import identical_files
from workbench.data.masks import encode_segmentation, mask_areas
from workbench.data.vocabulary import OF_TOOLS, Attribute, Vocabulary
from workbench.errors import counted

if TYPE_CHECKING:
    from fvcore.common.config import CfgNode

FEW = 10  # objects of a category: with fewer, neither training nor a score says much
_SAME = 0.95  # share of one class, from which on a subcategory hardly varies
_SMALL = 8  # pixels across, at the size of training: two cells of the mask logits, which have stride 4
_LISTED = 12
_SHOWN = 60  # characters of a name or value
_ROBOFLOW = re.compile(r"\.rf\.[0-9a-fA-F]+(?=\.\w+$)")


def summarize(dataset: CocoDataset, attributes: Sequence[Attribute] = (), declared: Iterable[str] = ()) -> str:
    """Return a dataset's images, sizes, objects, categories and attributes as lines of text.

    Args:
        dataset: the dataset, read.
        attributes: what its annotations hold (:func:`workbench.data.vocabulary.read_attributes`).
        declared: the names among its subcategories that its file lists.
    """
    lines = [dataset.counted()]
    if not dataset.dicts:
        return lines[0]
    sizes = sorted(((d["width"], d["height"]) for d in dataset.dicts), key=lambda size: size[0] * size[1])
    ends = [sizes[0], sizes[len(sizes) // 2], sizes[-1]]
    if len(set(sizes)) == 1:
        lines.append(f"  sizes       all {_size(sizes[0])}")
    else:
        lines.append("  sizes       " + ", ".join(f"{n} {_size(s)}" for n, s in zip(_ENDS, ends, strict=True)))
    objects, _ = objects_and_edges(dataset)
    fullest = dataset.dicts[int(objects.argmax())]
    none = counted(np.count_nonzero(objects == 0), "image has", "images have")
    lines.append(
        f"  an image    has {np.median(objects):g} objects in the median, {objects.max():,} at most (image "
        f"{fullest['image_id']}, {_short(fullest['name'])}); {none} none"
    )
    counts, crowds = _category_counts(dataset)
    names = dataset.vocabulary.categories
    listed = [
        f"{names[k]} {counts[k]:,}" + f" and {counted(crowds[k], 'crowd')}" * bool(crowds[k]) for k in range(len(names))
    ]
    lines.append(f"  categories  {', '.join(listed)}")
    for attribute in attributes:
        share = _unlabelled(dataset, attribute.name)
        lines.append(f"  attribute   {_describe(attribute, dataset.vocabulary, declared)}{share}")
    return "\n".join(lines)


_ENDS = ("smallest", "median", "largest")


def cautions(dataset: CocoDataset, cfg: CfgNode | None = None) -> list[str]:
    """Return a sentence for each thing to think about before training on ``dataset``, with ``cfg`` where given."""
    counts, crowds = _category_counts(dataset)
    names = dataset.vocabulary.categories
    few = [f"{name} ({count})" for name, count in zip(names, counts, strict=True) if 0 < count < FEW]
    none = [name for name, count, crowd in zip(names, counts, crowds, strict=True) if not count + crowd]
    sentences = []
    if none:
        sentences.append(
            f"no object is of the category: {_list(none)}; draw some, or take it out of the file's categories, as it "
            "becomes a class that is never learnt"
        )
    if few:
        sentences.append(f"fewer than {FEW} objects: {_list(few)}; draw more, or expect no score that means anything")
    things = [a for d in dataset.dicts for a in d["annotations"] if not a["iscrowd"]]
    for name, classes in dataset.vocabulary.subcategories.items():
        values = np.bincount([a["subcategories"][name] + 1 for a in things], minlength=len(classes) + 1)[1:]
        labelled = int(values.sum())
        if labelled and values.max() >= _SAME * labelled:
            share, usual = values.max() / labelled, classes[int(values.argmax())]
            sentences.append(
                f"subcategory {name} hardly varies: {share:.1%} of {counted(labelled, 'object')} are {usual}"
            )
    return sentences + (_config_cautions(dataset, cfg) if cfg is not None and things else [])


def _config_cautions(dataset: CocoDataset, cfg: CfgNode) -> list[str]:
    sentences = []
    most = max(sum(not a["iscrowd"] for a in d["annotations"]) for d in dataset.dicts)
    queries = cfg.MODEL.MASK_FORMER.NUM_OBJECT_QUERIES
    if reads(cfg, "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES") and most > queries:
        sentences.append(
            f"an image holds {most:,} objects, but MODEL.MASK_FORMER.NUM_OBJECT_QUERIES is {queries}; raise it, as a "
            "query finds one object"
        )
    if not reads(cfg, "INPUT.IMAGE_SIZE"):
        return sentences
    relative = np.sort(relative_sizes(dataset))
    across = relative * cfg.INPUT.IMAGE_SIZE
    small = int(np.searchsorted(across, _SMALL))
    if small:
        needed = int(np.ceil(_SMALL / relative[len(relative) // 20] / 32) * 32)
        sentences.append(
            f"{small:,} of {counted(len(across), 'object')} are less than {_SMALL} pixels across at INPUT.IMAGE_SIZE "
            f"{cfg.INPUT.IMAGE_SIZE}" + f"; at {needed} it would be one in twenty" * (small > len(across) / 20)
        )
    return sentences


def describe_needs(dataset: CocoDataset) -> list[str]:
    """Return what a dataset's numbers mean for a config: a line on queries and one on the image size."""
    if not dataset.objects:
        return []
    objects, edges = objects_and_edges(dataset)
    count, size = needs.queries(objects), needs.image_size(relative_sizes(dataset), edges)
    return [
        f"queries     MODEL.MASK_FORMER.NUM_OBJECT_QUERIES {count.value} leaves room: {count.reason}",
        f"image size  INPUT.IMAGE_SIZE {size.value}: {size.reason}",
    ]


def objects_and_edges(dataset: CocoDataset) -> tuple[np.ndarray, np.ndarray]:
    """Return of each image, (M,), its objects, crowds aside, and its longest edge in pixels."""
    objects = [sum(not a["iscrowd"] for a in item["annotations"]) for item in dataset.dicts]
    return np.array(objects), np.array([max(item["height"], item["width"]) for item in dataset.dicts])


def relative_sizes(dataset: CocoDataset) -> np.ndarray:
    """Return (N,) each object's size, the root of its area, over its image's longest edge."""
    areas, edges, unmeasured = [], [], {}
    for item in dataset.dicts:
        for annotation in item["annotations"]:
            if annotation["iscrowd"]:
                continue
            if annotation["area"] is None:
                unmeasured[len(areas)] = encode_segmentation(annotation["segmentation"], item["height"], item["width"])
            areas.append(annotation["area"] or 0)
            edges.append(max(item["height"], item["width"]))
    values = np.array(areas, dtype=np.float64)
    values[list(unmeasured)] = mask_areas(list(unmeasured.values()))
    return np.sqrt(np.maximum(values, 1)) / np.array(edges)


def shared_images(train: Sequence[CocoDataset], held_out: CocoDataset) -> list[str]:
    """Return sentences about images that are in the training data and in ``held_out``: the same file by its content,
    or versions of one photo that Roboflow made."""
    training = [d["file_name"] for dataset in train for d in dataset.dicts]
    others = [d["file_name"] for d in held_out.dicts]
    sentences = []
    same = _same_content(training, others)
    if same:
        pairs = [f"{os.path.basename(a)} = {os.path.basename(b)}" for a, b in same]
        images = counted(len(same), "image is", "images are")
        sentences.append(f"{images} in the training data too, so the score is flattering: {_list(pairs, 3)}")
    sources = {_ROBOFLOW.sub("", os.path.basename(f)) for f in training if _ROBOFLOW.search(f)}
    matched = {path for path, _ in same}
    versions = [os.path.basename(f) for f in others if f not in matched and _ROBOFLOW.search(f)]
    versions = [name for name in versions if _ROBOFLOW.sub("", name) in sources]
    if versions:
        sentences.append(
            f"{counted(len(versions), 'image is a version', 'images are versions')} of photos in the training data "
            f"(equal names before .rf.), so the score is flattering: {_list(versions, 3)}"
        )
    return sentences


def _same_content(training: Sequence[str], others: Sequence[str]) -> list[tuple[str, str]]:
    """Return pairs (of ``others``, of ``training``) of files with equal bytes."""
    pairs = []
    for group in identical_files([*training, *others]):  # positions in the order of the list
        if group[0] < len(training):
            pairs += [(others[i - len(training)], training[group[0]]) for i in group if i >= len(training)]
    return pairs


def _category_counts(dataset: CocoDataset) -> tuple[list[int], list[int]]:
    """Return the objects and the crowds of each category."""
    pairs = Counter((a["category_id"], a["iscrowd"]) for d in dataset.dicts for a in d["annotations"])
    numbers = range(dataset.vocabulary.num_classes)
    return [pairs[k, 0] for k in numbers], [pairs[k, 1] for k in numbers]


def _unlabelled(dataset: CocoDataset, name: str) -> str:
    """Return how many objects lack a class of a subcategory, in words; nothing where none does."""
    if name not in dataset.vocabulary.subcategories:
        return ""
    things = [a for d in dataset.dicts for a in d["annotations"] if not a["iscrowd"]]
    without = sum(a["subcategories"][name] < 0 for a in things)
    return f"; unlabelled {without:,} ({without / len(things):.1%})" if without else ""


def _describe(attribute: Attribute, vocabulary: Vocabulary, declared: Iterable[str]) -> str:
    values = _list([f"{_short(value)} {count:,}" for value, count in attribute.values.most_common()])
    if attribute.numbers:
        values = f"{attribute.numbers:,} numbers" + f", {values}" * bool(values)
    if attribute.name in vocabulary.subcategories:
        role = "a subcategory" + ", as the file lists it" * (attribute.name in declared)
    else:
        reason = attribute.why_not()
        if reason is None and declared:
            reason = 'the file\'s "subcategories" do not list it'
        elif reason is None:
            reason = "it has one value only" if len(attribute.values) == 1 else "MODEL.SUBCATEGORIES does not name it"
        remedy = '; list it under "subcategories" if it is your own' * (reason == OF_TOOLS)
        role = f"no subcategory, as {reason}{remedy}"
    return f"{_short(attribute.name)}: {role}; {values or 'no value'}"


def _short(text: str) -> str:
    """Return text that a terminal shows: long text cut, lone surrogates escaped."""
    return text[:_SHOWN].encode("utf-8", "backslashreplace").decode() + "…" * (len(text) > _SHOWN)


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _list(words: Sequence[str], most: int = _LISTED) -> str:
    return ", ".join(words[:most]) + f", ... ({len(words) - most:,} more)" * (len(words) > most)
