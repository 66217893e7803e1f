"""What a person does with the workbench: train, evaluate, predict; and what they get wrong."""

from __future__ import annotations

import io
import json
import logging
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from workbench.config import load_config
from workbench.data.coco import load_dataset
from workbench.errors import WorkbenchError
from workbench.notebook.evaluation import open_evaluation
from workbench.runs.checkpoint import checkpoint_config, load_checkpoint, load_model
from workbench.runs.directory import read_metrics
from workbench.workflows.evaluate import DatasetEvaluation, evaluate, evaluate_on_training_images
from workbench.workflows.predict import predict
from workbench.workflows.score import evaluate_file
from workbench.workflows.train import train


def copy_of(run: Path, place: Path) -> Path:
    return Path(shutil.copytree(run, place))


def test_a_run_holds_what_the_design_says(tiny_run: Path) -> None:
    names = {path.name for path in tiny_run.iterdir()}
    assert names >= {
        "config.yaml",
        "metrics.csv",
        "log.txt",
        "checkpoints",
        "figures",
        "metrics.json",
        "predictions.json",
    }
    assert len(read_metrics(tiny_run / "metrics.csv")) == 4
    metrics = json.loads((tiny_run / "metrics.json").read_text())
    assert {"segm", "bbox", "per_category", "subcategories", "joint", "no_object_fraction"} <= metrics.keys()
    assert {"images", "instances", "rank_by", "seconds", "dataset", "checkpoint"} <= metrics.keys()
    assert metrics["images"] == 6 and metrics["dataset"] == "shapes_val"
    rows = json.loads((tiny_run / "predictions.json").read_text())
    assert rows and {"image_id", "category_id", "segmentation", "bbox", "score", "attributes"} <= rows[0].keys()
    (picture,) = EventAccumulator(str(tiny_run)).Reload().Images("validation images")  # six images, beside their truth
    shown = np.asarray(Image.open(io.BytesIO(picture.encoded_image_string)))
    assert picture.step == 4 and shown.shape == (picture.height, picture.width, 3) and shown.std() > 20
    assert picture.width == pytest.approx(4 * 512, abs=40) and picture.height == pytest.approx(3 * 512, abs=40)


def test_the_log_says_device_seed_versions_sizes_and_both_learning_rates(tiny_run: Path) -> None:
    log = (tiny_run / "log.txt").read_text()
    for text in (
        "process 0 uses cpu",
        f"torch {torch.__version__}",
        "seed 7; 4 steps of 2 images",
        "learning rate 0.001 = BASE_LR 0.001 × 2 images a step / 2 reference",
        "train on shapes_train: ",
        "evaluate on shapes_val: 6 images",
        "5 categories, subcategories colour (6), texture (4)",
        f"best checkpoint {tiny_run / 'checkpoints' / 'best'}",
    ):
        assert text in log


def test_a_finished_run_is_not_trained_again(tiny_run: Path, tiny_config: Path, tmp_path: Path) -> None:
    run = copy_of(tiny_run, tmp_path / "run")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.name in ("metrics.csv", "model.safetensors")}
    (run / "metrics.json").unlink()
    assert train(load_config(tiny_config, ["OUTPUT_DIR", str(run)])) == run
    assert all(path.read_bytes() == content for path, content in before.items())
    assert (run / "log.txt").read_text().count("a step needs at least") == 1  # no time is foretold where none is left
    again, first = (json.loads((place / "metrics.json").read_text()) for place in (run, tiny_run))
    assert again["segm"] == first["segm"]


def test_the_same_seed_trains_the_same_and_minus_one_draws_one(
    tiny_run: Path, tiny_config: Path, tmp_path: Path
) -> None:
    train(load_config(tiny_config, ["OUTPUT_DIR", str(tmp_path / "a")]))
    losses = [[row["total_loss"] for row in read_metrics(run / "metrics.csv")] for run in (tiny_run, tmp_path / "a")]
    assert losses[0] == losses[1]
    short = ["SEED", "-1", "SOLVER.MAX_ITER", "1", "DATASETS.TEST", "()"]
    train(load_config(tiny_config, ["OUTPUT_DIR", str(tmp_path / "b"), *short]))
    drawn = load_config(tmp_path / "b" / "config.yaml").SEED
    assert drawn >= 0 and f"seed {drawn};" in (tmp_path / "b" / "log.txt").read_text()


def test_evaluation_from_the_checkpoint_alone_equals_that_of_the_training(tiny_run: Path, tmp_path: Path) -> None:
    metrics = evaluate(tiny_run, output=tmp_path)
    trained = json.loads((tiny_run / "metrics.json").read_text())
    assert metrics["segm"] == trained["segm"] and metrics["subcategories"] == trained["subcategories"]
    assert (tmp_path / "predictions.json").read_bytes() == (tiny_run / "predictions.json").read_bytes()
    assert json.loads((tmp_path / "metrics.json").read_text())["segm"] == metrics["segm"]


def test_a_model_that_finds_nothing_is_told_what_to_check(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    evaluate(tiny_run, output=tmp_path)
    lines = capsys.readouterr().out.splitlines()
    start = next(number for number, line in enumerate(lines) if "What to check, in this order:" in line)
    assert [line[:2] for line in lines[start + 1 : start + 5]] == ["1.", "2.", "3.", "4."]


def test_evaluation_goes_into_the_checkpoints_run_unless_told_otherwise(tiny_run: Path, tmp_path: Path) -> None:
    run = copy_of(tiny_run, tmp_path / "run")
    before = (run / "metrics.json").read_bytes()
    evaluate(run / "checkpoints" / "best", dataset="shapes_test")
    scores = json.loads((run / "evaluations" / "shapes_test" / "metrics.json").read_text())
    assert scores["dataset"] == "shapes_test" and (run / "metrics.json").read_bytes() == before
    evaluate(run)
    assert json.loads((run / "metrics.json").read_text())["segm"] == json.loads(before)["segm"]


@pytest.fixture
def graded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Make every evaluation score 10, 30 and 20 in turn on VAL and rising beyond that on TEST; their datasets."""
    real, scored = DatasetEvaluation.__call__, []

    def grade(evaluation: DatasetEvaluation, model: torch.nn.Module) -> dict:
        metrics = real(evaluation, model)
        scored.append(metrics["dataset"])
        on_val = scored.count("shapes_val") - 1
        metrics["segm"]["AP"] = (10.0, 30.0, 20.0)[on_val % 3] if scored[-1] == "shapes_val" else 90.0 + len(scored)
        return metrics

    monkeypatch.setattr(DatasetEvaluation, "__call__", grade)
    return scored


def test_the_best_checkpoint_is_chosen_on_val_and_reported_on_test(
    tiny_config: Path, tmp_path: Path, graded: list[str]
) -> None:
    split = ["DATASETS.VAL", "('shapes_val',)", "DATASETS.TEST", "('shapes_test',)", "TEST.EVAL_PERIOD", "1"]
    cfg = load_config(tiny_config, ["OUTPUT_DIR", str(tmp_path), *split, "SOLVER.MAX_ITER", "3"])
    run = train(cfg)
    assert graded == ["shapes_val"] * 3 + ["shapes_test"]
    assert load_checkpoint(run / "checkpoints" / "best").step == 2
    rows = read_metrics(run / "metrics.csv")
    assert [float(row["segm/AP"]) for row in rows] == [10.0, 30.0, 20.0]
    reported, chosen = (json.loads((p / "metrics.json").read_text()) for p in (run, run / "evaluations/shapes_val"))
    assert (reported["dataset"], reported["segm"]["AP"]) == ("shapes_test", 94.0)
    assert (chosen["dataset"], chosen["segm"]["AP"]) == ("shapes_val", 30.0)
    log = (run / "log.txt").read_text()
    assert "evaluate on shapes_val: 6" in log and "report on shapes_test: 6" in log and "flattering" not in log

    chosen_on = open_evaluation(run, dataset="shapes_val", again=False)
    assert chosen_on.directory == run / "evaluations" / "shapes_val" and len(graded) == 4
    train(cfg)  # finished, and nothing is evaluated again
    assert len(graded) == 4
    (run / "metrics.json").unlink()  # as after a kill between the last step and the report
    train(cfg)
    assert graded[4:] == ["shapes_test"]
    assert json.loads((run / "metrics.json").read_text())["checkpoint"] == str(run / "checkpoints" / "best")


def test_val_may_not_change_in_a_run_and_test_may_where_that_is_accepted(
    tiny_run: Path, tiny_config: Path, tmp_path: Path
) -> None:
    output = ["OUTPUT_DIR", str(copy_of(tiny_run, tmp_path / "run"))]
    for key in ("DATASETS.VAL", "DATASETS.TEST"):  # VAL is empty: TEST chooses
        with pytest.raises(WorkbenchError, match=f"another run .{key}"):
            train(load_config(tiny_config, [*output, key, "('shapes_test',)"]))
    split = ["DATASETS.VAL", "('shapes_val',)", "SOLVER.MAX_ITER", "1"]
    output = ["OUTPUT_DIR", str(tmp_path / "other")]
    train(load_config(tiny_config, [*output, *split, "DATASETS.TEST", "()"]))
    assert json.loads((tmp_path / "other" / "metrics.json").read_text())["dataset"] == "shapes_val"
    cfg = load_config(tiny_config, [*output, *split, "DATASETS.TEST", "('shapes_test',)"])
    with pytest.raises(WorkbenchError, match="the data that is reported: "):
        train(cfg)
    train(cfg, accept_data=True)
    assert json.loads((tmp_path / "other" / "metrics.json").read_text())["dataset"] == "shapes_test"


def test_a_score_on_the_images_that_chose_is_called_flattering(tiny_run: Path) -> None:
    assert "WARNING shapes_val both chooses the best checkpoint" in (tiny_run / "log.txt").read_text()
    assert open_evaluation(tiny_run, dataset="shapes_val", again=False).directory == tiny_run


def test_overrides_change_how_a_checkpoint_is_scored(tiny_run: Path, tmp_path: Path) -> None:
    overrides = ["TEST.MAX_DETS", "[1, 7]", "TEST.RANK_BY", "geometric_mean", "TEST.SCORER", "pycocotools"]
    metrics = evaluate(tiny_run, output=tmp_path, overrides=overrides)
    assert metrics["rank_by"] == "geometric_mean" and {"AR@1", "AR@7"} <= metrics["segm"].keys()
    with pytest.raises(WorkbenchError, match="TEST.RANK_BI.*TEST.RANK_BY"):
        evaluate(tiny_run, overrides=["TEST.RANK_BI", "sum"])


def test_a_results_file_is_scored_without_a_model(tiny_run: Path, shapes_root: Path, tmp_path: Path) -> None:
    annotations = shapes_root / "shapes" / "annotations" / "val.json"
    metrics = evaluate_file(tiny_run / "predictions.json", annotations, output=tmp_path)
    trained = json.loads((tiny_run / "metrics.json").read_text())
    assert metrics["segm"] == trained["segm"]
    assert (tmp_path / "metrics.json").is_file()


def test_weights_of_another_run_are_the_start(tiny_run: Path, tiny_config: Path, tmp_path: Path) -> None:
    overrides = [
        "MODEL.WEIGHTS",
        str(tiny_run),
        "SOLVER.MAX_ITER",
        "1",
        "SOLVER.BASE_LR",
        "0.0",
        "DATASETS.TEST",
        "()",
    ]
    run = train(load_config(tiny_config, ["OUTPUT_DIR", str(tmp_path / "run"), *overrides]))
    initial, loaded = load_checkpoint(tiny_run).state_dict, load_checkpoint(run).state_dict
    names = [name for name in initial if "running" not in name and "num_batches" not in name]
    assert all(torch.equal(initial[name], loaded[name]) for name in names)
    assert f"{len(initial)} loaded; 0 missing" in (run / "log.txt").read_text()


def test_a_dataset_with_faults_stops_the_training_or_is_thinned_out(
    tiny_config: Path, shapes_root: Path, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(shapes_root, tmp_path / "data"))
    file = root / "shapes" / "annotations" / "train.json"
    content = json.loads(file.read_text())
    plain = next(a for a in content["annotations"] if not a["iscrowd"])
    plain["category_id"] = 999
    file.write_text(json.dumps(content))
    overrides = ["DATASETS.ROOT", str(root), "DATASETS.TEST", "()", "SOLVER.MAX_ITER", "1"]
    with pytest.raises(WorkbenchError, match=f"(?s)annotation {plain['id']}.*999"):
        train(load_config(tiny_config, ["OUTPUT_DIR", str(tmp_path / "a"), *overrides]))
    assert not (tmp_path / "a" / "metrics.csv").exists()
    overrides += ["DATASETS.SKIP_FAULTS", "True", "OUTPUT_DIR", str(tmp_path / "b")]
    run = train(load_config(tiny_config, overrides))
    assert "1 annotation or image left out" in (run / "log.txt").read_text()


def test_a_checkpoint_of_other_categories_is_refused_with_their_names(
    tiny_run: Path, tiny_config: Path, shapes_root: Path, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(shapes_root, tmp_path / "data"))
    for split in ("train", "val"):
        file = root / "shapes" / "annotations" / f"{split}.json"
        content = json.loads(file.read_text())
        renamed = content["categories"][0]["name"]
        content["categories"][0]["name"] = "blob"
        file.write_text(json.dumps(content))
    overrides = ["DATASETS.ROOT", str(root)]
    with pytest.raises(WorkbenchError, match=f"{renamed}.*blob|blob.*{renamed}"):
        evaluate(tiny_run, output=tmp_path, overrides=overrides)
    run = copy_of(tiny_run, tmp_path / "run")
    with pytest.raises(WorkbenchError, match=f"{renamed}.*blob|blob.*{renamed}"):
        train(load_config(tiny_config, ["OUTPUT_DIR", str(run), *overrides]))


def test_a_device_that_is_not_there_leaves_nothing_behind(tiny_config: Path, tmp_path: Path) -> None:
    with pytest.raises(WorkbenchError, match="cuda:99"):
        train(load_config(tiny_config, ["OUTPUT_DIR", str(tmp_path / "run"), "MODEL.DEVICE", "cuda:99"]))
    assert not (tmp_path / "run").exists()


def test_invariant_12_a_gpu_in_the_checkpoint_is_not_asked_for_again_and_a_cpu_stays_one(
    tiny_run: Path, tmp_path: Path
) -> None:
    assert checkpoint_config(tiny_run / "checkpoints" / "best", []).MODEL.DEVICE == "cpu"
    place = copy_of(tiny_run / "checkpoints" / "best", tmp_path / "best")
    description = json.loads((place / "model.json").read_text())
    description["config"]["MODEL"]["DEVICE"] = "cuda:3"
    (place / "model.json").write_text(json.dumps(description))
    assert checkpoint_config(place, []).MODEL.DEVICE == "auto"
    assert checkpoint_config(place, ["MODEL.DEVICE", "cuda:1"]).MODEL.DEVICE == "cuda:1"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """a/one.png, a/deep/one.jpg and b.png of different sizes, and a text file."""
    folder = tmp_path / "pictures"
    for name, size in (("a/one.png", (64, 48)), ("a/deep/one.jpg", (40, 64)), ("b.png", (64, 64))):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / name)
    (folder / "a" / "notes.txt").write_text("no picture")
    return folder


def test_prediction_draws_every_image_and_writes_one_dataset(
    tiny_run: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    output = tmp_path / "out"
    files = predict(tiny_run, [pictures / "a", str(pictures / "*.png")], output, score_threshold=0.0)
    objects = len(json.loads(files[-1].read_text())["annotations"])
    assert re.fullmatch(rf"3 images, {objects:,} objects in \d+\.\d s\n", capsys.readouterr().out)
    assert [file.name for file in files] == ["one.png", "one_2.png", "b.png", "predictions.json"]
    assert all(file.is_file() for file in files)
    for file in files[:3]:
        Image.open(file).verify()
    content = json.loads(files[-1].read_text())
    assert [Path(image["file_name"]).name for image in content["images"]] == ["one.jpg", "one.png", "b.png"]
    assert {row["image_id"] for row in content["annotations"]} == {1, 2, 3}
    read = load_dataset(f"{files[-1]}@{Path('/')}", check_images=False, skip_faults=True)  # it can be trained on
    assert read.vocabulary.categories == load_checkpoint(tiny_run).vocabulary.categories


def test_the_threshold_leaves_out_what_scores_less(tiny_run: Path, pictures: Path, tmp_path: Path) -> None:
    counts = []
    for number, threshold in enumerate((0.0, 0.05, 1.1)):
        files = predict(tiny_run, pictures / "b.png", tmp_path / str(number), score_threshold=threshold)
        rows = json.loads(files[-1].read_text())["annotations"]
        assert all(row["score"] >= threshold for row in rows)
        counts.append(len(rows))
    assert counts[0] >= counts[1] >= counts[2] == 0 < counts[0]


def test_prediction_equals_the_model(tiny_run: Path, pictures: Path, tmp_path: Path) -> None:
    files = predict(tiny_run, pictures / "b.png", tmp_path / "out", score_threshold=0.0)
    picture = torch.from_numpy(np.array(Image.open(pictures / "b.png"))).permute(2, 0, 1)
    model, _ = load_model(tiny_run)
    with torch.no_grad():
        (expected,) = model([{"image": picture, "height": 64, "width": 64}])
    scores = [row["score"] for row in json.loads(files[-1].read_text())["annotations"]]
    assert scores == pytest.approx(expected["scores"].tolist(), abs=1e-6)


def test_an_unreadable_image_is_named_and_the_others_are_done(tiny_run: Path, pictures: Path, tmp_path: Path) -> None:
    (pictures / "a" / "cut.png").write_bytes((pictures / "b.png").read_bytes()[:200])
    with pytest.raises(WorkbenchError, match="1 of 4 images cannot be used.*cut.png.*other 3 are in"):
        predict(tiny_run, pictures, tmp_path / "out")
    assert len(list((tmp_path / "out").glob("*.png"))) == 3


@pytest.mark.parametrize("wrong", ["nothing.png", "empty", "no/*.match", "a/notes.txt"])
def test_inputs_without_an_image_are_named(tiny_run: Path, pictures: Path, tmp_path: Path, wrong: str) -> None:
    (pictures / "empty").mkdir()
    with pytest.raises(WorkbenchError, match=wrong.replace("*", r"\*").replace(".", r"\.")):
        predict(tiny_run, pictures / wrong, tmp_path / "out")


def test_inputs_are_never_overwritten(tiny_run: Path, pictures: Path) -> None:
    before = (pictures / "b.png").read_bytes()
    with pytest.raises(WorkbenchError, match="choose another folder"):
        predict(tiny_run, pictures / "b.png", pictures)
    assert (pictures / "b.png").read_bytes() == before


def test_prediction_replaces_its_own_files_and_no_others(tiny_run: Path, pictures: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    for threshold in (0.0, 0.1):
        *_, file = predict(tiny_run, pictures / "b.png", output, score_threshold=threshold)
    corrected = json.loads(file.read_text())
    corrected["annotations"].append({"id": 99})
    file.write_text(json.dumps(corrected))
    with pytest.raises(WorkbenchError, match="predictions.json was not written by predict, or was changed since"):
        predict(tiny_run, pictures / "b.png", output)
    assert json.loads(file.read_text()) == corrected
    file.unlink()
    (output / "b.png").write_bytes((pictures / "b.png").read_bytes())
    with pytest.raises(WorkbenchError, match="out/b.png was not written by predict"):
        predict(tiny_run, pictures / "b.png", output)
    (output / "b.png").unlink()
    (output / "b.png").symlink_to(tmp_path / "elsewhere.png")
    with pytest.raises(WorkbenchError, match="out/b.png is a link"):
        predict(tiny_run, pictures / "b.png", output)
    assert not (tmp_path / "elsewhere.png").exists() and [path.name for path in output.iterdir()] == ["b.png"]


def test_the_log_leaves_the_callers_logging_as_it_was(tiny_run: Path, tmp_path: Path) -> None:
    logger = logging.getLogger("workbench")
    before = (list(logger.handlers), logger.level, logger.propagate)
    evaluate(tiny_run, output=tmp_path)
    assert (list(logger.handlers), logger.level, logger.propagate) == before


def test_a_sample_of_the_training_images_is_scored_once(tiny_run: Path, tmp_path: Path) -> None:
    run = copy_of(tiny_run, tmp_path / "run")
    before = (run / "metrics.json").read_bytes()
    first = evaluate_on_training_images(run, most=5)
    assert (first["images"], first["dataset"]) == (5, "shapes_train")
    assert evaluate_on_training_images(run, most=5)["seconds"] == first["seconds"]  # it was reused
    assert evaluate_on_training_images(run, most=4)["images"] == 4
    assert (run / "metrics.json").read_bytes() == before
