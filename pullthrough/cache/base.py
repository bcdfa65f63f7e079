"""What the cache hands to the server: content, and how it was come by."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from enum import Enum
from typing import BinaryIO, Final, NamedTuple, Protocol

from pullthrough.oci.digest import Digest


class Outcome(Enum):
    """How an answer was come by; the value is the metrics' label."""

    HIT = "hit"  # from here, without asking
    REVALIDATED = "revalidated"  # from here, after the upstream said that it still holds
    MISS = "miss"  # fetched for this client, and stored
    COLLAPSED = "collapsed"  # fetched for another client at the same time
    BYPASS = "bypass"  # fetched, not stored
    STALE = "stale"  # from here, and the upstream could not say whether it still holds


@dataclass(frozen=True, slots=True)
class Served:
    """An outcome, and in a word why (RFC 9211's ``detail``)."""

    outcome: Outcome
    detail: str = ""


HIT: Final = Served(Outcome.HIT)


class ManifestAnswer(NamedTuple):
    """A manifest to serve: a tuple, as one is made for every warm request."""

    digest: Digest
    media_type: str
    content: bytes
    served: Served


@dataclass(frozen=True, slots=True)
class Listing:
    """A list to serve: tags, repositories or, as JSON, referrers."""

    body: bytes
    served: Served


@dataclass(frozen=True, slots=True)
class Moved:
    """A blob that the client is to fetch from the bucket; ``address`` is signed, and a secret."""

    address: str = field(repr=False)
    served: Served = Served(Outcome.HIT, "redirect")


@dataclass(frozen=True, slots=True)
class FileSlice:
    """Bytes of an open file that may be sent as they are."""

    file: BinaryIO
    offset: int
    count: int


Piece = FileSlice | bytes


class BlobReader(Protocol):
    """A blob to serve, perhaps still on its way. Whoever got it closes it."""

    @property
    def digest(self) -> Digest:
        """What is read."""

    @property
    def size(self) -> int | None:
        """The whole in bytes; None where nobody said it before the end."""

    @property
    def served(self) -> Served:
        """How it is come by."""

    def pieces(self, start: int, end: int | None) -> AsyncIterator[Piece]:
        """Give the bytes from ``start`` up to, without, ``end`` (None: all there are).

        Ends cleanly only after all of them; raises :class:`~pullthrough.oci.errors.RegistryError`
        when the rest will not come, or is not what the digest says.
        """

    def close(self) -> None:
        """Let go of it; the fill goes on."""
