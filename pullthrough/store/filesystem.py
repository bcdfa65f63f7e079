"""The store on local disk: registry:2's layout (see layout.py), files whole or not there.

The files are the truth. Beside them the index holds shortcuts, and memory the few that are hot.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple, TypeVar

import structlog
from aiofiles.base import wrap
from cachetools import LRUCache

from pullthrough.oci import manifest as manifests
from pullthrough.oci.digest import Digest
from pullthrough.oci.errors import DigestInvalid, NameInvalid
from pullthrough.oci.reference import Repository, Tag
from pullthrough.store import index
from pullthrough.store.base import StoredBlob, StoredManifest, StoredTag, names
from pullthrough.store.files import read_bounded, sync_directory, write_whole
from pullthrough.store.index import Index
from pullthrough.store.layout import Layout
from pullthrough.store.locks import Locks
from pullthrough.store.partial import Partial

T = TypeVar("T")

_log = structlog.get_logger()

_DISK_THREADS: Final = 8
_LINK_LIMIT: Final = 256
_KNOWN_LIMIT: Final = 200_000  # digests, some 100 bytes each
_ABANDONED_AFTER: Final = 7 * 24 * 3600.0
"""Seconds: a partial that nobody went on with for so long is not worth its room."""


class Prepared(NamedTuple):
    """A directory that is ready to be a store."""

    layout: Layout
    in_use: int
    """A descriptor to keep open while it is in use, lest a second server sweep under the first."""
    new_index: bool
    """Whether :meth:`FileStore.rebuild_index` is called for."""


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
    return Prepared(layout, in_use, index.prepare(layout.index))


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
    """Implements :class:`pullthrough.store.base.Store` in a directory."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._index = Index(layout.index)
        self._disk = ThreadPoolExecutor(_DISK_THREADS, thread_name_prefix="disk")
        # Hashing a large file takes seconds: nobody who only opens one waits behind it.
        self._content = ThreadPoolExecutor(_DISK_THREADS, thread_name_prefix="content")
        self._verified: LRUCache[Digest, None] = LRUCache(_KNOWN_LIMIT)
        self._linked: LRUCache[tuple[Repository, Digest], None] = LRUCache(_KNOWN_LIMIT)
        self.locks = Locks(layout.locks)

    async def open(self) -> None:
        """Open the index."""
        await self._index.open()

    async def close(self) -> None:
        """Write what is noted, and let go."""
        await self._index.close()
        self._disk.shutdown()
        self._content.shutdown()
        self.locks.close()

    async def flush(self) -> None:
        """Write the uses noted since the last time."""
        await self._index.flush()

    async def healthy(self) -> bool:
        """Whether the store's directories answer."""
        return await self._run(self._layout.blobs.is_dir)

    async def _run(self, work: Callable[[], T]) -> T:
        result: T = await wrap(work)(executor=self._disk)
        return result

    async def in_thread(self, work: Callable[[], int]) -> int:
        """Run work on content beside the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._content, work)

    # -- blobs -----------------------------------------------------------------------------------

    async def open_blob(self, digest: Digest) -> StoredBlob | None:
        """Open what is here under ``digest``."""
        path = self._layout.blob(digest)

        def work() -> tuple[StoredBlob | None, bool]:
            try:
                # The reader's, who closes it.
                file = path.open("rb", buffering=0)
            except (FileNotFoundError, NotADirectoryError):
                return None, False
            return StoredBlob(file, os.fstat(file.fileno()).st_size, verified=True), True

        blob, found = await self._run(work)
        if found and blob is not None:
            blob.verified = await self._is_verified(digest)
            self._index.touch(digest)
        return blob

    async def blob_size(self, digest: Digest) -> int | None:
        """Return the size in bytes of what is here, else None."""
        path = self._layout.blob(digest)

        def work() -> int | None:
            try:
                return path.stat().st_size
            except (FileNotFoundError, NotADirectoryError):
                return None

        return await self._run(work)

    async def named_size(self, digest: Digest) -> int | None:
        """Return the size in bytes that a cached manifest gives for ``digest``."""
        return await self._index.size_of(digest)

    async def open_partial(self, digest: Digest) -> Partial:
        """Open the unfinished content of ``digest``, or begin it; raises :class:`OSError`."""
        return await self._run(lambda: Partial.open(self._layout, digest))

    async def publish(self, partial: Partial, digest: Digest) -> None:
        """Give verified content its name; raises :class:`OSError`."""
        await self._run(lambda: partial.publish(self._layout.blob(digest)))

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
        path = self._layout.blob(digest)
        aside = self._layout.quarantine / f"{digest.algorithm}-{digest.hex}"
        _log.error("content is not what its digest says, set aside", digest=str(digest))

        def work() -> None:
            aside.parent.mkdir(exist_ok=True)
            # Another worker may have seen it too, and have put sound content here since.
            if file is None or os.path.samestat(os.fstat(file.fileno()), path.stat()):
                path.replace(aside)

        self._verified.pop(digest, None)
        try:
            await self._run(work)
        except FileNotFoundError:
            return  # another worker saw it too
        await self._index.forget_blob(digest)

    async def link_blob(self, repository: Repository, digest: Digest) -> None:
        """Let the repository have the blob, if the repository is a known one."""
        await self._link(repository, digest, self._layout.layer_link)

    async def _is_verified(self, digest: Digest) -> bool:
        if digest not in self._verified:
            if not await self._index.verified(digest):
                return False
            self._verified[digest] = None
        return True

    async def _link(
        self, repository: Repository, digest: Digest, path: Callable[[Repository, Digest], Path]
    ) -> None:
        """Write a link where the repository is one that the upstream is known to have."""
        key = (repository, digest)
        if key in self._linked:
            return
        link = path(repository, digest)
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
            if await self._run(work):
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
            revision = layout.revision_link(repository, digest)
            if not layout.blob(digest).exists():
                write_whole(layout.blob(digest), manifest.content, temporary=layout.temporary)
            if not revision.exists():
                write_whole(revision, text, temporary=layout.temporary, durable=False)
            # What another repository brought is this one's too; the rest is linked as it comes.
            for blob in manifest.parsed.blobs:
                link = layout.layer_link(repository, blob.digest)
                if layout.blob(blob.digest).exists() and not link.exists():
                    write_whole(
                        link, str(blob.digest).encode(), temporary=layout.temporary, durable=False
                    )

        await self._run(work)
        await self._index.add_descriptors(names(manifest.parsed))
        await self.confirm(digest, len(manifest.content))

    async def link_manifest(self, repository: Repository, digest: Digest) -> None:
        """Let the repository have the manifest, if the repository is a known one."""
        await self._link(repository, digest, self._layout.revision_link)

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

        await self._run(work)
        await self._index.set_checked(repository, tag, digest, when)

    async def remove_tag(self, repository: Repository, tag: Tag) -> None:
        """Forget a tag that the upstream no longer has; its manifest stays, by digest."""
        current = self._layout.tag_link(repository, tag)

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
        return await self._run(lambda: tuple(sorted(r.name for r in self._walk())))

    async def rebuild_index(self) -> None:
        """Read the cached manifests again for the sizes that they tell."""

        def work() -> dict[Digest, int]:
            sizes: dict[Digest, int] = {}
            for repository in self._walk():
                revisions = self._layout.repository(repository) / "_manifests" / "revisions"
                for link in revisions.glob("*/*/link"):
                    sizes.update(self._sizes_told_by(link))
            return sizes

        # A thread of its own: a walk over a large store must not hold a disk thread for long.
        try:
            sizes = await asyncio.to_thread(work)
        except OSError as error:
            _log.warning("the index was not rebuilt", why=str(error))
            return
        await self._index.rebuild_from(sizes)

    def _sizes_told_by(self, link: Path) -> dict[Digest, int]:
        try:
            digest = Digest.parse((read_bounded(link, _LINK_LIMIT) or b"").decode().strip())
            content = read_bounded(self._layout.blob(digest), manifests.LIMIT)
            if content is None or not digest.matches(content):
                return {}
            parsed = manifests.parse(content)
        except (DigestInvalid, UnicodeDecodeError, manifests.ManifestInvalid, OSError):
            return {}
        return {d.digest: d.size for d in names(parsed) if d.size is not None}

    def _walk(self) -> Iterator[Repository]:
        root = self._layout.repositories
        for directory, below, _ in os.walk(root):
            if "_manifests" in below:
                try:
                    yield Repository.parse(Path(directory).relative_to(root).as_posix())
                except NameInvalid:
                    continue
            below[:] = [name for name in below if not name.startswith("_")]
