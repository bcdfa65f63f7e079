"""The link to the upstream: a TCP relay with a rate, a byte counter, and faults to switch on.

In user space rather than as a queueing discipline between namespaces: it needs no root, counts
exactly what crosses it, and at the rates used here costs a few percent of one core.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from enum import Enum
from typing import TypeVar

from bench.servers import HOST

CHUNK = 1 << 16
BURST_SECONDS = 0.005
SWITCH_LIMIT = 10.0

T = TypeVar("T")


class State(Enum):
    """What a link does."""

    OPEN = "open"
    REFUSING = "refusing"  # connections are refused, those that were there are reset
    SILENT = "silent"  # connections are accepted, and nothing comes through


class Link:
    """A relay to the port ``target``; ``rate`` is in bytes/s from there, over all connections.

    Its event loop runs in a thread of its own; the methods are for other threads.
    """

    def __init__(self, target: int, rate: float | None) -> None:
        self._target = target
        self._rate = rate
        self._free_at = 0.0
        self._received = 0
        self._connections: set[asyncio.Task[None]] = set()
        self._flowing = asyncio.Event()
        self._server: asyncio.Server | None = None
        # Bound but never listening: it keeps the port while the link refuses.
        self._keeper = socket.socket()
        self._keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._keeper.bind((HOST, 0))
        self.port: int = self._keeper.getsockname()[1]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Reset every connection and end the thread."""
        self.switch(State.REFUSING)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(SWITCH_LIMIT)
        self._loop.close()
        self._keeper.close()

    def switch(self, state: State) -> None:
        """Be in ``state`` from now on."""
        self._do(self._switch(state))

    def take_received(self) -> int:
        """Return the bytes that came from the upstream since the last call."""
        return self._do(self._take_received())

    def _do(self, work: Coroutine[None, None, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(SWITCH_LIMIT)

    async def _take_received(self) -> int:
        received, self._received = self._received, 0
        return received

    async def _switch(self, state: State) -> None:
        if state is State.SILENT:
            self._flowing.clear()
        else:
            self._flowing.set()
        if state is State.REFUSING:
            if self._server:
                self._server.close()
                self._server = None
            for connection in self._connections:
                connection.cancel()
            await asyncio.gather(*self._connections, return_exceptions=True)
        elif not self._server:
            self._server = await asyncio.start_server(
                self._relay, HOST, self.port, reuse_port=True, limit=CHUNK
            )

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a connection is always handled in a task")
        self._connections.add(task)
        writers = [writer]
        try:
            there, back = await asyncio.open_connection(HOST, self._target, limit=CHUNK)
            writers.append(back)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(reader, back, counted=False))
                group.create_task(self._pump(there, writer, counted=True))
        except* (OSError, asyncio.CancelledError):
            pass  # the other side sees a reset, as over any link that breaks
        finally:
            self._connections.discard(task)
            for each in writers:
                each.transport.abort()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, counted: bool
    ) -> None:
        while chunk := await reader.read(CHUNK):
            if counted and self._rate:
                await self._wait_turn(len(chunk) / self._rate)
            await self._flowing.wait()
            if counted:
                self._received += len(chunk)
            writer.write(chunk)
            await writer.drain()
        with suppress(OSError):
            writer.write_eof()

    async def _wait_turn(self, seconds: float) -> None:
        """Wait until the line has carried ``seconds`` more.

        A timer fires late by a little: up to BURST_SECONDS of unused time may be made up for.
        """
        now = self._loop.time()
        self._free_at = max(self._free_at, now - BURST_SECONDS) + seconds
        await asyncio.sleep(self._free_at - now)


@contextmanager
def link(target: int, rate: float | None = None) -> Iterator[Link]:
    """Relay to the port ``target`` until the end of the block."""
    made = Link(target, rate)
    try:
        made.switch(State.OPEN)
        yield made
    finally:
        made.close()
