"""Progress of a training: a bar in a terminal or notebook, plain lines in a log; and log.txt."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from fvcore.common.config import CfgNode
from tqdm import tqdm

from workbench.console import print_line
from workbench.runs.checkpoint import versions
from workbench.training.distributed import Processes, gather, precision, rank

log = logging.getLogger("workbench")


class _Console(logging.Handler):
    """Prints to the present stdout, which notebooks replace."""

    def emit(self, record: logging.LogRecord) -> None:
        print_line(self.format(record))


class _LogFile(logging.FileHandler):
    """log.txt. Write errors are ignored here; saving a checkpoint reports them."""

    def handleError(self, record: logging.LogRecord) -> None:
        pass

    def close(self) -> None:
        with suppress(OSError):
            super().close()


@contextmanager
def logging_to(path: Path | None) -> Iterator[None]:
    """Log to the console and, with times, to the file ``path``; other processes than the main one log warnings."""
    handlers: list[logging.Handler] = [_Console()]
    if rank() != 0:
        handlers[0].setLevel(logging.WARNING)
    elif path is not None:
        handlers.append(_LogFile(path, encoding="utf-8"))
        handlers[1].setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    level, propagate = log.level, log.propagate
    log.setLevel(logging.INFO)
    log.propagate = False
    for handler in handlers:
        log.addHandler(handler)
    try:
        yield
    finally:
        for handler in handlers:
            log.removeHandler(handler)
            handler.close()
        log.setLevel(level)
        log.propagate = propagate


class Progress:
    """Steps done, total loss, learning rate, speed and time left.

    A terminal and a notebook get a bar. Otherwise it is a log line every ten seconds, or every fiftieth of the elapsed
    time where that is longer.
    """

    def __init__(self, start: int, total: int) -> None:
        self.start, self.total, self.enabled = start, total, rank() == 0
        self.began = self.last_line = time.monotonic()
        self.bar = None
        notebook = "ipykernel" in sys.modules
        if self.enabled and (notebook or (sys.stderr is not None and sys.stderr.isatty())):
            self.bar = tqdm(
                total=total,
                initial=start,
                desc="training",
                unit="step",
                mininterval=5.0 if notebook else 0.5,  # each update is saved with a notebook
                file=sys.stdout if notebook else sys.stderr,
                ncols=100 if notebook else None,
                dynamic_ncols=not notebook,
            )

    def update(self, step: int, losses: dict[str, float], lr: float) -> None:
        """Show that ``step`` steps are done; ``losses`` are those of the last one, with ``total_loss``."""
        if not self.enabled:
            return
        summary = f"loss {losses['total_loss']:.3f}, lr {lr:.2e}"
        if self.bar is not None:
            self.bar.set_postfix_str(summary, refresh=False)
            self.bar.update(1)  # ignores the error of a terminal that was closed
            return
        now = time.monotonic()
        due = now - self.last_line >= max(10.0, (now - self.began) / 50)
        if due or step in (self.start + 1, self.total):
            self.last_line = now
            rate = (now - self.began) / (step - self.start)
            left = tqdm.format_interval(rate * (self.total - step))
            log.info(f"step {step}/{self.total}: {summary}, {rate:.2f} s/step, {left} left")

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def log_machine(cfg: CfgNode, processes: Processes) -> None:
    """Log versions, the device of every process and the mixed precision in use."""
    device = processes.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    devices = gather(f"process {rank()} uses {device} ({name})")
    log.info(", ".join(f"{key} {value}" for key, value in versions().items()))
    log.info("; ".join(devices) + f"; mixed precision {precision(cfg, device)}")
    if cfg.SOLVER.AMP.ENABLED and precision(cfg, device) == "no":
        log.warning("SOLVER.AMP asks for float16, which CPUs lack; training in float32 (bfloat16 works everywhere)")
