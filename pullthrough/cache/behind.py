"""Writing behind: what has come is written in a thread while more comes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

_BATCH: Final = 1 << 20
"""Bytes that are worth waking a thread for."""

_LINGER: Final = 0.003
"""Seconds that less than that is let gather: no delay to notice, and on a fast link a batch."""


class WriteBehind:
    """Hands chunks to ``write`` in order, one batch at a time; at most two batches are held.

    What ``write`` raises comes out of the next call.
    """

    def __init__(self, write: Callable[[list[bytes]], Awaitable[None]]) -> None:
        self._write = write
        self._chunks: list[bytes] = []
        self._amount = 0
        self._enough = asyncio.Event()
        self._enough.set()  # the first bytes do not wait: somebody waits for them
        self._running: asyncio.Task[None] | None = None

    async def put(self, chunk: bytes) -> None:
        """Take a chunk; waits while too much is held."""
        self._chunks.append(chunk)
        self._amount += len(chunk)
        if self._amount >= _BATCH:
            self._enough.set()
        if self._running is not None and (self._running.done() or self._amount >= _BATCH):
            await self.settle()
        if self._running is None and self._chunks:
            self._running = asyncio.create_task(self._batch())

    async def flush(self) -> None:
        """Write all that is held."""
        self._enough.set()
        await self.settle()
        if self._chunks:
            await self._batch()

    async def settle(self) -> None:
        """Wait for the thread; nobody may close its file before."""
        if self._running is not None:
            running, self._running = self._running, None
            await asyncio.shield(running)

    async def _batch(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(_LINGER):
                await self._enough.wait()
        self._enough.clear()
        chunks, self._chunks, self._amount = self._chunks, [], 0
        await self._write(chunks)
