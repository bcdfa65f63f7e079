"""Locks between worker processes: byte ranges of one file, gone with the process that held them."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

_FIRST_WAIT: Final = 0.002
_LONGEST_WAIT: Final = 0.05


class Locks:
    """Named locks. Within a process the caller sees to it that a name is asked for once at a time.

    POSIX record locks belong to a process: a second claim of the same process would succeed.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)

    @asynccontextmanager
    async def hold(self, name: str) -> AsyncIterator[bool]:
        """Hold ``name``; the value says whether somebody else had to be waited for."""
        # 62 bits: an offset has 63, and two names that meet only wait for each other.
        place = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 2
        waited, pause = False, _FIRST_WAIT
        while not self._claim(place):
            waited = True
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_WAIT)
        try:
            yield waited
        finally:
            fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 1, place)

    def _claim(self, place: int) -> bool:
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
        except (BlockingIOError, PermissionError):
            return False
        return True

    def close(self) -> None:
        """Let all of them go."""
        os.close(self._descriptor)
