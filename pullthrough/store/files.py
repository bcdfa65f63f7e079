"""Files that are whole or not there: temporary name, fsync, rename."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""What the system says when nothing more can be written."""


_RACES = 16


def out_of_room(error: OSError) -> bool:
    """Whether ``error`` says that the disk, or the quota on it, is full."""
    return error.errno in NO_ROOM


def write_whole(path: Path, content: bytes, *, temporary: Path, durable: bool = True) -> None:
    """Write ``content`` to ``path`` at once or not at all, via ``temporary`` on the same disk.

    Raises :class:`OSError`; nothing is left behind then.
    """
    descriptor, name = tempfile.mkstemp(dir=temporary)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        Path(name).chmod(
            0o644
        )  # mkstemp's 0600 would lock out another program on the same directory
        rename_into(Path(name), path, durable=durable)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def rename_into(source: Path, target: Path, *, durable: bool = True) -> None:
    """Rename, making the directories above ``target``, and have the name survive a power cut."""
    for _ in range(_RACES):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            source.rename(target)
        except (FileNotFoundError, FileExistsError):
            # An empty directory may be taken away at any time; the source is there, or never was.
            source.stat()
        else:
            break
    else:
        raise OSError(errno.EBUSY, "its directory is taken away again and again")
    if durable:
        sync_directory(target.parent)


def sync_directory(path: Path) -> None:
    """Have the names in a directory survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_bounded(path: Path, limit: int) -> bytes | None:
    """Return a file's content, None if it is not there or has more than ``limit`` bytes."""
    try:
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return None if len(content) > limit else content
