"""Memory and time of a step, before it: what a dry run counts and leaves, what fits, what is said."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from workbench.config import load_config
from workbench.data.vocabulary import Vocabulary
from workbench.environment.system import Memory
from workbench.errors import WorkbenchError
from workbench.models import build_model
from workbench.training.estimate import GB, Need, check_memory, crowding, dry_run, duration, estimate

WORDS = Vocabulary((1, 2), ("fork", "spoon"), {"colour": ("red", "blue")})


class Square(nn.Module):
    """Keeps each image, squared, and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.norm = nn.BatchNorm2d(3)

    def forward(self, batch: list[dict]) -> dict[str, torch.Tensor]:
        images = self.norm(torch.stack([item["image"].float() for item in batch]))
        return {"loss": (images * self.weight).square().mean() + torch.rand(()) * 0}


def test_a_dry_run_counts_each_kept_tensor_once_and_no_weights() -> None:
    count, size = 2, 16
    image = count * 3 * size * size * 4
    kept = dry_run(Square(), WORDS, size, count).kept
    # The normalised images, their inputs and their products; the norm keeps two numbers a channel beside them.
    assert 3 * image <= kept < 3.2 * image


def test_a_dry_run_leaves_weights_buffers_mode_and_random_state() -> None:
    model = Square().eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    dry_run(model, WORDS, 8, 2)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.training
    assert model.weight.grad is None


def test_memory_of_a_larger_image_is_what_a_dry_run_at_that_size_counts(tiny_config: Path) -> None:
    size = ["INPUT.IMAGE_SIZE", "192", "SOLVER.IMS_PER_BATCH", "2", "SOLVER.OPTIMIZER", "SGD"]
    cfg = load_config(tiny_config, size)
    model = build_model(cfg, WORDS, pretrained=False)
    weights = sum(p.numel() * 4 for p in model.parameters())
    kept = estimate(model, cfg, WORDS).memory - 2 * weights
    assert kept == pytest.approx(dry_run(model, WORDS, 192, 2).kept, rel=0.02)


def test_memory_and_time_grow_with_the_images_held_at_once(tiny_config: Path) -> None:
    cfg = load_config(tiny_config, ["SOLVER.IMS_PER_BATCH", "8", "SOLVER.ACCUMULATION_STEPS", "2"])
    assert estimate(build_model(cfg, WORDS, pretrained=False), cfg, WORDS).images == 4


def test_what_fits_is_not_spoken_of(tiny_config: Path) -> None:
    cfg = load_config(tiny_config)
    assert check_memory(Need(7 * GB, 1.0, 4), Memory(8 * GB, 16 * GB), cfg, "this machine") is None


def test_more_than_is_free_is_a_warning_and_more_than_there_is_an_error(tiny_config: Path) -> None:
    cfg = load_config(tiny_config, ["INPUT.IMAGE_SIZE", "1024"])
    warning = check_memory(Need(13 * GB, 1.0, 4), Memory(8 * GB, 16 * GB), cfg, "this machine")
    assert warning is not None and "4 images of 1024x1024 needs at least 13.0 GB" in warning
    assert "8.0 of 16.0 GB are free" in warning
    with pytest.raises(WorkbenchError, match=r"this machine has 8\.0 GB: set INPUT.IMAGE_SIZE to 704, or raise SOLVER"):
        check_memory(Need(13 * GB, 1.0, 4), Memory(8 * GB, 8 * GB), cfg, "this machine")


def test_one_image_cannot_be_split(tiny_config: Path) -> None:
    with pytest.raises(WorkbenchError) as error:
        check_memory(Need(13 * GB, 1.0, 1), Memory(8 * GB, 8 * GB), load_config(tiny_config), "this machine")
    assert "ACCUMULATION_STEPS" not in str(error.value)


@pytest.mark.parametrize(("threads", "cores", "busy"), [(2, 2, 0.3), (1, 2, 2.0), (4, 8, 4.0)])
def test_free_cores_are_not_spoken_of(threads: int, cores: int, busy: float) -> None:
    assert crowding(threads, cores, busy) is None


@pytest.mark.parametrize(
    ("threads", "cores", "busy", "fitting"), [(2, 2, 1.0, 1), (2, 2, 2.0, 1), (8, 8, 3.0, 5), (4, 4, 9.0, 1)]
)
def test_threads_beside_busy_processes_are_warned_of(threads: int, cores: int, busy: float, fitting: int) -> None:
    assert f"set OMP_NUM_THREADS={fitting}" in str(crowding(threads, cores, busy))


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.254, "0.25 s"),
        (45.2, "45 s"),
        (600, "10 minutes"),
        (9000, "2.5 hours"),
        (1e6, "11.6 days"),
        (163.8, "2.7 minutes"),
        (7100, "118 minutes"),
    ],
)
def test_durations_have_a_fitting_unit(seconds: float, words: str) -> None:
    assert duration(seconds) == words
