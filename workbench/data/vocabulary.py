"""The class lists of a dataset: main categories and subcategories."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from workbench.data.reading import is_integer
from workbench.errors import WorkbenchError, is_number, nearest

# Attributes that annotation tools add to every object of their own accord; they describe the annotating.
BOOKKEEPING = frozenset(
    {
        "occluded",
        "outside",
        "keyframe",
        "track_id",
        "group_id",
        "z_order",
        "rotation",
        "source",
        "score",
        "is_crowd",
    }
)
# What annotation tools write for "nobody has chosen yet".
UNSET = frozenset({"", "__undefined__"})


@dataclass(frozen=True)
class Vocabulary:
    """What the numbers of a dataset mean.

    ``category_ids`` are the dataset's own ids (any whole numbers), ``categories`` their names in the same
    order: the label k of a model is ``categories[k]``. ``subcategories`` maps a name to its classes,
    without the no-object class.
    """

    category_ids: tuple[int, ...]
    categories: tuple[str, ...]
    subcategories: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def num_classes(self) -> int:
        """K, without the no-object class."""
        return len(self.categories)

    @property
    def num_subcategory_classes(self) -> dict[str, int]:
        """K_s of each subcategory, without the no-object class."""
        return {name: len(classes) for name, classes in self.subcategories.items()}

    def to_coco(self) -> dict:
        """Return the top-level ``categories`` and ``subcategories`` of a COCO instances file."""
        categories = zip(self.category_ids, self.categories, strict=True)
        return {
            "categories": [{"id": number, "name": name} for number, name in categories],
            "subcategories": [{"name": n, "classes": list(c)} for n, c in self.subcategories.items()],
        }

    @classmethod
    def from_coco(cls, content: dict) -> Vocabulary:
        """Return the inverse of :meth:`to_coco`; KeyError, TypeError or ValueError where ``content`` is garbled."""
        categories = content["categories"]
        return cls(
            category_ids=tuple(int(item["id"]) for item in categories),
            categories=tuple(str(item["name"]) for item in categories),
            subcategories={str(item["name"]): tuple(map(str, item["classes"])) for item in content["subcategories"]},
        )


def class_name(value: object) -> str | None:
    """The class that an attribute value stands for: a str as it is, a bool ``true``/``false``, a number in
    its shortest form (3.0 is ``3``). None where the value says nothing (null, empty, not yet chosen).

    TypeError for anything else (lists, objects, NaN).
    """
    if value is None:
        return None
    if isinstance(value, str):
        return None if value in UNSET else value
    if isinstance(value, bool):
        return "true" if value else "false"
    if is_number(value):
        return str(int(value)) if value == int(value) else repr(value)
    raise TypeError(f"{value!r} is no class")


def declared_subcategories(content: dict, path: object) -> dict[str, tuple[str, ...]] | None:
    """The class lists under the top-level ``subcategories`` of a dataset file; None where it has no such key.

    WorkbenchError where they are not a list of ``{"name": ..., "classes": [...]}``.
    """
    declared = content.get("subcategories")
    if declared is None:
        return None
    wrong = f'The top-level "subcategories" of {path} must be a list of {{"name": "colour", "classes": ["red", ...]}}'
    if not isinstance(declared, list):
        raise WorkbenchError(f"{wrong}, not {type(declared).__name__}.")
    lists: dict[str, tuple[str, ...]] = {}
    for item in declared:
        if not (isinstance(item, dict) and isinstance(item.get("name"), str) and isinstance(item.get("classes"), list)):
            raise WorkbenchError(f"{wrong}; found {str(item)[:80]}.")
        name = item["name"]
        try:
            classes = [class_name(value) for value in item["classes"]]
        except TypeError as error:
            raise WorkbenchError(f"{wrong}; in {name!r}, {error}.") from None
        if not name or name in lists or not classes or None in classes or len(set(classes)) < len(classes):
            raise WorkbenchError(f"{wrong}; {name!r} is empty, appears twice or has an empty or repeated class.")
        lists[name] = tuple(classes)
    return lists


def collected_subcategories(content: dict) -> dict[str, tuple[str, ...]]:
    """Class lists gathered from the attributes of all annotations, names and classes sorted.

    An attribute is a subcategory when all its values are text or true/false. Attributes with a number among
    their values are measurements, and those in ``BOOKKEEPING`` are the annotation tool's own: both are left
    out. To use them as classes, list them under the top-level ``subcategories``.
    """
    values: dict[str, set[str]] = {}
    measured = set()
    for annotation in content["annotations"]:
        attributes = annotation.get("attributes") if isinstance(annotation, dict) else None
        if not isinstance(attributes, dict):
            continue
        for name, value in attributes.items():
            if name in BOOKKEEPING:
                continue
            if isinstance(value, (str, bool)):
                if (known := class_name(value)) is not None:
                    values.setdefault(name, set()).add(known)
            elif value is not None:
                measured.add(name)
    return {name: tuple(sorted(values[name])) for name in sorted(values.keys() - measured)}


def read_vocabulary(content: dict, path: object) -> Vocabulary:
    """All class lists of a dataset file. Categories are ordered by id, whatever ids they have.

    WorkbenchError where the categories are not ``{"id": int, "name": str}`` with different ids and names:
    then no annotation can be understood.
    """
    categories: dict[int, str] = {}
    for item in content["categories"]:
        if not (isinstance(item, dict) and is_integer(item.get("id")) and isinstance(item.get("name"), str)):
            raise WorkbenchError(f"A category of {path} is not {{id: whole number, name: text}}: {str(item)[:80]}.")
        if item["id"] in categories or item["name"] in categories.values():
            raise WorkbenchError(f"Category {item['id']} {item['name']!r} of {path} appears twice, by id or by name.")
        categories[item["id"]] = item["name"]
    if not categories:
        raise WorkbenchError(f"The dataset {path} has no categories.")
    declared = declared_subcategories(content, path)
    ids = tuple(sorted(categories))
    return Vocabulary(
        category_ids=ids,
        categories=tuple(categories[n] for n in ids),
        subcategories=collected_subcategories(content) if declared is None else declared,
    )


def choose_subcategories(vocabulary: Vocabulary, names: Sequence[str]) -> Vocabulary:
    """Keep the named subcategories; ``("all",)`` keeps every one, ``()`` none. WorkbenchError on an unknown
    name."""
    if list(names) == ["all"]:
        return vocabulary
    known = vocabulary.subcategories
    for name in names:
        if name not in known:
            raise WorkbenchError(
                f"The dataset has no subcategory {name!r}{nearest(name, known)}; it has {', '.join(known) or 'none'}."
            )
    chosen = {name: known[name] for name in names}
    return Vocabulary(vocabulary.category_ids, vocabulary.categories, chosen)


def merge_vocabularies(first: Vocabulary, second: Vocabulary, path: object) -> Vocabulary:
    """Class lists for training on two datasets at once: the same categories, the union of the
    subcategories' classes in the order of the first. WorkbenchError where the categories differ."""
    _check_categories(first, second, path, "the other datasets")
    merged = dict(first.subcategories)
    for name, classes in second.subcategories.items():
        there = merged.get(name, ())
        merged[name] = there + tuple(c for c in classes if c not in there)
    return Vocabulary(first.category_ids, first.categories, merged)


def align_vocabulary(wanted: Vocabulary, found: Vocabulary, path: object) -> Vocabulary:
    """``wanted`` (a checkpoint's) with the category ids of the dataset ``found`` at ``path``.

    Categories agree by name, their order and ids may differ. A subcategory that only one side has is no
    fault (it is unlabelled, or not read); one that both have must not hold classes the checkpoint does not
    know. WorkbenchError that names every difference otherwise.
    """
    _check_categories(wanted, found, path, "the checkpoint")
    differences = []
    for name, classes in wanted.subcategories.items():
        extra = [c for c in found.subcategories.get(name, ()) if c not in classes]
        if extra:
            differences.append(f"{name}: {', '.join(extra)}")
    if differences:
        raise WorkbenchError(
            f"The dataset {path} has subcategory classes that the checkpoint does not know: {'; '.join(differences)}."
        )
    ids = dict(zip(found.categories, found.category_ids, strict=True))
    return Vocabulary(tuple(ids[name] for name in wanted.categories), wanted.categories, wanted.subcategories)


def _check_categories(wanted: Vocabulary, found: Vocabulary, path: object, whose: str) -> None:
    missing = [name for name in wanted.categories if name not in found.categories]
    extra = [name for name in found.categories if name not in wanted.categories]
    if missing or extra:
        parts = [f"it lacks {', '.join(missing)}"] if missing else []
        parts += [f"it also has {', '.join(extra)}"] if extra else []
        raise WorkbenchError(f"The categories of {path} are not those of {whose}: {'; '.join(parts)}.")
