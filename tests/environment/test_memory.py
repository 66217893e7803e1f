"""What does not fit the machine's memory is refused by its keys, before it is allocated."""

from __future__ import annotations

import pytest

from workbench.config import load_config
from workbench.environment import memory
from workbench.environment.memory import check_memory
from workbench.errors import WorkbenchError


@pytest.fixture(autouse=True)
def _sixteen_gib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "total_memory", lambda: 16 * 2**30)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["SOLVER.IMS_PER_BATCH", "1000000"], "images needs at least 2,930 GiB .* SOLVER.IMS_PER_BATCH 1000000"),
        (["INPUT.MAX_SCALE", "1000"], "INPUT.MAX_SCALE 1000.0"),
        (["INPUT.IMAGE_SIZE", "65536"], "INPUT.IMAGE_SIZE 65536"),
        (["MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", "1000000"], "masks .*NUM_OBJECT_QUERIES 1000000"),
        (["MODEL.MASK_FORMER.TRAIN_NUM_POINTS", "100000000"], "matching .*TRAIN_NUM_POINTS 100000000"),
    ],
)
def test_a_training_beyond_the_memory_names_its_keys(overrides: list[str], said: str) -> None:
    cfg = load_config(None, overrides)
    with pytest.raises(WorkbenchError, match=said):
        check_memory(cfg, processes=1)
    check_memory(cfg)  # the same config's checkpoint still predicts


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["MODEL.MASK_FORMER.HIDDEN_DIM", "65536"], "the model .*HIDDEN_DIM 65536"),
        (["MODEL.SEM_SEG_HEAD.CONVS_DIM", "65536"], "the model .*CONVS_DIM 65536"),
        (["INPUT.MIN_SIZE_TEST", "65536", "INPUT.MAX_SIZE_TEST", "0"], "INPUT.MIN_SIZE_TEST 65536"),
        (["INPUT.MIN_SIZE_TEST", "65536", "INPUT.MAX_SIZE_TEST", "1000000000"], "INPUT.MAX_SIZE_TEST 1000000000"),
    ],
)
def test_a_model_or_an_image_beyond_the_memory_is_refused_outside_training_too(
    overrides: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "total_memory", lambda: 8 * 2**30)
    with pytest.raises(WorkbenchError, match=said):
        check_memory(load_config(None, overrides))


def test_a_step_shared_by_many_processes_and_parts_is_reckoned_by_its_part() -> None:
    cfg = load_config(None, ["SOLVER.IMS_PER_BATCH", "16384"])
    with pytest.raises(WorkbenchError, match="48 GiB"):
        check_memory(cfg, processes=1)
    check_memory(cfg, processes=4)
    check_memory(load_config(None, ["SOLVER.IMS_PER_BATCH", "16384", "SOLVER.ACCUMULATION_STEPS", "4"]), processes=1)


def test_the_published_defaults_fit_a_small_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "total_memory", lambda: 2**31)
    check_memory(load_config(None), processes=1)
