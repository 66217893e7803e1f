"""What a run directory holds, for people."""

from __future__ import annotations

import json
from pathlib import Path

from workbench.errors import WorkbenchError
from workbench.evaluation.evaluate import metrics_table


def describe_run(directory: str | Path) -> str:
    """The metrics table of a run and the paths of what it left behind, as text.

    Raises WorkbenchError when the directory is missing or has no readable metrics.json.
    """
    run = Path(directory)
    scores = run / "metrics.json"
    if not run.is_dir():
        raise WorkbenchError(f"There is no run directory {run}.")
    try:
        metrics = json.loads(scores.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise WorkbenchError(
            f"{run} has no metrics.json; score it first: workbench eval --ckpt {run / 'checkpoints' / 'best'}"
        ) from None
    except (OSError, ValueError) as error:
        raise WorkbenchError(f"{scores} cannot be read: {error}") from None
    places = {
        "checkpoint": run / "checkpoints" / "best",
        "scores": scores,
        "figures": run / "figures",
    }
    lines = [metrics_table(metrics), ""]
    lines += [f"{name:<10} {path}" for name, path in places.items() if path.exists()]
    lines += [f"{'notebook':<10} {path}" for path in sorted(run.glob("*.ipynb"))]
    return "\n".join(lines)
