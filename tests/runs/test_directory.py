"""The run directory: who may write into it, and metrics.csv over interruptions."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.toy import config, trainer
from workbench.config import load_config
from workbench.errors import WorkbenchError
from workbench.runs.directory import MetricsTable, open_run, read_metrics


def test_a_fresh_directory_gets_the_config_and_a_drawn_seed(tmp_path: Path) -> None:
    run, cfg = open_run(config(tmp_path / "run", SEED=-1), resume=True, seed=77)
    assert cfg.SEED == load_config(run.config).SEED == 77
    assert (run.path / "checkpoints").is_dir() and run.figures.is_dir()


def begin(path: Path, **changes: object) -> None:
    """Open a run and leave it as after its first step."""
    run, _ = open_run(config(path, **changes), resume=False, seed=77)
    run.metrics.write_text("step\n1\n")


def test_a_start_that_failed_before_the_first_step_binds_nobody(tmp_path: Path) -> None:
    open_run(config(tmp_path, DATASETS_TRAIN="('shapes_trian',)"), resume=True, seed=77)
    (tmp_path / "metrics.csv").write_text("")
    _, cfg = open_run(config(tmp_path, DATASETS_TRAIN="('shapes_train',)"), resume=False, seed=5)
    assert load_config(tmp_path / "config.yaml").DATASETS.TRAIN == cfg.DATASETS.TRAIN == ("shapes_train",)


def test_a_deleted_config_is_written_again_from_the_checkpoint(tmp_path: Path) -> None:
    trainer(config(tmp_path, SOLVER_MAX_ITER=1)).train()
    before = (tmp_path / "config.yaml").read_text()
    (tmp_path / "config.yaml").unlink()
    with pytest.raises(WorkbenchError, match="SOLVER.BASE_LR is 0.02 there and 0.5 here"):
        open_run(config(tmp_path, SOLVER_MAX_ITER=1, SOLVER_BASE_LR=0.5), resume=True, seed=0)
    open_run(config(tmp_path, SOLVER_MAX_ITER=1, SEED=-1), resume=True, seed=0)
    assert (tmp_path / "config.yaml").read_text() == before


def test_a_continued_run_keeps_its_seed(tmp_path: Path) -> None:
    begin(tmp_path, SEED=-1)
    _, cfg = open_run(config(tmp_path, SEED=-1), resume=True, seed=5)
    assert cfg.SEED == 77


def test_a_directory_with_another_run_is_refused_with_what_differs(tmp_path: Path) -> None:
    begin(tmp_path)
    before = (tmp_path / "config.yaml").read_text()
    with pytest.raises(WorkbenchError, match="another run .SOLVER.BASE_LR is 0.02 there and 0.5 here") as caught:
        open_run(config(tmp_path, SOLVER_BASE_LR=0.5), resume=True, seed=0)
    assert str(tmp_path) in str(caught.value) and "choose another OUTPUT_DIR" in str(caught.value)
    assert (tmp_path / "config.yaml").read_text() == before


def test_what_alters_no_step_may_differ(tmp_path: Path) -> None:
    begin(tmp_path)
    changes = {"MODEL_DEVICE": "auto", "DATALOADER_NUM_WORKERS": 7, "TEST_EVAL_PERIOD": 3}
    _, cfg = open_run(config(tmp_path, **changes), resume=True, seed=0)
    assert cfg.DATALOADER.NUM_WORKERS == 7


def test_resuming_can_be_forbidden(tmp_path: Path) -> None:
    begin(tmp_path)
    with pytest.raises(WorkbenchError, match="holds a run already"):
        open_run(config(tmp_path), resume=False, seed=0)


def test_other_files_in_the_directory_are_no_run(tmp_path: Path) -> None:
    (tmp_path / "03_train.ipynb").write_text("{}")
    open_run(config(tmp_path), resume=False, seed=0)


def test_a_run_without_its_config_is_refused(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("step\n1\n")
    with pytest.raises(WorkbenchError, match="without its config.yaml"):
        open_run(config(tmp_path), resume=True, seed=0)


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkbenchError, match="OUTPUT_DIR .*file/run cannot be written"):
        open_run(config(tmp_path / "file" / "run"), resume=True, seed=0)


def test_rows_beyond_the_checkpoint_are_dropped_and_written_anew(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    table = MetricsTable(path, step=0)
    for step in range(1, 6):
        table.write({"step": step, "loss": step / 3})
    table.close()
    table = MetricsTable(path, step=3)
    table.write({"step": 4, "loss": 0.1 + 0.2})
    table.close()
    rows = read_metrics(path)
    assert [row["step"] for row in rows] == ["1", "2", "3", "4"]
    assert [float(row["loss"]) for row in rows] == [1 / 3, 2 / 3, 1.0, 0.1 + 0.2]


def test_a_row_that_a_kill_cut_off_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("step,loss\n1,0.5\n2,0.2")
    table = MetricsTable(path, step=9)
    table.write({"step": 2, "loss": 0.25})
    table.close()
    assert path.read_text() == "step,loss\n1,0.5\n2,0.25\n"


def test_a_later_column_lengthens_the_header(tmp_path: Path) -> None:
    table = MetricsTable(tmp_path / "metrics.csv", step=0)
    table.write({"step": 1, "loss": 1.0})
    table.write({"step": 2, "loss": 2.0, "segm/AP": 50.0})
    table.write({"step": 3, "loss": 3.0})
    table.close()
    text = (tmp_path / "metrics.csv").read_text()
    assert text == "step,loss,segm/AP\n1,1.0,\n2,2.0,50.0\n3,3.0,\n"


def test_every_row_is_on_the_disk_at_once(tmp_path: Path) -> None:
    table = MetricsTable(tmp_path / "metrics.csv", step=0)
    table.write({"step": 1, "loss": 1.0})
    table.write({"step": 2, "loss": 1.0})
    assert len(read_metrics(tmp_path / "metrics.csv")) == 2
    table.close()
