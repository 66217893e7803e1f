"""COCO results: ranked, written and read.

A row of ``predictions.json`` is what every COCO tool reads (image_id, category_id, segmentation, bbox, score)
plus main_score, mask_score, query (absent where the model has none), attributes {subcategory: class, or null for
no-object}, attribute_scores {subcategory: K_s + 1 probabilities, no-object last} and attribute_logits {subcategory:
the logit of its likeliest class, no-object aside}.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from workbench.config_keys import KEYS
from workbench.data.reading import collector_paused, is_integer, refuse_other_file, refuse_other_formats
from workbench.errors import WorkbenchError, all_numbers, is_number, shown
from workbench.evaluation.columns import row_name
from workbench.files import write_text

DECIMALS = 8  # keeps the order of float32 scores and halves the file


def _each(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or (isinstance(value, Mapping) and all(map(fits, value.values())))


# The fields of a row that other programs lack: what they must be where a row has them. AP's own fields are checked
# beside the ground truth, see :func:`workbench.evaluation.columns.read_inputs`.
_FIELDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "main_score": ("a finite number", is_number),
    "mask_score": ("a finite number", is_number),
    "query": ("a whole number", lambda value: value is None or is_integer(value)),
    "attributes": ("an object of subcategory: class", _each(lambda value: not isinstance(value, (list, Mapping)))),
    "attribute_scores": (
        "an object of subcategory: list of finite numbers",
        _each(
            lambda value: value is None or (isinstance(value, list) and len(value) > 1 and all(map(is_number, value)))
        ),
    ),
    "attribute_logits": ("an object of subcategory: finite number", _each(is_number)),
}


def check_rows(rows: Sequence[Any]) -> None:
    """Raise WorkbenchError for the first row that is no object or has one of its own fields of a wrong type."""
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise WorkbenchError(f"{row_name(number, row, True)} is {shown(row)}, not an object.")
    for key, (wanted, fits) in _FIELDS.items():
        if fits is is_number and all_numbers(row[key] for row in rows if key in row):
            continue
        for number, row in enumerate(rows):
            if key in row and not fits(row[key]):
                raise WorkbenchError(f"{row_name(number, row, True)} has the {key} {shown(row[key])}, not {wanted}.")


def rounded(values: np.ndarray) -> list:
    """Return floating-point values as a list of JSON numbers, to ``DECIMALS``."""
    return np.round(values, DECIMALS).tolist()


def rank_results(results: Sequence[Mapping], rank_by: str) -> list[dict]:
    """Return the same rows with ``score`` set anew from main_score, mask_score and attribute_scores; order kept.

    ``rank_by`` is "main", "sum" or "geometric_mean": the formula is ``workbench.models.postprocess.rank_scores``,
    times mask_score. Rows without a main_score (another program's file) can only be ranked by "main", which
    leaves their score as it is.

    Raises:
        WorkbenchError: an unknown ``rank_by``, a row that :func:`check_rows` refuses, or one that cannot be ranked.
    """
    check_rows(results)
    allowed = KEYS["TEST.RANK_BY"].rule
    if not allowed.fits(rank_by):
        raise WorkbenchError(f"rank_by {rank_by!r} is not {allowed.wanted}.")
    lacking = next((i for i, row in enumerate(results) if not ("main_score" in row and "mask_score" in row)), None)
    if lacking is not None and rank_by == "main":
        return list(results)
    if lacking is not None:
        raise WorkbenchError(
            f"Row {lacking} of the results has no main_score and mask_score, so it cannot be ranked by {rank_by}."
        )
    rows = [dict(row) for row in results]
    # Rows of one model have the same subcategories; files put together from several may not.
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        scores = (row.get("attribute_scores") or {}) if rank_by != "main" else {}
        groups.setdefault(tuple((name, len(values)) for name, values in scores.items() if values), []).append(row)
    for key, members in groups.items():
        main, mask = (np.array([row[name] for row in members], float) for name in ("main_score", "mask_score"))
        scores = [np.array([row["attribute_scores"][name] for row in members], float) for name, _ in key]
        for row, score in zip(members, rounded(_rank(main, scores, rank_by) * mask), strict=True):
            row["score"] = score
    return rows


def _rank(main: np.ndarray, scores: Sequence[np.ndarray], rank_by: str) -> np.ndarray:
    if rank_by == "main":
        return main
    import torch  # takes seconds, and most results are ranked by "main"

    from workbench.models.postprocess import rank_scores

    return rank_scores(torch.from_numpy(main), [torch.from_numpy(each) for each in scores], rank_by).numpy()


def save_predictions(path: str | Path, results: Sequence[Mapping]) -> Path:
    """Write results as JSON, one row a line; the file is complete or absent, never half written."""
    lines = (json.dumps(row, ensure_ascii=False, allow_nan=False, separators=(",", ":")) for row in results)
    write_text(Path(path), "[\n" + ",\n".join(lines) + "\n]\n")
    return Path(path)


@collector_paused()
def load_predictions(path: str | Path) -> list[dict]:
    """Read a COCO results file of any program. The rows are checked when they are scored.

    Raises:
        WorkbenchError: the file is absent, not JSON or no list.
    """
    path = Path(path)
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise WorkbenchError(f"The results file {path} does not exist.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise WorkbenchError(f"The results file {path} cannot be read: {error}.") from None
    except (ValueError, RecursionError) as error:
        refuse_other_file(path)
        raise WorkbenchError(f"The results file {path} is not valid JSON: {error}.") from None
    if not isinstance(rows, list):
        refuse_other_formats(path, rows)
        raise WorkbenchError(f"The results file {path} holds no list of COCO results.")
    return rows
