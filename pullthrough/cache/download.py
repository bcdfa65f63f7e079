"""A blob's bytes from a source, in order and without gaps, over as many connections as it takes."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Final, Self

import structlog

from pullthrough.oci.digest import Digest
from pullthrough.oci.reference import Repository
from pullthrough.upstream.base import BlobBody, BlobSource, Failure, UpstreamError

_log = structlog.get_logger()

# What may be over in a moment. Anything else would be said again.
_PASSING: Final = frozenset(
    {
        Failure.CUT,
        Failure.TIMEOUT,
        Failure.REFUSED,
        Failure.SERVER_ERROR,
        Failure.RATE_LIMITED,
        Failure.DOWN,
        Failure.NOT_A_REGISTRY,
    }
)
_FIRST_PAUSE: Final = 0.5
_LONGEST_PAUSE: Final = 15.0
_LONGEST_REST: Final = 60.0
"""Seconds: a source that wants to be left alone for longer is not waited for."""
_RANGE_NOT_SATISFIABLE: Final = 416


@dataclass(frozen=True, slots=True)
class Persistence:
    """How hard a download is tried: ``tries`` in a row without a byte of progress.

    ``patience`` is how many seconds a client waits for it to begin.
    """

    tries: int
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    patience: float = 25.0

    async def pause(self, failures: int, at_least: float | None) -> None:
        """Wait before the next try: longer each time, and not in step with others."""
        longest = min(_FIRST_PAUSE * 2 ** (failures - 1), _LONGEST_PAUSE)
        # Half of it is sure, so that the tries last through a cut of a minute.
        await self.sleep(max(longest / 2 + random.random() * longest / 2, at_least or 0))  # noqa: S311 - not a secret


class Download:
    """One blob, or the bytes ``start`` to ``end`` of it. An async context manager.

    ``size`` is the whole blob's in bytes: what the caller knew, else what the source said.
    """

    def __init__(
        self,
        source: BlobSource,
        repository: Repository,
        digest: Digest,
        *,
        persistence: Persistence,
        start: int = 0,
        end: int | None = None,
        size: int | None = None,
    ) -> None:
        self._source, self._repository, self._digest = source, repository, digest
        self._persistence = persistence
        self._offset, self._end = start, end
        self.size = size
        self._body: BlobBody | None = None
        self._connection = AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Open the first connection; raises :class:`UpstreamError`."""
        await self._connect()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._connection.aclose()

    async def _connect(self) -> BlobBody:
        await self._connection.aclose()
        body = await self._connection.enter_async_context(
            self._source.get_blob(self._repository, self._digest, start=self._offset, end=self._end)
        )
        if self.size is None:
            self.size = body.size
        elif body.size is not None and body.size != self.size:
            await self._connection.aclose()
            raise UpstreamError(
                Failure.INVALID, f"{body.size} bytes offered of a blob of {self.size}"
            )
        self._body = body
        return body

    async def chunks(self) -> AsyncIterator[bytes]:
        """Give the bytes; a break is mended by going on from where it was.

        Raises :class:`UpstreamError` when the tries are used up, or the source says no.
        """
        failures = 0
        while True:
            try:
                async for chunk in self._until_break():
                    failures = 0
                    yield chunk
            except UpstreamError as error:
                failures += 1
                if self._offset == self._stop:
                    return  # cut after the last byte: all is here
                if (
                    error.failure not in _PASSING
                    or error.status == _RANGE_NOT_SATISFIABLE
                    or (error.retry_after or 0) > _LONGEST_REST
                    or failures >= self._persistence.tries
                ):
                    raise
                _log.info(
                    "download broken, going on",
                    digest=str(self._digest), offset=self._offset, why=error.failure.value,
                )  # fmt: skip
                self._body = None
                await self._persistence.pause(failures, error.retry_after)
            else:
                return

    async def _until_break(self) -> AsyncIterator[bytes]:
        body = self._body or await self._connect()
        # A source that ignores Range sends the beginning again.
        surplus = self._offset - body.start
        while received := await body.read():
            chunk = self._within(received[surplus:])
            surplus = max(0, surplus - len(received))
            self._offset += len(chunk)
            if chunk:
                yield chunk
            if self._offset == self._end:
                return
        end = self._stop
        if end is not None and self._offset < end:
            # Ended as if it were whole (harbor#23374): a break like any other.
            raise UpstreamError(Failure.CUT, f"ended at byte {self._offset} of {end}")

    @property
    def _stop(self) -> int | None:
        return self.size if self._end is None else self._end

    def _within(self, chunk: bytes) -> bytes:
        end = self._stop
        if end is None or self._offset + len(chunk) <= end:
            return chunk
        if self._end is None:
            raise UpstreamError(Failure.INVALID, f"more than the {end} bytes of the blob")
        return chunk[: end - self._offset]
