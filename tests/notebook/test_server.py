"""The server that ``make lab`` starts."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest
from jupyter_server.services.kernels.connection.channels import ZMQChannelsWebsocketConnection
from jupyter_server.services.kernels.websocket import KernelWebsocketHandler

from workbench.notebook.server import PromptConnection

ROOT = Path(__file__).parents[2]


def test_messages_are_sent_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []
    handler = KernelWebsocketHandler.__new__(KernelWebsocketHandler)
    monkeypatch.setattr(handler, "set_nodelay", lambda value: calls.append(value), raising=False)
    monkeypatch.setattr(ZMQChannelsWebsocketConnection, "__init__", lambda self: None)
    monkeypatch.setattr(ZMQChannelsWebsocketConnection, "connect", lambda self: calls.append("connected"))
    connection = PromptConnection()
    connection.websocket_handler = handler
    connection.connect()
    assert calls == [True, "connected"]


@pytest.mark.parametrize("file", ["Makefile", "tests/browser/lab.py"])
def test_the_name_that_the_server_is_given_is_that_of_the_class(file: str) -> None:
    (name,) = re.findall(r"workbench\.notebook\.server\.\w+", (ROOT / file).read_text("utf-8"))
    module, _, attribute = name.rpartition(".")
    assert getattr(import_module(module), attribute) is PromptConnection
