"""The process of the ``workbench`` command: Ctrl-C is one sentence from the first import to the exit."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import Any

_SENTENCE = b"workbench: error: stopped by Ctrl-C.\n"


def main() -> int:
    """Run the command line of this process and return its exit code."""
    sys.unraisablehook = _end_after_interrupts
    own = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # nohup and the shell's & may ignore it
    if own:
        signal.signal(signal.SIGINT, _stop)
    from workbench import cli

    if own:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return cli.main()
    finally:
        if own:
            signal.signal(signal.SIGINT, _leave)


def _stop(number: int, frame: FrameType | None) -> None:
    os.write(2, _SENTENCE)
    os._exit(2)


def _leave(number: int, frame: FrameType | None) -> None:
    """Ctrl-C while the interpreter ends: everything was said and written."""
    os._exit(2)


def _end_after_interrupts(unraisable: Any) -> None:
    """End at a KeyboardInterrupt that came where Python cannot raise it, such as the end of an import.

    Files are written whole or not at all, and a training has a handler of its own, so nothing is lost.
    """
    if isinstance(unraisable.exc_value, KeyboardInterrupt):
        _stop(signal.SIGINT, None)
    else:
        sys.__unraisablehook__(unraisable)


if __name__ == "__main__":
    sys.exit(main())
