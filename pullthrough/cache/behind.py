"""Writing behind: what has come is written in a thread while more comes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Final, Self

_HELD: Final = 1 << 20
"""Bytes that may wait while a thread writes those before them."""
_HELD_BY_ALL: Final = 8 << 20
"""Bytes that may wait in all: of many fills at once each has its share, and memory is bounded."""


class WriteBehind:
    """Hands chunks to ``write`` in order: all that came while it was busy, at once.

    So a batch is small where little comes, and the first byte early; and large where much comes,
    and a thread is not woken for every chunk. (Letting small batches gather for a moment was
    tried: it left the thread idle, and cold blobs came a third slower.)

    An async context manager. At its end all that came is written, however it ended; after a write
    that failed nothing more is, and what it raised comes out of :meth:`put` or the end. Nobody
    gets past the end while a write is under way: its file may be closed then.
    """

    _open = 0
    """How many there are."""

    def __init__(self, write: Callable[[list[bytes]], Awaitable[None]]) -> None:
        self._write = write
        self._chunks: list[bytes] = []
        self._amount = 0
        self._ending = False
        self._some, self._taken = asyncio.Event(), asyncio.Event()

    async def __aenter__(self) -> Self:
        WriteBehind._open += 1
        self._writer = asyncio.create_task(self._run())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        WriteBehind._open -= 1
        self._ending = True
        self._some.set()
        cancelled: asyncio.CancelledError | None = None
        while not self._writer.done():
            try:
                await asyncio.wait((self._writer,))
            except asyncio.CancelledError as again:
                cancelled = again
        failure = self._writer.exception()
        if cancelled is not None:
            raise cancelled
        if failure is not None and kind is None:
            raise failure

    async def put(self, chunk: bytes) -> None:
        """Take a chunk; waits while too much is held."""
        self._chunks.append(chunk)
        self._amount += len(chunk)
        self._some.set()
        if self._amount >= min(_HELD, _HELD_BY_ALL // WriteBehind._open):
            self._taken.clear()
            taken = asyncio.ensure_future(self._taken.wait())
            try:
                await asyncio.wait((taken, self._writer), return_when=asyncio.FIRST_COMPLETED)
            finally:
                taken.cancel()
        if self._writer.done():
            self._writer.result()

    async def _run(self) -> None:
        while self._chunks or not self._ending:
            await self._some.wait()
            chunks, self._chunks, self._amount = self._chunks, [], 0
            self._taken.set()
            if not self._ending:
                self._some.clear()
            if chunks:
                await self._write(chunks)
