"""Sweeps: one notebook over a grid of settings, and one table of the results.

A sweep file::

    notebook: notebooks/03_train.ipynb       # run by papermill, once for each cell of the grid
    output: outputs/sweeps/queries           # a folder for each run, sweep.csv, figures/
    parameters: {config: configs/shapes/demo.yaml}
    overrides: [SOLVER.MAX_ITER, 800]        # config keys and values in turn, for every run
    grid:                                    # config keys, or parameters of the notebook
      MODEL.MASK_FORMER.NUM_OBJECT_QUERIES: [10, 20, 40]
      SOLVER.BASE_LR: [0.0005, 0.001]

Every run is a process of its own with a folder of its own. A run that is done is not repeated; one that failed or
was stopped is, and continues from its checkpoint. The notebook of a failed run is kept.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pandas as pd
from pydantic import BeforeValidator, Field

from workbench.config import load_config
from workbench.environment.system import usable_cores
from workbench.errors import WorkbenchError, counted
from workbench.files import file_name, replacing, write_json, write_text
from workbench.runs.table import runs_frame
from workbench.training.interrupt import Interrupted, StopRequest
from workbench.typed_files import OWN, Place, Text, check_type, load_typed
from workbench.visualization import charts
from workbench.yaml_files import read_yaml

STATUS = "sweep.json"  # in each run's folder, written when it ends
TABLE = "sweep.csv"
SCORES = ("AP", "joint AP")  # plotted where they were measured
_MOST_RUNS = 10_000
_LONGEST_NAME = 200  # characters of a folder's name, in which numbers and letters are most


@dataclass(frozen=True)
class _Status:
    """How a trial ended, as its sweep.json says."""

    status: Literal["done", "failed", "waiting"] = "waiting"
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Trial:
    """One cell of the grid: its folder, its settings, and the parameters its notebook gets."""

    directory: Path
    settings: dict[str, Any]
    parameters: dict[str, Any]

    @property
    def done(self) -> bool:
        return _status(self.directory) == _Status("done", self.settings)


@dataclass(frozen=True)
class Sweep:
    """The contents of a sweep file."""

    __pydantic_config__: ClassVar = OWN
    notebook: Place
    output: Place
    grid: Annotated[dict[Text, Annotated[list[Any], Field(min_length=1)]], Field(min_length=1)]
    parameters: dict[Text, Any] = field(default_factory=dict)
    overrides: tuple[Annotated[str, BeforeValidator(str)], ...] = ()

    def trials(self) -> list[Trial]:
        """Return every cell of the grid, the last key varying fastest."""
        names, trials = _short_names(self.grid), []
        for values in itertools.product(*self.grid.values()):
            settings = dict(zip(self.grid, values, strict=True))
            name = ",".join(f"{names[key]}={_slug(value)}" for key, value in settings.items())
            directory = self.output / (name if len(name) <= _LONGEST_NAME else file_name(name))
            parameters, overrides = dict(self.parameters), list(self.overrides)
            for key, value in settings.items():
                if re.fullmatch(r"[A-Z][A-Z0-9_]*(\.[A-Z0-9_]+)*", key):  # a config key, not a parameter
                    overrides += [key, str(value)]
                else:
                    parameters[key] = value
            parameters |= {"output": str(directory), "overrides": overrides}
            trials.append(Trial(directory, settings, parameters))
        return trials


def load_sweep(path: str | Path) -> Sweep:
    """Read and check a sweep file.

    Raises:
        WorkbenchError: it is unreadable, a key is unknown or missing, the grid is empty, two cells have the same
            folder, or the config does not load with a cell's settings.
    """
    path = Path(path)
    title = f"The sweep {path}"
    content = read_yaml(path, title)
    if isinstance(content, dict):
        content = {key: value for key, value in content.items() if value is not None}  # "overrides:" and nothing more
    sweep = check_type(Sweep, content, title)
    if math.prod(map(len, sweep.grid.values())) > _MOST_RUNS:
        raise WorkbenchError(f"The grid of the sweep {path} has more than {_MOST_RUNS} cells.")
    if not sweep.notebook.is_file():
        raise WorkbenchError(f"The sweep {path} names the notebook {sweep.notebook}, which is not there.")
    trials = sweep.trials()
    if len({trial.directory for trial in trials}) < len(trials):
        raise WorkbenchError(f"The grid of the sweep {path} gives the same settings twice.")
    if "config" in sweep.parameters:
        for trial in trials:  # a misspelt key stops the sweep now, not after the runs before it
            try:
                load_config(trial.parameters["config"], trial.parameters["overrides"])
            except WorkbenchError as error:
                raise WorkbenchError(f"{title}, run {trial.directory.name}: {error}") from error
    return sweep


def run_sweep(sweep: Sweep, *, jobs: int = 1, say: Callable[[str], None] = print) -> pd.DataFrame:
    """Run the trials that are not done, then write sweep.csv and the figures.

    A failed trial does not stop the others. Ctrl-C, SIGTERM and the other signals of ``STOP_SIGNALS`` stop the running
    trials, which continue from their last checkpoint when the sweep is run again. Trials whose sweep was killed stop
    themselves.

    Args:
        sweep: the sweep.
        jobs: how many trials run at a time.
        say: receives the progress, one line a call.

    Returns:
        the table of :func:`sweep_table`.

    Raises:
        Interrupted: a signal stopped the sweep and its trials.
    """
    trials = sweep.trials()
    waiting = [trial for trial in trials if not trial.done]
    say(f"{counted(len(trials), 'run')}, {len(trials) - len(waiting)} of them done")
    stopping, processes = threading.Event(), set()
    environment = dict(os.environ)
    environment.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // jobs)))

    def work(trial: Trial) -> None:
        if stopping.is_set():
            return
        say(f"started  {trial.directory}")
        succeeded = _run(sweep.notebook, trial, environment, processes, stopping)
        if stopping.is_set():
            return
        status = "done" if succeeded else "failed"
        executed = trial.directory / sweep.notebook.name
        if not succeeded and executed.is_file():
            executed.replace(_free(executed.with_suffix(".failed.ipynb")))
        write_json(trial.directory / STATUS, {"status": status, "settings": trial.settings})
        say(f"{status:<8} {trial.directory}")

    with StopRequest() as stop, ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(work, trial) for trial in waiting]
        try:
            with stop.at_once():
                for future in futures:
                    future.result()
        except BaseException as error:
            stopping.set()
            for process in list(processes):
                _stop(process)
            if isinstance(error, KeyboardInterrupt) and stop.name:
                raise Interrupted(f"{stop.name} stopped the sweep; the same command continues it") from None
            raise
    table = sweep_table(sweep)
    write_text(sweep.output / TABLE, table.to_csv(index=False))
    save_figures(sweep, table)
    return table


def sweep_table(sweep: Sweep) -> pd.DataFrame:
    """Return a row a trial: settings under short names, status (done, failed or waiting), key numbers."""
    trials, names = sweep.trials(), _short_names(sweep.grid)
    settings = pd.DataFrame([{names[key]: value for key, value in t.settings.items()} for t in trials])
    settings["status"] = [_status(t.directory).status for t in trials]
    numbers = runs_frame(t.directory for t in trials).drop(columns=["problem"], errors="ignore")
    return settings.join(numbers.drop(columns=[name for name in settings if name in numbers]))


def save_figures(sweep: Sweep, table: pd.DataFrame) -> None:
    """Draw each score against each setting and, of two settings or more, a table of the first two, into figures/."""
    charts.use_style()
    names = list(_short_names(sweep.grid).values())
    for score in [name for name in SCORES if name in table and table[name].notna().any()]:
        figures = {_slug(score): charts.scores_by_setting(table, names, score)}
        if len(names) > 1:  # the mean over the other settings
            cells = table.pivot_table(index=names[0], columns=names[1], values=score, aggfunc="mean", sort=False)
            cells.columns = [f"{names[1]} {value}" for value in cells.columns]
            figures[f"{_slug(score)}_table"] = charts.heat_table(cells, title=f"{score} by {names[0]} and {names[1]}")
        for name, figure in figures.items():
            with replacing(sweep.output / "figures" / f"{name}.png") as draft:
                figure.savefig(draft, format="png", dpi=144, bbox_inches="tight", facecolor="white")


def _run(
    notebook: Path, trial: Trial, environment: Mapping[str, str], processes: set, stopping: threading.Event
) -> bool:
    """Run a trial's notebook and return whether it succeeded. Its output goes to ``papermill.log``.

    The process is in ``processes`` while it runs; one that starts while the sweep is ``stopping`` is stopped here.
    """
    trial.directory.mkdir(parents=True, exist_ok=True)
    executed = trial.directory / notebook.name
    parameters = json.dumps(trial.parameters)  # JSON is YAML
    command = [sys.executable, "-m", "workbench.workflows.trial", "--log-output", "--no-progress-bar", "-y", parameters]
    with (trial.directory / "papermill.log").open("a", encoding="utf-8") as log:
        process = subprocess.Popen(
            [*command, str(notebook), str(executed)],
            stdin=subprocess.PIPE,  # closed when the sweep ends, see workbench.workflows.trial
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # run_sweep passes Ctrl-C on, once
        )
        processes.add(process)
        if stopping.is_set():
            _stop(process)
        try:
            return process.wait() == 0
        finally:
            processes.discard(process)
            process.stdin.close()


def _stop(process: subprocess.Popen) -> None:
    """Let a trial interrupt itself; Windows sends no Ctrl-C to one process."""
    process.stdin.close()


def _free(path: Path) -> Path:
    """Return ``path``, or if it exists ``path`` with a number."""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.stem}_{number}{path.suffix}")
    return free


def _status(directory: Path) -> _Status:
    try:
        return load_typed(_Status, directory / STATUS, STATUS)
    except WorkbenchError:  # absent or garbled: the trial is run
        return _Status()


def _short_names(grid: Mapping[str, Any]) -> dict[str, str]:
    """Map each key to its last part in small letters, or to the whole key where two share it."""
    short = {key: key.rsplit(".", 1)[-1].lower() for key in grid}
    return {key: name if list(short.values()).count(name) == 1 else key for key, name in short.items()}


def _slug(value: Any) -> str:
    return re.sub(r"[^A-Za-z0-9.+-]+", "_", str(value)).strip("_") or "empty"
