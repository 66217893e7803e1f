"""Panoptic and semantic models from their data to their scores and pictures."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.panoptic import BACKGROUND, write_panoptic
from workbench.config import load_config
from workbench.data.coco import load_dataset
from workbench.errors import WorkbenchError
from workbench.runs.checkpoint import load_vocabulary
from workbench.runs.directory import read_metrics
from workbench.runs.table import describe_run, runs_frame
from workbench.workflows.evaluate import evaluate
from workbench.workflows.predict import predict
from workbench.workflows.train import train

KINDS = "MODEL.MASK_FORMER.TEST."
BOTH = [f"{KINDS}PANOPTIC_ON", "True", f"{KINDS}SEMANTIC_ON", "True"]
EVERY_SEGMENT = [f"{KINDS}OBJECT_MASK_THRESHOLD", "0.0", f"{KINDS}OVERLAP_THRESHOLD", "0.0"]


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def panoptic_run(tiny_config: Path, shapes_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a panoptic recipe: trained on segments, evaluated without instances."""
    shapes, folder = shapes_root / "shapes", tmp_path_factory.mktemp("panoptic")
    places = {
        split: f"{write_panoptic(shapes / 'annotations' / f'{split}.json', folder / f'{split}.json')}@{shapes / split}"
        for split in ("train", "val")
    }
    data = ["DATASETS.TRAIN", f"('{places['train']}',)", "DATASETS.TEST", f"('{places['val']}',)"]
    keys = [*data, "SOLVER.MAX_ITER", "2", "INPUT.DATASET_MAPPER_NAME", "coco_panoptic_lsj"]
    output = ["OUTPUT_DIR", str(folder / "run"), f"{KINDS}INSTANCE_ON", "False"]
    return train(load_config(tiny_config, [*keys, *BOTH, *EVERY_SEGMENT, *output]))


def test_a_panoptic_recipe_trains_and_reports_its_scores(panoptic_run: Path) -> None:
    assert load_vocabulary(panoptic_run).stuff == {"background"}
    metrics = json.loads((panoptic_run / "metrics.json").read_text())
    assert metrics["segm"] is None and json.loads((panoptic_run / "predictions.json").read_text()) == []
    assert metrics["panoptic"].keys() >= {"PQ", "PQ_th", "PQ_st"} and metrics["semantic"]["mIoU"] is not None
    assert metrics["semantic_per_category"]["background"] is not None
    log = (panoptic_run / "log.txt").read_text()
    assert f"step 2: PQ {metrics['panoptic']['PQ']:.2f}; best" in log and "6 categories" in log
    assert "panoptic/PQ" in read_metrics(panoptic_run / "metrics.csv")[-1]
    assert "mIoU" in describe_run(panoptic_run)
    assert runs_frame([panoptic_run])["mIoU"].iloc[0] == metrics["semantic"]["mIoU"]


def test_the_scores_of_a_checkpoint_alone_are_those_of_the_training(panoptic_run: Path, tmp_path: Path) -> None:
    trained = json.loads((panoptic_run / "metrics.json").read_text())
    metrics = evaluate(panoptic_run, output=tmp_path)
    assert [metrics[kind] for kind in ("panoptic", "semantic")] == [trained[kind] for kind in ("panoptic", "semantic")]


def test_instances_are_of_things_and_stand_beside_the_other_scores(panoptic_run: Path, tmp_path: Path) -> None:
    metrics = evaluate(panoptic_run, output=tmp_path, overrides=[f"{KINDS}INSTANCE_ON", "True"])
    assert "background" not in metrics["per_category"] and len(metrics["per_category"]) == 5
    rows = json.loads((tmp_path / "predictions.json").read_text())
    assert rows and all(row["category_id"] != BACKGROUND for row in rows)


def test_scores_of_segments_come_from_an_instances_file_too(tiny_run: Path, tmp_path: Path) -> None:
    metrics = evaluate(tiny_run, output=tmp_path, overrides=[*BOTH, *EVERY_SEGMENT])
    trained = json.loads((tiny_run / "metrics.json").read_text())
    assert metrics["segm"] == trained["segm"] and "panoptic" not in trained
    assert metrics["panoptic"]["PQ_st"] is None and metrics["semantic"]["mIoU"] is not None


def test_predict_draws_what_the_model_predicts(panoptic_run: Path, shapes_root: Path, tmp_path: Path) -> None:
    image = sorted((shapes_root / "shapes" / "val").glob("*.png"))[0]
    written = predict(panoptic_run, image, tmp_path / "a")
    names = ["panoptic.json", f"panoptic/{image.name}", "semantic.json", f"semantic/{image.name}"]
    assert sorted(str(path.relative_to(tmp_path / "a")) for path in written) == names
    content = json.loads((tmp_path / "a" / "semantic.json").read_text())
    assert sum(each["area"] for each in content["annotations"]) == 64 * 64
    assert content["categories"][-1] == {"id": BACKGROUND, "name": "background", "isthing": 0}
    data = load_dataset(f"{tmp_path / 'a' / 'semantic.json'}@{image.parent}", check_images=False)
    assert data.vocabulary == load_vocabulary(panoptic_run) and data.objects == len(content["annotations"])
    before = np.asarray(Image.open(image).convert("RGB").resize((512, 512)))
    assert (np.asarray(Image.open(tmp_path / "a" / "semantic" / image.name)) != before).any()
    more = predict(panoptic_run, image, tmp_path / "a", overrides=[f"{KINDS}INSTANCE_ON", "True"])
    assert {path.name for path in more} == {"predictions.json", "panoptic.json", "semantic.json", image.name}


def test_a_model_that_predicts_nothing_is_refused(tiny_run: Path) -> None:
    with pytest.raises(WorkbenchError, match="INSTANCE_ON, SEMANTIC_ON and PANOPTIC_ON are False; one must be True"):
        evaluate(tiny_run, overrides=[f"{KINDS}INSTANCE_ON", "False"])
