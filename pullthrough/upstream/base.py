"""What the cache asks of a source of content, and the ways in which one can fail."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from pullthrough.oci.digest import Digest
from pullthrough.oci.reference import Repository, Tag


class Failure(Enum):
    """Why a source gave no content; the value is the ``detail`` that clients and metrics see."""

    NOT_FOUND = "not-found"  # a registry's own 404
    POLICY = "policy"  # 412: Harbor's vulnerability or signature policy
    UNAUTHORIZED = "unauthorized"  # 401 with a credential, or without one where none is configured
    FORBIDDEN = "forbidden"  # 403
    RATE_LIMITED = "rate-limited"  # 429
    SERVER_ERROR = "server-error"  # 5xx
    REFUSED = "refused"  # no connection: refused, unreachable, no such name, TLS
    TIMEOUT = "timeout"  # connected but silent, or too late
    CUT = "cut"  # ended in the middle of an answer
    INVALID = "invalid"  # came whole, but is not what its digest, size or media type says
    NOT_A_REGISTRY = "not-a-registry"  # an answer that no registry gives: a portal's page
    DOWN = "down"  # not asked: the breaker is open
    RESTED = "credential-rested"  # not asked: the credential was refused too often


class UpstreamError(Exception):
    """A source gave no content. The message holds no secret; ``retry_after`` is in seconds."""

    def __init__(
        self,
        failure: Failure,
        message: str,
        *,
        status: int | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.failure = failure
        self.status = status
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class Credential:
    """A login at a registry."""

    username: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class ManifestHead:
    """What HEAD of a manifest says."""

    digest: Digest


@dataclass(frozen=True, slots=True)
class FetchedManifest:
    """A manifest as it came: ``claimed`` is its Docker-Content-Digest, not yet believed."""

    content: bytes
    content_type: str
    claimed: Digest | None


class BlobBody(Protocol):
    """An open download of a blob."""

    @property
    def start(self) -> int:
        """Offset in bytes of the first byte that :meth:`read` gives: 0 where Range was ignored."""

    @property
    def size(self) -> int | None:
        """The whole blob's size in bytes, where the source said it."""

    async def read(self) -> bytes:
        """Return the next bytes as they came, ``b""`` at a clean end.

        Raises :class:`UpstreamError` CUT or TIMEOUT (the stall limit).
        """


class BlobSource(Protocol):
    """Where blobs come from."""

    def get_blob(
        self, repository: Repository, digest: Digest, *, start: int = 0, end: int | None = None
    ) -> AbstractAsyncContextManager[BlobBody]:
        """Open a download from byte ``start`` up to, without, ``end`` (None: the rest).

        Raises :class:`UpstreamError`; for the status that says so a range that is not there.
        """


class Mirror(BlobSource, Protocol):
    """A bucket that has copies of blobs."""

    async def size(self, digest: Digest) -> int | None:
        """Return a blob's size in bytes, None where it has none; raises :class:`UpstreamError`."""

    async def address(self, digest: Digest) -> str:
        """Return where a client may fetch the blob, for some minutes."""


class Source(Protocol):
    """A registry to get content from. Every method raises :class:`UpstreamError`."""

    @property
    def up(self) -> bool:
        """False while the breaker counts the source as down."""

    def overdue(self) -> None:
        """Say that an answer is late: the source counts as down until one comes."""

    async def head_manifest(self, repository: Repository, reference: Tag | Digest) -> ManifestHead:
        """Ask which digest ``reference`` has now."""

    async def get_manifest(
        self, repository: Repository, reference: Tag | Digest
    ) -> FetchedManifest:
        """Fetch a manifest.

        Of one larger than :data:`pullthrough.oci.manifest.LIMIT`, a byte more than that, which no
        parse accepts.
        """

    async def head_blob(self, repository: Repository, digest: Digest) -> int:
        """Return a blob's size in bytes."""

    def get_blob(
        self, repository: Repository, digest: Digest, *, start: int = 0, end: int | None = None
    ) -> AbstractAsyncContextManager[BlobBody]:
        """Open a download from byte ``start`` up to, without, ``end`` (None: to the blob's end)."""

    async def tags(self, repository: Repository) -> tuple[str, ...]:
        """Return all the repository's tags."""

    async def referrers(self, repository: Repository, digest: Digest) -> bytes | None:
        """Return the image index of ``digest``'s referrers, None without a referrers API."""
