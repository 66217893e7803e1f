"""Checkpoints: they rebuild, they survive a kill at any moment, and what is wrong with one is said."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from workbench.config import config_to_dict, get_cfg
from workbench.data.vocabulary import Vocabulary
from workbench.errors import WorkbenchError
from workbench.runs import checkpoint as module
from workbench.runs.checkpoint import (
    check_vocabulary,
    load_checkpoint,
    load_model,
    load_state,
    load_vocabulary,
    remove_leftovers,
    resolve_checkpoint,
    save_checkpoint,
    weights_digest,
)

WORDS = Vocabulary((3, 7), ("disc", "box"), {"colour": ("red", "green"), "age": ("old", "new")})


def save(directory: Path, step: int = 1, state: dict | None = None) -> Path:
    config = config_to_dict(get_cfg())
    weights = {"a": torch.full((3, 2), float(step)), "n": torch.tensor(step)}
    extra = {"metrics": {"segm": {"AP": 1.5}}}
    return save_checkpoint(directory, weights, config=config, vocabulary=WORDS, step=step, state=state, extra=extra)


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    save(tmp_path / "last", step=4, state={"step": 4, "moments": [torch.ones(2)], "none": None})
    loaded = load_checkpoint(tmp_path / "last")
    assert (loaded.step, loaded.vocabulary, loaded.metrics) == (4, WORDS, {"segm": {"AP": 1.5}})
    assert config_to_dict(loaded.config) == config_to_dict(get_cfg())
    assert torch.equal(loaded.state_dict["a"], torch.full((3, 2), 4.0))
    assert loaded.state_dict["n"].dtype == torch.int64
    assert loaded.versions["torch"] == torch.__version__
    assert load_state(tmp_path / "last")["moments"][0].tolist() == [1.0, 1.0]
    description = json.loads((tmp_path / "last" / "model.json").read_text())
    assert description["categories"] == [{"id": 3, "name": "disc"}, {"id": 7, "name": "box"}]
    assert description["subcategories"][1] == {"name": "age", "classes": ["old", "new"]}


def test_all_files_have_the_users_permissions(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    place = save(tmp_path / "last", state={})
    assert {file.stat().st_mode for file in place.iterdir()} == {(tmp_path / "plain").stat().st_mode}


def test_a_newer_checkpoint_takes_the_place_of_the_old_and_leaves_nothing_else(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path / "last", step=step)
    assert load_checkpoint(tmp_path / "last").step == 3
    assert os.listdir(tmp_path) == ["last"]


class Killed(BaseException):
    """Stands for SIGKILL: nothing that catches Exception may clean up after it."""


_STEPS = ("rename", "replace", "rmtree", "fsync", "mkdir", "save_file", "_save_state")


def _die_at(monkeypatch: pytest.MonkeyPatch, moment: int, after: bool) -> None:
    """Kill at the ``moment``-th operation on the disk, before or after it."""
    done: list[str] = []

    def watch(owner: object, name: str) -> None:
        real = getattr(owner, name)

        def call(*args, **kwargs):
            done.append(name)
            number = len(done)
            if number == moment and not after:
                raise Killed
            try:
                return real(*args, **kwargs)
            finally:
                if number == moment and after:
                    raise Killed

        monkeypatch.setattr(owner, name, call)

    for owner in (os, shutil, Path, module):
        for name in _STEPS:
            if name in vars(owner):
                watch(owner, name)


@pytest.mark.parametrize("start", ["last", "last.old"])  # .old: what a first kill may have left
@pytest.mark.parametrize("after", [False, True])
def test_a_kill_at_any_moment_of_a_save_leaves_a_whole_checkpoint(tmp_path: Path, after: bool, start: str) -> None:
    moment, finished = 0, False
    while not finished:
        moment += 1
        place = tmp_path / f"{moment}" / "last"
        save(place, step=1, state={"step": 1}).rename(place.with_name(start))
        with pytest.MonkeyPatch.context() as patch:
            _die_at(patch, moment, after)
            try:
                save(place, step=2, state={"step": 2})
                finished = True
            except Killed:
                pass
        found = load_checkpoint(place)
        assert found.step in (1, 2)
        assert torch.equal(found.state_dict["a"], torch.full((3, 2), float(found.step)))
        assert load_state(place)["step"] == found.step
        remove_leftovers(place)
        assert load_checkpoint(place).step == found.step and len(os.listdir(place.parent)) == 1
        save(place, step=3)  # what the kill left lying about is no hindrance
        assert load_checkpoint(place).step == 3
        assert os.listdir(place.parent) == ["last"]
    assert moment > 15


def _full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("writer", ["save_file", "_save_state", "sync"])
def test_a_full_disk_keeps_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writer: str
) -> None:
    save(tmp_path / "last", step=1)
    monkeypatch.setattr(module, writer, _full)
    with pytest.raises(WorkbenchError, match="disk that holds .* is full; the checkpoint saved there before is kept"):
        save(tmp_path / "last", step=2, state={"step": 2})
    monkeypatch.undo()
    assert load_checkpoint(tmp_path / "last").step == 1
    assert os.listdir(tmp_path) == ["last"]


def test_a_full_disk_found_by_torch_is_told_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def save_state(state: dict, path: Path) -> None:
        try:
            _full()
        except OSError:
            raise RuntimeError("unexpected pos 704 vs 598")  # noqa: B904  (what torch.save makes of it)

    monkeypatch.setattr(module, "_save_state", save_state)
    with pytest.raises(WorkbenchError, match="is full$"):
        save(tmp_path / "last", state={"step": 1})


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkbenchError, match="cannot save the checkpoint .*file/last: Not a directory"):
        save(tmp_path / "file" / "last")


@pytest.mark.parametrize("name", ["model.safetensors", "model.json", "training_state.pt"])
@pytest.mark.parametrize("how", ["missing", "truncated", "garbled", "empty"])
def test_a_broken_file_is_named(tmp_path: Path, name: str, how: str) -> None:
    place = save(tmp_path / "last", state={"step": 1})
    file = place / name
    content = file.read_bytes()
    if how == "missing":
        file.unlink()
    else:
        middle = len(content) // 2
        garbled = content[:middle] + bytes(255 - b for b in content[middle : middle + 20]) + content[middle + 20 :]
        file.write_bytes({"truncated": content[:middle], "garbled": garbled, "empty": b""}[how])
    with pytest.raises(WorkbenchError, match=name.replace(".", r"\.")) as caught:
        load_checkpoint(place)
        load_state(place)
    assert "\n" not in str(caught.value)


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(WorkbenchError, match="nowhere does not exist"):
        load_checkpoint(tmp_path / "nowhere")
    with pytest.raises(WorkbenchError, match="neither a checkpoint"):
        load_checkpoint(tmp_path)


def test_a_run_stands_for_its_best_checkpoint_and_else_its_last(tmp_path: Path) -> None:
    save(tmp_path / "checkpoints" / "last", step=2)
    assert resolve_checkpoint(tmp_path).name == "last"
    save(tmp_path / "checkpoints" / "best", step=1)
    assert load_checkpoint(tmp_path).step == 1


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    place = save(tmp_path / "last")
    description = json.loads((place / "model.json").read_text())
    (place / "model.json").write_text(json.dumps({**description, "format_version": 99}))
    with pytest.raises(WorkbenchError, match="format 99.*newer workbench"):
        load_checkpoint(place)


def test_the_classes_are_known_without_reading_the_weights(tmp_path: Path) -> None:
    place = save(tmp_path / "last")
    (place / "model.safetensors").unlink()
    assert load_vocabulary(place) == WORDS


@pytest.mark.parametrize("key", ["config", "categories", "subcategories", "step"])
def test_a_description_without_a_key_is_refused(tmp_path: Path, key: str) -> None:
    place = save(tmp_path / "last")
    description = json.loads((place / "model.json").read_text())
    del description[key]
    (place / "model.json").write_text(json.dumps(description))
    with pytest.raises(WorkbenchError, match=f"model.json: the key {key} is missing"):
        load_checkpoint(place)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["weights", "state"])
def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path, value: float, where: str) -> None:
    place = save(tmp_path / "last", step=1)
    good, bad = ({"a": torch.tensor([1.0, number]), "n": torch.tensor(3)} for number in (1.0, value))
    weights, state = (bad, None) if where == "weights" else (good, {"model": bad})
    with pytest.raises(WorkbenchError, match=r"after step 2 are not saved.*kept: 1 tensors hold NaN or infinity \(a\)"):
        save_checkpoint(place, weights, config={}, vocabulary=WORDS, step=2, state=state)
    assert load_checkpoint(place).step == 1 and [path.name for path in tmp_path.iterdir()] == ["last"]


def test_weights_that_are_not_finite_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(module, "require_finite", lambda *_: None)
        place = save_checkpoint(
            tmp_path / "last",
            {"a": torch.tensor([float("nan")])},
            config=config_to_dict(get_cfg()),
            vocabulary=WORDS,
            step=1,
        )
    with pytest.raises(WorkbenchError, match=r"last cannot be used: 1 tensors hold NaN or infinity \(a\)"):
        load_checkpoint(place)


def test_a_file_without_its_checksum_is_refused(tmp_path: Path) -> None:
    place = save(tmp_path / "last", state={"step": 1})
    description = json.loads((place / "model.json").read_text())
    (place / "model.json").write_text(json.dumps({**description, "files": {}}))
    for read in (load_checkpoint, load_state, weights_digest):
        with pytest.raises(WorkbenchError, match="records no size and checksum of"):
            read(place)


@pytest.mark.parametrize("step", ["_measure", "read_state", "read_description", "_check_file"])
@pytest.mark.parametrize("after", [False, True])
def test_a_reader_that_is_overtaken_gets_the_new_checkpoint_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, after: bool
) -> None:
    place = save(tmp_path / "last", step=1, state={"step": 1})
    real, overtaken = getattr(module, step), []

    def overtake(*arguments: object) -> object:
        result = real(*arguments) if after else None
        if not overtaken:
            overtaken.append(True)
            save(place, step=2, state={"step": 2})
        return result if after else real(*arguments)

    monkeypatch.setattr(module, step, overtake)
    loaded = load_checkpoint(place)
    assert overtaken and loaded.step == 2 and torch.equal(loaded.state_dict["a"], torch.full((3, 2), 2.0))


def test_a_swap_between_two_looks_hides_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = save(tmp_path / "last")
    hidden = place.rename(tmp_path / "hidden")
    real = Path.is_file

    def swap(file: Path) -> bool:
        if file.parent.name == "last.old":
            hidden.rename(place)
        return real(file)

    monkeypatch.setattr(Path, "is_file", swap)
    assert resolve_checkpoint(place) == place


def test_nothing_is_unpickled_blindly(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    place = save(tmp_path / "last")  # model.json knows no checksum of the training state
    torch.save({"model": Trap()}, place / "training_state.pt")
    description = json.loads((place / "model.json").read_text())
    description["files"]["training_state.pt"] = vars(module._measure(place / "training_state.pt"))
    (place / "model.json").write_text(json.dumps(description))
    with pytest.raises(WorkbenchError, match="training_state.pt is garbled, or holds more than tensors"):
        load_state(place)
    assert not (tmp_path / "sprung").exists()


def test_tied_and_strided_weights_come_back(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(4, 4)
            self.two = nn.Linear(4, 4)
            self.two.weight = self.one.weight
            self.conv = nn.Conv2d(4, 4, 3).to(memory_format=torch.channels_last)
            self.register_buffer("row", torch.arange(12.0).view(3, 4)[1])

    model = Tied()
    save_checkpoint(tmp_path / "c", model, config=config_to_dict(get_cfg()), vocabulary=WORDS, step=0)
    loaded = load_checkpoint(tmp_path / "c").state_dict
    assert all(torch.equal(loaded[name], value) for name, value in model.state_dict().items())
    other = Tied()
    other.load_state_dict(loaded)
    assert other.two.weight is other.one.weight


def test_other_classes_are_named() -> None:
    check_vocabulary(Path("c"), WORDS, WORDS)
    others = [
        (
            Vocabulary((3, 7), ("disc", "cup"), WORDS.subcategories),
            "checkpoint only: 'box'.*dataset only: 'cup'",
        ),
        (Vocabulary((3, 7), ("box", "disc"), WORDS.subcategories), "another order: disc, box / box, disc"),
        (
            Vocabulary((3, 7), WORDS.categories, {"colour": ("red", "green")}),
            "'age' is in the checkpoint only",
        ),
        (
            Vocabulary((3, 7), WORDS.categories, {**WORDS.subcategories, "colour": ("red", "blue")}),
            "classes of subcategory 'colour' in the checkpoint only: 'green'; .* dataset only: 'blue'",
        ),
    ]
    for other, message in others:
        with pytest.raises(WorkbenchError, match=message):
            check_vocabulary(Path("c"), WORDS, other)


def test_ids_of_another_dataset_do_not_matter() -> None:
    check_vocabulary(Path("c"), WORDS, Vocabulary((1, 2), WORDS.categories, WORDS.subcategories))


def test_a_model_is_rebuilt_from_the_checkpoint_alone(tiny_run: Path) -> None:
    model, checkpoint = load_model(tiny_run)
    assert not model.training
    assert all(torch.equal(v, checkpoint.state_dict[k]) for k, v in model.state_dict().items())
    image = torch.randint(0, 255, (3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        (predictions,) = model([{"image": image, "height": 64, "width": 64}])
    assert set(predictions["subcategories"]) == set(checkpoint.vocabulary.subcategories)


def test_weights_of_another_model_are_refused(tiny_run: Path, tmp_path: Path) -> None:
    place = shutil.copytree(tiny_run / "checkpoints" / "best", tmp_path / "best")
    description = json.loads((place / "model.json").read_text())
    description["config"]["MODEL"]["MASK_FORMER"]["NUM_OBJECT_QUERIES"] += 1
    (place / "model.json").write_text(json.dumps(description))
    with pytest.raises(WorkbenchError, match="does not fit the model of its config"):
        load_model(place)
