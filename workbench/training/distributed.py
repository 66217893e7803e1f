"""Several processes: devices, common errors, exchange of plain objects. With one process nothing is sent."""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator, DistributedType
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs
from fvcore.common.config import CfgNode

from workbench.environment.device import choose_device, launched_processes
from workbench.errors import WorkbenchError, errors_as

T = TypeVar("T")


class Processes(NamedTuple):
    """This process's part in the job.

    ``accelerator`` gives DDP and mixed precision; it moves nothing by itself. ``device`` is the one of this process.
    """

    accelerator: Accelerator
    device: torch.device


def start_processes(cfg: CfgNode) -> Processes:
    """Join the processes that ``accelerate launch`` or ``torchrun`` started, if any.

    Raises:
        WorkbenchError: the device is not there, one GPU is named for several processes, the launcher's variables are
        incomplete, or the launcher asks for FSDP or DeepSpeed.
    """
    _check_launcher()
    if launched_processes() > 1 and ":" in cfg.MODEL.DEVICE:
        raise WorkbenchError(
            f"MODEL.DEVICE is {cfg.MODEL.DEVICE!r}, one GPU, but {os.environ['WORLD_SIZE']} processes were "
            "launched; set it to cuda, and each process takes its own"
        )
    forced = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    device = choose_device("cpu" if forced and cfg.MODEL.DEVICE == "auto" else cfg.MODEL.DEVICE)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # Accelerate keeps one state for the whole interpreter; a notebook may run twice, on different devices.
    AcceleratorState._reset_state(reset_partial_state=not dist.is_initialized())
    started_here = not dist.is_initialized()
    asked = ", ".join(sorted(name for name in os.environ if name.startswith("ACCELERATE_"))) or "none"
    sentence = f"the training processes cannot be set up (the environment's variables of accelerate: {asked})"
    with errors_as(sentence, ImportError, KeyError, RuntimeError, TypeError, ValueError):
        accelerator = Accelerator(
            cpu=device.type == "cpu",
            device_placement=False,
            mixed_precision=precision(cfg, device),
            # A timeout equal to the default for NCCL, 600 s, is not passed on to other backends.
            kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(seconds=cfg.PROCESS_TIMEOUT, microseconds=1))],
        )
    sharded = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)
    if accelerator.distributed_type in sharded:
        raise WorkbenchError(
            f"the launcher asks for {accelerator.distributed_type.value}; only data parallelism works here"
        )
    if started_here and dist.is_initialized():
        atexit.register(lambda: dist.is_initialized() and dist.destroy_process_group())
    return Processes(accelerator, device)


def _check_launcher() -> None:
    """Raise WorkbenchError where a launcher's variables are incomplete; drop the ranks of one process alone."""
    if launched_processes() == 1:
        if not {"WORLD_SIZE", "MASTER_ADDR"} <= set(os.environ):
            for name in ("LOCAL_RANK", "RANK"):  # left by another job; accelerate would wait for its processes
                os.environ.pop(name, None)
        return
    missing = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if missing:
        raise WorkbenchError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, so several processes should train, but {', '.join(missing)} "
            "is not set: start them with accelerate launch or torchrun, or unset WORLD_SIZE"
        )


@contextmanager
def lost_processes_reported(state: Callable[[], str]) -> Iterator[None]:
    """Raise a failed exchange between processes as a WorkbenchError; ``state()`` says from where training continues."""
    try:
        yield
    except RuntimeError as error:
        lost = isinstance(error, dist.DistError) or any(word in str(error) for word in ("gloo", "Gloo", "NCCL"))
        if world_size() == 1 or not lost:
            raise
        raise WorkbenchError(
            f"process {rank()} of {world_size()} lost another one, which was killed or gave no answer within "
            f"PROCESS_TIMEOUT; {state()}"
        ) from error


def precision(cfg: CfgNode, device: torch.device) -> str:
    """Return accelerate's name of the mixed precision that SOLVER.AMP asks for and ``device`` can do."""
    if not cfg.SOLVER.AMP.ENABLED:
        return "no"
    if cfg.SOLVER.AMP.DTYPE == "float16":
        return "fp16" if device.type != "cpu" else "no"  # CPUs have no fast float16 and no loss scaling
    return "bf16"


def rank() -> int:
    """Return the index of this process, 0 for the main one."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def run_on_main(function: Callable[[], T]) -> T:
    """Call ``function`` in the main process and return its result, small plain data, in all of them.

    Errors are raised in every process, as :func:`run_on_all` does.
    """
    result = run_on_all(lambda: function() if rank() == 0 else None)
    if world_size() == 1:
        return result
    results = [result]
    dist.broadcast_object_list(results, src=0)
    return results[0]


def run_on_all(function: Callable[[], T]) -> T:
    """Call ``function`` in every process; if it raises in one, raise in all, so that none waits for another."""
    if world_size() == 1:
        return function()
    result, error = None, None
    try:
        result = function()
    except Exception as caught:
        error = caught
    errors: list[Any] = [None] * world_size()
    dist.all_gather_object(errors, error and (str(error), isinstance(error, WorkbenchError), type(error).__name__))
    if error is None:
        for index, other in enumerate(errors):
            if other is not None:
                message, for_user, kind = other
                error = (
                    WorkbenchError(message) if for_user else RuntimeError(f"process {index} failed: {kind}: {message}")
                )
                break
    if error is not None:
        raise printed_once(error)
    return result


def printed_once(error: Exception) -> Exception:
    """Mark an error that every process raises, so that the command line prints it in the main one alone."""
    if isinstance(error, WorkbenchError):
        error.printed_elsewhere = rank() != 0
    return error


def gather(value: Any) -> list[Any]:
    """Return ``value`` of every process, in their order, in the main process; an empty list in the others."""
    if world_size() == 1:
        return [value]
    values = [None] * world_size() if rank() == 0 else None
    dist.gather_object(value, values, dst=0)
    return values or []
