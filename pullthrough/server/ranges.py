"""Byte ranges (RFC 9110, section 14). Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from pullthrough.oci.errors import RangeInvalid

_SPEC: Final = re.compile(r"([0-9]{1,18})?-([0-9]{1,18})?")
_MOST: Final = 256
"""Ranges in one request; a server may ignore a request for more (RFC 9110, section 14.2)."""


@dataclass(frozen=True, slots=True)
class ByteRange:
    """The bytes from ``start`` up to, without, ``end``; ``open`` if no end was asked for."""

    start: int
    end: int
    open: bool = False

    def content_range(self, size: int) -> str:
        """Return the Content-Range header's value."""
        return f"bytes {self.start}-{self.end - 1}/{size}"


def parse(header: str | None, size: int) -> tuple[ByteRange, ...]:
    """Return the ranges asked for, none where the whole is to be sent.

    Raises :class:`RangeInvalid` where all of them lie outside. A header that is not understood is
    ignored, as RFC 9110 wants it.
    """
    if not header or not size:
        return ()
    unit, _, specs = header.partition("=")
    entries = specs.split(",", _MOST)
    if unit.strip().lower() != "bytes" or len(entries) > _MOST:
        return ()
    ranges = []
    for entry in entries:
        match = _SPEC.fullmatch(entry.strip())
        if match is None or match.group(0) == "-":
            return ()
        first, last = match.groups()
        if first is None:
            start, end = max(0, size - int(last)), size
        else:
            start, end = int(first), size if last is None else min(int(last) + 1, size)
            if last is not None and int(last) < start:
                return ()
        if start < end:
            ranges.append(ByteRange(start, end, open=last is None))
    if not ranges:
        raise RangeInvalid(f"the content has {size} bytes", detail=f"bytes */{size}")
    # More than there is means overlaps: to send those is to be used for an attack (section 17.15).
    return tuple(ranges) if sum(each.end - each.start for each in ranges) <= size else ()
