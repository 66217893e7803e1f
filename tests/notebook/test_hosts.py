"""Whose loop a notebook trains in."""

from __future__ import annotations

import sys

import pytest

from workbench import notebook
from workbench.config import get_cfg
from workbench.errors import WorkbenchError


def test_an_unknown_host_is_named() -> None:
    with pytest.raises(WorkbenchError, match="host is 'detectron'; it must be one of workbench, detectron2"):
        notebook.train(get_cfg(), host="detectron")


def test_an_absent_detectron2_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("workbench.detectron2")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "detectron2", None)
    monkeypatch.setitem(sys.modules, "detectron2.config", None)
    with pytest.raises(WorkbenchError, match="host 'detectron2' cannot be used: .*conda install -c conda-forge"):
        notebook.train(get_cfg(), host="detectron2")
