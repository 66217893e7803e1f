"""A run whose steps are another program's."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

from workbench.config import load_config
from workbench.data.vocabulary import Vocabulary
from workbench.runs.checkpoint import load_checkpoint
from workbench.runs.directory import read_metrics
from workbench.runs.hosted import HostedRun


@pytest.fixture()
def run(tmp_path: Path) -> HostedRun:
    config = load_config(None, ["OUTPUT_DIR", str(tmp_path / "run"), "SOLVER.MAX_ITER", "30"])
    return HostedRun(config, Vocabulary((3,), ("thing",)))


def test_checkpoints_are_those_of_every_run(run: HostedRun) -> None:
    assert run.best_ap() is None
    run.save(nn.Linear(2, 1), 20, 41.5, best=True)
    run.save(nn.Linear(2, 1), 31, 40.0, best=False)  # evaluated after the last step
    assert run.best_ap() == 41.5
    best, last = load_checkpoint(run.best), load_checkpoint(run.last)
    assert (best.step, last.step) == (20, 30)
    assert best.vocabulary.categories == ("thing",) and best.config.SOLVER.MAX_ITER == 30


def test_each_value_is_written_once_in_the_row_of_its_step(run: HostedRun) -> None:
    run.write({"total_loss": (2.0, 19), "segm/AP": (10.0, 14), "time": (0.5, 19)})
    run.write({"total_loss": (1.0, 29), "segm/AP": (10.0, 14), "time": (0.4, 29)})
    rows = read_metrics(run.metrics)
    assert [row["step"] for row in rows] == ["15", "20", "30"]
    assert [row["segm/AP"] for row in rows] == ["10.0", "", ""]
    assert [row["seconds"] for row in rows] == ["", "0.5", "0.4"]


def test_a_continued_run_drops_later_rows(run: HostedRun) -> None:
    run.write({"total_loss": (2.0, 9)})
    run.write({"total_loss": (1.5, 24)})
    again = HostedRun(run._config, run._vocabulary)
    again.write({"total_loss": (1.7, 19)})
    assert [(row["step"], row["total_loss"]) for row in read_metrics(run.metrics)] == [("10", "2.0"), ("20", "1.7")]
