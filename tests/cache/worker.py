"""One worker process's blobs over a real store, and readers that tell what they were given."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Final

from pullthrough.cache.base import BlobReader, FileSlice, Moved, Piece, Served
from pullthrough.cache.blobs import Blobs
from pullthrough.cache.download import Persistence
from pullthrough.cache.mirrored import Mirrored, Redirecting
from pullthrough.oci.digest import Digest
from pullthrough.oci.errors import RegistryError
from pullthrough.oci.manifest import OCI_MANIFEST, Descriptor, Manifest
from pullthrough.oci.reference import Repository
from pullthrough.store.base import StoredManifest
from pullthrough.store.filesystem import FileStore
from pullthrough.store.layout import Layout
from tests.cache.scripted import NAME, FakeMirror, FakeSource, Room, Sleep

TRIES: Final = 3


class Worker:
    """A store and its blobs, as one process has them."""

    def __init__(
        self,
        layout: Layout,
        source: FakeSource,
        mirror: FakeMirror | None = None,
        redirecting: Redirecting | None = None,
    ) -> None:
        self.layout, self.source = layout, source
        self.room = Room()
        self.store = FileStore(layout, make_room=self.room, mirrored=mirror is not None)
        self.sleep = Sleep()
        mirrored = None if mirror is None else Mirrored(self.store, mirror, redirecting)
        self.blobs = Blobs(self.store, source, Persistence(TRIES, self.sleep), mirrored)

    async def close(self) -> None:
        """End it, as a drain does."""
        await self.blobs.close()
        await self.store.close()

    async def open(self, repository: Repository, digest: Digest) -> BlobReader:
        """Return a reader of what is served from here."""
        reader = await self.blobs.open(repository, digest)
        assert not isinstance(reader, Moved)
        return reader

    async def read(self, digest: Digest, start: int = 0, end: int | None = None) -> bytes:
        """Return a blob's bytes; raises what the reader does."""
        reading = Reading(await self.open(NAME, digest), start, end)
        return await reading.whole()

    async def reading(self, digest: Digest, start: int = 0, end: int | None = None) -> Reading:
        """Begin to read."""
        return Reading(await self.open(NAME, digest), start, end)

    async def served(self, digest: Digest) -> Served:
        """Read a blob, and say how it was come by."""
        reading = await self.reading(digest)
        await reading.whole()
        return reading.served

    async def name(self, digest: Digest, size: int, repository: Repository = NAME) -> None:
        """Cache a manifest that gives ``digest`` this size."""
        content = f"{digest} {size}".encode()
        parsed = Manifest(OCI_MANIFEST, blobs=(Descriptor(digest, size, "a/b"),))
        await self.store.write_manifest(
            repository, StoredManifest(Digest.of(content), content, parsed)
        )

    def put(self, digest: Digest, content: bytes) -> Path:
        """Put a file under ``digest``, as registry:2 would have: nobody here has verified it."""
        path = self.layout.blob(digest)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    def leave(self, digest: Digest, content: bytes) -> None:
        """Leave a partial, as a process does that was killed."""
        path = self.layout.partial(digest)
        path.write_bytes(content)
        path.with_name(path.name + ".progress").touch()

    def stored(self, digest: Digest) -> bytes | None:
        """Return what stands under ``digest``."""
        path = self.layout.blob(digest)
        return path.read_bytes() if path.exists() else None

    def partial(self, digest: Digest) -> bytes | None:
        """Return the unfinished content of ``digest``."""
        path = self.layout.partial(digest)
        return path.read_bytes() if path.exists() else None

    def partials(self) -> list[str]:
        """Return the names of all partials' files."""
        return sorted(path.name for path in self.layout.partials.iterdir())


class Reading:
    """A client that reads; what it was given so far is in ``received``."""

    def __init__(self, reader: BlobReader, start: int = 0, end: int | None = None) -> None:
        self.reader = reader
        self.received = b""
        self._task = asyncio.create_task(self._read(start, end))

    @property
    def served(self) -> Served:
        """How it was come by."""
        return self.reader.served

    async def _read(self, start: int, end: int | None) -> None:
        try:
            async for piece in self.reader.pieces(start, end):
                self.received += content_of(piece)
        finally:
            self.reader.close()

    async def whole(self) -> bytes:
        """Return everything; raises what the reader does."""
        await self._task
        return self.received

    async def failure(self) -> RegistryError:
        """Return what it failed with."""
        (result,) = await asyncio.gather(self._task, return_exceptions=True)
        assert isinstance(result, RegistryError), result
        return result

    async def leave(self) -> None:
        """Go away in the middle."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


def content_of(piece: Piece) -> bytes:
    """Return a piece's bytes, as sendfile would send them."""
    if isinstance(piece, bytes):
        return piece
    assert isinstance(piece, FileSlice)
    content = os.pread(piece.file.fileno(), piece.count, piece.offset)
    assert len(content) == piece.count
    return content


def open_files(root: Path) -> list[str]:
    """Return the files under ``root`` that this process has open, deleted ones too."""
    found = []
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            target = str(descriptor.readlink())
        except FileNotFoundError:
            continue  # that of the listing itself
        if target.startswith(str(root)):
            found.append(target)
    return found
