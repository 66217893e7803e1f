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
    from workbench.data.shapes.generate import generate_shapes

    root = tmp_path_factory.mktemp("data")
    generate_shapes(root / "shapes", seed=0, train=16, val=6, test=6, image_size=64)
    return root


@pytest.fixture(scope="session")
def tiny_config(shapes_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A YAML file: a model of 30 thousand parameters on ``shapes_root``, four steps on the CPU. Read only."""
    path = tmp_path_factory.mktemp("configs") / "tiny.yaml"
    data = f"{{ROOT: '{shapes_root}', TRAIN: [shapes_train], TEST: [shapes_val]}}"
    path.write_text(f"{TINY}DATASETS: {data}\n")
    return path


@pytest.fixture(scope="session")
def tiny_run(tiny_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished run of ``tiny_config``. Read only: copy it to change it."""
    from workbench.config import load_config
    from workbench.workflows.train import train

    output = tmp_path_factory.mktemp("runs") / "tiny"
    train(load_config(tiny_config, ["OUTPUT_DIR", str(output)]))
    return output


TINY = """
MODEL:
  DEVICE: cpu
  BACKBONE: {NAME: build_small_resnet_backbone}
  SMALL_RESNET: {WIDTHS: [8, 8, 16, 16]}
  SEM_SEG_HEAD:
    CONVS_DIM: 16
    MASK_DIM: 16
    TRANSFORMER_ENC_LAYERS: 1
    TRANSFORMER_DIM_FEEDFORWARD: 32
    DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS: 4
  MASK_FORMER:
    HIDDEN_DIM: 16
    NUM_OBJECT_QUERIES: 8
    NHEADS: 4
    DIM_FEEDFORWARD: 32
    DEC_LAYERS: 3
    TRAIN_NUM_POINTS: 128
INPUT: {IMAGE_SIZE: 64, MIN_SCALE: 0.8, MAX_SCALE: 1.2, MIN_SIZE_TEST: 0}
DATALOADER: {NUM_WORKERS: 0}
SOLVER:
  IMS_PER_BATCH: 2
  REFERENCE_BATCH_SIZE: 2
  BASE_LR: 0.001
  MAX_ITER: 4
  STEPS: []
  CHECKPOINT_PERIOD: 2
TEST: {EVAL_PERIOD: 0, DETECTIONS_PER_IMAGE: 10}
SEED: 7
"""
