"""The class lists of a dataset: main categories and subcategories."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

from workbench.data.faults import Fault
from workbench.data.reading import is_integer
from workbench.errors import WorkbenchError, is_number, kind_of, nearest

# Attributes that annotation tools add of their own accord, and the values that they write. Another value makes an
# attribute the user's own. ``occluded`` they write on every object: where some lack it, it is the user's own too.
_TOOL_FLAGS = frozenset({"occluded", "outside", "keyframe", "is_crowd"})
_TOOL_NUMBERS = frozenset({"track_id", "group_id", "z_order", "rotation", "score"})
_TOOL_SOURCES = frozenset({"manual", "auto", "semi-auto", "file", "consensus", "Ground truth"})  # of "source"
OF_TOOLS = "annotation tools add it of their own accord"  # why an attribute is no subcategory
# Names of flags by which annotators remind each other of work to do; they do not describe the object.
REMINDER = re.compile(
    r"(needs?|to|must|should)[ _-](be[ _-])?(fix|delete|remove|review|check|redo)(e?d|ing)?"
    r"|todo|fixme|delete|reviewed|verified|approved|checked",
    re.IGNORECASE,
)
# What annotation tools write for "nobody has chosen yet".
UNSET = frozenset({"", "__undefined__"})
LONGEST_NAME = 200  # characters that a table or chart has room for
_MOST_NUMBERS = 20  # different numbers written as text; more are a measurement


@dataclass(frozen=True)
class Vocabulary:
    """What the numbers of a dataset mean.

    ``category_ids`` are the dataset's own ids (any whole numbers), ``categories`` their names in the same
    order: the label k of a model is ``categories[k]``. ``subcategories`` maps a name to its classes,
    without the no-object class. ``stuff`` are the categories whose regions are no objects, such as sky.
    """

    category_ids: tuple[int, ...]
    categories: tuple[str, ...]
    subcategories: dict[str, tuple[str, ...]] = field(default_factory=dict)
    stuff: frozenset[str] = frozenset()

    @property
    def num_classes(self) -> int:
        """K, without the no-object class."""
        return len(self.categories)

    @property
    def num_subcategory_classes(self) -> dict[str, int]:
        """K_s of each subcategory, without the no-object class."""
        return {name: len(classes) for name, classes in self.subcategories.items()}

    @property
    def stuff_labels(self) -> frozenset[int]:
        """The labels of ``stuff``."""
        return frozenset(label for label, name in enumerate(self.categories) if name in self.stuff)

    def to_coco(self) -> dict:
        """Return the top-level ``categories`` and ``subcategories`` of a COCO instances file.

        Where there is stuff, ``isthing`` says which categories it is not.
        """
        categories = [
            {"id": number, "name": name} | ({"isthing": int(name not in self.stuff)} if self.stuff else {})
            for number, name in zip(self.category_ids, self.categories, strict=True)
        ]
        return {
            "categories": categories,
            "subcategories": [{"name": n, "classes": list(c)} for n, c in self.subcategories.items()],
        }


def name_problem(name: str) -> str | None:
    """Return why text is not the name of a category, subcategory or class, to follow "it"; None where it can be."""
    if len(name) > LONGEST_NAME:
        return f"has {len(name):,} characters, and a name has {LONGEST_NAME} at most"
    if not name.isascii() and any("\ud800" <= character <= "\udfff" for character in name):
        return "holds half of a surrogate pair, which is not Unicode text"
    return None


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
        raise WorkbenchError(f"{wrong}, not {kind_of(declared)}.")
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
            raise WorkbenchError(f"{wrong}; {name[:80]!r} is empty, appears twice or has an empty or repeated class.")
        for each in (name, *classes):
            if problem := name_problem(each):
                raise WorkbenchError(f"A subcategory or class in {path}, {each[:40]!r}, {problem}: rename it.")
        lists[name] = tuple(classes)
    return lists


@dataclass
class Attribute:
    """What the annotations of a file hold under one name: ``values`` counts classes, ``numbers`` and ``others`` count
    values that are numbers, and lists or objects. ``everywhere``: each annotation that has attributes has this one."""

    name: str
    values: Counter[str] = field(default_factory=Counter)
    numbers: int = 0
    others: int = 0
    everywhere: bool = True

    def why_not(self, exported: bool = True) -> str | None:
        """Return why the attribute is not a subcategory where no class lists are declared; None where it is one.

        ``exported``: whether an annotation tool may have added attributes of its own.
        """
        if exported and self._is_of_tools():
            return OF_TOOLS
        if REMINDER.fullmatch(self.name):
            return "it is a reminder of the annotators"
        if self.others:
            return "it holds lists or objects"
        if self.numbers or (len(self.values) > _MOST_NUMBERS and all(map(_is_number_text, self.values))):
            return "it holds numbers"
        if not self.values:
            return "it has no value anywhere"
        problems = ((text, problem) for text in (self.name, *self.values) if (problem := name_problem(text)))
        return next((f"{text[:40]!r} {problem}" for text, problem in problems), None)

    def _is_of_tools(self) -> bool:
        if self.name in _TOOL_FLAGS:
            flags = all(value.lower() in ("true", "false") for value in self.values)
            return flags and (self.everywhere or self.name != "occluded")
        if self.name in _TOOL_NUMBERS:
            return all(map(_is_number_text, self.values))
        return self.name == "source" and _TOOL_SOURCES.issuperset(self.values)


def _is_number_text(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def read_attributes(content: dict) -> list[Attribute]:
    """Return the attributes of all annotations, sorted by name."""
    attributes: dict[str, Attribute] = {}
    total, given_by = 0, Counter()
    for annotation in content["annotations"]:
        given = annotation.get("attributes") if isinstance(annotation, dict) else None
        if not isinstance(given, dict) or not given:
            continue
        total += 1
        given_by.update(given.keys())
        for name, value in given.items():
            attribute = attributes.get(name) or attributes.setdefault(name, Attribute(name))
            if isinstance(value, (str, bool)):
                if (known := class_name(value)) is not None:
                    attribute.values[known] += 1
            elif is_number(value):
                attribute.numbers += 1
            elif value is not None:
                attribute.others += 1
    for name, attribute in attributes.items():
        attribute.everywhere = given_by[name] == total
    return [attributes[name] for name in sorted(attributes)]


def collected_subcategories(content: dict, exported: bool = True) -> dict[str, tuple[str, ...]]:
    """Return class lists gathered from the attributes of all annotations, names and classes sorted.

    An attribute is a subcategory when all its values are text or true/false. Attributes that hold numbers are
    measurements, and those that tools add of their own accord or whose names are ``REMINDER`` are about the annotating:
    they are left out. To use them as classes, list them under the top-level ``subcategories``.

    Args:
        content: a file's content.
        exported: whether an annotation tool may have added attributes of its own; with False those of its names are
            the user's.
    """
    return {a.name: tuple(sorted(a.values)) for a in read_attributes(content) if a.why_not(exported) is None}


def mend_categories(content: dict, known: Collection[str] | None = None, used: Collection[int] = ()) -> list[Fault]:
    """Leave categories that stand for nothing out of ``content`` and return a mended fault for each.

    These are categories that no annotation uses and that are the supercategory of another one (Roboflow writes the
    project's name so, at times with the name of a class), or that have another category's name.

    Args:
        content: a file's content.
        known: the names of the classes that the file is read for, where they are fixed: of these none is left out, and
            any other one is that no annotation uses.
        used: ids that count as used by annotations.
    """
    used = {*used, *(a["category_id"] for a in content["annotations"] if _has_whole_category(a))}
    items = [item for item in content["categories"] if _is_category(item)]
    names = Counter(item["name"] for item in items)
    faults = []
    for item in [item for item in items if item["id"] not in used]:
        name = item["name"]
        others = [other for other in items if other is not item]
        if names[name] > 1:
            reason = "another category has its name"
        elif known is not None and name not in known:
            reason = "the classes that the file is read for lack it"
        elif known is None and any(other.get("supercategory") == name for other in others):
            reason = "it is the parent of others"
        else:
            continue
        names[name] -= 1
        content["categories"] = [other for other in content["categories"] if other is not item]
        message = f"no annotation has the category and {reason}; it is left out"
        faults.append(Fault("category", message, detail=f"{name!r} (id {item['id']})", mended=True))
    return faults


def _is_category(item: object) -> bool:
    return isinstance(item, dict) and is_integer(item.get("id")) and isinstance(item.get("name"), str)


def _has_whole_category(annotation: object) -> bool:
    return isinstance(annotation, dict) and is_integer(annotation.get("category_id"))


def read_vocabulary(content: dict, path: object) -> Vocabulary:
    """Return all class lists of a dataset file. Categories are ordered by id, whatever ids they have.

    Categories whose ``isthing`` is 0, as COCO's panoptic files have it, are stuff.

    WorkbenchError where the categories are not ``{"id": int, "name": str}`` with different ids and names:
    then no annotation can be understood.
    """
    categories: dict[int, str] = {}
    stuff = set()
    for item in content["categories"]:
        if not _is_category(item):
            raise WorkbenchError(f"A category of {path} is not {{id: whole number, name: text}}: {str(item)[:80]}.")
        if item["id"] in categories or item["name"] in categories.values():
            raise WorkbenchError(
                f"Category {item['id']} {item['name'][:80]!r} of {path} appears twice, by id or by name."
            )
        if problem := name_problem(item["name"]):
            raise WorkbenchError(f"Category {item['id']} of {path}, {item['name'][:40]!r}, {problem}: rename it.")
        categories[item["id"]] = item["name"]
        if item.get("isthing") == 0:
            stuff.add(item["name"])
    if not categories:
        raise WorkbenchError(f"The dataset {path} has no categories.")
    declared = declared_subcategories(content, path)
    ids = tuple(sorted(categories))
    return Vocabulary(
        category_ids=ids,
        categories=tuple(categories[n] for n in ids),
        subcategories=collected_subcategories(content) if declared is None else declared,
        stuff=frozenset(stuff),
    )


def choose_subcategories(vocabulary: Vocabulary, names: Sequence[str], declared: Collection[str] = ()) -> Vocabulary:
    """Keep the named subcategories; ``()`` keeps none.

    ``("all",)`` keeps every one that has two classes or more, as there is nothing to tell apart in one, or that is
    among ``declared``. WorkbenchError on an unknown name.
    """
    known = vocabulary.subcategories
    if list(names) == ["all"]:
        names = [name for name, classes in known.items() if len(classes) > 1 or name in declared]
    for name in names:
        if name not in known:
            raise WorkbenchError(
                f"MODEL.SUBCATEGORIES names {name!r}, which the dataset lacks{nearest(name, known)}; it has "
                f"{', '.join(known) or 'none'}."
            )
    chosen = {name: known[name] for name in names}
    return replace(vocabulary, subcategories=chosen)


def merge_vocabularies(first: Vocabulary, second: Vocabulary, path: object) -> Vocabulary:
    """Class lists for training on two datasets at once: the same categories, the union of the
    subcategories' classes in the order of the first. WorkbenchError where the categories differ."""
    _check_categories(first, second, path, "the other datasets")
    merged = dict(first.subcategories)
    for name, classes in second.subcategories.items():
        there = merged.get(name, ())
        merged[name] = there + tuple(c for c in classes if c not in there)
    return replace(first, subcategories=merged)


def align_vocabulary(wanted: Vocabulary, found: Vocabulary, path: object) -> Vocabulary:
    """Return ``wanted`` (of a checkpoint or the training data) with the category ids of ``found``, the dataset at
    ``path``.

    Categories agree by name, their order and ids may differ. A subcategory that only one side has is no
    fault (it is unlabelled, or not read); one that both have must not hold classes the checkpoint does not
    know. WorkbenchError that names every difference otherwise, and the remedy.
    """
    _check_categories(wanted, found, path, "the training data")
    differences = []
    for name, classes in wanted.subcategories.items():
        extra = [c for c in found.subcategories.get(name, ()) if c not in classes]
        if extra:
            differences.append(f"{name}: {', '.join(extra)}")
    if differences:
        raise WorkbenchError(
            f"The dataset {path} has subcategory classes that the training data lacks: {'; '.join(differences)}. Move "
            'images with them to the training data, or list all classes under "subcategories" in the training file.'
        )
    ids = dict(zip(found.categories, found.category_ids, strict=True))
    return replace(wanted, category_ids=tuple(ids[name] for name in wanted.categories))


def _check_categories(wanted: Vocabulary, found: Vocabulary, path: object, whose: str) -> None:
    missing = [name for name in wanted.categories if name not in found.categories]
    extra = [name for name in found.categories if name not in wanted.categories]
    if missing or extra:
        parts = [f"it lacks {', '.join(missing)}"] if missing else []
        parts += [f"it also has {', '.join(extra)}"] if extra else []
        raise WorkbenchError(
            f"The categories of {path} are not those of {whose}: {'; '.join(parts)}. List the same categories in both "
            "files; one that has no annotations in a file is fine there."
        )
