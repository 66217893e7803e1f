"""Notebook 03 trains in detectron2, and notebooks 04 to 06 open what it leaves."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.notebooks.running import run_here


def test_notebooks_open_what_detectron2_trained(
    tiny_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    output = tmp_path / "run"
    parameters = {"config": tiny_config, "output": output, "samples": 1, "host": "detectron2"}
    assert "SOLVER.MAX_ITER" in run_here("03_train", **parameters)
    assert (output / "figures" / "learning_curves.png").stat().st_size > 5000
    before = (output / "metrics.csv").read_bytes()
    run_here("03_train", **parameters)  # a finished run is shown
    assert (output / "metrics.csv").read_bytes() == before
    for name in ("04_eval", "05_query_analysis", "06_visualize"):
        assert run_here(name, ckpt=output)
