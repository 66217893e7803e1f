"""What all tests share: one thread, fixed seeds, deterministic hypothesis, and a small shapes dataset."""

from __future__ import annotations

import os
import random
from pathlib import Path

import hypothesis
import pytest

# Torch is imported in fixtures only, so that a torch that does not load fails the first test by name.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "agg")

hypothesis.settings.register_profile("workbench", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("workbench")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """tests/test_packaging.py first: with a broken pair of torch and torchvision nothing else says anything;
    what needs a GPU only where there is one."""
    items.sort(key=lambda item: item.path.name != "test_packaging.py")
    needs_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if needs_gpu:
        import torch

        if not torch.cuda.is_available():
            for item in needs_gpu:
                item.add_marker(pytest.mark.skip(reason="no NVIDIA GPU that torch can use"))


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _fixed_seeds() -> None:
    import numpy as np
    import torch

    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  (libraries still draw from it)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shapes_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder (DATASETS.ROOT) with 16 train, 6 val and 6 test images of 64² shapes. Read only."""
    from workbench.data.shapes import generate_shapes

    root = tmp_path_factory.mktemp("data")
    generate_shapes(root / "shapes", seed=0, train=16, val=6, test=6, image_size=64)
    return root
