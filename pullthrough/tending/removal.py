"""Taking content away, with all that is said of it: never while it is read.

Only the disk is touched here. What is to leave a bucket as well is noted in the index, and deleted
by who keeps the bucket in step (uploads.py): nobody waits for a bucket that is slow, or away.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from pullthrough.oci.digest import Digest
from pullthrough.oci.reference import Repository, Tag
from pullthrough.store.catalogue import Catalogue, LinkRow, TagRow
from pullthrough.store.generation import Generation
from pullthrough.store.layout import Layout, blob_name
from pullthrough.store.reconcile import digest_in

_BATCH: Final = 500
_AT_ONCE: Final = 4
"""Threads: a disk takes its time over each file and directory."""
_LOOK_EVERY: Final = 0.01


class Removal:
    """Takes content away; one at a time over all processes: see :func:`tending`.

    ``mirrored``: there is a bucket, which is to lose what goes altogether. What went is told to all
    processes. Methods raise OSError and sqlite3.Error.
    """

    def __init__(self, layout: Layout, catalogue: Catalogue, *, mirrored: bool) -> None:
        self._layout, self._catalogue, self._mirrored = layout, catalogue, mirrored
        self._blobs = str(layout.blobs)
        self._root = len(str(layout.root)) + 1
        self._linking: dict[tuple[str, str], str] = {}

    def altogether(self, digests: Iterable[str]) -> list[str]:
        """Take content away from everywhere, with its links and tags; return what went.

        What is being read or filled stays.
        """
        every, gone, touched = list(digests), list[str](), set[str]()
        for start in range(0, len(every), _BATCH):
            batch = every[start : start + _BATCH]
            tags, links = self._said_of(batch)
            taken: list[str] = []
            try:
                self._take_each(batch, taken, tags, links)
            finally:
                gone += self._forget(
                    taken,
                    [tag for each in taken for tag in tags[each]],
                    [link for each in taken for link in links[each]],
                )
            touched.update(link.repository for each in taken for link in links[each])
        for repository in touched:
            self._tidy(repository)
        self._linking.clear()
        return gone

    def from_the_disk(self, digests: Iterable[str]) -> list[str]:
        """Take content's files away, keeping what is said of it; return what went."""
        every, gone = list(digests), list[str]()
        for start in range(0, len(every), _BATCH):
            taken: list[str] = []
            try:
                self._take_each(every[start : start + _BATCH], taken, {}, {})
            finally:
                # What was fetched again by now is here.
                self._catalogue.not_here(each for each in taken if not _exists(self._blob(each)))
                if taken:
                    self._tell()
            gone += taken
        return gone

    def tag(self, tag: TagRow) -> None:
        """Take a tag away, wherever it is."""
        self._untag(tag)
        keys = [self._tag_key(tag)] if not _exists(self._tag(tag)) else []
        self._catalogue.removed(tags=[tag], keys=keys if self._mirrored else [])
        self._tell()

    def link(self, link: LinkRow) -> None:
        """Take a repository's link to content away, wherever it is; the content stays."""
        path = self._link(link)
        _unlink(path)
        self._catalogue.removed(links=[link], keys=[self._key(path)] if self._mirrored else [])
        self._tell()
        self._tidy(link.repository)

    def _said_of(
        self, digests: list[str]
    ) -> tuple[dict[str, list[TagRow]], dict[str, list[LinkRow]]]:
        tags, links = defaultdict(list), defaultdict(list)
        found = self._catalogue.said_of(digests)
        for tag in found[0]:
            tags[tag.digest].append(tag)
        for link in found[1]:
            links[link.digest].append(link)
        return tags, links

    def _take_each(
        self,
        digests: list[str],
        taken: list[str],
        tags: dict[str, list[TagRow]],
        links: dict[str, list[LinkRow]],
    ) -> None:
        """Add to ``taken`` what went, in order, up to where something failed."""

        def take(digest: str) -> bool:
            return self._take(digest, tags.get(digest, ()), links.get(digest, ()))

        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="removal") as pool:
            for digest, went in zip(digests, pool.map(take, digests), strict=True):
                if went:
                    taken.append(digest)

    def _take(
        self, digest: str, tags: Iterable[TagRow] = (), links: Iterable[LinkRow] = ()
    ) -> bool:
        with self._unread(digest) as free:
            if free:
                for tag in tags:
                    self._untag(tag)
                for link in links:
                    _unlink(self._link(link))
                _unlink(self._blob(digest))
        return free

    def _forget(self, taken: list[str], tags: list[TagRow], links: list[LinkRow]) -> list[str]:
        """Have the index say what went, and what a bucket is to lose; return the content."""
        if not taken:
            return []
        # What somebody published again since it was taken away stays known.
        gone = {each for each in taken if not _exists(self._blob(each))}
        tags = [tag for tag in tags if not _exists(self._tag(tag))]
        links = [each for each in links if each.digest in gone or not _exists(self._link(each))]
        keys: list[str] = []
        if self._mirrored:
            keys += map(self._tag_key, tags)
            keys += (self._key(self._link(link)) for link in links)
            keys += (self._key(self._blob(digest)) for digest in gone)
        self._catalogue.removed(gone, tags=tags, links=links, keys=keys)
        self._tell()
        return [each for each in taken if each in gone]

    def _tell(self) -> None:
        """Tell all processes that something went."""
        generation = Generation(self._layout.generation)
        try:
            generation.advance()
        finally:
            generation.close()

    # Of ten thousand things most of the time would go by in making pathlib's paths.

    def _blob(self, digest: str) -> str:
        return f"{self._blobs}/{blob_name(Digest.parse(digest))}"

    def _link(self, link: LinkRow) -> str:
        place = self._linking.get((link.repository, link.kind))
        if place is None:
            place = str(self._layout.links(Repository.parse(link.repository), link.kind))
            self._linking[(link.repository, link.kind)] = place
        digest = Digest.parse(link.digest)
        return f"{place}/{digest.algorithm}/{digest.hex}/link"

    def _tag(self, tag: TagRow) -> str:
        return str(self._layout.tag_link(Repository.parse(tag.repository), Tag.parse(tag.tag)))

    def _key(self, path: str) -> str:
        return path[self._root :]

    def _tag_key(self, tag: TagRow) -> str:
        """Return what all keys of a tag begin with, of those too that it had other digests by."""
        return self._key(self._tag(tag)).removesuffix("current/link")

    @contextmanager
    def _unread(self, digest: str) -> Iterator[bool]:
        """Hold off readers; False where there is one, or another file by now."""
        path = self._blob(digest)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            yield True
            return
        try:
            yield _locked(descriptor) and _same(descriptor, path)
        finally:
            os.close(descriptor)

    def _untag(self, tag: TagRow) -> None:
        path = Path(self._tag(tag))
        if digest_in(path) in {None, Digest.parse(tag.digest)}:  # else it moved since
            path.unlink(missing_ok=True)
            _rmtree(path.parent.parent)

    def _tidy(self, repository: str) -> None:
        """Take a repository's directory away when no manifest of it is left."""
        name = Repository.parse(repository)
        place = self._layout.repository(name)
        if _empty(self._layout.links(name, "revisions")):
            _rmtree(place / "_manifests")
            if _empty(self._layout.links(name, "layers")):
                _rmtree(place / "_layers")
                _prune(place, len(place.relative_to(self._layout.repositories).parts))


@contextmanager
def tending(layout: Layout, *, patience: float | None = None) -> Iterator[None]:
    """Be the only one who takes things away.

    Raises :class:`BlockingIOError` when that takes more than ``patience`` seconds.
    """
    descriptor = os.open(layout.tending, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        _lock(descriptor, patience)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, patience: float | None) -> None:
    if patience is None:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        return
    give_up = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > give_up:
                raise
            time.sleep(_LOOK_EVERY)  # flock has no limit of its own, and a thread takes no signal
        else:
            return


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _same(descriptor: int, path: str) -> bool:
    """Whether an open file still has its name, or nothing has."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))  # noqa: PTH116 - as above
    except FileNotFoundError:
        return True


def _exists(path: str) -> bool:
    return os.path.exists(path)  # noqa: PTH110 - as above


def _unlink(path: str) -> None:
    """Delete a file, and its directory if nothing else is in it."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        os.unlink(path)  # noqa: PTH108 - as above
    with contextlib.suppress(OSError):
        os.rmdir(path.rpartition("/")[0])  # noqa: PTH106 - as above


def _prune(directory: Path, levels: int) -> None:
    """Take empty directories away, upwards."""
    with contextlib.suppress(OSError):
        for _ in range(levels):
            directory.rmdir()
            directory = directory.parent


def _empty(links: Path) -> bool:
    """Whether no link is left in a directory of them."""
    try:
        with os.scandir(links) as algorithms:
            for algorithm in algorithms:
                with os.scandir(algorithm) as entries:
                    if next(entries, None) is not None:
                        return False
    except FileNotFoundError:
        pass
    return True


def _rmtree(directory: Path) -> None:
    """Take a tree of links away; what is written into it meanwhile stays."""
    for parent, below, files in os.walk(directory, topdown=False):
        with contextlib.suppress(OSError):
            for name in files:
                os.unlink(f"{parent}/{name}")  # noqa: PTH108 - as above
            for name in below:
                os.rmdir(f"{parent}/{name}")  # noqa: PTH106 - as above
    with contextlib.suppress(OSError):
        directory.rmdir()
