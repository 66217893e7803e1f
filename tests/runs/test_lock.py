"""One training a run."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from workbench.errors import WorkbenchError
from workbench.runs.lock import RunLock

HOLD = """
import sys
from pathlib import Path
from workbench.runs.lock import RunLock
with RunLock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_start_says_who_trains_and_a_killed_one_holds_nothing(tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = [sys.executable, "-c", HOLD, str(run)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        sentence = rf"process {other.pid} on {socket.gethostname()} since \d{{4}}-"
        with pytest.raises(WorkbenchError, match=sentence):
            RunLock(run).acquire()
        with pytest.raises(WorkbenchError, match=sentence):  # the first refusal left the lock as it was
            RunLock(run).acquire()
        other.kill()
    with RunLock(run):
        assert f'"pid": {os.getpid()}' in (run / ".lock.json").read_text()
    assert not (run / ".lock.json").exists()


def test_releasing_without_the_lock_leaves_the_holders_note(tmp_path: Path) -> None:
    with RunLock(tmp_path):
        RunLock(tmp_path).release()
        assert (tmp_path / ".lock.json").exists()


def test_a_place_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkbenchError, match="OUTPUT_DIR .*file/run cannot be written"):
        RunLock(tmp_path / "file" / "run").acquire()
