"""A batch depends on the seed and the step alone."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from workbench.data.coco import CocoDataset, load_dataset
from workbench.data.loaders import build_test_loader, build_train_loader, epoch_order, step_seed
from workbench.data.mapper import LargeScaleJitter, TestMapper, TrainMapper
from workbench.errors import WorkbenchError
from workbench.models.inputs import check_labels


@pytest.fixture(scope="module")
def dataset(shapes_root: Path) -> CocoDataset:
    return load_dataset("shapes_train", root=shapes_root)


def _train(dataset: CocoDataset, steps: int, **changes: object) -> list[list[dict]]:
    settings = {"batch_size": 6, "seed": 3, "num_workers": 0, **changes}
    mapper = TrainMapper(LargeScaleJitter(32, 0.5, 1.5), color_jitter=True)
    return list(islice(build_train_loader(dataset, mapper, **settings), steps))


def _tensors(value: object) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list):
        for item in value:
            yield from _tensors(item)


def _same(one: list, two: list) -> bool:
    a, b = list(_tensors(one)), list(_tensors(two))
    return len(a) == len(b) and all(x.dtype == y.dtype and torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_seeds_are_those_of_every_machine() -> None:
    assert step_seed(0, 0, 0) == 4808561972376111626
    assert step_seed(1, 2, 3) == 1138364116778193076
    seeds = {step_seed(a, b, c) for a in range(10) for b in range(10) for c in range(10)}
    assert len(seeds) == 1000 and min(seeds) >= 0 and max(seeds) < 2**63
    assert step_seed(1, 12, 3) != step_seed(11, 2, 3)


def test_every_pass_visits_every_image_once_in_a_new_order(dataset: CocoDataset) -> None:
    ids = [item["image_id"] for batch in _train(dataset, 8) for item in batch]
    everything = sorted(record["image_id"] for record in dataset.dicts)
    assert len(everything) == 16 and len(ids) == 48
    passes = [ids[:16], ids[16:32], ids[32:]]  # batches of 6 span the passes
    assert all(sorted(one) == everything for one in passes)
    assert passes[0] != passes[1] != passes[2]
    assert epoch_order(3, 0, 16).tolist() != epoch_order(4, 0, 16).tolist()


@pytest.mark.parametrize("num_workers", [1, 3])
def test_workers_change_nothing(dataset: CocoDataset, num_workers: int) -> None:
    assert _same(_train(dataset, 4, num_workers=num_workers), _train(dataset, 4))


def test_processes_share_the_global_batch(dataset: CocoDataset) -> None:
    whole = _train(dataset, 4)
    parts = [_train(dataset, 4, rank=rank, world_size=3) for rank in range(3)]
    assert all(len(batch) == 2 for part in parts for batch in part)
    assert _same([sum(batches, []) for batches in zip(*parts, strict=True)], whole)


def test_a_later_start_continues(dataset: CocoDataset) -> None:
    assert _same(_train(dataset, 3, start_step=4), _train(dataset, 7)[4:])


def test_elements_carry_their_seed(dataset: CocoDataset) -> None:
    for number, batch in enumerate(_train(dataset, 2, start_step=5, rank=1, world_size=2)):
        assert [item["seed"] for item in batch] == [step_seed(3, 5 + number, position) for position in (3, 4, 5)]


def test_another_seed_is_another_training(dataset: CocoDataset) -> None:
    assert not _same(_train(dataset, 1), _train(dataset, 1, seed=4))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_global_random_state_is_left_alone(dataset: CocoDataset, num_workers: int) -> None:
    state = torch.get_rng_state()
    _train(dataset, 2, num_workers=num_workers)
    list(build_test_loader(dataset, TestMapper(min_size=0), num_workers=num_workers))
    assert torch.equal(torch.get_rng_state(), state)


def test_tensors_from_workers_can_be_written_to(dataset: CocoDataset) -> None:
    (batch,) = _train(dataset, 1, num_workers=1)
    batch[0]["image"].zero_()
    assert not batch[0]["image"].any()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_wrong_label_names_its_image_and_annotation(dataset: CocoDataset, num_workers: int) -> None:
    batches = _train(dataset, 3, num_workers=num_workers)
    counts = dataset.vocabulary.num_subcategory_classes
    kinds = {a["id"]: a["category_id"] for record in dataset.dicts for a in record["annotations"]}
    owner = {a["id"]: record["image_id"] for record in dataset.dicts for a in record["annotations"]}
    for item in (item for batch in batches for item in batch):
        ids, labels = item["targets"]["annotation_ids"].tolist(), item["targets"]["labels"]
        assert labels.tolist() == [kinds[number] for number in ids]
        assert {owner[number] for number in ids} <= {item["image_id"]}
    batch = next(batch for batch in batches if len(batch[4]["targets"]["labels"]) > 1)
    check_labels(batch, dataset.vocabulary.num_classes, counts)
    batch[4]["targets"]["labels"][1] = 99
    where = rf"image {batch[4]['image_id']} .*, annotation {batch[4]['targets']['annotation_ids'][1]}: label 99"
    with pytest.raises(WorkbenchError, match=where):
        check_labels(batch, dataset.vocabulary.num_classes, counts)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_unreadable_image_is_one_sentence(dataset: CocoDataset, num_workers: int) -> None:
    broken = [{**record, "file_name": "/nowhere/a.png"} for record in dataset.dicts]
    broken = CocoDataset(dataset.entries, dataset.vocabulary, broken, 0)
    with pytest.raises(WorkbenchError, match=r"^There is no image /nowhere/a\.png\.$"):
        _train(broken, 1, num_workers=num_workers)
    with pytest.raises(WorkbenchError, match=r"^There is no image"):
        next(iter(build_test_loader(broken, TestMapper(), num_workers=num_workers)))


def test_a_batch_that_does_not_divide(dataset: CocoDataset) -> None:
    with pytest.raises(WorkbenchError, match=r"batch of 6 images.*4 processes"):
        _train(dataset, 1, world_size=4)
    with pytest.raises(WorkbenchError, match="no image"):
        _train(CocoDataset([], dataset.vocabulary, [], 0), 1)


@pytest.mark.parametrize(("world_size", "batch_size", "num_workers"), [(1, 1, 0), (3, 2, 0), (2, 4, 2)])
def test_evaluation_sees_each_image_once(
    dataset: CocoDataset, world_size: int, batch_size: int, num_workers: int
) -> None:
    seen = []
    for rank in range(world_size):
        loader = build_test_loader(
            dataset,
            TestMapper(min_size=0),
            num_workers=num_workers,
            rank=rank,
            world_size=world_size,
            batch_size=batch_size,
        )
        batches = list(loader)
        assert len(batches) == len(loader)
        assert all(len(batch) <= batch_size for batch in batches)
        ids = [item["image_id"] for batch in batches for item in batch]
        assert ids == [dataset.dicts[index]["image_id"] for index in loader.indices]
        assert ids == [item["image_id"] for batch in loader for item in batch]  # a second time
        seen += ids
    assert sorted(seen) == sorted(record["image_id"] for record in dataset.dicts)


class _Dying:
    """A mapper whose worker is killed at an image, as the kernel does when memory is used up."""

    def __call__(self, record: dict, seed: int) -> dict:
        if record["image_id"] == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return {"image": torch.zeros(1)}


def test_a_killed_worker_is_one_sentence_where_a_batch_is_asked_for() -> None:
    before = signal.getsignal(signal.SIGCHLD)
    dataset = SimpleNamespace(dicts=[{"image_id": 2}])
    batches = build_train_loader(dataset, _Dying(), batch_size=1, seed=0, num_workers=1)
    assert signal.getsignal(signal.SIGCHLD) is before  # torch's handler would raise anywhere
    # Which of the two torch notices first, the signal or the silence, is a race.
    said = "A loader worker (is killed by signal: Killed|exited unexpectedly); most often memory"
    with pytest.raises(WorkbenchError, match=said):
        next(batches)
    assert signal.getsignal(signal.SIGCHLD) is before
