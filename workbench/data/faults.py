"""What is wrong with a dataset, and how it is told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from workbench.errors import WorkbenchError

_PLACES = 3  # of equal faults, that a report names


class Fault(NamedTuple):
    """One thing wrong with a dataset.

    A *mended* fault was put right when the file was read, as ``message`` says. Any other is *broken*: it stops, or
    is left out where that is asked for. Equal faults have the same ``kind`` and ``message``; ``detail`` is what
    differs. The ids are the dataset's own, None where there is none; ``file_name`` is the image's, as the dataset
    writes it.
    """

    kind: str
    message: str
    image_id: int | None = None
    annotation_id: int | None = None
    detail: str = ""
    mended: bool = False
    file_name: str = ""


class DatasetError(WorkbenchError):
    """A dataset has faults; ``faults`` lists them all."""

    def __init__(self, message: str, faults: list[Fault]):
        super().__init__(message)
        self.faults = faults


def broken(faults: Iterable[Fault]) -> list[Fault]:
    """Return the faults that were not mended."""
    return [fault for fault in faults if not fault.mended]


def mended(faults: Iterable[Fault]) -> list[Fault]:
    """Return the faults that were mended."""
    return [fault for fault in faults if fault.mended]


def can_be_left_out(faults: Iterable[Fault]) -> bool:
    """Return whether each fault is of one image or annotation, so that the rest of the dataset can be used."""
    return all(fault.image_id is not None or fault.kind not in ("no images", "missing image") for fault in faults)


def report(faults: Sequence[Fault], *, every_place: bool = False) -> str:
    """Return the faults as text: a line for how many there are of each kind, then a line for equal ones.

    ``every_place`` gives each fault a line of its own. Mended faults come after broken ones, under a heading of theirs.
    """
    parts = []
    if stopping := broken(faults):
        parts += [heading(stopping), *fault_lines(stopping, every_place=every_place)]
    if put_right := mended(faults):
        parts += [heading(put_right, "mended fault"), *fault_lines(put_right, every_place=every_place)]
    return "\n".join(parts) or "No faults found."


def fault_lines(faults: Iterable[Fault], *, every_place: bool = False) -> list[str]:
    """Return a line for each group of equal faults, with their number and the first few places, in the given order."""
    groups: dict[object, list[Fault]] = {}
    for number, fault in enumerate(faults):
        groups.setdefault(number if every_place else (fault.kind, fault.message), []).append(fault)
    return [f"  {_line(group)}" for group in groups.values()]


def heading(faults: Sequence[Fault], noun: str = "fault") -> str:
    """Return how many faults there are, of each kind too, in words."""
    kinds = Counter(fault.kind for fault in faults).most_common()
    listed = ", ".join(f"{count:,} {kind}" for kind, count in kinds)
    return f"{len(faults):,} {noun}{'s' * (len(faults) > 1)}: {listed}"


def _line(faults: Sequence[Fault]) -> str:
    kind, message = faults[0].kind, faults[0].message
    if len(faults) == 1:
        where = _where(faults[0])
        detail = f": {faults[0].detail}" if faults[0].detail else ""
        return f"{where + ': ' if where else ''}{message}{detail} [{kind}]"
    places = [": ".join(filter(None, (_where(fault), fault.detail))) for fault in faults[:_PLACES]]
    more = "; ..." if len(faults) > _PLACES else ""
    return f"{len(faults):,} times: {message} [{kind}]: {'; '.join(filter(None, places))}{more}"


def _where(fault: Fault) -> str:
    name = f" ({fault.file_name})" * bool(fault.file_name)
    places = [("image", fault.image_id, name), ("annotation", fault.annotation_id, "")]
    return ", ".join(f"{noun} {number}{name}" for noun, number, name in places if number is not None)
