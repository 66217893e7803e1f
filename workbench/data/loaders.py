"""Batches for training and evaluation.

What a training batch holds depends on the seed and the step alone: neither the number of workers nor the
number of processes nor an interruption changes it.
"""

from __future__ import annotations

import hashlib
import re
import signal
import threading
from collections.abc import Callable, Iterator
from itertools import count

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from torch.utils.data._utils.signal_handling import _error_if_any_worker_fails

from workbench.data.coco import CocoDataset
from workbench.errors import WorkbenchError

# A closed terminal, a cluster's notice, Ctrl-C and Ctrl-\\: the main process acts on them and ends its workers.
STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1") if hasattr(signal, name)
)


def step_seed(seed: int, step: int, position: int) -> int:
    """The seed of what stands at ``position`` of the global batch of ``step``: 0 <= it < 2**63, the same on
    every machine."""
    digest = hashlib.blake2b(f"{seed}/{step}/{position}".encode("ascii"), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def epoch_order(seed: int, epoch: int, size: int) -> np.ndarray:
    """(size,) int64: the order in which pass number ``epoch`` over the dataset visits its images."""
    return np.random.default_rng(step_seed(seed, epoch, -1)).permutation(size)


class _Failure:
    """A WorkbenchError as a value: raised in a worker process, it would arrive wrapped in a traceback."""

    def __init__(self, message: str):
        self.message = message


class _Mapped(Dataset):
    """Map the dataset dicts that the sampler asks for, as indices or (index, seed)."""

    def __init__(self, dicts: list[dict], mapper: Callable[..., dict]):
        self.dicts, self.mapper = dicts, mapper

    def __getitem__(self, item: int | tuple[int, int]) -> dict | _Failure:
        index, *seed = item if isinstance(item, tuple) else (item,)
        try:
            return self.mapper(self.dicts[index], *seed)
        except WorkbenchError as error:
            return _Failure(str(error))


class _TrainBatches:
    """Endless batches of (image index, seed) for one process."""

    def __init__(self, size: int, *, batch_size: int, seed: int, start_step: int, rank: int, world_size: int):
        self.size, self.batch_size, self.seed, self.start_step = size, batch_size, seed, start_step
        share = batch_size // world_size
        self.positions = range(rank * share, (rank + 1) * share)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, order = -1, np.empty(0, dtype=np.int64)
        for step in count(self.start_step):
            batch = []
            for position in self.positions:
                number = step * self.batch_size + position
                if number // self.size != epoch:
                    epoch = number // self.size
                    order = epoch_order(self.seed, epoch, self.size)
                batch.append((int(order[number % self.size]), step_seed(self.seed, step, position)))
            yield batch


def _swap(value: object, kind: type, convert: Callable) -> object:
    """``value`` with every ``kind`` inside its lists and dicts converted."""
    if isinstance(value, kind):
        return convert(value)
    if isinstance(value, dict):
        return {key: _swap(item, kind, convert) for key, item in value.items()}
    if isinstance(value, list):
        return [_swap(item, kind, convert) for item in value]
    return value


def _to_arrays(batch: list) -> list:
    """Tensors leave a worker as arrays: through shared memory each would take a file handle and a system
    call of its own, which at small image sizes costs more than copying."""
    return _swap(batch, torch.Tensor, lambda tensor: tensor.numpy())


def _as_it_is(batch: list) -> list:
    return batch


def _start_worker(_: int) -> None:
    for number in STOP_SIGNALS:
        if number != signal.SIGTERM:  # which ends a worker
            signal.signal(number, signal.SIG_IGN)


def _loader(dicts: list[dict], mapper: Callable[..., dict], batches: object, num_workers: int) -> DataLoader:
    return DataLoader(
        _Mapped(dicts, mapper),
        batch_sampler=batches,
        num_workers=num_workers,
        collate_fn=_to_arrays if num_workers else _as_it_is,
        worker_init_fn=_start_worker if num_workers else None,
        # Of its own, so that starting a loader does not advance the global random state.
        generator=torch.Generator().manual_seed(0),
    )


def _unpack(batch: list) -> list[dict]:
    for item in batch:
        if isinstance(item, _Failure):
            raise WorkbenchError(item.message)
    return _swap(batch, np.ndarray, torch.from_numpy)


class _Batches:
    """The batches of a loader; WorkbenchError where an image cannot be read or a worker process died.

    torch raises the death of a worker from a SIGCHLD handler, in whatever line runs, such as the middle of an optimiser
    step. Here it is raised only where a batch is asked for.
    """

    def __init__(self, loader: DataLoader):
        self._has_workers = loader.num_workers > 0 and hasattr(signal, "SIGCHLD")
        if not self._catches():
            self._batches = iter(loader)
            return
        before = signal.getsignal(signal.SIGCHLD)
        self._batches = iter(loader)  # sets torch's handler
        signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)

    def _catches(self) -> bool:
        """Return whether SIGCHLD can be handled here: in the main thread, where there are workers."""
        return self._has_workers and threading.current_thread() is threading.main_thread()

    def __iter__(self) -> _Batches:
        return self

    def __next__(self) -> list[dict]:
        try:
            return _unpack(self._receive())
        except RuntimeError as error:
            died = re.search(r"DataLoader worker \(pid(?:\(s\))? [\d, ]+\) ([^.]+)", str(error))
            if died is None:
                raise
            raise WorkbenchError(
                f"A loader worker {died[1].strip()}; most often memory is used up, and fewer "
                "DATALOADER.NUM_WORKERS need less."
            ) from None

    def _receive(self) -> list:
        if not self._catches():
            return next(self._batches)
        before = signal.signal(signal.SIGCHLD, lambda *_: _error_if_any_worker_fails())
        try:
            _error_if_any_worker_fails()
            return next(self._batches)
        finally:
            signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)


def build_train_loader(
    dataset: CocoDataset,
    mapper: Callable[[dict, int], dict],
    *,
    batch_size: int,
    seed: int,
    num_workers: int,
    start_step: int = 0,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[list[dict]]:
    """Endless iterator over this process's batched inputs for steps ``start_step``, ``start_step`` + 1, ...

    ``batch_size`` is that of all processes together; process ``rank`` gets the positions rank x b .. (rank
    + 1) x b - 1 of it. The dataset is gone through in a new seeded order each time; a batch may span two
    passes. Each element carries its ``seed``, :func:`step_seed`.

    WorkbenchError at once where the batch does not divide among the processes, later where an image cannot
    be read.
    """
    if batch_size < 1 or batch_size % world_size:
        raise WorkbenchError(
            f"A batch of {batch_size} images (SOLVER.IMS_PER_BATCH) does not divide among {world_size} processes."
        )
    if not dataset.dicts:
        raise WorkbenchError("There is no image to train on.")
    batches = _TrainBatches(
        len(dataset.dicts),
        batch_size=batch_size,
        seed=seed,
        start_step=start_step,
        rank=rank,
        world_size=world_size,
    )
    return _Batches(_loader(dataset.dicts, mapper, batches, num_workers))


class TestLoader:
    """Batches of this process's share of a dataset, in its order; may be gone through several times."""

    __test__ = False  # not a test, whatever pytest thinks of the name

    def __init__(self, loader: DataLoader, indices: list[int]):
        self._loader = loader
        self.indices = indices

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[list[dict]]:
        return _Batches(self._loader)


def build_test_loader(
    dataset: CocoDataset,
    mapper: Callable[[dict], dict],
    *,
    num_workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    batch_size: int = 1,
) -> TestLoader:
    """Batched inputs of every ``world_size``-th image from ``rank`` on: each image goes to exactly one
    process, none is repeated to even the shares out. ``indices`` are the images' places in
    ``dataset.dicts``."""
    indices = list(range(rank, len(dataset.dicts), world_size))
    batches = [indices[start : start + batch_size] for start in range(0, len(indices), batch_size)]
    return TestLoader(_loader(dataset.dicts, mapper, batches, num_workers), indices)
