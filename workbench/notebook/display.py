"""What every notebook begins with, and how it shows and keeps what it finds.

A notebook holds parameters, calls and words. It runs in JupyterLab, whose kernel starts in ``notebooks/``, and
under papermill, which is started anywhere; :func:`start` makes the two alike.
"""

from __future__ import annotations

import html
import io
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.errors import WorkbenchError

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

DPI = 144
_SHOWN_DPI = 84  # what the front end shows an inch of a figure as


def repository_root(start: str | Path | None = None) -> Path | None:
    """The nearest folder at or above ``start`` (the working directory) that holds the notebooks and the
    configs; None outside a repository."""
    here = Path(start or Path.cwd()).resolve()
    for folder in (here, *here.parents):
        if (folder / "notebooks").is_dir() and (folder / "configs").is_dir():
            return folder
    return None


def start() -> None:
    """Prepare the kernel of a notebook.

    The working directory becomes the repository's root, where there is one; a WorkbenchError shows as one
    sentence without a traceback; charts get the workbench's look.
    """
    import os

    from workbench.visualization.charts import use_style

    root = repository_root()
    if root is not None:
        os.chdir(root)
    use_style()
    shell = _shell()
    if shell is not None:
        shell.set_custom_exc((WorkbenchError,), _say)


def show(picture: Figure | np.ndarray, path: str | Path) -> None:
    """Write a figure, or an (H, W, 3) uint8 picture, as PNG to ``path`` and show it in the notebook."""
    from IPython.display import display

    display(_save(picture, Path(path)))


def table(
    frame: pd.DataFrame,
    path: str | Path,
    *,
    decimals: int = 1,
    best: Mapping[str, str] | None = None,
) -> None:
    """Write a table as CSV to ``path`` and show it, "-" for what could not be measured.

    ``best``: columns whose best row is set in bold, each with "max" or "min".
    """
    from IPython.display import display

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    frame.to_csv(path, index=bool(frame.index.name) or frame.index.dtype == object)
    whole = [name for name in frame if frame[name].dropna().map(lambda v: isinstance(v, (int, np.integer))).all()]
    style = frame.style.format(precision=decimals, na_rep="-").format("{:.0f}", subset=whole, na_rep="-")
    for column, which in (best or {}).items():
        values = frame[column].dropna()
        if len(values) > 1:
            top = values.max() if which == "max" else values.min()
            style = style.set_properties(
                subset=(frame.index[frame[column] == top], [column]), **{"font-weight": "bold"}
            )
    display(style)


class live_curves:  # a context manager, named like one
    """Redraws a run's learning curves in the notebook while the ``with`` block trains it, and keeps them.

    What is drawn is the run's metrics.csv; the last picture is written to ``figures/learning_curves.png``.
    """

    def __init__(self, run: str | Path, every: float = 15.0) -> None:
        self.run, self.every = Path(run), every
        self._stop = threading.Event()

    def __enter__(self) -> live_curves:
        from IPython.display import HTML, display

        self._handle = display(HTML("The curves appear after the first steps."), display_id=True)
        self._thread = threading.Thread(target=self._watch, daemon=True, name="learning curves")
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._draw()

    def _watch(self) -> None:
        wait = self.every
        while not self._stop.wait(wait):
            began = time.perf_counter()
            self._draw()
            wait = max(self.every, 30 * (time.perf_counter() - began))  # drawing takes the trainer's time

    def _draw(self) -> None:
        from workbench.runs.directory import RunDirectory
        from workbench.runs.table import metrics_frame
        from workbench.visualization.charts import learning_curves

        run = RunDirectory(self.run)
        frame = metrics_frame(run.metrics)
        if not frame.empty:
            image = _save(learning_curves(frame), run.figures / "learning_curves.png")
            if self._handle is not None:  # None outside a notebook
                self._handle.update(image)


def _save(picture: Figure | np.ndarray, path: Path) -> Any:
    """Writes the PNG; what the notebook shows of it. A picture goes into the notebook, and the report, as JPEG."""
    from IPython.display import Image
    from PIL import Image as Picture

    from workbench.visualization.painting import encode_jpeg

    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(picture, np.ndarray):
        Picture.fromarray(picture).save(path, format="PNG")
        shown, width = {"data": encode_jpeg(picture), "format": "jpeg"}, picture.shape[1]
    else:
        data = io.BytesIO()
        picture.savefig(data, format="png", dpi=DPI, bbox_inches="tight", facecolor="white")
        path.write_bytes(data.getvalue())
        shown = {"data": data.getvalue(), "format": "png"}
        width = round(Picture.open(data).size[0] * _SHOWN_DPI / DPI)
    return Image(**shown, width=min(width, 1100), alt=path.stem.replace("_", " "))


def _shell() -> Any:
    from IPython import get_ipython

    return get_ipython()


def _say(shell: Any, kind: type, error: Exception, trace: Any, tb_offset: int | None = None) -> list[str]:
    """Shows an error as its sentence; the cell and papermill still fail."""
    sentence = [f"{kind.__name__}: {error}"]
    shell._showtraceback(kind, error, sentence)
    return sentence


def note(text: str) -> None:
    """Show a sentence that the data, not the author, wrote."""
    from IPython.display import HTML, display

    display(HTML(f"<p>{html.escape(text)}</p>"))
