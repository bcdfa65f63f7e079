"""Unfinished content that worker processes share: one writes, all may read what is there.

Beside the data stands a small progress file. Its flock says who fills, and goes with the process
that held it; its record says how far. So a reader in another process needs nothing but the two
files, and the death of the one who fills is seen by the lock being free.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final, Self

from pullthrough.oci.digest import Digest
from pullthrough.store.files import rename_into
from pullthrough.store.layout import Layout

if TYPE_CHECKING:
    from hashlib import _Hash

_RECORD: Final = struct.Struct("<qqq")
_UNKNOWN: Final = -1
_HASH_BLOCK: Final = 1 << 20


class State(IntEnum):
    """What the one who fills says of it."""

    FILLING = 0
    DONE = 1  # verified: all of it may be read
    BROKEN = 2  # not what the digest says: whoever read of it must not end well
    UNSTORED = 3  # no room to store it: go on without


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a fill is: ``size`` in bytes where known; bytes before ``visible`` may be read."""

    size: int | None = None
    visible: int = 0
    state: State = State.FILLING


class Partial:
    """One digest's unfinished content, open in this process."""

    def __init__(self, path: Path, digest: Digest, data: BinaryIO, progress: int) -> None:
        self._path = path
        self._digest = digest
        self.data = data
        self._progress = progress
        self.owned = False

    @classmethod
    def open(cls, layout: Layout, digest: Digest) -> Self:
        """Open what there is of ``digest``, or begin it; raises :class:`OSError`."""
        path = layout.partial(digest)
        while True:
            progress = os.open(_beside(path), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                data = os.fdopen(
                    os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644), "r+b", buffering=0
                )
            except BaseException:
                os.close(progress)
                raise
            # Readers keep this file open when it has its name: it is not taken away under them.
            fcntl.flock(data, fcntl.LOCK_SH)
            partial = cls(path, digest, data, progress)
            # Between the two opens a fill may have ended and taken one of the names away.
            if partial.named():
                return partial
            partial.close()

    def acquire(self) -> bool:
        """Become the one who fills, if nobody else is."""
        if not self.owned:
            try:
                fcntl.flock(self._progress, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            self.owned = True
        return True

    def named(self) -> bool:
        """Whether these files are still the ones that others would open."""
        return _same(self._progress, _beside(self._path)) and _same(self.data.fileno(), self._path)

    def release(self) -> None:
        """Let somebody else fill on from here."""
        if self.owned:
            self.owned = False
            fcntl.flock(self._progress, fcntl.LOCK_UN)

    def progress(self) -> Progress:
        """Return what the record says now."""
        record = os.pread(self._progress, _RECORD.size, 0)
        if len(record) < _RECORD.size:
            return Progress()
        size, visible, state = _RECORD.unpack(record)
        if visible > os.fstat(self.data.fileno()).st_size:
            return Progress()  # it outlived its data: a crash came between the two
        return Progress(None if size == _UNKNOWN else size, visible, State(state))

    def record(self, progress: Progress) -> None:
        """Tell the other processes."""
        size = _UNKNOWN if progress.size is None else progress.size
        record = _RECORD.pack(size, progress.visible, progress.state)
        os.pwrite(self._progress, record, 0)

    def empty(self) -> bool:
        """Whether nothing has come yet."""
        return os.fstat(self.data.fileno()).st_size == 0

    def rehash(self, hasher: _Hash) -> int:
        """Feed all that is here to ``hasher``, in a thread, and return how many bytes that was."""
        return hash_file(self.data.fileno(), hasher)

    def append(self, offset: int, chunks: Sequence[bytes], hasher: _Hash) -> int:
        """Write ``chunks`` at ``offset``, hash them, and return the new length; in a thread."""
        descriptor = self.data.fileno()
        # A disk that is nearly full writes some of it, and fails the next time.
        views = [memoryview(chunk) for chunk in chunks]
        while views:
            written = os.pwritev(descriptor, views[:512], offset)
            offset += written
            while views and written >= len(views[0]):
                written -= len(views.pop(0))
            if views and written:
                views[0] = views[0][written:]
        # After the write: one that failed for want of room can be made again.
        for chunk in chunks:
            hasher.update(chunk)
        return offset

    def truncate(self) -> None:
        """Begin anew: what is here is not what the upstream has."""
        self.data.truncate(0)
        self.record(Progress())

    def publish(self, target: Path) -> None:
        """Give the verified content its name; raises :class:`OSError`."""
        rename_into(self._path, target, durable=False)
        _beside(self._path).unlink(missing_ok=True)

    def discard(self, state: State) -> None:
        """Take the files away, leaving word for those who have them open."""
        self.record(Progress(None, 0, state))
        self.remove()

    def remove(self) -> None:
        """Take the files away; what the record says stays for those who have them open."""
        self._path.unlink(missing_ok=True)
        _beside(self._path).unlink(missing_ok=True)

    def close(self) -> None:
        """Close this process's view; a lock that it held goes with it."""
        self.data.close()
        os.close(self._progress)


def hash_file(
    descriptor: int,
    hasher: _Hash,
    *,
    end: int | None = None,
    progressed: Callable[[int], None] | None = None,
) -> int:
    """Feed a file's bytes before ``end`` to ``hasher``, telling how many; return their number."""
    offset = 0
    while end is None or offset < end:
        count = _HASH_BLOCK if end is None else min(_HASH_BLOCK, end - offset)
        block = os.pread(descriptor, count, offset)
        if not block:
            break
        hasher.update(block)
        offset += len(block)
        if progressed is not None:
            progressed(offset)
    return offset


def _beside(path: Path) -> Path:
    return path.with_name(path.name + ".progress")


def _same(descriptor: int, path: Path) -> bool:
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(descriptor), there)
