"""A baseline is trained, continued, evaluated, drawn and listed as Mask2Former is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from workbench.config import load_config
from workbench.errors import WorkbenchError
from workbench.notebook.evaluation import open_evaluation
from workbench.runs.checkpoint import load_checkpoint
from workbench.runs.directory import read_metrics
from workbench.runs.table import runs_frame
from workbench.training.loop import Trainer
from workbench.workflows.evaluate import evaluate
from workbench.workflows.predict import predict
from workbench.workflows.train import train

COMMON = {"MODEL.FPN.OUT_CHANNELS": "16", "SOLVER.EMA_DECAY": "0.5", "TEST.EVAL_PERIOD": "2"}
MODELS = {
    "GeneralizedRCNN": {
        "MODEL.ANCHOR_GENERATOR.SIZES": "[[12], [16], [24], [32], [48]]",
        "MODEL.RPN.PRE_NMS_TOPK_TRAIN": "50",
        "MODEL.RPN.PRE_NMS_TOPK_TEST": "50",
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST": "0.0",
        "MODEL.ROI_BOX_HEAD.FC_DIM": "16",
        "MODEL.ROI_MASK_HEAD.NUM_CONV": "1",
        "MODEL.ROI_MASK_HEAD.CONV_DIM": "8",
    },
    "SOLOv2": {
        "MODEL.SOLOV2.INSTANCE_IN_FEATURES": "['p2', 'p3', 'p4']",
        "MODEL.SOLOV2.FPN_INSTANCE_STRIDES": "[8, 8, 16]",
        "MODEL.SOLOV2.FPN_SCALE_RANGES": "[[1, 32], [24, 48], [40, 256]]",
        "MODEL.SOLOV2.NUM_GRIDS": "[8, 6, 4]",
        "MODEL.SOLOV2.INSTANCE_CHANNELS": "16",
        "MODEL.SOLOV2.NUM_INSTANCE_CONVS": "1",
        "MODEL.SOLOV2.MASK_CHANNELS": "16",
        "MODEL.SOLOV2.NUM_KERNELS": "16",
        "MODEL.SOLOV2.NUM_MASKS": "16",
        "MODEL.SOLOV2.SCORE_THR": "0.0",
        "MODEL.SOLOV2.UPDATE_THR": "0.0",
    },
}


def _overrides(model: str, output: Path) -> list[str]:
    keys = {"MODEL.META_ARCHITECTURE": model, "OUTPUT_DIR": str(output), **COMMON, **MODELS[model]}
    return [part for pair in keys.items() for part in pair]


@pytest.fixture(scope="module", params=MODELS)
def run(request: pytest.FixtureRequest, tiny_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished run of a baseline. Read only."""
    output = tmp_path_factory.mktemp("baselines") / request.param
    return train(load_config(tiny_config, _overrides(request.param, output)))


def test_a_run_of_it_holds_what_every_run_holds(run: Path) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["segm"].keys() >= {"AP", "AP50"} and metrics["subcategories"].keys() == {"colour", "texture"}
    assert metrics["no_object_fraction"] is None
    rows = json.loads((run / "predictions.json").read_text())
    assert rows and all("query" not in row and row["attributes"].keys() == {"colour", "texture"} for row in rows)
    assert all(row["score"] == pytest.approx(row["main_score"] * row["mask_score"], abs=1e-6) for row in rows)
    log = (run / "log.txt").read_text()
    assert "a step needs at least" in log
    # The demo's keys of Mask2Former are named, once.
    assert "keys without effect here: " in log and "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES" in log


_read = Trainer._read


def _stop_in_step_3(trainer: Trainer, *arguments: Any) -> Any:
    if trainer.step == 2:
        raise WorkbenchError("stopped")
    return _read(trainer, *arguments)


def test_it_is_continued_exactly(run: Path, tiny_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = load_config(tiny_config, _overrides(run.name, tmp_path / run.name))
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_read", _stop_in_step_3)
        with pytest.raises(WorkbenchError, match="stopped"):
            train(cfg)
    train(cfg)
    for part in ("last", "best"):
        states = [load_checkpoint(each / "checkpoints" / part).state_dict for each in (run, tmp_path / run.name)]
        assert all((states[0][name] == states[1][name]).all() for name in states[0])
    assert len(read_metrics(tmp_path / run.name / "metrics.csv")) == 4


def test_it_is_evaluated_from_its_checkpoint(run: Path, tmp_path: Path) -> None:
    evaluate(run, output=tmp_path)
    assert (tmp_path / "predictions.json").read_bytes() == (run / "predictions.json").read_bytes()
    with pytest.raises(WorkbenchError, match="has no queries to look at"):
        open_evaluation(run, again=False).query_outputs()


def test_it_is_predicted_with_and_listed(run: Path, tiny_run: Path, tmp_path: Path) -> None:
    Image.fromarray(np.zeros((48, 96, 3), np.uint8)).save(tmp_path / "black.png")
    assert len(predict(run, [tmp_path / "black.png"], tmp_path / "out", score_threshold=0.0)) == 2
    shutil.copytree(tiny_run, tmp_path / "runs" / "other")
    table = runs_frame([run, tmp_path / "runs" / "other"])
    assert table.model.tolist() == [run.name, "MaskFormer"]
    assert table.queries.isna().tolist() == [True, False]
