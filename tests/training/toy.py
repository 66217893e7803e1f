"""A trainable stand-in with a model's contract, small enough that a test is about the loop and nothing else.

Run as a script it trains in a process of its own, telling each step on stdout before it begins:
``python toy.py OUTPUT_DIR [KEY VALUE ...]``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from fvcore.common.config import CfgNode
from torch import nn

from workbench.config import load_config
from workbench.data.loaders import step_seed
from workbench.data.vocabulary import Vocabulary
from workbench.runs.directory import RunDirectory, open_run
from workbench.training.distributed import rank, start_processes, world_size
from workbench.training.loop import Trainer

VOCABULARY = Vocabulary((3, 7, 9), ("disc", "box", "star"), {"colour": ("red", "green")})
SETTINGS = {
    "MODEL.DEVICE": "cpu",
    "SOLVER.MAX_ITER": "8",
    "SOLVER.IMS_PER_BATCH": "4",
    "SOLVER.REFERENCE_BATCH_SIZE": "4",
    "SOLVER.BASE_LR": "0.02",
    "SOLVER.LR_SCHEDULER_NAME": "WarmupCosineLR",
    "SOLVER.CHECKPOINT_PERIOD": "3",
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": "1.0",
    "TEST.EVAL_PERIOD": "4",
    "SEED": "11",
}


class ToyModel(nn.Module):
    """(3, 8, 8) images to three classes, through batch norm and dropout."""

    def __init__(self, dropout: float = 0.5) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU())
        self.dropout = nn.Dropout(dropout)
        self.query = nn.Embedding(2, 6)
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, 3)

    def forward(self, batched_inputs: list[dict]) -> dict[str, torch.Tensor] | torch.Tensor:
        images = torch.stack([element["image"].float() / 255 for element in batched_inputs])
        features = self.backbone(images).mean((2, 3)) + self.query.weight.sum(0)
        logits = self.head(self.dropout(self.norm(features)))
        if not self.training:
            return logits
        labels = torch.stack([element["targets"]["labels"] for element in batched_inputs])
        return {"loss_ce": F.cross_entropy(logits, labels), "loss_size": 0.1 * logits.square().mean()}


def batch(step: int, positions: range) -> list[dict]:
    """The elements at these positions of the global batch of ``step``."""
    elements = []
    for position in positions:
        draw = torch.Generator().manual_seed(step_seed(0, step, position))
        label = int(torch.randint(3, (), generator=draw))
        image = torch.randint(0, 100, (3, 8, 8), generator=draw, dtype=torch.uint8)
        image[label] += 150
        targets = {"labels": torch.tensor(label)}
        elements.append({"image": image, "image_id": step * 100 + position, "file_name": "a.png", "targets": targets})
    return elements


def batches_of(cfg: CfgNode, tell: bool = False) -> Callable[[int], Iterator[list[dict]]]:
    """What ``Trainer`` asks for: batches from a step on, this process's share of each."""
    share = cfg.SOLVER.IMS_PER_BATCH // world_size()

    def batches(start: int) -> Iterator[list[dict]]:
        step = start
        while True:
            if tell:
                print(f"step {step}", flush=True)
                sys.stdin.readline()  # whoever listens decides when the step may begin
            yield batch(step, range(rank() * share, (rank() + 1) * share))
            step += 1

    return batches


def evaluate(model: nn.Module) -> dict:
    """Metrics that depend on the weights alone."""
    with torch.no_grad():
        logits = model(batch(10_000, range(16)))
    return {"segm": {"AP": float(logits.softmax(1)[:, 0].mean()) * 100, "AP50": None}, "rank_by": "main"}


def config(output: Path | str, **changes: object) -> CfgNode:
    """Settings of a toy run; ``SOLVER_MAX_ITER=3`` changes SOLVER.MAX_ITER, for keys of two parts."""
    settings = dict(SETTINGS)
    settings.update({key.replace("_", ".", 1): str(value) for key, value in changes.items()})
    return load_config(None, ["OUTPUT_DIR", str(output), *(part for pair in settings.items() for part in pair)])


def trainer(cfg: CfgNode, *, dropout: float = 0.5, tell: bool = False, **arguments: object) -> Trainer:
    """A trainer in its run directory, made as ``workflows.train`` makes it."""
    processes = start_processes(cfg)
    run, cfg = open_run(cfg, resume=True, seed=0) if rank() == 0 else (RunDirectory(cfg.OUTPUT_DIR), cfg)
    torch.manual_seed(cfg.SEED)
    arguments = {"evaluate": evaluate, "batches": batches_of(cfg, tell), **arguments}
    batches = arguments.pop("batches")
    model = arguments.pop("model", None) or ToyModel(dropout)
    return Trainer(cfg, model, VOCABULARY, run, batches, processes=processes, **arguments)


if __name__ == "__main__":
    torch.set_num_threads(1)
    changes = dict(zip(sys.argv[2::2], sys.argv[3::2], strict=True))
    chance = float(changes.pop("dropout", 0.5))
    trainer(config(sys.argv[1], **changes), dropout=chance, tell=True).train()
