"""`workbench init`: what it writes for a small dataset, names, parts beside one another, refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from unittest import mock

import pytest
import torch
import yaml

from workbench.config import load_config
from workbench.errors import WorkbenchError
from workbench.workflows import init as workflow
from workbench.workflows.init import commented_yaml, config_name, init, sibling


@pytest.fixture(autouse=True)
def _no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workflow, "weights_at_hand", lambda *_: False)
    monkeypatch.setattr(workflow, "choose_device", lambda _: torch.device("cpu"))


@pytest.fixture
def dataset(shapes_root: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shapes_root / "shapes", tmp_path / "apples"))


def test_the_config_loads_and_fits_the_data(dataset: Path, tmp_path: Path) -> None:
    train = dataset / "annotations" / "train.json"
    path, text = init(str(train), out=tmp_path / "configs" / "mine.yaml", minutes=1)
    assert path.read_text() == text
    cfg = load_config(path)
    assert (str(train),) == cfg.DATASETS.TRAIN
    assert tuple((str(train.with_stem(s)),) for s in ("val", "test")) == (cfg.DATASETS.VAL, cfg.DATASETS.TEST)
    assert cfg.INPUT.IMAGE_SIZE == cfg.INPUT.MAX_SIZE_TEST == 128
    assert cfg.MODEL.SUBCATEGORIES == ["colour", "texture"]
    assert cfg.MODEL.MASK_FORMER.NUM_OBJECT_QUERIES == 12
    assert cfg.SOLVER.IMS_PER_BATCH == 4 and cfg.SOLVER.MAX_ITER >= 100
    assert cfg.OUTPUT_DIR == "outputs/apples"
    assert (cfg.SOLVER.OPTIMIZER, cfg.MODEL.BACKBONE.NAME) == ("MUON", "build_small_resnet_backbone")
    lines = text.splitlines()
    values = [at for at, line in enumerate(lines) if ": " in line and "#" not in line and "_BASE_" not in line]
    assert len(values) > 15
    assert all(lines[at - 1].lstrip().startswith("# ") for at in values)


def test_crowds_alone_are_taken_as_objects(dataset: Path, tmp_path: Path) -> None:
    train = dataset / "annotations" / "train.json"
    content = json.loads(train.read_text())
    for annotation in content["annotations"]:
        annotation["iscrowd"] = 1
    brush = train.with_name("brush.json")
    brush.write_text(json.dumps(content))
    path, text = init(f"{brush}@{dataset / 'train'}", out=tmp_path / "mine.yaml", minutes=1)
    assert load_config(path).DATASETS.CROWDS_ARE_OBJECTS is True
    assert "workbench split" in text  # there is no validation set


def test_published_weights_keep_the_base_configs_optimiser(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workflow, "weights_at_hand", lambda *_: True)
    assert [*workflow._start(workflow._MACHINES["cpu"])] == ["MODEL.MOBILENET.WEIGHTS"]
    assert [*workflow._start(workflow._MACHINES["gpu"])] == ["MODEL.RESNETS.WEIGHTS"]


def test_random_weights_have_no_frozen_statistics() -> None:
    assert workflow._start(workflow._MACHINES["gpu"])["MODEL.RESNETS.NORM"][0] == "BN"


def test_a_config_is_not_overwritten(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("mine")
    with pytest.raises(WorkbenchError, match="exists already"):
        init(str(dataset / "annotations" / "train.json"), out=tmp_path / "mine.yaml")


def test_what_is_broken_is_left_out_with_its_reason(dataset: Path, tmp_path: Path) -> None:
    train = dataset / "annotations" / "train.json"
    content = json.loads(train.read_text())
    del content["annotations"][0]["segmentation"]
    train.write_text(json.dumps(content))
    next((dataset / "val").iterdir()).unlink()
    path, text = init(str(train), out=tmp_path / "mine.yaml", minutes=1)
    assert load_config(path).DATASETS.SKIP_FAULTS is True
    assert "left out: 2 faults: 1 box without a mask, 1 missing image; `workbench validate` says where" in text


def test_images_that_are_nowhere_are_told(dataset: Path, tmp_path: Path) -> None:
    train = dataset / "annotations" / "train.json"
    moved = Path(shutil.copy(train, tmp_path / "alone.json"))
    with pytest.raises(WorkbenchError, match="are in none of the folders.*name the folder after an @"):
        init(str(moved), out=tmp_path / "mine.yaml")


def test_copies_are_kept_of_photos_that_take_long_to_read(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = load_config(Path("configs/own/laptop.yaml"))
    for times, kept in (([0.1], None), ([0.5, 0.6, 0.4], None), ([0.5, 0.6, 0.1], True)):
        monkeypatch.setattr(workflow, "_reading_seconds", mock.Mock(side_effect=times))
        lines, seconds = workflow._reading(cfg, None, step=1.0)
        assert lines.get("DATALOADER.CACHE", (None,))[0] is kept
        assert seconds == (0.1 if kept else times[0])


def test_a_dataset_without_objects_is_refused(dataset: Path, tmp_path: Path) -> None:
    train = dataset / "annotations" / "train.json"
    train.write_text(json.dumps(json.loads(train.read_text()) | {"annotations": []}))
    with pytest.raises(WorkbenchError, match="no object"):
        init(str(train), out=tmp_path / "mine.yaml")


@pytest.mark.parametrize(
    ("dataset", "name"),
    [
        ("/data/apples/annotations_train.json", "apples"),
        ("/data/apples/annotations/instances_default.json", "apples"),
        ("/data/my apples.json@photos", "my_apples"),
        ("/data/pears/train.json", "pears"),
        ("shapes_train", "shapes"),
    ],
)
def test_a_config_is_named_after_what_says_something(dataset: str, name: str) -> None:
    assert config_name(dataset) == name


def test_parts_are_found_by_name(tmp_path: Path) -> None:
    for name in ("a_train.json", "a_val.json", "b.json"):
        (tmp_path / name).touch()
    assert sibling(f"{tmp_path}/a_train.json@photos", "val") == f"{tmp_path}/a_val.json@photos"
    assert sibling(f"{tmp_path}/a_train.json", "test") is None
    assert sibling(f"{tmp_path}/b.json", "val") is None
    assert sibling("shapes_train", "val") is None


def test_groups_are_opened_once_and_closed() -> None:
    lines = {"SEED": (0, "s"), "MODEL.A.X": (1, "x"), "MODEL.N": ("none", "n"), "SOLVER.B": ([1, "a"], "b")}
    lines |= {"MODEL.B.Y": (True, "y"), "MODEL.A.Z": (0.5, "z")}
    text = commented_yaml(lines, "../base.yaml", "title")
    assert yaml.safe_load(text) == {
        "_BASE_": "../base.yaml",
        "MODEL": {"N": "none", "A": {"X": 1, "Z": 0.5}, "B": {"Y": True}},
        "SOLVER": {"B": [1, "a"]},
        "SEED": 0,
    }
    assert "  # n\n  N:" in text
