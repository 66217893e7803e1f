"""One YAML file says the same in both hosts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from detectron2.config import get_cfg

from workbench.config import changes, load_config
from workbench.detectron2 import add_workbench_config, workbench_config
from workbench.errors import WorkbenchError

ROOT = Path(__file__).parents[2]


CONFIGS = [path for path in sorted((ROOT / "configs").glob("*/*.yaml")) if path.parent.name != "sweeps"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_file_of_ours_says_the_same_in_both_hosts(path: Path) -> None:
    cfg = get_cfg()
    add_workbench_config(cfg)
    cfg.merge_from_file(str(path))
    different = changes(workbench_config(cfg), load_config(path))
    assert set(different) <= {"MODEL.DEVICE"}


def test_without_defaults_detectron2_s_values_stay() -> None:
    cfg, untouched = get_cfg(), get_cfg()
    add_workbench_config(cfg, defaults=False)
    assert untouched.MODEL.PIXEL_MEAN == cfg.MODEL.PIXEL_MEAN and untouched.SOLVER.STEPS == cfg.SOLVER.STEPS
    assert cfg.MODEL.MOBILENET.TAPS == [3, 6, 10, 15]


def test_a_wrong_value_is_one_sentence() -> None:
    cfg = get_cfg()
    add_workbench_config(cfg)
    cfg.INPUT.FORMAT = "BGR"
    with pytest.raises(WorkbenchError, match="INPUT.FORMAT is 'BGR'; it must be one of RGB"):
        workbench_config(cfg)


def test_the_device_is_one_that_detectron2_knows() -> None:
    cfg = get_cfg()
    add_workbench_config(cfg)
    assert load_config(None).MODEL.DEVICE == "auto"
    assert torch.device(cfg.MODEL.DEVICE).type == ("cuda" if torch.cuda.is_available() else "cpu")
