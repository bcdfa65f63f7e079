"""How amounts of bytes are read from their text: sizes, shares of a disk, rates.

Like those of :mod:`values`, every function raises :class:`values.Invalid`, which quotes nothing.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any, Final, NamedTuple

from pullthrough.config.values import Invalid

LIMIT: Final = 2**63 - 1
"""Bytes of the largest size: what a file system and SQLite can count."""

_PREFIXES = "kmgtp"
_UNITS = (
    {"": 1, "b": 1}
    | {f"{prefix}b": 1000**power for power, prefix in enumerate(_PREFIXES, 1)}
    | {f"{prefix}ib": 1024**power for power, prefix in enumerate(_PREFIXES, 1)}
)
_NUMBER = r"[0-9]{1,20}(?:\.[0-9]{1,9})?"
_SIZE = re.compile(rf"({_NUMBER})([kmgtp]?i?b|)", re.IGNORECASE)
_SHARE = re.compile(rf"({_NUMBER})%")
_WHOLE_DISK = 100


class Share(NamedTuple):
    """A part of the disk that something is on: more than 0 and at most 100 ``percent``."""

    percent: float


Bound = int | Share
"""How much may be kept: bytes, or a share of the disk."""


def bound(value: Any) -> Bound:
    """Return a :data:`Bound` from ``20GiB``, ``500MB``, bytes or ``80%``, or as it is."""
    if isinstance(value, Share):
        return value
    if isinstance(value, str) and (share := _SHARE.fullmatch(value)):
        percent = float(share[1])
        if not 0 < percent <= _WHOLE_DISK:
            raise Invalid("must be more than 0% and at most 100%")
        return Share(percent)
    return _bytes(value, "not a size like 20GiB, 500MB or 80%")


def rate(value: Any) -> int:
    """Return bytes a second from ``20MiB/s`` or ``20MiB``, or as they are."""
    text = value.removesuffix("/s") if isinstance(value, str) else value
    return _bytes(text, "not a rate like 20MiB/s")


def _bytes(value: Any, message: str) -> int:
    if isinstance(value, str):
        written = _SIZE.fullmatch(value)
        if not written or (unit := _UNITS.get(written[2].lower())) is None:
            raise Invalid(message)
        value = int(Decimal(written[1]) * unit)
    if not isinstance(value, int):
        raise Invalid("expected a single value")
    if value <= 0:
        raise Invalid("must be more than 0")
    if value > LIMIT:
        raise Invalid("larger than 8 EiB")
    return value
