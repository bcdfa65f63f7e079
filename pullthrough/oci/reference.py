"""Repository names, tags and references (distribution-spec, "Pulling manifests")."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pullthrough.oci.digest import Digest
from pullthrough.oci.errors import NameInvalid

_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_NAME = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}")
_NAME_LIMIT = 255


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository's name, valid by construction: it can be part of a path."""

    name: str

    @classmethod
    def parse(cls, text: str) -> Repository:
        """Return the repository that ``text`` names, else raise :class:`NameInvalid`."""
        # The length first: the grammar's pattern never sees unbounded input.
        if len(text) > _NAME_LIMIT or not _NAME.fullmatch(text):
            raise NameInvalid(f"not a repository name: {text[:160]!r}")
        return cls(text)

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class Tag:
    """A tag, valid by construction."""

    name: str

    @classmethod
    def parse(cls, text: str) -> Tag:
        """Return the tag that ``text`` names, else raise :class:`NameInvalid`."""
        if not _TAG.fullmatch(text):
            raise NameInvalid(f"not a tag: {text[:160]!r}")
        return cls(text)

    def __str__(self) -> str:
        return self.name


def parse_reference(text: str) -> Tag | Digest:
    """Return the tag or digest that a manifest's ``<reference>`` spells.

    Raises :class:`NameInvalid` or ``DigestInvalid``; only a digest has a colon.
    """
    if ":" in text:
        return Digest.parse(text)
    return Tag.parse(text)


def referrers_tag(digest: Digest) -> Tag:
    """Return the tag of a referrers list (distribution-spec, "Referrers Tag Schema")."""
    return Tag(f"{digest.algorithm[:32]}-{digest.hex[:64]}")
