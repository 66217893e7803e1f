"""The process of one trial of a sweep: papermill, which is interrupted where the sweep is gone.

The sweep holds the other end of this process's stdin. The system closes it when the sweep dies, whatever ended it and
on every system; the training then saves a checkpoint, as after Ctrl-C.
"""

from __future__ import annotations

import _thread
import os
import runpy
import signal
import threading


def main() -> None:
    """Run papermill with the arguments of this process."""
    threading.Thread(target=_interrupt_at_end_of_input, daemon=True).start()
    runpy.run_module("papermill", run_name="__main__", alter_sys=True)


def _interrupt_at_end_of_input() -> None:
    while os.read(0, 1024):
        pass
    if os.name == "nt":
        _thread.interrupt_main()
    else:
        os.kill(os.getpid(), signal.SIGINT)  # wakes a main thread that waits for the kernel


if __name__ == "__main__":
    main()
