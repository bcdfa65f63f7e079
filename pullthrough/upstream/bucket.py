"""The bucket as workers read it: over presigned addresses, as one more source of blobs.

Nothing here writes, and nothing waits for long: a bucket that is slow or away counts as one that
has nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, Self

import structlog
from aiohttp import hdrs
from cachetools import TTLCache
from yarl import URL

from pullthrough.oci.digest import Digest
from pullthrough.oci.reference import Repository
from pullthrough.upstream.base import BlobBody, Failure, UpstreamError
from pullthrough.upstream.body import Body
from pullthrough.upstream.breaker import Breaker
from pullthrough.upstream.transport import Reply, Transport

_log = structlog.get_logger()

_CONNECT: Final = 2.0
_PATIENCE: Final = 1.0
"""Seconds for a look whether the bucket has something: a client waits for it."""
_SEEN_FOR: Final = 2.0
"""Seconds for which a look is believed: the bucket may die, and others may delete things."""
_FIRST_BYTE: Final = 3.0
"""Seconds until a download begins: the upstream is there too, and clients wait."""
_SIGNERS: Final = 4
"""Threads that sign: a chain of credentials may ask the network."""
_SEEN_LIMIT: Final = 100_000
_LOOK_EVERY: Final = 0.5
_NOTHING: Final = Digest.of(b"")
"""Asked for only to see whether an answer comes."""

Sign = Callable[[Literal["GET", "HEAD"], Digest, bool], str]
"""Returns a presigned URL, for ourselves or (True) as clients see the bucket. May block."""


@dataclass(frozen=True, slots=True)
class Reading:
    """How the bucket is read; limits in seconds."""

    sign: Sign
    secure: bool
    cafile: Path | None
    skipverify: bool
    stall: float
    user_agent: str


class BucketSource:
    """Implements :class:`pullthrough.upstream.base.Mirror`; an async context manager."""

    def __init__(self, reading: Reading, breaker: Breaker, received: Callable[[int], None]) -> None:
        self._reading, self._breaker = reading, breaker
        self._transport = Transport(
            URL("https://bucket.invalid" if reading.secure else "http://bucket.invalid"),
            resolve={}, cafile=reading.cafile, skipverify=reading.skipverify,
            connect=_CONNECT, user_agent=reading.user_agent, received=received,
        )  # fmt: skip
        self._signers = ThreadPoolExecutor(_SIGNERS, thread_name_prefix="sign")
        self._seen: TTLCache[Digest, int] = TTLCache(_SEEN_LIMIT, _SEEN_FOR)

    async def __aenter__(self) -> Self:
        await self._transport.__aenter__()
        self._watching = asyncio.create_task(self._watch(), name="watch the bucket")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._signers.shutdown(wait=False, cancel_futures=True)
        self._watching.cancel()
        await asyncio.gather(self._watching, return_exceptions=True)
        await self._transport.__aexit__(kind, error, traceback)

    @property
    def up(self) -> bool:
        """False while the bucket counts as away."""
        return not self._breaker.down

    async def size(self, digest: Digest) -> int | None:
        """Return a blob's size in bytes, None where the bucket has none.

        Raises :class:`UpstreamError` when the bucket does not say so in time.
        """
        self._require()
        seen = self._seen.get(digest)
        if seen is not None:
            return seen
        with await self._ask("HEAD", digest, _PATIENCE) as reply:
            if reply.status == HTTPStatus.NOT_FOUND:
                return None
            if reply.status != HTTPStatus.OK or reply.length is None:
                raise self._refused(reply)
            self._seen[digest] = reply.length
            return reply.length

    async def address(self, digest: Digest) -> str:
        """Return where a client may fetch the blob, for some minutes."""
        self._require()
        try:
            async with asyncio.timeout(_PATIENCE):
                return await self._sign("GET", digest, public=True)
        except TimeoutError:
            raise UpstreamError(Failure.TIMEOUT, "no address in time") from None

    @asynccontextmanager
    async def get_blob(
        self, repository: Repository, digest: Digest, *, start: int = 0, end: int | None = None
    ) -> AsyncIterator[BlobBody]:
        """Open a download, as :meth:`pullthrough.upstream.base.Source.get_blob` does."""
        del repository  # the bucket knows only digests
        asked = None
        if start or end is not None:
            asked = f"bytes={start}-{'' if end is None else end - 1}"
        with await self._ask("GET", digest, _FIRST_BYTE, asked) as reply:
            if reply.status not in {HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT}:
                self._seen.pop(digest, None)
                raise self._refused(reply)
            yield Body(reply, start, end, stall=self._reading.stall)

    def _require(self) -> None:
        if self._breaker.down:
            raise UpstreamError(Failure.DOWN, "the bucket is away")

    async def _sign(self, method: Literal["GET", "HEAD"], digest: Digest, *, public: bool) -> str:
        try:
            return await asyncio.get_running_loop().run_in_executor(
                self._signers, self._reading.sign, method, digest, public
            )
        except Exception as error:  # noqa: BLE001 - a chain of credentials may fail in any way
            # Its message is a stranger's: it may show what is to be signed with.
            _log.warning("the bucket's address cannot be signed", why=type(error).__name__)
            message = "the bucket's address cannot be signed"
            raise UpstreamError(Failure.UNAUTHORIZED, message) from None

    async def _ask(
        self, method: Literal["GET", "HEAD"], digest: Digest, limit: float, asked: str | None = None
    ) -> Reply:
        self._require()
        return await self._send(method, digest, limit, asked)

    async def _watch(self) -> None:
        """Look whether a bucket that was away is back, so that no client has to."""
        while True:
            await asyncio.sleep(_LOOK_EVERY)
            if self._breaker.claim_probe(time.monotonic()):
                try:
                    (await self._send("HEAD", _NOTHING, _CONNECT, None)).close()
                except UpstreamError:
                    continue
                except Exception:  # noqa: BLE001 - a watch that ended would leave it away for good
                    _log.exception("looking for the bucket failed")

    async def _send(
        self, method: Literal["GET", "HEAD"], digest: Digest, limit: float, asked: str | None
    ) -> Reply:
        headers = {} if asked is None else {str(hdrs.RANGE): asked}
        try:
            async with asyncio.timeout(limit):
                url = await self._sign(method, digest, public=False)
                reply = await self._transport.send(method, URL(url, encoded=True), headers=headers)
        except TimeoutError:
            # One is enough: every client that asks would wait as long.
            self._down(self._breaker.overdue(time.monotonic()), "silent")
            raise UpstreamError(Failure.TIMEOUT, "the bucket is silent") from None
        except UpstreamError as error:
            self._down(self._breaker.failed(time.monotonic()), error.failure.value)
            raise
        if reply.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            self._down(self._breaker.failed(time.monotonic()), f"status {reply.status}")
        elif self._breaker.succeeded():
            _log.warning("the bucket is back")
        return reply

    @staticmethod
    def _down(is_new: bool, why: str) -> None:
        if is_new:
            _log.warning("the bucket is away", why=why)

    @staticmethod
    def _refused(reply: Reply) -> UpstreamError:
        failures: dict[int, Failure] = {
            HTTPStatus.NOT_FOUND: Failure.NOT_FOUND,
            HTTPStatus.FORBIDDEN: Failure.FORBIDDEN,
            HTTPStatus.UNAUTHORIZED: Failure.UNAUTHORIZED,
        }
        failure = failures.get(reply.status, Failure.SERVER_ERROR)
        message = f"the bucket answers {reply.status}"
        return UpstreamError(failure, message, status=reply.status)
