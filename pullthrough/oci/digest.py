"""Content digests (OCI image-spec, descriptor.md, "Digests")."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pullthrough.oci.errors import DigestInvalid

if TYPE_CHECKING:
    from hashlib import _Hash

# The registered algorithms and the length of their lowercase hex. Others cannot be verified, so
# they are refused rather than trusted.
_HEX_LENGTH = {"sha256": 64, "sha512": 128}
_HEX = re.compile(r"[0-9a-f]+")


@dataclass(frozen=True, slots=True)
class Digest:
    """An algorithm and its hex; :meth:`parse` and :meth:`of` alone make one, so it is valid."""

    algorithm: str
    hex: str

    @classmethod
    def parse(cls, text: str) -> Digest:
        """Return the digest that ``text`` spells, else raise :class:`DigestInvalid`."""
        algorithm, _, digits = text.partition(":")
        if len(digits) != _HEX_LENGTH.get(algorithm, -1) or not _HEX.fullmatch(digits):
            raise DigestInvalid(f"not a sha256 or sha512 digest: {text[:160]!r}")
        return cls(algorithm, digits)

    @classmethod
    def of(cls, content: bytes, algorithm: str = "sha256") -> Digest:
        """Return the digest of ``content``."""
        return cls(algorithm, hashlib.new(algorithm, content).hexdigest())

    def hasher(self) -> _Hash:
        """Return a fresh hash of this digest's algorithm."""
        return hashlib.new(self.algorithm)

    def matches(self, content: bytes) -> bool:
        """Whether ``content`` is what this digest names."""
        return Digest.of(content, self.algorithm) == self

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"
