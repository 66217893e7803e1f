"""What test_distributed.py starts twice with torchrun: trains the toy, and tries the exchange between processes.

``python two_processes.py OUTPUT_DIR`` writes OUTPUT_DIR/facts_<rank>.json.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from tests.training import toy
from workbench.errors import WorkbenchError
from workbench.training.batch_norm import share_batch_norms
from workbench.training.distributed import gather, rank, run_on_all, run_on_main, world_size


def fail(message: str) -> None:
    raise WorkbenchError(message)


def sentence(call, *arguments) -> str:
    try:
        call(*arguments)
    except WorkbenchError as error:
        return str(error)
    return "nothing was raised"


def difference_of_batch_norm() -> float:
    """Largest difference between a shared batch norm over two halves and a plain one over the whole."""
    draw = torch.Generator().manual_seed(3)
    whole = (torch.randn(4, 5, 3, 3, generator=draw) * 3 + 100).requires_grad_()
    weight = torch.randn(4, 5, 3, 3, generator=draw)
    plain, shared = nn.BatchNorm2d(5), nn.Sequential(nn.BatchNorm2d(5))
    share_batch_norms(shared)
    half = slice(2 * rank(), 2 * rank() + 2)
    part = whole.detach()[half].requires_grad_()
    outputs = plain(whole), shared(part)
    (outputs[0] * weight).sum().backward()
    (outputs[1] * weight[half]).sum().backward()
    dist.all_reduce(shared[0].weight.grad)
    pairs = [
        (outputs[0][half], outputs[1]),
        (whole.grad[half], part.grad),
        (plain.weight.grad, shared[0].weight.grad),
        (plain.running_mean, shared[0].running_mean),
        (plain.running_var, shared[0].running_var),
        (plain.eval()(whole)[half], shared.eval()(part)),
    ]
    return max(float((one - two).abs().max() / one.abs().max()) for one, two in pairs)


def main(output: Path) -> None:
    torch.set_num_threads(1)
    cfg = toy.config(output / "run", SOLVER_EMA_DECAY=0.9)
    trainer = toy.trainer(cfg, dropout=0.0)
    trainer.train()
    broken = toy.config(output / "broken")

    class Broken(toy.ToyModel):
        def forward(self, batched_inputs):
            losses = super().forward(batched_inputs)
            return {name: value * (float("nan") if rank() == 1 else 1.0) for name, value in losses.items()}

    facts = {
        "device": str(trainer.device),
        "processes": world_size(),
        "images": [element["image_id"] for element in next(toy.batches_of(cfg)(0))],
        "gathered": gather(rank() * 10),
        "from_main": run_on_main(lambda: {"rank": rank()}),
        "main_failed": sentence(run_on_main, lambda: fail("the disk is full")),
        "one_failed": sentence(run_on_all, lambda: fail("image 7 is broken") if rank() == 1 else None),
        "not_finite": sentence(toy.trainer(broken, model=Broken()).train),
        "does_not_divide": sentence(toy.trainer, toy.config(output / "odd", SOLVER_IMS_PER_BATCH=3)),
        "one_gpu_for_two": sentence(toy.trainer, toy.config(output / "gpu", MODEL_DEVICE="cuda:0")),
        "batch_norm": difference_of_batch_norm(),
        "weights": trainer.module.head.weight.flatten().tolist(),
    }
    (output / f"facts_{rank()}.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
