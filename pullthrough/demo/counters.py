"""What the demo's upstream has sent, kept in a file: it outlives an upstream that is killed."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path

_RECORD = struct.Struct("<QQQ")


@dataclass(frozen=True, slots=True)
class Counters:
    """Requests answered, and bytes of their answers' bodies: of all, and of blobs alone."""

    requests: int = 0
    sent: int = 0
    blob_bytes: int = 0

    def __add__(self, other: Counters) -> Counters:
        return Counters(
            self.requests + other.requests,
            self.sent + other.sent,
            self.blob_bytes + other.blob_bytes,
        )

    def __sub__(self, earlier: Counters) -> Counters:
        return Counters(
            self.requests - earlier.requests,
            self.sent - earlier.sent,
            self.blob_bytes - earlier.blob_bytes,
        )


class Meter:
    """Adds up in a file of its own, from zero."""

    def __init__(self, path: Path) -> None:
        self._total = Counters()
        self._file = path.open("wb", buffering=0)
        self.add(Counters())

    def add(self, more: Counters) -> None:
        """Count ``more``; the file says so before this returns."""
        self._total += more
        record = _RECORD.pack(self._total.requests, self._total.sent, self._total.blob_bytes)
        os.pwrite(self._file.fileno(), record, 0)

    def close(self) -> None:
        """Give the file back; what it says stays."""
        self._file.close()


def read(path: Path) -> Counters:
    """Return what the meter at ``path`` has counted so far."""
    return Counters(*_RECORD.unpack(path.read_bytes()))
