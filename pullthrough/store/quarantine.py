"""Content that is not what its digest says: found out, and set aside rather than thrown away."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import BinaryIO

from pullthrough.oci.digest import Digest
from pullthrough.store.layout import Layout
from pullthrough.store.partial import hash_file


def set_aside(layout: Layout, digest: Digest, file: BinaryIO | None = None) -> bool:
    """Set aside what is on the disk, if it still is ``file``; return whether it was there.

    Raises :class:`OSError`.
    """
    path: Path = layout.blob(digest)
    layout.quarantine.mkdir(exist_ok=True)
    try:
        # Another process may have seen it too, and have put sound content here since.
        if file is not None and not os.path.samestat(os.fstat(file.fileno()), path.stat()):
            return False
        path.replace(layout.quarantine / f"{digest.algorithm}-{digest.hex}")
    except FileNotFoundError:
        return False
    return True


def throw_away(layout: Layout, before: float) -> None:
    """Throw away what was set aside before a time (Unix): nobody came to look at it."""
    with contextlib.suppress(FileNotFoundError):
        for file in layout.quarantine.iterdir():
            with contextlib.suppress(FileNotFoundError):
                if file.stat().st_ctime < before:
                    file.unlink()


def sound(file: BinaryIO, digest: Digest) -> bool:
    """Whether a file's content is what ``digest`` says; raises :class:`OSError`."""
    hasher = digest.hasher()
    hash_file(file.fileno(), hasher)
    return hasher.hexdigest() == digest.hex
