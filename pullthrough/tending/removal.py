"""Taking content away, with all that is said of it: never while it is read."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import structlog

from pullthrough.oci.digest import Digest
from pullthrough.oci.reference import Repository, Tag
from pullthrough.store.catalogue import Catalogue, LinkRow, TagRow
from pullthrough.store.generation import Generation
from pullthrough.store.layout import Layout
from pullthrough.store.reconcile import digest_in

if TYPE_CHECKING:
    from pullthrough.store.bucket import Bucket

_log = structlog.get_logger()

_BATCH: Final = 500
_LOOK_EVERY: Final = 0.01
_AT_ONCE: Final = 8
"""Threads: a directory takes its time, and a bucket takes deletions one by one."""


class Removal:
    """Takes content away; one at a time over all processes: see :func:`tending`."""

    def __init__(self, layout: Layout, catalogue: Catalogue, bucket: Bucket | None = None) -> None:
        self._layout, self._catalogue, self._bucket = layout, catalogue, bucket

    def altogether(self, digests: Iterable[str]) -> list[str]:
        """Take content away from everywhere, with its links and tags; return what went.

        What is being read or filled stays. Raises OSError, sqlite3.Error and, where there is a
        bucket, BucketError: what did not go is still known of.
        """
        every, gone, touched = list(digests), list[str](), set[str]()
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for start in range(0, len(every), _BATCH):
                things = [
                    _Thing(each, self._catalogue.tags_of(each), self._catalogue.links_of(each))
                    for each in every[start : start + _BATCH]
                ]
                went = [thing for thing, free in pool.map(self._take, things) if free]
                self._catalogue.removed(thing.digest for thing in went)
                touched.update(link.repository for thing in went for link in thing.links)
                gone += [thing.digest for thing in went]
            list(pool.map(self._tidy, touched))
        return gone

    def from_the_disk(self, digests: Iterable[str]) -> list[str]:
        """Take content's files away, keeping what is said of it; return what went."""
        every, gone = list(digests), list[str]()
        for start in range(0, len(every), _BATCH):
            went = [each for each in every[start : start + _BATCH] if self._off_the_disk(each)]
            # What was fetched again by now is here.
            self._catalogue.not_here(each for each in went if not self._path(each).exists())
            gone += went
        return gone

    def _off_the_disk(self, digest: str) -> bool:
        path = self._path(digest)
        with self._unread(digest) as free:
            if free:
                path.unlink(missing_ok=True)
        if free:
            _prune(path.parent, 1)
        return free

    def _path(self, digest: str) -> Path:
        return self._layout.blob(Digest.parse(digest))

    def tag(self, tag: TagRow) -> None:
        """Take a tag away, wherever it is."""
        self._untag(tag)
        self._catalogue.remove_tags([tag])

    def link(self, link: LinkRow) -> None:
        """Take a repository's link to content away, wherever it is; the content stays."""
        self._unlink(link)
        self._catalogue.remove_links([link])
        self._tidy(link.repository)

    def _take(self, thing: _Thing) -> tuple[_Thing, bool]:
        path = self._layout.blob(Digest.parse(thing.digest))
        with self._unread(thing.digest) as free:
            if not free:
                return thing, False
            for tag in thing.tags:
                self._untag(tag)
            for link in thing.links:
                self._unlink(link)
            self._delete(path)
        _prune(path.parent, 1)
        return thing, True

    @contextmanager
    def _unread(self, digest: str) -> Iterator[bool]:
        """Hold off readers; False where there is one."""
        path = self._layout.blob(Digest.parse(digest))
        with contextlib.ExitStack() as stack:
            try:
                file = stack.enter_context(path.open("rb", buffering=0))
            except (FileNotFoundError, NotADirectoryError):
                yield True
                return
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True

    def _untag(self, tag: TagRow) -> None:
        path = self._layout.tag_link(Repository.parse(tag.repository), Tag.parse(tag.tag))
        place = path.parent.parent

        def moved() -> bool:
            return path.exists() and str(digest_in(path)) != tag.digest

        if moved():
            return  # since it was looked up
        if self._bucket is not None:
            for key, _ in self._bucket.objects(f"{self._layout.key(place)}/"):
                self._bucket.delete(key)
        if not moved():  # while the bucket was asked
            path.unlink(missing_ok=True)
            _rmtree(place)

    def _unlink(self, link: LinkRow) -> None:
        repository, digest = Repository.parse(link.repository), Digest.parse(link.digest)
        path = self._layout.link(repository, link.kind, digest)
        self._delete(path)
        _prune(path.parent, 1)

    def _delete(self, path: Path) -> None:
        """Delete a file: in the bucket first, so that what fails there is still known of here."""
        if self._bucket is not None:
            self._bucket.delete(self._layout.key(path))
        path.unlink(missing_ok=True)

    def _tidy(self, repository: str) -> None:
        """Take a repository's directory away when no manifest of it is left."""
        name = Repository.parse(repository)
        place = self._layout.repository(name)
        if _empty(self._layout.links(name, "revisions")):
            _rmtree(place / "_manifests")
            if _empty(self._layout.links(name, "layers")):
                _rmtree(place / "_layers")
                _prune(place, len(place.relative_to(self._layout.repositories).parts))


class _Thing(NamedTuple):
    """What is to go, with all that is said of it."""

    digest: str
    tags: list[TagRow]
    links: list[LinkRow]


@contextmanager
def tending(layout: Layout, *, patience: float | None = None) -> Iterator[None]:
    """Be the only one who takes things away; tells all processes afterwards that some went.

    Raises :class:`BlockingIOError` when that takes more than ``patience`` seconds.
    """
    descriptor = os.open(layout.tending, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    generation = Generation(layout.generation)
    try:
        _lock(descriptor, patience)
        yield
    finally:
        generation.advance()
        generation.close()
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
            time.sleep(_LOOK_EVERY)
        else:
            return


def _prune(directory: Path, levels: int) -> None:
    """Take empty directories away, upwards."""
    with contextlib.suppress(OSError):
        for _ in range(levels):
            directory.rmdir()
            directory = directory.parent


def _empty(links: Path) -> bool:
    """Whether no link is left in a directory of them."""
    try:
        return all(not any(algorithm.iterdir()) for algorithm in links.iterdir())
    except FileNotFoundError:
        return True


def _rmtree(directory: Path) -> None:
    """Take a tree of links away; what is written into it meanwhile stays."""
    for parent, below, files in os.walk(directory, topdown=False):
        with contextlib.suppress(OSError):
            for name in files:
                Path(parent, name).unlink(missing_ok=True)
            for name in below:
                Path(parent, name).rmdir()
    with contextlib.suppress(OSError):
        directory.rmdir()
