"""What goes before any content: fills that nobody goes on with, and what was set aside."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from pullthrough.store.layout import Layout

_PROGRESS = ".progress"


def filling(layout: Layout) -> int:
    """Return the bytes of fills under way or to be gone on with, and of what was set aside."""
    return sum(
        status.st_size
        for directory in (layout.partials, layout.quarantine)
        for _, status in _files(directory)
    )


def clear(layout: Layout, wanted: int) -> int:
    """Throw away what nobody fills, then what was set aside, the oldest first.

    Ends when ``wanted`` bytes are free; returns how many are. Raises OSError.
    """
    freed = 0
    for directory in (layout.partials, layout.quarantine):
        for path, status in sorted(_files(directory), key=lambda file: file[1].st_mtime):
            if freed >= wanted:
                return freed
            if path.endswith(_PROGRESS):
                continue
            if directory == layout.quarantine:
                Path(path).unlink(missing_ok=True)
                freed += status.st_size
            elif _abandoned(Path(path)):
                freed += status.st_size
    return freed


def _abandoned(path: Path) -> bool:
    """Throw a partial away, unless somebody fills it or reads it; see store/partial.py."""
    beside = path.with_name(path.name + _PROGRESS)
    with contextlib.ExitStack() as stack:
        try:
            # Who opens one holds this, reader or filler; who does so now waits, and begins anew.
            data = stack.enter_context(path.open("rb", buffering=0))
            fcntl.flock(data, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if beside.exists():
                progress = stack.enter_context(beside.open("rb", buffering=0))
                fcntl.flock(progress, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.samestat(os.fstat(data.fileno()), path.stat()):
                return False
        except (FileNotFoundError, BlockingIOError):
            return False
        path.unlink()
        beside.unlink(missing_ok=True)
    return True


def _files(directory: Path) -> Iterator[tuple[str, os.stat_result]]:
    with contextlib.suppress(FileNotFoundError), os.scandir(directory) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                yield entry.path, entry.stat()
