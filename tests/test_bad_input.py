"""Bad input through the real command line: one clear sentence on stderr, exit code 2, and nothing lost."""

from __future__ import annotations

import json
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from workbench import cli
from workbench.data.coco import load_dataset
from workbench.evaluation.ground_truth import check_ground_truth
from workbench.runs.checkpoint import load_checkpoint

Refused = Callable[..., str]


@pytest.fixture
def refused(capsys: pytest.CaptureFixture) -> Refused:
    """Calls the command line, which must fail, and returns its sentence."""

    def call(*argv: str | Path) -> str:
        capsys.readouterr()
        assert cli.main([str(word) for word in argv]) == 2
        before, start, said = capsys.readouterr().err.partition("workbench: error: ")
        assert start and "Traceback" not in before + said
        assert all("batch/s]" in line for line in re.split(r"[\r\n]+", before) if line)  # a progress bar
        return said

    return call


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path) -> Path:
    """A finished run that a test may break."""
    return Path(shutil.copytree(tiny_run, tmp_path / "run"))


@pytest.fixture
def labels(shapes_root: Path, tmp_path: Path) -> Path:
    """A copy of the val split's JSON, beside a link to its images, that a test may break."""
    (tmp_path / "val").symlink_to(shapes_root / "shapes" / "val")
    return Path(shutil.copy(shapes_root / "shapes" / "annotations" / "val.json", tmp_path / "val.json"))


def _contents(directory: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def _edit(path: Path, change: Callable[[dict], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def _put(content: dict, **values: object) -> None:
    content.update(values)


# Checkpoints


@pytest.mark.parametrize("command", ["eval", "predict"])
def test_a_missing_checkpoint(command: str, refused: Refused, shapes_root: Path, tmp_path: Path) -> None:
    rest = ["--output", tmp_path / "out", shapes_root / "shapes" / "val"] if command == "predict" else []
    for place in (tmp_path / "nowhere", tmp_path):
        assert str(place) in refused(command, "--ckpt", place, *rest)


@pytest.mark.parametrize("file", ["model.safetensors", "model.json"])
@pytest.mark.parametrize("left", [0, 100, -1])
def test_a_truncated_checkpoint(file: str, left: int, run: Path, refused: Refused) -> None:
    path = run / "checkpoints" / "best" / file
    path.write_bytes(path.read_bytes()[:left])
    assert str(path) in refused("eval", "--ckpt", run / "checkpoints" / "best")


def test_a_truncated_training_state(tiny_config: Path, run: Path, refused: Refused) -> None:
    path = run / "checkpoints" / "last" / "training_state.pt"
    path.write_bytes(path.read_bytes()[:-50])
    before = _contents(run / "checkpoints")
    said = refused("train", "--config", tiny_config, "--output", run)
    assert "training_state.pt" in said
    assert _contents(run / "checkpoints") == before


@pytest.mark.parametrize("description", ["", "[]", "null", "{}", '{"config": 3}', "\x00"])
def test_a_garbled_description(description: str, run: Path, refused: Refused) -> None:
    path = run / "checkpoints" / "best" / "model.json"
    path.write_text(description)
    assert "model.json" in refused("eval", "--ckpt", run)


def test_categories_that_differ_from_the_checkpoints(run: Path, labels: Path, refused: Refused) -> None:
    _edit(labels, lambda content: _put(content["categories"][1], name="hexagon"))
    said = refused("eval", "--ckpt", run, "--dataset", labels, "--output", labels.parent / "out")
    assert "hexagon" in said and not (labels.parent / "out").exists()


def test_a_run_continued_on_other_categories(run: Path, labels: Path, tiny_config: Path, refused: Refused) -> None:
    _edit(labels, lambda content: _put(content["categories"][1], name="hexagon"))
    before = _contents(run / "checkpoints")
    refused("train", "--config", tiny_config, "--output", run, "DATASETS.TRAIN", f"['{labels}']")
    assert _contents(run / "checkpoints") == before


# Files


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "{}", '{"images": 1}', "\udcff"])
def test_a_malformed_or_empty_dataset(text: str, labels: Path, tiny_config: Path, refused: Refused) -> None:
    labels.write_bytes(text.encode("utf-8", "surrogateescape"))
    output = labels.parent / "new"
    for call in (
        ["validate", labels],
        ["train", "--config", tiny_config, "--output", output, "DATASETS.TRAIN", f"['{labels}']"],
        ["eval", "--predictions", labels, "--annotations", labels],
    ):
        assert "val.json" in refused(*call)
    assert not (output / "checkpoints" / "last").exists()


def test_a_dataset_without_images_or_annotations(labels: Path, tiny_config: Path, refused: Refused) -> None:
    labels.write_text('{"images": [], "annotations": [], "categories": []}')
    said = refused("train", "--config", tiny_config, "--output", labels.parent / "o", "DATASETS.TRAIN", f"['{labels}']")
    assert "val" in said


@pytest.mark.parametrize(
    "text", ["", "{", "{}", "[3]", '[{"image_id": 1}]', '[{"image_id": 1, "category_id": 1, "score": "x"}]']
)
def test_a_malformed_results_file(text: str, labels: Path, refused: Refused) -> None:
    results = labels.parent / "results.json"
    results.write_text(text)
    assert "results.json" in refused("eval", "--predictions", results, "--annotations", labels)


def test_a_dataset_with_faults_stops_before_the_first_step(labels: Path, tiny_config: Path, refused: Refused) -> None:
    _edit(labels, lambda content: _put(content["annotations"][0], category_id=99))
    _edit(labels, lambda content: _put(content["images"][1], file_name="../../elsewhere.png"))
    output = labels.parent / "o"
    said = refused("train", "--config", tiny_config, "--output", output, "DATASETS.TRAIN", f"['{labels}']")
    assert "99" in said and "elsewhere.png" in said  # both faults at once
    assert not (output / "checkpoints" / "last").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"segmentation": {"size": [64.0, 64.0], "counts": [4096]}}, "whole numbers"),
        ({"segmentation": {"size": [64, 64], "counts": "P" * 400}}, "damaged"),
        ({"image_id": 10**400}, "image_id"),
    ],
)
def test_a_test_set_that_cannot_be_scored_stops_before_the_first_step(
    change: dict, said: str, labels: Path, tiny_config: Path, refused: Refused
) -> None:
    _edit(labels, lambda content: _put(content["annotations"][-1], **change))
    output = labels.parent / "o"
    keys = ["DATASETS.TEST", f"['{labels}']"]
    assert said in refused("train", "--config", tiny_config, "--output", output, *keys)
    assert not (output / "metrics.csv").exists() and not list((output / "checkpoints").iterdir())


def test_a_negative_box_in_the_test_set_is_mended_alike_for_training_and_scoring(
    labels: Path, capsys: pytest.CaptureFixture
) -> None:
    _edit(labels, lambda content: _put(content["annotations"][0], bbox=[1, 1, -5, 5]))
    assert cli.main(["validate", str(labels)]) == 0
    assert "the box of its mask is taken" in capsys.readouterr().out
    check_ground_truth(load_dataset(labels))


def test_predict_without_images(run: Path, tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "empty").mkdir()
    for item in (tmp_path / "empty", tmp_path / "*.png", "nothing.jpg"):
        assert str(item) in refused("predict", "--ckpt", run, "--output", tmp_path / "out", item)


def test_predict_with_a_broken_image_writes_the_others(
    run: Path, shapes_root: Path, tmp_path: Path, refused: Refused
) -> None:
    good = next((shapes_root / "shapes" / "test").glob("*.png"))
    broken = tmp_path / "broken.png"
    broken.write_bytes(good.read_bytes()[:200])
    said = refused("predict", "--ckpt", run, "--output", tmp_path / "out", broken, good)
    assert "broken.png" in said
    assert (tmp_path / "out" / good.name).is_file()


# Configs


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("SOLVER.BSE_LR", "0.1", "SOLVER.BASE_LR"),
        ("solver.base_lr", "0.1", "SOLVER.BASE_LR"),
        ("SOLVER", "0.1", "SOLVER"),
        ("SOLVER.BASE_LR.X", "0.1", "SOLVER.BASE_LR"),
        ("SOLVER.BASE_LR", "fast", "must be a number"),
        ("SOLVER.MAX_ITER", "1.5", "SOLVER.MAX_ITER"),
        ("SOLVER.IMS_PER_BATCH", "0", "at least 1"),
        ("DATASETS.TRAIN", "shapes_train,x", "DATASETS.TRAIN"),
        ("DATASETS.TRAIN", "['shape_train']", "shapes_train"),
        ("TEST.MAX_DETS", "[0]", "TEST.MAX_DETS"),
        ("TEST.RANK_BY", "luck", "geometric_mean"),
        ("MODEL.DEVICE", "cuda:99", "cuda:99"),
        ("MODEL.DEVICE", "gpu", "'gpu'"),
        ("MODEL.BACKBONE.NAME", "resnet", "build_resnet_backbone"),
        ("MODEL.WEIGHTS", "nowhere.pth", "nowhere.pth"),
        ("MODEL.SUBCATEGORIES", "['weight']", "weight"),
    ],
)
def test_a_bad_config_value(
    key: str, value: str, said: str, tiny_config: Path, tmp_path: Path, refused: Refused
) -> None:
    output = tmp_path / "new"
    assert said in refused("train", "--config", tiny_config, "--output", output, key, value)
    assert not (output / "checkpoints" / "last").exists()


@pytest.mark.parametrize(
    "text",
    [
        "SOLVER: [",
        "SOLVER: {BSE_LR: 1}",
        "SOLVER: 3",
        "- 1",
        "_BASE_: gone.yaml",
        "A: !!python/object:os.x {}",
    ],
)
def test_a_bad_config_file(text: str, tmp_path: Path, refused: Refused) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    assert "bad.yaml" in refused("train", "--config", path)


# Directories


def test_an_output_directory_with_another_run(tiny_config: Path, run: Path, refused: Refused) -> None:
    before = _contents(run)
    call = ["train", "--config", tiny_config, "--output", run]
    assert "SOLVER.BASE_LR" in refused(*call, "SOLVER.BASE_LR", "0.5")
    assert str(run) in refused(*call, "--no-resume")
    assert _contents(run) == before


def test_an_output_directory_that_is_a_file(tiny_config: Path, tmp_path: Path, refused: Refused) -> None:
    taken = tmp_path / "taken"
    taken.write_text("mine")
    assert str(taken) in refused("train", "--config", tiny_config, "--output", taken)
    assert str(taken) in refused("shapes", "--train", "1", "--val", "1", "--test", "1", "--output", taken)
    assert taken.read_text() == "mine"


# Interruption and a full disk


@pytest.fixture
def interrupted(tiny_config: Path, tmp_path: Path) -> Path:
    """A run of very many steps that Ctrl-C stopped after at least one."""
    output = tmp_path / "long"
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "workbench.cli", *_long(tiny_config, output)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in process.stdout:
        if line.startswith("step 1/"):
            break
    process.send_signal(signal.SIGINT)
    _, said = process.communicate()
    assert process.returncode == 2, said
    assert said.startswith("workbench: error: ") and said.count("\n") == 1
    assert "Ctrl-C" in said
    return output


def _long(config: Path, output: Path) -> list[str]:
    return ["train", "--config", str(config), "--output", str(output), "SOLVER.MAX_ITER", "1000000"]


def test_ctrl_c_writes_a_checkpoint_and_a_full_disk_loses_none(interrupted: Path, tiny_config: Path) -> None:
    last = interrupted / "checkpoints" / "last"
    step = load_checkpoint(last).step
    assert step >= 1
    before = _contents(last)

    def no_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))  # the weights alone take more

    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "workbench.cli",
            *_long(tiny_config, interrupted),
            "SOLVER.CHECKPOINT_PERIOD",
            "1",
        ],
        capture_output=True,
        text=True,
        preexec_fn=no_room,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("workbench: error: ") and "Traceback" not in done.stderr
    assert str(last) in done.stderr
    assert f"step {step} of 1000000" in done.stdout  # it did continue
    assert _contents(last) == before


# Validation tells all it can


def test_a_missing_first_image_is_one_fault_among_the_others(labels: Path, capsys: pytest.CaptureFixture) -> None:
    _edit(labels, lambda content: _put(content["images"][0], file_name="gone.png"))
    _edit(labels, lambda content: _put(content["annotations"][-1], category_id=99))
    assert cli.main(["validate", str(labels)]) == 2
    captured = capsys.readouterr()
    assert "gone.png" in captured.out and "99" in captured.out
    assert "2 faults" in captured.out


def test_a_file_without_its_images_is_still_looked_through(labels: Path, capsys: pytest.CaptureFixture) -> None:
    alone = labels.parent / "elsewhere" / "deep" / "labels.json"
    alone.parent.mkdir(parents=True)
    shutil.copy(labels, alone)
    assert cli.main(["validate", str(alone)]) == 2
    printed = capsys.readouterr()
    assert "1 fault: 1 missing image" in printed.out  # the folder is wrong, not each of its images
    assert "labels.json@images" in printed.out and "labels.json" in printed.err
    assert cli.main(["validate", "--no-images", str(alone)]) == 0
    assert cli.main(["validate", f"{alone}@{labels.parent / 'val'}"]) == 0


def test_an_output_that_is_a_file(run: Path, shapes_root: Path, tmp_path: Path, refused: Refused) -> None:
    taken = tmp_path / "taken"
    taken.write_text("mine")
    assert "taken" in refused("predict", "--ckpt", run, "--output", taken, shapes_root / "shapes" / "val")
    assert "taken" in refused("eval", "--ckpt", run, "--output", taken)
    assert taken.read_text() == "mine"
