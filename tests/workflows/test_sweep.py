"""Sweeps: the grid, resuming, failures, the table."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest

from workbench import cli
from workbench.errors import WorkbenchError
from workbench.training.interrupt import Interrupted
from workbench.workflows.sweep import load_sweep, run_sweep, sweep_table

NOTEBOOK = """
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

run = Path(output)
(run / "config.yaml").write_text("SEED: 1")
(run / "calls").write_text((run / "calls").read_text() + "x" if (run / "calls").exists() else "x")
if twist == "bad" and not (run.parent / "mended").exists():
    raise RuntimeError("this trial fails")
lr = float(overrides[overrides.index("SOLVER.BASE_LR") + 1])
(run / "metrics.json").write_text(json.dumps({"segm": {"AP": 1000 * lr}, "joint": {"AP": 1.0}}))
"""


@pytest.fixture
def sweep_file(tmp_path: Path) -> Path:
    parameters = nbformat.v4.new_code_cell("output, overrides, twist = '', [], ''")
    parameters.metadata["tags"] = ["parameters"]
    cells = [parameters, nbformat.v4.new_code_cell(NOTEBOOK)]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), tmp_path / "trial.ipynb")
    path = tmp_path / "sweep.yaml"
    path.write_text(
        f"notebook: {tmp_path / 'trial.ipynb'}\noutput: {tmp_path / 'out'}\noverrides: [SEED, 3]\n"
        "grid:\n  SOLVER.BASE_LR: [0.001, 0.002]\n  twist: [bad]\n"
    )
    return path


def test_the_grid_becomes_overrides_and_parameters(sweep_file: Path, tmp_path: Path) -> None:
    first, second = load_sweep(sweep_file).trials()
    assert first.directory == tmp_path / "out" / "base_lr=0.001,twist=bad"
    assert first.parameters == {
        "twist": "bad",
        "output": str(first.directory),
        "overrides": ["SEED", "3", "SOLVER.BASE_LR", "0.001"],
    }
    assert second.settings == {"SOLVER.BASE_LR": 0.002, "twist": "bad"}
    assert list(sweep_table(load_sweep(sweep_file))["status"]) == ["waiting", "waiting"]


def test_a_sweep_keeps_failures_resumes_and_ends_in_a_table(
    sweep_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    output = tmp_path / "out"
    trials = [output / "base_lr=0.001,twist=bad", output / "base_lr=0.002,twist=bad"]
    trials[1].mkdir(parents=True)
    settings = {"SOLVER.BASE_LR": 0.002, "twist": "bad"}
    (trials[1] / "sweep.json").write_text(json.dumps({"status": "done", "settings": settings}))
    (trials[1] / "metrics.json").write_text('{"segm": {"AP": 7.0}}')
    (trials[1] / "config.yaml").write_text("SEED: 1")

    assert cli.main(["sweep", str(sweep_file), "--jobs", "2"]) == 2
    captured = capsys.readouterr()
    assert f"1 of 2 runs failed (papermill.log says why): {trials[0]}" in captured.err
    assert "2 runs, 1 of them done" in captured.out
    failed = nbformat.read(trials[0] / "trial.failed.ipynb", as_version=4)
    assert "this trial fails" in str(failed.cells)
    assert "this trial fails" in (trials[0] / "papermill.log").read_text()
    assert not (trials[1] / "calls").exists()  # what was done is not repeated

    (output / "mended").touch()
    assert cli.main(["sweep", str(sweep_file)]) == 0
    assert (trials[0] / "calls").read_text() == "xx" and (trials[0] / "trial.ipynb").is_file()
    table = pd.read_csv(output / "sweep.csv")
    assert list(table["base_lr"]) == [0.001, 0.002] and list(table["AP"]) == [1.0, 7.0]
    assert list(table["status"]) == ["done", "done"]
    assert {path.name for path in (output / "figures").iterdir()} >= {"AP.png", "AP_table.png"}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        pytest.param("grid:", "gird:", "the key grid is missing", id="misspelt key"),
        pytest.param("[0.001, 0.002]", "0.001", "it must be a list", id="one value"),
        pytest.param("[0.001, 0.002]", "[]", "it must be not empty", id="no value"),
        pytest.param("[0.001, 0.002]", "[0.1, 0.1]", "same settings twice", id="one value twice"),
        pytest.param("[0.001, 0.002]", "[0.001", "not readable YAML", id="open bracket"),
        pytest.param("[0.001, 0.002]", f"{[*range(10_001)]}", "more than 10000 cells", id="no end"),
        pytest.param("SOLVER.BASE_LR", "7", "a key of grid is 7; it must be text", id="a number for a key"),
        pytest.param("trial.ipynb", "gone.ipynb", "which is not there", id="missing notebook"),
        pytest.param("overrides: [SEED, 3]", "overrides: SEED", "overrides is 'SEED'; it must be a list", id="no list"),
    ],
)
def test_a_bad_sweep_file(old: str, new: str, message: str, sweep_file: Path) -> None:
    sweep_file.write_text(sweep_file.read_text().replace(old, new))
    with pytest.raises(WorkbenchError, match=message):
        load_sweep(sweep_file)


def test_a_misspelt_key_stops_the_sweep_before_its_first_run(sweep_file: Path, tiny_config: Path) -> None:
    text = sweep_file.read_text().replace("BASE_LR", "BSE_LR")
    sweep_file.write_text(f"{text}parameters: {{config: '{tiny_config}'}}\n")
    with pytest.raises(WorkbenchError, match="SOLVER.BASE_LR"):
        load_sweep(sweep_file)


WAITS = """
import signal, sys
try:
    print(1, flush=True)
    signal.pause()
except KeyboardInterrupt:
    sys.exit(7)
"""
KILLED = """
import subprocess, sys
import workbench.workflows.sweep as sweep
plain = subprocess.Popen
def popen(*arguments, **settings):
    return plain(*arguments, **{**settings, "stdout": sys.stdout})
subprocess.Popen = popen
sweep.run_sweep(sweep.load_sweep(sys.argv[1]), say=lambda line: None)
"""


def test_a_killed_sweep_leaves_no_trial_running(sweep_file: Path, tmp_path: Path) -> None:
    (tmp_path / "papermill.py").write_text(WAITS.replace("sys.exit(7)", "print('saved', flush=True)"))
    path = os.pathsep.join((str(tmp_path), str(Path(__file__).parents[2])))
    sweep = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(sweep_file)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    with sweep:
        assert sweep.stdout.readline() == "1\n"  # the trial has begun
        sweep.kill()
        assert sweep.stdout.read() == "saved\n"  # to its end: nothing that holds stdout is left


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_sweep_that_is_ended_ends_its_training(
    number: int, sweep_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plain, processes = subprocess.Popen, []

    def popen(*_: object, **settings: object) -> subprocess.Popen:
        # a training that ends when it is asked to
        command = [sys.executable, "-m", "workbench.workflows.trial"]
        processes.append(plain(command, **{**settings, "stdout": subprocess.PIPE}))
        processes[0].stdout.readline()
        os.kill(os.getpid(), number)
        return processes[0]

    (tmp_path / "papermill.py").write_text(WAITS)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(tmp_path), str(Path(__file__).parents[2]))))
    monkeypatch.setattr("workbench.workflows.sweep.subprocess.Popen", popen)
    with pytest.raises(Interrupted, match=f"{signal.Signals(number).name} stopped the sweep"):
        run_sweep(load_sweep(sweep_file))
    (process,) = processes  # the second trial was not begun
    assert process.wait() == 7
    process.stdout.close()
    assert not list((tmp_path / "out").glob("*/sweep.json"))
