"""What is shown while training, and where it is kept."""

from __future__ import annotations

import io
import logging
import sys
from pathlib import Path

import pytest

from workbench import console
from workbench.training import progress as module
from workbench.training.progress import Progress, log, logging_to


class Clock:
    """Stands for the time module: ``now`` seconds have gone by."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.fixture
def in_a_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a terminal nor a notebook."""
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)


def test_a_log_gets_a_plain_line_now_and_then_with_the_time_left(
    clock: Clock, in_a_log: None, capsys: pytest.CaptureFixture
) -> None:
    with logging_to(None):
        progress = Progress(0, 100)
        for step in range(1, 101):
            clock.now = step * 2.0
            progress.update(step, {"total_loss": 1.25}, 1e-3, 10**9)
        progress.close()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "step 1/100: loss 1.250, lr 1.00e-03, 1.00 GB, 2.00 s/step, 03:18 left"
    assert lines[-1].startswith("step 100/100:") and lines[-1].endswith("00:00 left")
    assert len(lines) == 21  # one each ten seconds, and the first


def test_a_continued_run_measures_its_own_speed(clock: Clock, in_a_log: None, capsys: pytest.CaptureFixture) -> None:
    with logging_to(None):
        progress = Progress(90, 100)
        clock.now = 4.0
        progress.update(91, {"total_loss": 1.0}, 1e-3, 10**9)
    assert "4.00 s/step, 00:36 left" in capsys.readouterr().out


def test_a_terminal_gets_one_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    progress = Progress(2, 4)
    for step in (3, 4):
        progress.update(step, {"total_loss": 0.5}, 1e-3, 10**9)
    progress.close()
    assert "4/4" in terminal.getvalue() and "loss 0.500, lr 1.00e-03" in terminal.getvalue()


def test_a_notebook_gets_one_line_that_ends_with_how_long_it_took(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    written: list[str] = []
    monkeypatch.setattr(module, "notebook_line", lambda: written.append)
    progress = Progress(0, 3)
    for step in (1, 2, 3):
        clock.now = step * 0.4
        progress.update(step, {"total_loss": 0.5}, 1e-3, 10**9)
    progress.close()
    assert written[0] == "step 1/3: loss 0.500, lr 1.00e-03, 1.00 GB, 0.40 s/step, 00:00 left"
    assert written[-1] == "training: step 3/3: loss 0.500, lr 1.00e-03, 1.00 GB, 0.40 s/step, 00:01 in all"
    assert capsys.readouterr() == ("", "")


def test_a_loop_is_followed_by_one_line_in_a_notebook_and_by_nothing_in_a_file(
    in_a_log: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    assert list(console.follow([1, 2], "predict", "batch")) == [1, 2]
    written: list[str] = []
    monkeypatch.setattr(console, "notebook_line", lambda: written.append)
    assert list(console.follow(iter("ab"), "predict", "batch")) == ["a", "b"]
    assert list(console.follow([1], "queries", "batch", shown=False)) == [1]
    assert written == ["predict: 2 batches in 0.0 s"]
    assert capsys.readouterr() == ("", "")


def test_other_processes_show_nothing(
    in_a_log: None, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workbench.training.progress.rank", lambda: 1)
    progress = Progress(0, 1)
    progress.update(1, {"total_loss": 0.5}, 1e-3, 10**9)
    progress.close()
    assert capsys.readouterr() == ("", "")


def test_what_is_printed_is_kept_with_the_time(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with logging_to(tmp_path / "log.txt"):
        log.info("one")
        logging.getLogger("workbench.losses.criterion").warning("two")
    log.info("outside")
    assert capsys.readouterr().out == "one\ntwo\n"
    kept = (tmp_path / "log.txt").read_text().splitlines()
    assert [line.split(" ", 2)[2] for line in kept] == ["INFO one", "WARNING two"]
