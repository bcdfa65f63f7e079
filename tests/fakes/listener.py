"""An HTTP server on real sockets in a thread of its own, that can be refused and taken up again."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from aiohttp import web

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


def hold_port(host: str = "127.0.0.1", port: int = 0) -> socket.socket:
    """Return a socket that is bound and does not listen.

    While it is open, connections to its port are refused, no one else is given the port, and a
    server that sets SO_REUSEADDR can listen there.
    """
    holder = socket.socket()
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    holder.bind((host, port))
    return holder


class Listener:
    """Serves ``handler`` on two ports of ``host``; the second is the object store's."""

    def __init__(
        self, handler: Handler, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None
    ) -> None:
        self.host = host
        self.tls = tls
        self._handler = handler
        self._holders = [hold_port(host), hold_port(host)]
        ports: list[int] = [holder.getsockname()[1] for holder in self._holders]
        self.port, self.store_port = ports
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._runner: web.ServerRunner | None = None

    def start(self) -> None:
        self._thread.start()
        self.accept()

    def close(self) -> None:
        """Drop every connection and give the ports back."""
        self.refuse()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        for holder in self._holders:
            holder.close()

    def accept(self) -> None:
        """Listen, again on the same ports after :meth:`refuse`."""
        self._call(self._accept())

    def refuse(self) -> None:
        """Stop listening and drop every connection."""
        self._call(self._refuse())

    def _call(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(20)

    async def _accept(self) -> None:
        # Cancelled handlers: a request that hangs must not outlive its client.
        server = web.Server(self._handler, access_log=None, handler_cancellation=True)
        self._runner = web.ServerRunner(server, shutdown_timeout=0.01)
        await self._runner.setup()
        for port, tls in ((self.port, self.tls), (self.store_port, None)):
            site = web.TCPSite(
                self._runner, self.host, port, ssl_context=tls, reuse_address=True, backlog=256
            )
            await site.start()

    async def _refuse(self) -> None:
        if self._runner is None:
            return
        runner, self._runner = self._runner, None
        for site in list(runner.sites):
            await site.stop()
        assert runner.server is not None
        for connection in runner.server.connections:
            if connection.transport is not None:
                connection.transport.abort()
        await runner.cleanup()
