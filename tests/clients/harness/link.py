"""A TCP way to a server that a test can count bytes on, cut and close."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from tests.clients.harness.process import bound_socket

_CHUNK = 65_536
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class _Cut(Exception):
    """This connection has carried what it may."""


class Link:
    """Carries connections from a loopback port to a server's Unix socket, in a thread of its own.

    ``received`` counts the bytes that came from the server, ``cuts`` the connections cut.
    """

    def __init__(self, server: Path) -> None:
        self.received = 0
        self.cuts = 0
        self._server = server
        self._cut_after: int | None = None
        self._carrying: set[asyncio.Task[None]] = set()
        self._listener = bound_socket()
        self._listener.setblocking(False)
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="link")
        self._thread.start()
        self.open()

    def open(self) -> None:
        """Take connections (again)."""
        self._run(self._open())

    def shut(self) -> None:
        """Reset every connection and refuse new ones, as if dead; the port stays ours."""
        self._run(self._shut())

    def cut_after(self, count: int) -> None:
        """Reset, once, the first connection that would carry more than ``count`` bytes back."""
        self._cut_after = count

    def close(self) -> None:
        """End the link for good."""
        self.shut()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._listener.close()

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _open(self) -> None:
        self._listener.listen(128)
        self._loop.add_reader(self._listener, self._accept)

    async def _shut(self) -> None:
        self._loop.remove_reader(self._listener)
        # Stops listening but keeps the port, so that no other process can answer on it.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        carrying = list(self._carrying)
        for task in carrying:
            task.cancel()
        await asyncio.gather(*carrying, return_exceptions=True)

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError):
            near, _ = self._listener.accept()
            near.setblocking(False)
            task = self._loop.create_task(self._carry(near))
            self._carrying.add(task)
            task.add_done_callback(self._carrying.discard)
            # Here and not in the task: one that is cancelled at once never runs.
            task.add_done_callback(lambda _: near.close())

    async def _carry(self, near: socket.socket) -> None:
        far = socket.socket(socket.AF_UNIX)
        far.setblocking(False)
        try:
            await self._loop.sock_connect(far, str(self._server))
            async with asyncio.TaskGroup() as both:
                both.create_task(self._forward(near, far))
                both.create_task(self._back(far, near))
        except* (OSError, _Cut, asyncio.CancelledError):
            near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        finally:
            far.close()

    async def _forward(self, near: socket.socket, far: socket.socket) -> None:
        while data := await self._loop.sock_recv(near, _CHUNK):
            await self._loop.sock_sendall(far, data)
        far.shutdown(socket.SHUT_WR)

    async def _back(self, far: socket.socket, near: socket.socket) -> None:
        carried = 0
        while data := await self._loop.sock_recv(far, _CHUNK):
            if self._cut_after is not None and carried + len(data) > self._cut_after:
                self._cut_after = None
                self.cuts += 1
                raise _Cut
            await self._loop.sock_sendall(near, data)
            carried += len(data)
            self.received += len(data)
        near.shutdown(socket.SHUT_WR)
