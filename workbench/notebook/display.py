"""What every notebook begins with, and how it shows its results and writes them into the run's figures."""

from __future__ import annotations

import html
import io
import json
import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pandas as pd
from IPython import display as ipython
from IPython import get_ipython
from matplotlib.figure import Figure
from PIL import Image

from workbench.errors import WorkbenchError
from workbench.files import file_name, write_text
from workbench.registry import import_parts
from workbench.runs.directory import RunDirectory
from workbench.runs.table import metrics_frame
from workbench.visualization.charts import learning_curves, use_style
from workbench.visualization.drawing import SHOWN_WIDTH
from workbench.visualization.painting import encode_jpeg

DPI = 144  # of the PNG files
_SHOWN_DPI = 84  # at which the notebook shows them


def repository_root(start: str | Path | None = None) -> Path | None:
    """Return the nearest folder at or above ``start`` (the working directory) that holds ``notebooks/`` and
    ``configs/``; None outside a repository."""
    here = Path(start or Path.cwd()).resolve()
    return next((f for f in (here, *here.parents) if (f / "notebooks").is_dir() and (f / "configs").is_dir()), None)


def start(run: str | Path | None = None, *, imports: Sequence[str] = ()) -> Page:
    """Prepare the kernel of a notebook, and return the page that shows results and writes them.

    The working directory becomes the repository's root, so that relative paths mean the same under JupyterLab,
    which starts kernels in ``notebooks/``, and under papermill. A WorkbenchError shows as one sentence without
    a traceback. Charts get the workbench's style.

    Args:
        run: the directory whose ``figures/`` the results go to; None shows them and writes nothing.
        imports: files or modules that add backbones, models or mappers, see :func:`workbench.registry.import_parts`.
    """
    root = repository_root()
    if root is not None:
        os.chdir(root)
    use_style()
    show_errors_as_sentences()
    import_parts([str(name) for name in imports])
    return Page(None if run is None else Path(run))


def show_errors_as_sentences() -> None:
    """Make a kernel show a WorkbenchError as its sentence, without a traceback; nothing outside a kernel."""
    shell = get_ipython()
    if shell is not None:
        shell.set_custom_exc((WorkbenchError,), _show_error)


def _show_error(shell: Any, kind: type, error: Exception, trace: Any, tb_offset: int | None = None) -> list[str]:
    """Show an error as its sentence; the cell, and papermill, still fail."""
    sentence = [f"{kind.__name__}: {error}"]
    shell._showtraceback(kind, error, sentence)
    return sentence


@dataclass(frozen=True)
class Page:
    """Shows pictures and tables in the notebook and writes each into ``figures/`` of a directory under a name
    without a suffix. ``directory`` None: nothing is written."""

    directory: Path | None = None

    @property
    def figures(self) -> Path | None:
        return self.directory and self.directory / "figures"

    def show(self, picture: Figure | np.ndarray | Mapping | None, name: str, *, empty: str = "") -> None:
        """Show a figure, or an (H, W, 3) uint8 picture, and write it as ``name``.png.

        Several may be given as {key: picture}; each is written as ``name``_key.png. Where there is none, the
        sentence ``empty`` is shown.
        """
        pictures = picture if isinstance(picture, Mapping) else {} if picture is None else {"": picture}
        for key, each in pictures.items():
            ipython.display(self.image(each, f"{name}_{key}" if key else name))
        if not pictures:
            self.note(empty)

    def image(self, picture: Figure | np.ndarray, name: str) -> ipython.Image:
        """Write a picture as :meth:`show` does, and return what the notebook shows of it.

        Arrays are shown as JPEG, which keeps notebooks and reports small, and figures as PNG.
        """
        data = io.BytesIO()
        if isinstance(picture, np.ndarray):
            Image.fromarray(picture).save(data, format="PNG")
            shown, kind, width = encode_jpeg(picture), "jpeg", picture.shape[1]
        else:
            picture.savefig(data, format="png", dpi=DPI, bbox_inches="tight", facecolor="white")
            shown, kind, width = data.getvalue(), "png", round(Image.open(data).size[0] * _SHOWN_DPI / DPI)
        if path := self._path(name, ".png"):
            path.write_bytes(data.getvalue())
        return ipython.Image(data=shown, format=kind, width=min(width, SHOWN_WIDTH), alt=name.replace("_", " "))

    def table(
        self,
        frame: pd.DataFrame | Sequence[Mapping] | None,
        name: str,
        *,
        rows: int | Sequence[int] | None = None,
        decimals: int = 1,
        best: str | None = None,
        empty: str = "",
    ) -> None:
        """Show a table, "-" for missing values, and write it as ``name``.csv.

        Args:
            frame: a DataFrame, or dictionaries, one a row, whose first key names the row.
            name: the name of the file.
            rows: show only the first so many, or those at these places; all are written.
            decimals: of numbers that are not whole.
            best: "max" or "min", which is bold in each column.
            empty: the sentence that stands for a table without rows.
        """
        if frame is None or not len(frame):
            self.note(empty)
            return
        if not isinstance(frame, pd.DataFrame):
            frame = pd.DataFrame(list(frame)).set_index(next(iter(frame[0])))
        self.save(frame, name)
        if rows is not None:
            frame = frame.head(rows) if isinstance(rows, int) else frame.iloc[list(rows)]
        whole = [name for name in frame if frame[name].dropna().map(_is_whole).all()]
        frame = frame.rename_axis(index=_escaped, columns=_escaped)  # names in it are from data, and the table is HTML

        def cell(value: object) -> str:
            if isinstance(value, (bool, np.bool_)):
                return "yes" if value else "no"
            return f"{value:.{decimals}f}" if isinstance(value, (float, np.floating)) else _escaped(value)

        style = frame.style.format(cell, na_rep="-").format("{:.0f}", subset=whole, na_rep="-")
        style = style.format_index(_escaped, axis=0).format_index(_escaped, axis=1)
        if best:
            comparable = [name for name in frame if frame[name].count() > 1]
            style = getattr(style, f"highlight_{best}")(comparable, props="font-weight: bold")
        ipython.display(style)

    def save(self, content: pd.DataFrame | Mapping, name: str) -> None:
        """Write a table as ``name``.csv, or a dictionary as ``name``.json, and show nothing."""
        if isinstance(content, pd.DataFrame):
            if path := self._path(name, ".csv"):
                content.to_csv(path, index=bool(content.index.name) or content.index.dtype == object)
        elif path := self._path(name, ".json"):
            write_text(path, json.dumps(content, indent=2))

    def note(self, text: str) -> None:
        """Show sentences that were computed, each line of them on a line of its own."""
        if text:
            lines = html.escape(text).replace("\n", "<br>")
            ipython.display(ipython.HTML(f"<p>{lines}</p>"))

    def _path(self, name: str, suffix: str) -> Path | None:
        if self.figures is None:
            return None
        self.figures.mkdir(parents=True, exist_ok=True)
        return self.figures / f"{file_name(name)}{suffix}"


def _is_whole(value: object) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _escaped(value: object) -> str | None:
    return None if value is None else html.escape(str(value))


class live_curves:  # a context manager, named like a function
    """Redraw a run's learning curves while the ``with`` block trains it; the last ones are written to its figures."""

    def __init__(self, run: str | Path, every: float = 15.0) -> None:
        """``every``: least seconds between two drawings."""
        self.run, self.every = Path(run), every
        self._stop = threading.Event()

    def __enter__(self) -> live_curves:
        self._handle = ipython.display(ipython.HTML("The curves appear after the first steps."), display_id=True)
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
        frame = metrics_frame(RunDirectory(self.run).metrics)
        if not frame.empty:
            image = Page(self.run).image(learning_curves(frame), "learning_curves")
            if self._handle is not None:  # None outside a notebook
                self._handle.update(image)
