"""The store on local disk: registry:2's layout (see layout.py), files whole or not there.

The files are the truth. Beside them the index holds shortcuts, and memory the few that are hot.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple, TypeVar

import structlog
from aiofiles.base import wrap
from cachetools import LRUCache, TTLCache

from pullthrough.oci import manifest as manifests
from pullthrough.oci.digest import Digest
from pullthrough.oci.errors import DigestInvalid
from pullthrough.oci.reference import Repository, Tag
from pullthrough.store import index
from pullthrough.store.base import StoredBlob, StoredManifest, StoredTag
from pullthrough.store.files import out_of_room, read_bounded, sync_directory, write_whole
from pullthrough.store.generation import Generation
from pullthrough.store.index import MIRROR_KNOWN, Index
from pullthrough.store.layout import Layout, repositories
from pullthrough.store.locks import Locks
from pullthrough.store.partial import Partial
from pullthrough.store.quarantine import set_aside
from pullthrough.store.reconcile import named_by

T = TypeVar("T")

_log = structlog.get_logger()

_DISK_THREADS: Final = 8
_LINK_LIMIT: Final = 256
_KNOWN_LIMIT: Final = 200_000  # digests, some 100 bytes each
_LITTLE: Final = 64 << 10
"""Bytes: what is made room for where a link or a manifest found none."""
_LENT_ANEW: Final = 600.0
"""Seconds after which it is said again that content is lent."""
_HOPELESS_FOR: Final = 5.0
"""Seconds for which a full disk stays full where nothing could be taken away."""
_ABANDONED_AFTER: Final = 7 * 24 * 3600.0
"""Seconds: a partial that nobody went on with for so long is not worth its room."""


class Prepared(NamedTuple):
    """A directory that is ready to be a store."""

    layout: Layout
    in_use: int
    """A descriptor to keep open while it is in use, lest a second server sweep under the first."""


def prepare(root: Path) -> Prepared:
    """Make the directories, sweep what a crash left, before any worker runs; raises OSError."""
    layout = Layout(root)
    for directory in (layout.blobs, layout.repositories, layout.partials, layout.temporary):
        directory.mkdir(parents=True, exist_ok=True)
    in_use = os.open(layout.own / "in-use", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(in_use, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        _log.info("the store is in use by another server too, not swept")
    else:
        _sweep(layout)
    fcntl.flock(in_use, fcntl.LOCK_SH)
    index.prepare(layout.index)
    return Prepared(layout, in_use)


def _sweep(layout: Layout) -> None:
    for leftover in layout.temporary.iterdir():
        leftover.unlink(missing_ok=True)
    horizon = time.time() - _ABANDONED_AFTER
    for partial in layout.partials.iterdir():
        data = partial.with_name(partial.name.removesuffix(".progress"))
        # A partial is kept: the fill goes on from it. Half a pair, or an abandoned one, is not.
        if not data.exists() or partial.stat().st_mtime < horizon:
            partial.unlink(missing_ok=True)


class FileStore:
    """Implements :class:`pullthrough.store.base.Store` in a directory.

    ``make_room`` frees so many bytes, in a thread, and says whether it could. ``mirrored``: what is
    here is also kept in a bucket.
    """

    def __init__(
        self,
        layout: Layout,
        *,
        make_room: Callable[[int], bool] = lambda _: False,
        mirrored: bool = False,
    ) -> None:
        self._layout = layout
        self._make_room, self._mirrored = make_room, mirrored
        self._index = Index(layout.index)
        self._disk = ThreadPoolExecutor(_DISK_THREADS, thread_name_prefix="disk")
        # Hashing a large file takes seconds: nobody who only opens one waits behind it.
        self._content = ThreadPoolExecutor(_DISK_THREADS, thread_name_prefix="content")
        self._room = ThreadPoolExecutor(1, thread_name_prefix="room")
        self._no_room_until = 0.0
        self._lent: TTLCache[Digest, None] = TTLCache(_KNOWN_LIMIT, _LENT_ANEW)
        self._verified: LRUCache[Digest, None] = LRUCache(_KNOWN_LIMIT)
        self._linked: LRUCache[tuple[Repository, Digest], None] = LRUCache(_KNOWN_LIMIT)
        self.locks = Locks(layout.locks)
        self._generation = Generation(layout.generation)
        self._seen = self._generation.number

    async def open(self) -> None:
        """Open the index."""
        await self._index.open()

    async def close(self) -> None:
        """Write what is noted, and let go."""
        await self._index.close()
        self._disk.shutdown()
        self._content.shutdown()
        self._room.shutdown()
        self._generation.close()
        self.locks.close()

    async def flush(self) -> None:
        """Write the uses noted since the last time."""
        await self._index.flush()

    async def healthy(self) -> bool:
        """Whether the store's directories answer."""
        return await self._run(self._layout.blobs.is_dir)

    @property
    def generation(self) -> int:
        """Goes up when something that was here is taken away: what memory holds may be wrong."""
        return self._generation.number

    def touch(self, digest: Digest) -> None:
        """Note a use of content that memory held."""
        self._index.touch(digest)

    async def make_room(self, size: int) -> bool:
        """Take away what was not used for longest, until ``size`` bytes more fit."""
        loop = asyncio.get_running_loop()
        if loop.time() < self._no_room_until:
            return False
        # A thread of its own: nobody who only opens a file waits behind it.
        made = await loop.run_in_executor(self._room, self._make_room, size)
        if not made:
            self._no_room_until = loop.time() + _HOPELESS_FOR
        return made

    async def _run(self, work: Callable[[], T]) -> T:
        result: T = await wrap(work)(executor=self._disk)
        return result

    async def _write(self, work: Callable[[], T]) -> T:
        """Run what writes a little; where there is no room for it, make some and try again."""
        try:
            return await self._run(work)
        except OSError as error:
            if not out_of_room(error) or not await self.make_room(_LITTLE):
                raise
            return await self._run(work)

    async def in_thread(self, work: Callable[[], int]) -> int:
        """Run work on content beside the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._content, work)

    # -- blobs -----------------------------------------------------------------------------------

    async def open_blob(self, digest: Digest) -> StoredBlob | None:
        """Open what is here under ``digest``."""
        path = self._layout.blob(digest)

        def work() -> StoredBlob | None:
            try:
                # The reader's, who closes it.
                file = path.open("rb", buffering=0)
            except (FileNotFoundError, NotADirectoryError):
                return None
            try:
                # Held for as long as the file is open: what is read is not taken away.
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                file.close()
                return None  # it is being taken away
            return StoredBlob(file, os.fstat(file.fileno()).st_size, verified=True)

        blob = await self._run(work)
        if blob is not None:
            blob.verified = await self._is_verified(digest)
            self._index.touch(digest)
        return blob

    async def blob_size(self, digest: Digest) -> int | None:
        """Return the size in bytes of what is here or in the bucket, else None."""
        path = self._layout.blob(digest)

        def work() -> int | None:
            try:
                return path.stat().st_size
            except (FileNotFoundError, NotADirectoryError):
                return None

        size = await self._run(work)
        return size if size is not None or not self._mirrored else await self.mirrored(digest)

    async def mirrored(self, digest: Digest) -> int | None:
        """Return the size in bytes of what is known to be in the bucket."""
        return await self._index.there(digest)

    async def forget_mirrored(self, digest: Digest, *, rotten: bool = False) -> None:
        """Remember that the bucket does not have it, or is to lose it for being ``rotten``."""
        if rotten:
            await self._index.bury(self._layout.key(self._layout.blob(digest)))
        await self._index.not_there(digest)

    async def lend(self, digest: Digest, seconds: float) -> None:
        """Have the bucket keep content that a client was sent there for, for so long."""
        if digest not in self._lent:  # one write for many clients, well before it runs out
            self._lent[digest] = None
            await self._index.lend(digest, time.time() + 2 * seconds)

    async def not_mirrored(self, digest: Digest) -> bool:
        """Whether the bucket is known not to have it, or to lose it."""
        key = self._layout.key(self._layout.blob(digest))
        return await self._index.noted(MIRROR_KNOWN) is not None or await self._index.buried(key)

    async def named_size(self, digest: Digest) -> int | None:
        """Return the size in bytes that a cached manifest gives for ``digest``."""
        return await self._index.size_of(digest)

    async def open_partial(self, digest: Digest) -> Partial:
        """Open the unfinished content of ``digest``, or begin it; raises :class:`OSError`."""
        return await self._write(lambda: Partial.open(self._layout, digest))

    async def publish(self, partial: Partial, digest: Digest) -> None:
        """Give verified content its name; raises :class:`OSError`."""
        await self._write(lambda: partial.publish(self._layout.blob(digest)))

    async def secure(self, partial: Partial, digest: Digest, size: int) -> None:
        """Have what was published survive a power cut; raises :class:`OSError`.

        Until then the index does not call it verified: a file that a power cut tore is found out at
        its first use.
        """

        def work() -> None:
            os.fsync(partial.data.fileno())
            sync_directory(self._layout.blob(digest).parent)

        await self._run(work)
        await self.confirm(digest, size)

    async def confirm(self, digest: Digest, size: int) -> None:
        """Remember that what is here was verified."""
        self._verified[digest] = None
        await self._index.add_blob(digest, size)

    async def quarantine(self, digest: Digest, file: BinaryIO | None = None) -> None:
        """Set aside what is here, if it still is ``file``: it is not what its digest says."""
        if await self._run(lambda: set_aside(self._layout, digest, file)):
            _log.error("content is not what its digest says, set aside", digest=str(digest))
            self._verified.pop(digest, None)
            await self._index.forget_blob(digest)

    async def link_blob(self, repository: Repository, digest: Digest) -> None:
        """Let the repository have the blob, if the repository is a known one."""
        await self._link(repository, digest, "layers")

    def _keep_up(self) -> None:
        """Forget what memory holds when something was taken away."""
        if self._seen != self._generation.number:
            self._seen = self._generation.number
            self._linked.clear()
            self._verified.clear()

    async def _is_verified(self, digest: Digest) -> bool:
        self._keep_up()
        if digest not in self._verified:
            if not await self._index.verified(digest):
                return False
            self._verified[digest] = None
        return True

    async def _link(self, repository: Repository, digest: Digest, kind: str) -> None:
        """Write a link where the repository is one that the upstream is known to have."""
        self._keep_up()
        key = (repository, digest)
        if key in self._linked:
            return
        link = self._layout.link(repository, kind, digest)
        known = self._layout.repository(repository) / "_manifests"

        def work() -> bool:
            if not known.is_dir():
                return False
            if not link.exists():
                # A lost link is written again at the next start: not worth a sync.
                write_whole(
                    link, str(digest).encode(), temporary=self._layout.temporary, durable=False
                )
            return True

        try:
            if await self._write(work):
                await self._index.add_link(repository, digest, kind)
                self._linked[key] = None
        except OSError as error:
            _log.warning("link not written", error=str(error))

    # -- manifests and tags ----------------------------------------------------------------------

    async def read_manifest(self, digest: Digest) -> StoredManifest | None:
        """Return a manifest that is here and sound; one that is not sound is set aside."""
        path = self._layout.blob(digest)
        content = await self._run(lambda: read_bounded(path, manifests.LIMIT))
        if content is None:
            return None
        if not digest.matches(content):
            await self.quarantine(digest)
            return None
        try:
            parsed = manifests.parse(content)
        except manifests.ManifestInvalid:
            return None  # a blob, rightly here, but no manifest
        self._index.touch(digest)
        return StoredManifest(digest, content, parsed)

    async def write_manifest(self, repository: Repository, manifest: StoredManifest) -> None:
        """Keep a manifest in a repository; raises :class:`OSError`."""
        digest, layout = manifest.digest, self._layout
        text = str(digest).encode()

        def work() -> None:
            revision = layout.link(repository, "revisions", digest)
            if not layout.blob(digest).exists():
                write_whole(layout.blob(digest), manifest.content, temporary=layout.temporary)
            if not revision.exists():
                write_whole(revision, text, temporary=layout.temporary, durable=False)
            # What another repository brought is this one's too; the rest is linked as it comes.
            for blob in manifest.parsed.blobs:
                link = layout.link(repository, "layers", blob.digest)
                if layout.blob(blob.digest).exists() and not link.exists():
                    write_whole(
                        link, str(blob.digest).encode(), temporary=layout.temporary, durable=False
                    )

        await self._write(work)
        self._verified[digest] = None
        await self._index.add_manifest(
            repository, digest, len(manifest.content), named_by(manifest.parsed)
        )

    async def link_manifest(self, repository: Repository, digest: Digest) -> None:
        """Let the repository have the manifest, if the repository is a known one."""
        await self._link(repository, digest, "revisions")

    async def read_tag(self, repository: Repository, tag: Tag) -> StoredTag | None:
        """Return what a tag was when it was last seen."""
        path = self._layout.tag_link(repository, tag)
        content = await self._run(lambda: read_bounded(path, _LINK_LIMIT))
        if content is None:
            return None
        try:
            digest = Digest.parse(content.decode("ascii", "replace").strip())
        except DigestInvalid:
            _log.warning("a tag's link holds no digest", repository=str(repository), tag=str(tag))
            return None
        return StoredTag(digest, await self._index.checked(repository, tag, digest))

    async def write_tag(
        self, repository: Repository, tag: Tag, digest: Digest, when: float
    ) -> None:
        """Remember what the upstream said of a tag at ``when``; raises :class:`OSError`."""
        layout, text = self._layout, str(digest).encode()
        current = layout.tag_link(repository, tag)

        def work() -> None:
            if read_bounded(current, _LINK_LIMIT) == text:
                return
            history = layout.tag_index_link(repository, tag, digest)
            write_whole(history, text, temporary=layout.temporary, durable=False)
            write_whole(current, text, temporary=layout.temporary)

        await self._write(work)
        await self._index.set_checked(repository, tag, digest, when, layout.key(current))

    async def remove_tag(self, repository: Repository, tag: Tag) -> None:
        """Forget a tag that the upstream no longer has; its manifest stays, by digest."""
        current = self._layout.tag_link(repository, tag)
        if self._mirrored:  # noted first, or a crash in between would bring it back
            await self._index.bury(self._layout.key(current))

        def work() -> None:
            current.unlink(missing_ok=True)
            if current.parent.is_dir():
                sync_directory(current.parent)

        await self._run(work)
        await self._index.forget_tag(repository, tag)

    # -- listings --------------------------------------------------------------------------------

    async def read_listing(
        self, repository: Repository, subject: str
    ) -> tuple[bytes, float] | None:
        """Return a listing and when it was seen."""
        return await self._index.listing(repository, subject)

    async def write_listing(self, repository: Repository, subject: str, body: bytes) -> None:
        """Remember a listing."""
        await self._index.set_listing(repository, subject, body)

    async def cached_tags(self, repository: Repository) -> tuple[str, ...]:
        """Return the tags that are cached, sorted."""
        directory = self._layout.tags(repository)

        def work() -> tuple[str, ...]:
            if not directory.is_dir():
                return ()
            found = (
                entry.name for entry in directory.iterdir() if (entry / "current/link").is_file()
            )
            return tuple(sorted(found))

        return await self._run(work)

    async def repositories(self) -> tuple[str, ...]:
        """Return the repositories of which a manifest is cached, sorted."""
        return await self._run(lambda: tuple(sorted(r.name for r in repositories(self._layout))))
