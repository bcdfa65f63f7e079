"""One verified download, many readers; and, in the same form, the check of content found here.

A fill is a task of its own: it does not end with the client that asked for it. It writes the shared
partial (store/partial.py); every reader, the first one too, reads that file as it grows. Where
another process already fills, this one follows its progress, and takes over should it die.
"""

from __future__ import annotations

import asyncio
import errno
from abc import ABC, abstractmethod
from contextlib import ExitStack
from typing import TYPE_CHECKING, BinaryIO, Final

import structlog

from pullthrough.cache.behind import WriteBehind
from pullthrough.cache.download import Download, Persistence
from pullthrough.cache.feed import Feed, Unstored
from pullthrough.cache.freshness import absent
from pullthrough.cache.mirrored import BucketFirst
from pullthrough.oci.digest import Digest
from pullthrough.oci.errors import BadUpstream, BlobUnknown, Unavailable
from pullthrough.oci.reference import Repository
from pullthrough.store.base import BlobStore, StoredBlob
from pullthrough.store.files import out_of_room
from pullthrough.store.partial import Partial, Progress, State, hash_file
from pullthrough.upstream.base import BlobSource, Failure, UpstreamError

if TYPE_CHECKING:
    from hashlib import _Hash

_log = structlog.get_logger()

_POLL: Final = 0.01
"""Seconds between looks at another process's progress."""

_RANGE_NOT_SATISFIABLE: Final = 416
_NO_DESCRIPTORS: Final = frozenset({errno.EMFILE, errno.ENFILE})


class Growing(ABC):
    """Content that is read while it grows. Closed when the last one who holds it lets go."""

    def __init__(self, digest: Digest) -> None:
        self.digest = digest
        self.feed = Feed()
        self.file: BinaryIO | None = None
        self.followed = False
        """Whether it is another process that brings it."""
        self.in_bucket = False
        """Whether the bucket is to be asked for it before the upstream."""
        self.repositories: set[Repository] = set()
        """Through which it is asked for: they are to have it when it is there."""
        self._closing = ExitStack()
        self._holders = 0

    def hold(self) -> None:
        """Keep the file open."""
        self._holders += 1

    def release(self) -> None:
        """Let go."""
        self._holders -= 1
        if not self._holders:
            self._closing.close()

    @abstractmethod
    async def run(self) -> None:
        """Bring the content."""


class Verification(Growing):
    """Content that somebody else put here, hashed before its last byte is given out."""

    def __init__(self, store: BlobStore, digest: Digest, blob: StoredBlob) -> None:
        super().__init__(digest)
        self._store, self.size, self.file = store, blob.size, blob.file
        self._closing.callback(blob.file.close)

    async def run(self) -> None:
        """Hash it; what is not right is set aside, and no reader ends well."""
        loop, hasher, file = asyncio.get_running_loop(), self.digest.hasher(), self.file
        if file is None:  # pragma: no cover - set when made
            raise RuntimeError("no file")
        self.feed.advance(0, self.size)

        def progressed(present: int) -> None:
            loop.call_soon_threadsafe(self.feed.advance, present)

        try:
            read = await self._store.in_thread(
                lambda: hash_file(file.fileno(), hasher, progressed=progressed)
            )
            if read == self.size and hasher.hexdigest() == self.digest.hex:
                self.feed.finish(read)
                await self._store.confirm(self.digest, read)
                for repository in tuple(self.repositories):
                    await self._store.link_blob(repository, self.digest)
            else:
                # Set aside first: whoever hears of it may fetch it at once.
                await self._store.quarantine(self.digest, file)
                self.feed.fail(BadUpstream("the cached content was damaged; it is set aside"))
        except OSError as error:
            _log.exception("cached content not readable", digest=str(self.digest))
            self.feed.fail(Unavailable(f"the cached content is not readable: {error.strerror}"))
        finally:
            if not self.feed.complete and not self.feed.failed:
                self.feed.fail(Unavailable("ended before it was verified"))


class Fill(Growing):
    """A blob on its way from the source into the store."""

    def __init__(
        self,
        store: BlobStore,
        source: BlobSource,
        repository: Repository,
        digest: Digest,
        persistence: Persistence,
    ) -> None:
        super().__init__(digest)
        self._store, self._source = store, source
        self._repository, self._persistence = repository, persistence

    async def run(self) -> None:
        """Fill, or follow the process that does. Never raises but when cancelled."""
        try:
            await self._fill()
        except UpstreamError as error:
            self.feed.fail(absent(error, BlobUnknown))
        except OSError as error:
            if error.errno in _NO_DESCRIPTORS:
                self.feed.fail(Unavailable("too many open files; ask again"))
                return
            _log.warning(
                "no room to store a blob, passing it through",
                digest=str(self.digest), error=error.strerror or str(error),
            )  # fmt: skip
            self.feed.fail(Unstored())
        finally:
            if not self.feed.complete and not self.feed.failed:
                self.feed.fail(Unavailable("the fill was ended; ask again"))

    async def _fill(self) -> None:
        while not await self._fill_or_follow():
            # Its files were taken away under it: there is nothing to go on from, or all is there.
            if self.feed.visible:
                return

    async def _fill_or_follow(self) -> bool:
        """Return whether it came to an end."""
        partial = await self._store.open_partial(self.digest)
        self._closing.callback(partial.close)
        self.file = partial.data
        while not partial.acquire():
            if await self._follow(partial):
                return True
        try:
            if not partial.named():
                return self._ended(partial.progress())
            partial.record(Progress())  # whatever it said was of a fill that is over
            await self._own(partial)
        finally:
            partial.release()
        return True

    # -- following another process -----------------------------------------------------------------

    async def _follow(self, partial: Partial) -> bool:
        """Pass another process's progress on; return whether the fill ended."""
        self.followed = True
        progress = partial.progress()
        if self._ended(progress):
            return True
        if progress.visible or progress.size is not None:
            self.feed.advance(progress.visible + 1, progress.size)
        await asyncio.sleep(_POLL)
        return False

    def _ended(self, progress: Progress) -> bool:
        if progress.state is State.DONE:
            if progress.size is None:
                return False
            self.feed.finish(progress.size)
        elif progress.state is State.BROKEN:
            self.feed.fail(_wrong_content(self.digest))
        elif progress.state is State.UNSTORED:
            self.feed.fail(Unstored())
        return progress.state is not State.FILLING

    # -- filling -----------------------------------------------------------------------------------

    async def _own(self, partial: Partial) -> None:
        stored = await self._store.open_blob(self.digest)
        if stored is not None:
            self._closing.callback(stored.file.close)
        if stored is not None and (stored.verified or await self._sound(stored)):
            # Published between the look into the store and the lock.
            partial.remove()
            self.file = stored.file
            self.feed.finish(stored.size)
            return
        try:
            size = await self._bring(partial)
        except UpstreamError as error:
            if error.failure is Failure.INVALID:
                await self._refuse(partial)
            raise
        except OSError:
            partial.discard(State.UNSTORED)
            raise
        if size is None:
            await self._refuse(partial)
            self.feed.fail(_wrong_content(self.digest))
            return
        partial.record(Progress(size, size, State.DONE))
        try:
            await self._store.publish(partial, self.digest)
            for repository in tuple(self.repositories):
                await self._store.link_blob(repository, self.digest)
            self.feed.finish(size)
            # Only what is safe on the disk counts as verified after a power cut.
            await self._store.secure(partial, self.digest, size)
        except OSError as error:
            # Everybody has the right bytes, or will have them from the open file.
            self.feed.finish(size)
            _log.warning("a blob was not kept", digest=str(self.digest), error=error.strerror)
            if partial.named():
                partial.remove()

    async def _refuse(self, partial: Partial) -> None:
        """Throw wrong content away, and see to it that the bucket does not give it again."""
        partial.discard(State.BROKEN)
        _log.error("the source sent wrong content", digest=str(self.digest))
        if isinstance(self._source, BucketFirst) and self._source.gave:
            await self._store.forget_mirrored(self.digest, rotten=True)

    async def _sound(self, stored: StoredBlob) -> bool:
        hasher = self.digest.hasher()
        await self._store.in_thread(lambda: hash_file(stored.file.fileno(), hasher))
        return hasher.hexdigest() == self.digest.hex

    async def _bring(self, partial: Partial) -> int | None:
        """Bring all of it into the partial; return the size in bytes, None if it is not right."""
        size = await self._store.named_size(self.digest)
        hasher = self.digest.hasher()
        present = 0
        if not partial.empty():
            present = await self._store.in_thread(lambda: partial.rehash(hasher))
        if size is not None and present >= size:
            if present == size and hasher.hexdigest() == self.digest.hex:
                return size  # all there: the process died before it could say so
            if self.feed.visible:
                return None  # somebody was given some of it: that cannot be mended
            hasher, present = _anew(partial, self.digest)
        try:
            present = await self._download(partial, hasher, present, size)
        except UpstreamError as error:
            if error.status != _RANGE_NOT_SATISFIABLE or not present:
                raise
            if hasher.hexdigest() == self.digest.hex:
                return present  # all there, only nobody knew its size
            if self.feed.visible:
                return None
            # There is more here than the upstream has.
            hasher, present = _anew(partial, self.digest)
            present = await self._download(partial, hasher, present, size)
        return present if hasher.hexdigest() == self.digest.hex else None

    async def _download(
        self, partial: Partial, hasher: _Hash, present: int, size: int | None
    ) -> int:
        """Append what is missing; return the length."""

        async def write(batch: list[bytes]) -> None:
            nonlocal present
            offset = present

            def append() -> int:
                return partial.append(offset, batch, hasher)

            try:
                present = await self._store.in_thread(append)
            except OSError as error:
                wanted = max((download.size or 0) - offset, sum(map(len, batch)))
                if not out_of_room(error) or not await self._store.make_room(wanted):
                    raise
                present = await self._store.in_thread(append)
            partial.record(Progress(download.size, present - 1))
            self.feed.advance(present, download.size)

        async with Download(
            self._source, self._repository, self.digest,
            persistence=self._persistence, start=present, size=size,
        ) as download:  # fmt: skip
            partial.record(Progress(download.size, max(0, present - 1)))
            self.feed.advance(present, download.size)
            async with WriteBehind(write) as behind:
                async for chunk in download.chunks():
                    await behind.put(chunk)
        return present


def _anew(partial: Partial, digest: Digest) -> tuple[_Hash, int]:
    partial.truncate()
    return digest.hasher(), 0


def _wrong_content(digest: Digest) -> BadUpstream:
    return BadUpstream(
        "the upstream sent content that is not what its digest says", detail=str(digest)
    )
