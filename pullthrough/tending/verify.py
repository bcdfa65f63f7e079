"""Everything that is kept, hashed again: on the disk, and in the bucket what is only there."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final, NamedTuple

from pullthrough.oci import manifest as manifests
from pullthrough.oci.digest import Digest
from pullthrough.oci.errors import DigestInvalid
from pullthrough.store.catalogue import Catalogue, Found, Row
from pullthrough.store.files import write_whole
from pullthrough.store.layout import Layout
from pullthrough.store.partial import hash_file
from pullthrough.store.quarantine import set_aside

if TYPE_CHECKING:
    from pullthrough.store.bucket import Bucket

DISK: Final = "disk"
BUCKET: Final = "bucket"
EARLIER: Final = "set aside earlier"


class Rotten(NamedTuple):
    """Content that was not what its digest says; ``size`` in bytes, ``places`` where it was.

    ``left`` is where a sound copy is, "" for nowhere.
    """

    digest: str
    size: int
    places: tuple[str, ...]
    left: str = ""


class Verification:
    """Reads a store beside whoever uses it; for one thread.

    Methods raise OSError, sqlite3.Error and, where there is a bucket, BucketError.
    """

    def __init__(self, layout: Layout, catalogue: Catalogue, bucket: Bucket | None) -> None:
        self._layout, self._catalogue, self._bucket = layout, catalogue, bucket

    def verify(self, row: Row, progressed: Callable[[int], None]) -> Rotten | None:
        """Read what ``row`` says, telling how many bytes; set aside and return what is rotten."""
        digest = Digest.parse(row.digest)
        rotten: list[str] = []
        if row.here:
            if self._disk(digest, row, progressed):
                return None
            rotten.append(DISK)
        if self._bucket is not None and row.there:
            sound = self._in_bucket(self._bucket, digest, progressed)
            if sound:
                self._restore(self._bucket, digest)
                return Rotten(row.digest, row.size, (DISK,), BUCKET) if rotten else None
            rotten.append(BUCKET)
        return Rotten(row.digest, row.size, tuple(rotten)) if rotten else None

    def earlier(self) -> list[Rotten]:
        """Return what was set aside before, is not here again, and is still needed."""
        known = {row.digest for row in self._catalogue.rows()}
        return [
            Rotten(str(digest), path.stat().st_size, (EARLIER,))
            for digest, path in self._set_aside()
            if str(digest) not in known and self._catalogue.repository_of(str(digest)) is not None
        ]

    def discard(self) -> None:
        """Throw away what was set aside and is here again."""
        known = {row.digest for row in self._catalogue.rows()}
        for digest, path in self._set_aside():
            if str(digest) in known:
                path.unlink(missing_ok=True)

    def _disk(self, digest: Digest, row: Row, progressed: Callable[[int], None]) -> bool:
        """Whether what is on the disk is not rotten, be it that it has gone meanwhile."""
        path = self._layout.blob(digest)
        try:
            with path.open("rb", buffering=0) as file:
                # Held as a reader holds it: nobody takes it away meanwhile.
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                if _is_sound(file, digest, progressed):
                    if not row.verified:
                        self._catalogue.set_verified(digest, verified=True)
                    return True
                if not set_aside(self._layout, digest, file):
                    return True
        except (FileNotFoundError, BlockingIOError):
            return True
        if not path.exists():  # else somebody has just fetched it again
            self._catalogue.not_here([row.digest])
        return False

    def _in_bucket(self, bucket: Bucket, digest: Digest, progressed: Callable[[int], None]) -> bool:
        key = self._layout.key(self._layout.blob(digest))
        hasher = digest.hasher()
        with bucket.open(key) as pieces:
            for piece in pieces or ():
                hasher.update(piece)
                progressed(len(piece))
        if pieces is not None and hasher.hexdigest() == digest.hex:
            return True
        if pieces is not None:
            bucket.delete(key)
        self._catalogue.not_there([str(digest)])
        return False

    def _restore(self, bucket: Bucket, digest: Digest) -> None:
        """Have a manifest on the disk, where all of them are."""
        path = self._layout.blob(digest)
        if path.exists() or not any(
            link.kind == "revisions" for link in self._catalogue.links_of(str(digest))
        ):
            return
        content = bucket.get(self._layout.key(path), manifests.LIMIT)
        if content is not None and digest.matches(content):
            write_whole(path, content, temporary=self._layout.temporary)
            self._catalogue.found([Found(str(digest), len(content), time.time())])

    def _set_aside(self) -> Iterator[tuple[Digest, Path]]:
        if not self._layout.quarantine.is_dir():
            return
        for path in self._layout.quarantine.iterdir():
            with contextlib.suppress(DigestInvalid):
                yield Digest.parse(path.name.replace("-", ":", 1)), path


def _is_sound(file: BinaryIO, digest: Digest, progressed: Callable[[int], None]) -> bool:
    hasher, told = digest.hasher(), 0

    def tell(offset: int) -> None:
        nonlocal told
        progressed(offset - told)
        told = offset

    try:
        hash_file(file.fileno(), hasher, progressed=tell)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return False  # a disk that cannot read it back
    return hasher.hexdigest() == digest.hex
