"""Going on with a run: from which checkpoint, and on which data."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.runs.test_checkpoint import save
from workbench.config import load_config
from workbench.errors import WorkbenchError
from workbench.runs.checkpoint import load_state
from workbench.runs.continuing import check_checkpoints, check_data, choice_digest
from workbench.runs.directory import RunDirectory
from workbench.workflows.train import train

DATA = {"annotations": "a", "pictures": "b", "images": 9, "objects": 30}


def splits(**changes: object) -> dict:
    return {"train": DATA, "selection": DATA, "report": None} | changes


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path)


def test_a_best_checkpoint_without_a_last_asks_for_a_decision(run: RunDirectory) -> None:
    save(run.best, step=5)
    with pytest.raises(WorkbenchError, match="start again at step 0; do that with --restart"):
        check_checkpoints(run, restart=False)
    check_checkpoints(run, restart=True)
    assert not run.best.exists() and run.best.parent.is_dir()
    (kept,) = run.path.glob("checkpoints_until_*")
    assert (kept / "best" / "model.safetensors").is_file()
    check_checkpoints(run, restart=False)
    check_checkpoints(run, restart=True)
    assert len(list(run.path.glob("checkpoints_until_*"))) == 1
    for place in (run.best, run.last):
        save(place)
    check_checkpoints(run, restart=False)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"train": {**DATA, "images": 8, "objects": 27}}, "the training data: 9 images and 30 objects there, 8 images"),
        ({"selection": {**DATA, "annotations": "c"}}, "the data that chooses the best checkpoint: other annotations"),
        ({"train": {**DATA, "pictures": "c"}}, "the training data: other image files"),
        ({"report": DATA}, "the data that is reported: none there"),
    ],
)
def test_other_data_is_refused_or_accepted_by_name(run: RunDirectory, change: dict, words: str) -> None:
    assert check_data(run, splits(train=None), accept=False) == []
    assert check_data(run, splits(), accept=False) == []  # without a checkpoint there is nothing to continue
    save(run.last)
    assert check_data(run, splits(), accept=False) == []
    with pytest.raises(WorkbenchError, match=words) as caught:
        check_data(run, splits(**change), accept=False)
    assert "--accept-data" in str(caught.value) and json.loads(run.data.read_text()) == splits()
    (difference,) = check_data(run, splits(**change), accept=True)
    assert words in difference and check_data(run, splits(**change), accept=False) == []
    assert (choice_digest(splits(**change)) == choice_digest(splits())) == ("report" in change)


def test_a_garbled_record_is_named(run: RunDirectory) -> None:
    save(run.last)
    for text in ("{", "[]", '{"train": 3}'):
        run.data.write_text(text)
        with pytest.raises(WorkbenchError, match="data.json"):
            check_data(run, splits(), accept=False)


def test_a_run_goes_on_with_fewer_images_when_that_is_accepted(
    tiny_run: Path, tiny_config: Path, shapes_root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = RunDirectory(shutil.copytree(tiny_run, tmp_path / "run"))
    root = Path(shutil.copytree(shapes_root, tmp_path / "data"))
    file = root / "shapes" / "annotations" / "val.json"
    content = json.loads(file.read_text())
    gone = content["images"].pop()["id"]
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] != gone]
    file.write_text(json.dumps(content))
    run.config.unlink()
    cfg = load_config(tiny_config, ["OUTPUT_DIR", str(run.path), "DATASETS.ROOT", str(root)])
    before = load_state(run.last)["chosen_on"]
    with pytest.raises(WorkbenchError, match="6 images and .* there, 5 images"):
        train(cfg)
    assert run.config.exists()  # written again
    train(cfg, accept_data=True)
    log = run.log.read_text()
    assert "goes on with other data, as accepted: the data that chooses" in log and "chosen anew" in log
    assert json.loads(run.scores.read_text())["images"] == 5
    assert before == load_state(run.last)["chosen_on"]  # the run was finished: no checkpoint was written
