"""Content that a bucket keeps: where it is, who may be sent there, and a fill from it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Final

import structlog

from pullthrough.oci.digest import Digest
from pullthrough.oci.reference import Repository
from pullthrough.store.base import BlobStore
from pullthrough.upstream.base import BlobBody, BlobSource, Failure, Mirror, UpstreamError

_log = structlog.get_logger()

SIGNED_FOR: Final = 20 * 60
"""Seconds for which an address of the bucket's is good, as Harbor's own are."""
_SMALL: Final = 1 << 20
"""Bytes: what is no larger, as a config is, is served from here: the detour would cost more."""


@dataclass(frozen=True, slots=True)
class Redirecting:
    """Who is sent to the bucket, whose host as the clients see it is ``host``."""

    host: str

    def sends(self, size: int, asked: str) -> bool:
        """Whether a client that asked the host ``asked`` is sent there for ``size`` bytes.

        Not to the host that it asked, nor to one below it: Go's clients would send their login
        along, which a bucket answers with 400 (net/http, shouldCopyHeaderOnRedirect).
        """
        same = self.host == asked or self.host.endswith(f".{asked}")
        return size > _SMALL and not same


class Mirrored:
    """What is known of the bucket's content."""

    def __init__(self, store: BlobStore, mirror: Mirror, redirecting: Redirecting | None) -> None:
        self._store, self._mirror, self._redirecting = store, mirror, redirecting

    async def look(self, digest: Digest) -> int | None:
        """Return the size in bytes of what the bucket has; None also when it is away.

        What the index does not know is asked for only until it knows all that there is.
        """
        size = await self._store.mirrored(digest)
        if size is None and await self._store.not_mirrored(digest):
            return None
        try:
            found = await self._mirror.size(digest)
        except UpstreamError as error:
            _log.info("the bucket was not to be asked", why=error.failure.value)
            return None
        named = await self._store.named_size(digest)
        if found is not None and named not in (None, found):
            _log.error("the bucket's copy has a wrong size", digest=str(digest))
            await self._store.forget_mirrored(digest, rotten=True)
            return None
        if found is None and size is not None:
            await self._store.forget_mirrored(digest)
        return found

    async def address(self, digest: Digest, size: int, asked: str) -> str | None:
        """Return where to send a client that asked the host ``asked``, if it is to be sent."""
        if self._redirecting is None or not self._redirecting.sends(size, asked):
            return None
        try:
            return await self._mirror.address(digest)
        except UpstreamError:
            return None

    def before(self, upstream: BlobSource) -> BucketFirst:
        """Return a source that asks the bucket, and from its first failure on ``upstream``."""
        return BucketFirst(self._mirror, upstream)


class BucketFirst:
    """One fill's source."""

    def __init__(self, bucket: BlobSource, upstream: BlobSource) -> None:
        self._bucket: BlobSource | None = bucket
        self._upstream = upstream
        self.gave = False
        """Whether some of it came from the bucket."""

    @asynccontextmanager
    async def get_blob(
        self, repository: Repository, digest: Digest, *, start: int = 0, end: int | None = None
    ) -> AsyncIterator[BlobBody]:
        """Open a download; see :class:`pullthrough.upstream.base.BlobSource`."""
        async with AsyncExitStack() as stack:
            source, self._bucket = self._bucket, None  # whatever breaks, it is asked once
            if source is not None:
                try:
                    body = await stack.enter_async_context(
                        source.get_blob(repository, digest, start=start, end=end)
                    )
                except UpstreamError as error:
                    if error.failure is not Failure.NOT_FOUND:
                        _log.info("the bucket gives nothing", why=error.failure.value)
                else:
                    self.gave = True
                    yield body
                    return
            yield await stack.enter_async_context(
                self._upstream.get_blob(repository, digest, start=start, end=end)
            )
