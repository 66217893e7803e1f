"""A JupyterLab of its own on a free port, and a Chromium that looks at it."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

STARTUP = 600  # seconds; only a server that hangs takes so long
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def find_chromium() -> str | None:
    """The system's Chromium or Chrome."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return next(filter(None, map(shutil.which, names)), None)


MARKS = (
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(find_chromium() is None, reason="no Chromium: apt install chromium"),
)


@contextlib.contextmanager
def jupyter_lab(workspace: Path) -> Iterator[str]:
    """Starts JupyterLab in `workspace` and gives the address of its notebook tree, with token; ends it and its
    kernels afterwards.
    """
    token, home = secrets.token_hex(16), workspace / ".jupyter"
    settings = home / "settings" / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
    settings.parent.mkdir(parents=True)
    settings.write_text('{"checkForUpdates": false, "doNotDisturbMode": true, "fetchNews": "false"}')
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        **os.environ,
        "JUPYTER_CONFIG_DIR": str(home / "config"),
        "JUPYTER_DATA_DIR": str(home / "data"),
        "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
        "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
        "JUPYTER_PREFER_ENV_PATH": "1",
    }
    options = {
        "ServerApp.port": port,
        "ServerApp.port_retries": 0,
        "ServerApp.ip": "127.0.0.1",
        "ServerApp.open_browser": False,
        "ServerApp.root_dir": workspace,
        "ServerApp.kernel_websocket_connection_class": "workbench.notebook.server.PromptConnection",  # as make lab
        "ServerApp.allow_root": True,
        "IdentityProvider.token": token,
    }
    command = [
        sys.executable,
        "-m",
        "jupyter",
        "lab",
        *(f"--{key}={value}" for key, value in options.items()),
    ]
    with (workspace / "jupyter.log").open("w") as log:
        process = subprocess.Popen(command, cwd=workspace, env=environment, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    try:
        _wait(process, f"{address}/api/status?token={token}", workspace / "jupyter.log")
        yield f"{address}/lab/tree/{{}}?token={token}"
    finally:
        process.terminate()  # it shuts its kernels down
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def run_all_cells(page) -> None:
    """Through the menu, until a cell says that it runs: before the kernel listens, the command does nothing."""
    begun = page.locator(".jp-InputPrompt", has_text=re.compile(r"\[(\*|\d+)\]")).first
    for _ in range(8):
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        try:
            begun.wait_for(timeout=20_000)
        except Exception as error:  # playwright need not be installed for this module
            if type(error).__name__ != "TimeoutError":
                raise
            page.keyboard.press("Escape")
            continue
        return
    raise AssertionError("no cell began to run")


def _wait(process: subprocess.Popen, address: str, log: Path) -> None:
    end = time.monotonic() + STARTUP
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError, urllib.error.URLError), urllib.request.urlopen(address, timeout=5):
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.2)
    raise RuntimeError(f"JupyterLab did not start:\n{log.read_text()[-3000:]}")
