"""What notebook 03 says before a training."""

from __future__ import annotations

from pathlib import Path

from workbench.config import load_config
from workbench.notebook.preview import data_cautions, training_data


def test_cautions_name_rare_classes_and_images_that_are_in_both_parts(tiny_config: Path) -> None:
    cfg = load_config(tiny_config, ["DATASETS.VAL", "('shapes_train',)", "INPUT.IMAGE_SIZE", "32"])
    said = data_cautions(cfg, training_data(cfg)).splitlines()
    assert all(line.startswith("caution: ") for line in said)
    assert any("fewer than 10 objects" in line for line in said)
    assert any("pixels across at INPUT.IMAGE_SIZE 32" in line for line in said)
    assert any("shapes_train: 16 images are in the training data too" in line for line in said)
