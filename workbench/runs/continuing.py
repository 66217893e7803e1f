"""What a run needs to go on: its checkpoints, and the data that it began with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from workbench.data.fingerprint import digest
from workbench.errors import WorkbenchError, counted, errors_as
from workbench.files import write_json
from workbench.runs.checkpoint import has_checkpoint, remove_leftovers
from workbench.runs.directory import RunDirectory
from workbench.typed_files import Count, Text, load_typed

_PURPOSES = {
    "train": "the training data",
    "selection": "the data that chooses the best checkpoint",
    "report": "the data that is reported",
}


@dataclass(frozen=True)
class _Fingerprint:
    """What data.json holds of a dataset, :func:`workbench.data.fingerprint.data_fingerprint`."""

    annotations: Text
    pictures: Text
    images: Count
    objects: Count


def check_checkpoints(run: RunDirectory, restart: bool) -> None:
    """Raise WorkbenchError where a run has a best checkpoint but none to continue from, unless it is to ``restart``.

    A restart keeps all earlier checkpoints, in ``checkpoints_until_<time>``. What killed saves left behind is removed,
    so the caller holds the run's lock.
    """
    if restart and run.last.parent.is_dir() and any(run.last.parent.iterdir()):
        kept = run.path / f"checkpoints_until_{datetime.now():%Y%m%d_%H%M%S_%f}"
        with errors_as(f"the checkpoints of {run.path} cannot be moved to {kept}", OSError):
            run.last.parent.rename(kept)
            run.last.parent.mkdir()
    elif has_checkpoint(run.best) and not has_checkpoint(run.last):
        raise WorkbenchError(
            f"the run {run.path} has the best checkpoint {run.best} but no {run.last} to continue from, so training "
            "would start again at step 0; do that with --restart, which keeps the present checkpoints under another "
            "name, or choose another OUTPUT_DIR"
        )
    for checkpoint in (run.last, run.best):
        remove_leftovers(checkpoint)


def check_data(run: RunDirectory, data: Mapping[str, Mapping[str, Any] | None], accept: bool) -> list[str]:
    """Compare the data with that of the run's start, and record it in data.json.

    Args:
        run: the run; without a checkpoint any data is new.
        data: fingerprints of the data for each of ``train``, ``selection`` and ``report``.
        accept: whether a difference is accepted.

    Returns:
        the differences, in words; none for a new run.

    Raises:
        WorkbenchError: there are differences and ``accept`` is False.
    """
    different: list[str] = []
    if has_checkpoint(run.last) and run.data.exists():
        recorded = load_typed(dict[Text, _Fingerprint | None], run.data, f"run file {run.data}")
        here = {purpose: None if part is None else _Fingerprint(**part) for purpose, part in data.items()}
        different = [
            f"{words}: {_compare(recorded.get(purpose), here[purpose])}"
            for purpose, words in _PURPOSES.items()
            if recorded.get(purpose) != here[purpose]
        ]
    if different and not accept:
        raise WorkbenchError(
            f"the run {run.path} was trained on other data ({'; '.join(different)}); choose another OUTPUT_DIR, or "
            "continue on the present data with --accept-data, which chooses the best checkpoint anew"
        )
    with errors_as(f"{run.data} cannot be written", OSError):
        write_json(run.data, data, indent=1)
    return different


def choice_digest(data: Mapping[str, Mapping[str, Any] | None]) -> str:
    """Return the digest of the data on which scores of checkpoints can be compared: ``train`` and ``selection``."""
    return digest([data["train"], data["selection"]])


def _compare(there: _Fingerprint | None, here: _Fingerprint | None) -> str:
    if there is None or here is None:
        return "none there" if there is None else "none here"
    counts = [f"{counted(each.images, 'image')} and {counted(each.objects, 'object')}" for each in (there, here)]
    if counts[0] != counts[1]:
        return f"{counts[0]} there, {counts[1]} here"
    names = {"annotations": "annotations", "pictures": "image files"}
    return f"other {' and '.join(words for key, words in names.items() if getattr(there, key) != getattr(here, key))}"
