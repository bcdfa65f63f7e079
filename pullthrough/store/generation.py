"""A counter that all processes on a store see: it goes up when something is taken away."""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
from pathlib import Path
from typing import Final

from pullthrough.store.files import out_of_room

_NUMBER: Final = struct.Struct("<q")


class Generation:
    """The counter, mapped: looking at it costs a read of memory, so that every request may."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            if os.fstat(self._descriptor).st_size < _NUMBER.size:
                os.pwrite(self._descriptor, _NUMBER.pack(0), 0)
            self._memory = mmap.mmap(self._descriptor, _NUMBER.size)
        except OSError as error:
            if not out_of_room(error):
                raise
            self._memory = mmap.mmap(-1, _NUMBER.size)  # this process's alone, until the next start

    @property
    def number(self) -> int:
        """The number now."""
        (number,) = _NUMBER.unpack_from(self._memory)
        return int(number)

    def advance(self) -> None:
        """Tell all processes that something was taken away."""
        fcntl.lockf(self._descriptor, fcntl.LOCK_EX)
        try:
            _NUMBER.pack_into(self._memory, 0, self.number + 1)
        finally:
            fcntl.lockf(self._descriptor, fcntl.LOCK_UN)

    def close(self) -> None:
        """Let go."""
        self._memory.close()
        os.close(self._descriptor)
