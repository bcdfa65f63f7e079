"""What the cache asks of the place where content is kept."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import BinaryIO, Protocol

from pullthrough.oci.digest import Digest
from pullthrough.oci.manifest import Manifest
from pullthrough.oci.reference import Repository, Tag
from pullthrough.store.partial import Partial


@dataclass(slots=True)
class StoredBlob:
    """Content that is here, open for reading; ``size`` in bytes. Whoever got it closes ``file``.

    ``verified`` is False for what somebody else put here: it is to be hashed before it is believed.
    """

    file: BinaryIO
    size: int
    verified: bool


@dataclass(frozen=True, slots=True)
class StoredManifest:
    """A manifest's bytes, which are what their digest says, and what they were parsed to."""

    digest: Digest
    content: bytes
    parsed: Manifest


@dataclass(frozen=True, slots=True)
class StoredTag:
    """What a tag was when the upstream was last asked; ``checked`` is Unix time, 0 if not known."""

    digest: Digest
    checked: float


class Locking(Protocol):
    """Agreement between the processes that share a store."""

    def hold(self, name: str) -> AbstractAsyncContextManager[bool]:
        """Hold a named lock; the value says whether somebody else had to be waited for."""


class BlobStore(Protocol):
    """Content by digest. Methods raise :class:`OSError` only where they write."""

    async def open_blob(self, digest: Digest) -> StoredBlob | None:
        """Open what is here under ``digest``."""

    async def blob_size(self, digest: Digest) -> int | None:
        """Return the size in bytes of what is here or in the bucket, else None."""

    async def named_size(self, digest: Digest) -> int | None:
        """Return the size in bytes that a cached manifest gives for ``digest``, here or not."""

    async def open_partial(self, digest: Digest) -> Partial:
        """Open the unfinished content of ``digest``, or begin it."""

    async def publish(self, partial: Partial, digest: Digest) -> None:
        """Give verified content its name."""

    async def secure(self, partial: Partial, digest: Digest, size: int) -> None:
        """Have what was published survive a power cut, and remember that it was verified."""

    async def confirm(self, digest: Digest, size: int) -> None:
        """Remember that what is here was verified."""

    async def quarantine(self, digest: Digest, file: BinaryIO | None = None) -> None:
        """Set aside what is here, if it still is ``file``: it is not what its digest says."""

    async def link_blob(self, repository: Repository, digest: Digest) -> None:
        """Let the repository have the blob, if the repository is a known one."""

    async def in_thread(self, work: Callable[[], int]) -> int:
        """Run disk work beside the event loop."""

    def touch(self, digest: Digest) -> None:
        """Note a use of content that was not opened here."""

    async def make_room(self, size: int) -> bool:
        """Take away what was not used for longest, until ``size`` bytes more fit."""

    async def mirrored(self, digest: Digest) -> int | None:
        """Return the size in bytes of what is known to be in the bucket."""

    async def forget_mirrored(self, digest: Digest, *, rotten: bool = False) -> None:
        """Remember that the bucket does not have it, or is to lose it for being ``rotten``."""

    async def lend(self, digest: Digest, seconds: float) -> None:
        """Have the bucket keep content that a client was sent there for, for so long."""

    async def not_mirrored(self, digest: Digest) -> bool:
        """Whether the bucket is known not to have it, or to lose it."""


class ManifestStore(Protocol):
    """Manifests and tags."""

    @property
    def generation(self) -> int:
        """Goes up when something that was here is taken away: what memory holds may be wrong."""

    def touch(self, digest: Digest) -> None:
        """Note a use of content that memory held."""

    async def read_manifest(self, digest: Digest) -> StoredManifest | None:
        """Return a manifest that is here and sound."""

    async def write_manifest(self, repository: Repository, manifest: StoredManifest) -> None:
        """Keep a manifest in a repository."""

    async def link_manifest(self, repository: Repository, digest: Digest) -> None:
        """Let the repository have the manifest, if the repository is a known one."""

    async def read_tag(self, repository: Repository, tag: Tag) -> StoredTag | None:
        """Return what a tag was when it was last seen."""

    async def write_tag(
        self, repository: Repository, tag: Tag, digest: Digest, when: float
    ) -> None:
        """Remember that the upstream said at ``when`` (Unix time) that the tag is ``digest``."""

    async def remove_tag(self, repository: Repository, tag: Tag) -> None:
        """Forget a tag that the upstream no longer has."""


class ListingStore(Protocol):
    """Lists as the upstream last gave them, and what is cached."""

    async def read_listing(
        self, repository: Repository, subject: str
    ) -> tuple[bytes, float] | None:
        """Return a listing and when it was seen (Unix time)."""

    async def write_listing(self, repository: Repository, subject: str, body: bytes) -> None:
        """Remember a listing."""

    async def cached_tags(self, repository: Repository) -> tuple[str, ...]:
        """Return the tags that are cached, sorted."""

    async def repositories(self) -> tuple[str, ...]:
        """Return the repositories of which something is cached, sorted."""


class Store(BlobStore, ManifestStore, ListingStore, Protocol):
    """All of it."""

    @property
    def locks(self) -> Locking:
        """The locks between the processes that share it."""
