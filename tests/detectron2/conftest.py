"""What the tests of the detectron2 host share. They run where detectron2 can be imported: ``make test-detectron2``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from workbench.config import load_config

try:
    import detectron2.config as detectron2_config
except ImportError:
    collect_ignore_glob = ["test_[!a]*.py"]  # all but test_absent.py


@pytest.fixture()
def host_config(tiny_config: Path, tmp_path: Path) -> Any:
    """detectron2's config of ``tiny_config``, its datasets registered."""
    from workbench.detectron2 import add_workbench_config, register_datasets, workbench_config

    cfg = detectron2_config.get_cfg()
    add_workbench_config(cfg)
    cfg.merge_from_file(str(tiny_config))
    cfg.OUTPUT_DIR = str(tmp_path / "run")
    register_datasets(workbench_config(cfg))
    return cfg


@pytest.fixture()
def own_config(tiny_config: Path) -> Any:
    """The workbench's config of the same file."""
    return load_config(tiny_config)
