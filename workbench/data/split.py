"""Divide a COCO dataset into training, validation and test parts: ``workbench split``."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from workbench.data.catalog import find_images
from workbench.data.coco import common_vocabulary, open_dataset
from workbench.data.duplicates import difference_hashes, identical_files, near_pairs
from workbench.data.reading import image_path, is_integer
from workbench.data.vocabulary import Vocabulary, class_name
from workbench.errors import WorkbenchError, counted
from workbench.files import write_json

PARTS = ("train", "val", "test")
Label = tuple[str, str]  # ("", category) or (subcategory, class)


@dataclass
class Split:
    """A divided dataset.

    Attributes:
        files: the JSON of each part, with ``@`` and the folder of the images where that would not be found near it.
        parts: how many images each part has.
        counts: how many objects of each label each part has, by ("", category) and (subcategory, class).
        groups: how many groups were kept together, of two or more images.
        identical: how many images are copies of another.
        near: pairs of file names in different parts that look nearly the same.
        unused: the categories that were left out, as no annotation has them.
    """

    files: dict[str, str]
    parts: dict[str, int]
    counts: dict[Label, dict[str, int]]
    groups: int
    identical: int
    near: list[tuple[str, str]]
    unused: list[str]


def split_dataset(
    dataset: str | Path,
    *,
    val: float = 0.2,
    test: float = 0.0,
    group: str | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    check_images: bool = True,
) -> Split:
    """Write ``A_train.json``, ``A_val.json`` and, with ``test``, ``A_test.json``, each with the same class lists: those
    of the whole file, without categories that no annotation has.

    Parts are stratified by category and subcategory class, counted in objects. No image is in two parts, and images of
    one group or of the same content are in one part.

    Args:
        dataset: a COCO JSON, ``A.json@images`` for the folder of its images, or a dataset's name.
        val: share of the images for validation, between 0 and 1.
        test: share for testing.
        group: what keeps images together, see :func:`group_of`.
        seed: the same seed gives the same parts.
        out: folder of the new files; that of the dataset.
        check_images: read the image files, to keep copies together and to look for near duplicates.

    Raises:
        WorkbenchError: the shares do not fit, a record is broken, a part would be empty, or a file exists.
    """
    shares = {"train": 1 - val - test, "val": val, "test": test}
    if not (val > 0 and test >= 0 and shares["train"] > 0):
        raise WorkbenchError(f"--val {val:g} and --test {test:g} must be above 0 and leave some images for train.")
    shares = {name: share for name, share in shares.items() if share > 0}
    reading = open_dataset(dataset, known=())
    entry, content = reading.entry, reading.content
    vocabulary = common_vocabulary([reading])
    _check_records(content, entry.annotations)
    folder = Path(out) if out is not None else entry.annotations.parent
    files = {name: folder / f"{entry.annotations.stem}_{name}.json" for name in shares}
    for path in files.values():
        if path.exists():
            raise WorkbenchError(f"{path} exists already; remove it, or name another folder with --out.")
    if check_images and entry.images is None:
        entry = replace(entry, images=find_images(entry.annotations, content))

    images = content["images"]
    paths = [image_path(entry.images, image["file_name"]) or "" for image in images] if check_images else []
    copies = identical_files(paths)
    keys = [group_of(image, group) for image in images] if group else []
    _check_groups(keys, group, images)
    units = _units(len(images), [*_positions(keys), *copies])
    labels = _image_labels(content, vocabulary)
    parts = _stratify(units, labels, shares, seed)
    for name in shares:
        if not any(part == name for part in parts):
            raise WorkbenchError(
                f"{entry.annotations} has {len(units)} images or groups, too few to give {shares[name]:.0%} to {name}."
            )

    near = _near_duplicates(images, paths, parts)
    declared = vocabulary.to_coco()["subcategories"]
    part_of = {image["id"]: part for image, part in zip(images, parts, strict=True)}
    named = {}
    try:
        for name, path in files.items():
            records = {
                "images": [image for image in images if part_of[image["id"]] == name],
                "annotations": [each for each in content["annotations"] if part_of[each["image_id"]] == name],
            }
            write_json(path, {**content, **records, "subcategories": declared})
            named[name] = _dataset_name(path, records, entry.images)
    except BaseException:  # all parts or none, so that the same command works once there is room
        for path in files.values():
            path.unlink(missing_ok=True)
        raise
    counts = {label: dict.fromkeys(shares, 0) for label in _all_labels(vocabulary)}
    for part, held in zip(parts, labels, strict=True):
        for label, count in held.items():
            counts[label][part] += count
    return Split(
        files=named,
        parts={name: parts.count(name) for name in shares},
        counts=counts,
        groups=sum(count > 1 for count in Counter(keys).values()),
        identical=sum(len(members) - 1 for members in copies),
        near=near,
        unused=[fault.detail for fault in reading.faults if fault.kind == "category"],
    )


def group_of(image: dict, key: str) -> Hashable:
    """Return what an image is grouped by; None where it does not say.

    ``key`` is ``folder`` (the folder in ``file_name``), ``prefix`` (the file name up to its last ``_``, ``-`` or ``.``
    before the extension: ``clip7_0012.jpg`` is of ``clip7``), ``prefix:N`` (its first N characters), or else a key of
    the image record or of its ``attributes``.
    """
    folder, name = os.path.split(image["file_name"])
    stem = os.path.splitext(name)[0]
    if key == "folder":
        return folder
    if key == "prefix":
        cut = max(stem.rfind(mark) for mark in "_-.")
        return (folder, stem[:cut] if cut > 0 else stem)
    if key.startswith("prefix:") and key[7:].isdigit():
        return (folder, name[: int(key[7:])])
    attributes = image.get("attributes")
    value = image.get(key, attributes.get(key) if isinstance(attributes, dict) else None)
    return str(value) if isinstance(value, (list, dict)) else value


def _check_groups(keys: Sequence[Hashable], group: str | None, images: list[dict]) -> None:
    if not group:
        return
    if all(key is None for key in keys):
        known = sorted({name for image in images for name in image} | {"folder", "prefix", "prefix:N"})
        raise WorkbenchError(f"No image has {group!r} to group by; --group takes {', '.join(known)}.")
    if len(set(keys)) == 1:
        raise WorkbenchError(f"--group {group} puts all {len(images)} images into one group ({keys[0]}).")


def _check_records(content: dict, path: Path) -> None:
    """Raise WorkbenchError for the faults that make dividing impossible; all others are the parts' own."""
    numbers = set()
    for position, image in enumerate(content["images"]):
        good = isinstance(image, dict) and is_integer(image.get("id")) and isinstance(image.get("file_name"), str)
        if not good or image["id"] in numbers:
            wrong = "has no whole number as id, or no file_name" if not good else "has the id of another"
            raise WorkbenchError(f"Image {position} of {path} {wrong}; `workbench validate` lists all faults.")
        numbers.add(image["id"])
    for position, each in enumerate(content["annotations"]):
        if not isinstance(each, dict) or not is_integer(each.get("image_id")) or each["image_id"] not in numbers:
            raise WorkbenchError(
                f"Annotation {position} of {path} belongs to no image; `workbench validate` lists all faults."
            )


def _positions(keys: Sequence[Hashable]) -> list[list[int]]:
    """Return the positions of equal keys; those of None are left out."""
    groups = defaultdict(list)
    for i, key in enumerate(keys):
        if key is not None:
            groups[key].append(i)
    return list(groups.values())


def _units(count: int, groups: Iterable[Sequence[int]]) -> list[list[int]]:
    """Return ``range(count)`` in parts, such that members of one group are in one part."""
    root = list(range(count))

    def find(i: int) -> int:
        while root[i] != i:
            root[i] = root[root[i]]
            i = root[i]
        return i

    for members in groups:
        for i in members[1:]:
            root[find(i)] = find(members[0])
    return _positions([find(i) for i in range(count)])


def _all_labels(vocabulary: Vocabulary) -> list[Label]:
    labels = [("", name) for name in vocabulary.categories]
    return labels + [(name, each) for name, classes in vocabulary.subcategories.items() for each in classes]


def _image_labels(content: dict, vocabulary: Vocabulary) -> list[Counter[Label]]:
    """Return how many objects of each label each image has; values that are no class are not counted."""
    names = dict(zip(vocabulary.category_ids, vocabulary.categories, strict=True))
    known = set(_all_labels(vocabulary))
    counts = {image["id"]: Counter() for image in content["images"]}
    for each in content["annotations"]:
        attributes = each.get("attributes")
        category = each.get("category_id")
        found = [("", names.get(category) if is_integer(category) else None)]
        for name, value in attributes.items() if isinstance(attributes, dict) else ():
            try:
                found.append((name, class_name(value)))
            except TypeError:
                continue
        counts[each["image_id"]].update(label for label in found if label in known)
    return list(counts.values())


def _stratify(units: list[list[int]], labels: list[Counter[Label]], shares: dict[str, float], seed: int) -> list[str]:
    """Return the part of each image, by iterative stratification (Sechidis, Tsoumakas and Vlahavas 2011, algorithm 1).

    The rarest label goes first: each unit that has it, largest count first, goes to the part that lacks most of it, or
    of several those that lack most images. Counts of objects take the place of the paper's presence of labels. What is
    placed last gets what is left, so that :func:`_move_units` follows.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(units)).tolist()
    held = [sum((labels[image] for image in unit), Counter()) for unit in units]
    with_label = defaultdict(list)
    for row in order:
        for label in held[row]:
            with_label[label].append(row)
    total = sum(held, Counter())
    lacking = {part: {label: share * count for label, count in total.items()} for part, share in shares.items()}
    room = {part: share * len(labels) for part, share in shares.items()}
    left = Counter({label: len(rows) for label, rows in with_label.items()})  # units that are not placed yet
    chosen: dict[int, str] = {}

    def place(row: int, part: str) -> None:
        chosen[row] = part
        room[part] -= len(units[row])
        for label, count in held[row].items():
            lacking[part][label] -= count
            left[label] -= 1

    while left := +left:
        label = min(left, key=left.__getitem__)
        for row in sorted(with_label[label], key=lambda row: -held[row][label]):
            if row not in chosen:
                place(row, max(shares, key=lambda part: (lacking[part][label], room[part])))
    for row in sorted(order, key=lambda row: -len(units[row])):
        if row not in chosen:
            place(row, max(shares, key=room.__getitem__))

    names = list(shares)
    columns = {label: i for i, label in enumerate(total)}
    counts = np.zeros((len(units), len(columns) + 1), dtype=np.float32)
    for row, unit in enumerate(units):
        counts[row, [columns[label] for label in held[row]]] = list(held[row].values())
        counts[row, -1] = len(unit)
    first = np.array([names.index(chosen[row]) for row in range(len(units))])
    parts = [""] * len(labels)
    for row, part in enumerate(_move_units(first, counts, np.array(list(shares.values())), rng)):
        for image in units[row]:
            parts[image] = names[part]
    return parts


def _move_units(
    part_of: np.ndarray, counts: np.ndarray, shares: np.ndarray, rng: np.random.Generator, sweeps: int = 3
) -> np.ndarray:
    """Return (N,) parts of N units after moving each to the part where it lessens the error most, in random order.

    The error is the sum, over parts and labels, of the squared relative difference between the objects a part has and
    its share of all. ``counts`` (N, L+1) holds each unit's objects of L labels and its images, which weigh as much as
    all labels together. A part keeps its last unit.
    """
    part_of = part_of.copy()
    wanted = shares[:, None] * counts.sum(axis=0)
    lacking = wanted - np.stack([counts[part_of == part].sum(axis=0) for part in range(len(shares))])
    members = np.bincount(part_of, minlength=len(shares))
    weight = 1 / wanted
    weight[:, -1] *= np.sqrt(max(1, counts.shape[1] - 1))
    for row in np.concatenate([rng.permutation(len(part_of)) for _ in range(sweeps)]):
        here, unit = part_of[row], counts[row]
        added = ((lacking - unit) * weight) ** 2 - (lacking * weight) ** 2
        removed = (((lacking[here] + unit) ** 2 - lacking[here] ** 2) * weight[here] ** 2).sum()
        change = added.sum(axis=1) + removed
        change[here] = 0
        there = int(change.argmin())
        if change[there] < -1e-9 and members[here] > 1:
            lacking[here] += unit
            lacking[there] -= unit
            members[here] -= 1
            members[there] += 1
            part_of[row] = there
    return part_of


def _near_duplicates(images: list[dict], paths: list[str], parts: list[str]) -> list[tuple[str, str]]:
    """Return the pairs of file names in different parts whose pictures are nearly the same."""
    rows = [i for i, path in enumerate(paths) if os.path.isfile(path)]
    hashes = difference_hashes([paths[i] for i in rows])
    where = {name: [k for k, i in enumerate(rows) if parts[i] == name] for name in dict.fromkeys(parts)}
    pairs = []
    names = list(where)
    for a, first in enumerate(names):
        for second in names[a + 1 :]:
            for i, j in near_pairs(hashes[where[first]], hashes[where[second]]):
                pair = rows[where[first][i]], rows[where[second][j]]
                pairs.append((images[pair[0]]["file_name"], images[pair[1]]["file_name"]))
    return pairs


def describe_split(split: Split) -> str:
    """Return the table of counts, what was kept together, and the near duplicates, as lines of text."""
    names = list(split.parts)
    rows = [("images", split.parts)]
    for (attribute, name), counts in split.counts.items():
        rows.append((f"{attribute}: {name}" if attribute else name, counts))
    wide = max(len(name) for name, _ in rows)
    lines = [" " * wide + "".join(f"{name:>15}" for name in names)]
    for name, counts in rows:
        total = sum(counts.values()) or 1
        cells = (f"{counts[part]:>8} {counts[part] / total:>6.1%}" for part in names)
        lines.append(f"{name:<{wide}}" + "".join(cells))
    if split.groups:
        lines.append(f"{counted(split.groups, 'group')} of two or more images, each in one part")
    if split.identical:
        copies = counted(split.identical, "image is a copy of another", "images are copies of others")
        lines.append(f"{copies}; copies are in one part")
    if split.unused:
        lines.append(f"note: no annotation has these categories, which are left out: {', '.join(split.unused)}")
    absent = [name for name, counts in rows if any(counts[part] == 0 for part in names)]
    if absent:
        lines.append(f"note: not in every part: {', '.join(absent)}")
    if split.near:
        shown = "".join(f"\n  {first}   {second}" for first, second in split.near[:10])
        more = f"\n  ... and {len(split.near) - 10} more" if len(split.near) > 10 else ""
        lines.append(
            f"note: {len(split.near)} pairs of images in different parts look nearly the same, which flatters the "
            f"scores; --group keeps them together:{shown}{more}"
        )
    return "\n".join([*lines, *(f"Wrote {name}" for name in split.files.values())])


def _dataset_name(path: Path, content: dict, images: Path | None) -> str:
    """Return what names a written part: its path, with the images' folder where that would not be found."""
    if images is None:
        return str(path)
    try:
        near = find_images(path, content)
    except WorkbenchError:
        near = None
    return str(path) if near is not None and near.resolve() == images.resolve() else f"{path}@{images}"
