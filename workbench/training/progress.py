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

from workbench.console import notebook_line, print_line
from workbench.runs.checkpoint import versions
from workbench.training.distributed import Processes, gather, precision, rank

log = logging.getLogger("workbench")


class _Console(logging.Handler):
    """Prints to the present stdout, which notebooks replace."""

    def emit(self, record: logging.LogRecord) -> None:
        if not getattr(record, "only_in_file", False):
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

    A terminal gets a bar and a notebook a line that is written over. Otherwise, and in the log.txt of a notebook's run,
    it is a log line every ten seconds, or every fiftieth of the elapsed time where that is longer.
    """

    def __init__(self, start: int, total: int) -> None:
        self.start, self.total, self.enabled = start, total, rank() == 0
        self.began = self.last_line = self.last_shown = time.monotonic()
        self.bar, self.words = None, ""
        self.write = notebook_line() if self.enabled else None
        if self.enabled and self.write is None and sys.stderr is not None and sys.stderr.isatty():
            self.bar = tqdm(
                total=total, initial=start, desc="training", unit="step", mininterval=0.5, dynamic_ncols=True
            )

    def update(self, step: int, losses: dict[str, float], lr: float, memory: int) -> None:
        """Show that ``step`` steps are done; ``losses`` are those of the last one, with ``total_loss``, and ``memory``
        is its peak in bytes."""
        if not self.enabled:
            return
        summary = f"loss {losses['total_loss']:.3f}, lr {lr:.2e}, {memory / 1e9:.2f} GB"
        if self.bar is not None:
            self.bar.set_postfix_str(summary, refresh=False)
            self.bar.update(1)  # ignores the error of a terminal that was closed
            return
        now = time.monotonic()
        rate = (now - self.began) / (step - self.start)
        self.words = f"step {step}/{self.total}: {summary}, {rate:.2f} s/step"
        text = f"{self.words}, {tqdm.format_interval(rate * (self.total - step))} left"
        ends = step in (self.start + 1, self.total)
        if self.write is not None and (ends or now - self.last_shown >= 1.0):
            self.last_shown = now
            self.write(text)
        if ends or now - self.last_line >= max(10.0, (now - self.began) / 50):
            self.last_line = now
            log.info(text, extra={"only_in_file": self.write is not None})

    def close(self) -> None:
        """Leave the last step, and how long all took, in a notebook."""
        if self.bar is not None:
            self.bar.close()
        if self.write is not None and self.words:
            self.write(f"training: {self.words}, {tqdm.format_interval(time.monotonic() - self.began)} in all")


def log_machine(cfg: CfgNode, processes: Processes) -> None:
    """Log versions, the device of every process and the mixed precision in use."""
    device = processes.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    devices = gather(f"process {rank()} uses {device} ({name})")
    log.info(", ".join(f"{key} {value}" for key, value in versions().items()))
    log.info("; ".join(devices) + f"; mixed precision {precision(cfg, device)}")
    if cfg.SOLVER.AMP.ENABLED and precision(cfg, device) == "no":
        log.warning("SOLVER.AMP asks for float16, which CPUs lack; training in float32 (bfloat16 works everywhere)")
