"""Blobs: from here, or filled once for all who ask."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

from pullthrough.cache.base import HIT, BlobReader, FileSlice, Moved, Outcome, Piece, Served
from pullthrough.cache.download import Download, Persistence
from pullthrough.cache.feed import Unstored
from pullthrough.cache.fill import Fill, Growing, Verification
from pullthrough.cache.freshness import absent
from pullthrough.cache.mirrored import SIGNED_FOR, Mirrored
from pullthrough.oci.digest import Digest
from pullthrough.oci.errors import BadUpstream, BlobUnknown, UpstreamTimeout
from pullthrough.oci.reference import Repository
from pullthrough.store.base import BlobStore, StoredBlob
from pullthrough.store.partial import hash_file
from pullthrough.upstream.base import BlobSource, Source, UpstreamError

if TYPE_CHECKING:
    from hashlib import _Hash

G = TypeVar("G", bound=Growing)

_FAR: Final = 1 << 20
"""Bytes: a range that begins so far ahead of the fill is not made to wait for it."""

_SMALL: Final = 4 << 20
"""Bytes: only a range no longer than this is passed through; a larger one waits for the fill, or
parallel pullers' open-ended ranges would each cost the link a copy."""

FROM_BUCKET: Final = Served(Outcome.HIT, "bucket")

_VERIFY_FIRST: Final = 64 << 20
"""Bytes: content up to this size that was not written by us is verified before it is answered."""


def passes_through(start: int, end: int | None, visible: int) -> bool:
    """Whether a range is asked of the upstream rather than made to wait for the fill."""
    return end is not None and end - start <= _SMALL and start - visible > _FAR


class Blobs:
    """All blobs of one worker."""

    def __init__(
        self,
        store: BlobStore,
        source: Source,
        persistence: Persistence,
        mirrored: Mirrored | None = None,
    ) -> None:
        self._store, self._source, self._persistence = store, source, persistence
        self._mirrored = mirrored
        self._growing: dict[Digest, Growing] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def filling(self) -> int:
        """How many blobs are on their way."""
        return len(self._growing)

    async def size(self, repository: Repository, digest: Digest) -> tuple[int, Served]:
        """Return a blob's size in bytes, without fetching it; raises :class:`RegistryError`."""
        size = await self._store.blob_size(digest)
        if size is not None:
            return size, HIT
        size = await self._store.named_size(digest)
        if size is not None:
            return size, Served(Outcome.HIT, "manifest")
        try:
            return await self._source.head_blob(repository, digest), Served(Outcome.BYPASS)
        except UpstreamError as error:
            raise absent(error, BlobUnknown) from error

    async def open(
        self, repository: Repository, digest: Digest, asked: str = ""
    ) -> BlobReader | Moved:
        """Return a reader of the blob, or where else to fetch it; ``asked`` is the host asked.

        Raises :class:`RegistryError` when there will be none.
        """
        growing = self._growing.get(digest)
        served = Served(Outcome.COLLAPSED)
        if growing is None:
            blob = await self._store.open_blob(digest)
            if blob is not None and blob.verified:
                await self._store.link_blob(repository, digest)
                return WholeBlob(digest, blob, HIT)
            size = None
            if blob is None and self._mirrored is not None:
                size = await self._mirrored.look(digest)
                moved = await self._moved(self._mirrored, repository, digest, size, asked)
                if moved is not None:
                    return moved
            growing = self._growing.get(digest)
            if growing is not None:
                if blob is not None:
                    blob.file.close()
            elif blob is not None:
                growing = self._start(Verification(self._store, digest, blob))
            else:
                growing = self._fill(repository, digest, in_bucket=size is not None)
                served = Served(Outcome.MISS) if size is None else FROM_BUCKET
        growing.repositories.add(repository)
        if isinstance(growing, Verification):
            return await self._verified(repository, growing)
        if growing.feed.complete:
            served = HIT  # all here, only not yet safe on the disk
        return await self._reader(repository, growing, served)

    async def _moved(
        self,
        mirrored: Mirrored,
        repository: Repository,
        digest: Digest,
        size: int | None,
        asked: str,
    ) -> Moved | None:
        """Return where to send a client for a blob of which the bucket has ``size`` bytes."""
        address = None if size is None else await mirrored.address(digest, size, asked)
        if address is None:
            return None
        self._store.touch(digest)
        await self._store.lend(digest, SIGNED_FOR)
        await self._store.link_blob(repository, digest)
        return Moved(address)

    async def _verified(self, repository: Repository, growing: Verification) -> BlobReader | Moved:
        """Serve what somebody else put here; if it is damaged, fetch it instead."""
        if growing.size <= _VERIFY_FIRST:
            growing.hold()
            try:
                await growing.feed.past(growing.size)
            except BadUpstream:
                return await self.open(repository, growing.digest)  # it is set aside: a miss now
            finally:
                growing.release()
        return await self._reader(repository, growing, HIT)

    def _fill(self, repository: Repository, digest: Digest, *, in_bucket: bool) -> Growing:
        source = self._asked(in_bucket=in_bucket)
        fill = Fill(self._store, source, repository, digest, self._persistence)
        fill.in_bucket = in_bucket
        return self._start(fill)

    def _asked(self, *, in_bucket: bool) -> BlobSource:
        if in_bucket and self._mirrored is not None:
            return self._mirrored.before(self._source)
        return self._source

    def _start(self, growing: G) -> G:
        self._growing[growing.digest] = growing
        growing.hold()

        async def run() -> None:
            try:
                await growing.run()
            finally:
                if self._growing.get(growing.digest) is growing:
                    del self._growing[growing.digest]
                growing.release()

        task = asyncio.create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return growing

    async def _reader(self, repository: Repository, growing: Growing, served: Served) -> BlobReader:
        growing.hold()
        reader = GrowingBlob(self, repository, growing, served)
        try:
            async with asyncio.timeout(self._persistence.patience):
                await growing.feed.sized()
                if growing.feed.size == 0:
                    await growing.feed.past(0)  # there is no last byte to hold back
        except TimeoutError:
            reader.close()
            raise UpstreamTimeout("the blob did not begin to come in time") from None
        except Unstored:
            reader.served = Served(Outcome.BYPASS, "unstored")
            try:
                reader.size = await self._size_by_get(repository, growing)
            except BaseException:
                reader.close()
                raise
        except BaseException:
            reader.close()
            raise
        else:
            reader.size = growing.feed.size
            if growing.followed and served.outcome is Outcome.MISS:
                reader.served = Served(Outcome.COLLAPSED)
        return reader

    async def _size_by_get(self, repository: Repository, growing: Growing) -> int | None:
        """Return the size that the upstream tells, by GET: HEAD may find nothing (harbor#22609)."""
        size = await self._store.named_size(growing.digest)
        if size is not None:
            return size
        try:
            async with self.download(repository, growing, 0, None, None) as download:
                return download.size
        except UpstreamError as error:
            raise absent(error, BlobUnknown) from error

    def download(
        self,
        repository: Repository,
        growing: Growing,
        start: int,
        end: int | None,
        size: int | None,
    ) -> Download:
        """Return a download that nothing is kept of."""
        return Download(
            self._asked(in_bucket=growing.in_bucket), repository, growing.digest,
            persistence=self._persistence, start=start, end=end, size=size,
        )  # fmt: skip

    async def hash_prefix(self, growing: Growing, end: int, hasher: _Hash) -> None:
        """Feed what a reader was given from the file to a hash of its own."""
        file = growing.file
        if file is not None and end:
            await self._store.in_thread(lambda: hash_file(file.fileno(), hasher, end=end))

    async def close(self) -> None:
        """End every fill; what they have is gone on from at the next start."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@dataclass(slots=True)
class WholeBlob:
    """A reader of content that is here and verified."""

    digest: Digest
    blob: StoredBlob
    served: Served

    @property
    def size(self) -> int:
        """The whole in bytes."""
        return self.blob.size

    async def pieces(self, start: int, end: int | None) -> AsyncIterator[Piece]:
        """Give one slice."""
        stop = self.blob.size if end is None else end
        if stop > start:
            yield FileSlice(self.blob.file, start, stop - start)

    def close(self) -> None:
        """Close the file."""
        self.blob.file.close()


class GrowingBlob:
    """A reader of content that is still on its way."""

    def __init__(
        self, blobs: Blobs, repository: Repository, growing: Growing, served: Served
    ) -> None:
        self._blobs, self._repository, self._growing = blobs, repository, growing
        self.served = served
        self.size: int | None = None

    @property
    def digest(self) -> Digest:
        """What is read."""
        return self._growing.digest

    def close(self) -> None:
        """Let go of it; the fill goes on."""
        self._growing.release()

    async def pieces(self, start: int, end: int | None) -> AsyncIterator[Piece]:
        """Give the bytes as they come; see :class:`~pullthrough.cache.base.BlobReader`."""
        feed, offset = self._growing.feed, start
        if passes_through(start, end, feed.visible):
            async for chunk in self._directly(offset, end, verify=False):
                yield chunk
            return
        while end is None or offset < end:
            try:
                visible = await feed.past(offset)
            except Unstored:
                whole = start == 0 and end in (None, self.size)
                async for chunk in self._directly(offset, end, verify=whole):
                    yield chunk
                return
            stop = visible if end is None else min(visible, end)
            file = self._growing.file
            if stop <= offset or file is None:
                return
            yield FileSlice(file, offset, stop - offset)
            offset = stop

    async def _directly(
        self, offset: int, end: int | None, *, verify: bool
    ) -> AsyncIterator[bytes]:
        """Give the upstream's bytes, keeping nothing; the last piece only if all was right."""
        hasher = self.digest.hasher()
        if verify:
            await self._blobs.hash_prefix(self._growing, offset, hasher)
        held = b""
        download = self._blobs.download(
            self._repository, self._growing, offset, None if verify else end, self.size
        )
        try:
            async with download:
                async for chunk in download.chunks():
                    if held:
                        yield held
                    held = chunk
                    if verify:
                        hasher.update(chunk)
        except UpstreamError as error:
            raise absent(error, BlobUnknown) from error
        if verify and hasher.hexdigest() != self.digest.hex:
            raise BadUpstream("the upstream sent content that is not what its digest says")
        if held:
            yield held
