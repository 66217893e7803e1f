"""What JupyterLab's server does for sliders: ``make lab`` names this class in its command line."""

from __future__ import annotations

import asyncio

from jupyter_server.services.kernels.connection.channels import ZMQChannelsWebsocketConnection


class PromptConnection(ZMQChannelsWebsocketConnection):
    """The server's connection between a page and a kernel, which sends each message at once.

    A kernel answers a widget in several small messages. By default TCP holds all but the first back until the browser
    has acknowledged it, which Linux puts off for 40 ms (RFC 896, RFC 1122 section 4.2.3.2).
    """

    def connect(self) -> asyncio.Future[None] | None:
        """Connect as the base class does."""
        self.websocket_handler.set_nodelay(True)
        return super().connect()
