"""What is on the disk and not in the bucket yet, brought there; and what is in the bucket, known.

The queue is the index itself: content that is here and not there. So nothing is forgotten when the
process dies, and an upload that was done but not noted is found done.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Container, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final, TypeVar

import structlog

from pullthrough.oci import manifest as manifests
from pullthrough.oci.digest import Digest
from pullthrough.oci.errors import DigestInvalid, NameInvalid
from pullthrough.oci.reference import Repository, Tag
from pullthrough.store.bucket import Bucket, BucketError, Trouble
from pullthrough.store.catalogue import Catalogue, Found, LinkRow, Row, TagKey, TagRow
from pullthrough.store.files import write_whole
from pullthrough.store.layout import Layout
from pullthrough.store.quarantine import set_aside, sound
from pullthrough.store.reconcile import LINK_LIMIT, read_manifest

T = TypeVar("T")
R = TypeVar("R")

_log = structlog.get_logger()

_UPLOADS: Final = 4
"""Uploads under way: with one part each they bound the memory."""
_OF_ONE: Final = frozenset({Trouble.FULL, Trouble.OTHER})
"""What the bucket may say of one thing and not of the next."""


class Mirror:
    """Keeps a bucket in step with the disk; for one thread. Methods raise BucketError."""

    def __init__(
        self, layout: Layout, catalogue: Catalogue, bucket: Bucket, stop: Callable[[], bool]
    ) -> None:
        self._layout, self._catalogue, self._bucket = layout, catalogue, bucket
        self._stop = stop
        self._hopeless, self._failures = False, list[BucketError]()

    def upload(self) -> int:
        """Bring there what is not; return how many things went. Ends early when told to stop.

        What the bucket refuses does not keep the rest; it raises at the end.
        """
        self._hopeless, self._failures = False, []
        done = 0
        with ThreadPoolExecutor(_UPLOADS, thread_name_prefix="upload") as pool:
            for key in self._catalogue.buried():
                self._attempt(self._bury, key)
            for digest, result in pool.map(self._content, self._catalogue.pending()):
                if result:
                    self._catalogue.uploaded(digest)
                elif result is False and not self._ending():
                    self._catalogue.not_here([str(digest)])
                done += result is True
            done += self._names_too(pool)
        for failure in self._failures:
            raise failure
        return done

    def _names_too(self, pool: ThreadPoolExecutor) -> int:
        done = 0
        links, tags = self._catalogue.pending_links(), self._catalogue.pending_tags()
        for link in filter(None, pool.map(partial(self._attempt, self._link), links)):
            self._catalogue.linked_there(link)
            done += 1
        for tag in filter(None, pool.map(partial(self._attempt, self._tag), tags)):
            self._catalogue.tagged_there(tag)
            done += 1
        return done

    def _ending(self) -> bool:
        return self._hopeless or self._stop()

    def _attempt(self, work: Callable[[T], R], item: T) -> R | None:
        """Do one thing; None if the bucket refused it, or there is no time."""
        if self._ending():
            return None
        try:
            return work(item)
        except BucketError as error:
            self._hopeless |= error.trouble not in _OF_ONE
            self._failures.append(error)
            return None

    def _content(self, item: Row) -> tuple[Digest, bool | None]:
        """Upload one thing; False if it is not here any more, None as :meth:`_attempt`."""
        digest = Digest.parse(item.digest)
        return digest, self._attempt(partial(self._upload, verified=item.verified), digest)

    def _upload(self, digest: Digest, *, verified: bool) -> bool:
        path = self._layout.blob(digest)
        try:
            with path.open("rb", buffering=0) as file:
                fcntl.flock(file, fcntl.LOCK_SH)  # it is not taken away meanwhile
                if not verified and not sound(file, digest):
                    set_aside(self._layout, digest)
                    return False
                key, size = self._layout.key(path), os.fstat(file.fileno()).st_size
                if self._bucket.size(key) == size:
                    return True
                return self._bucket.upload(key, file, size, stop=self._ending)
        except FileNotFoundError:
            return False
        except OSError as error:
            why = f"{digest} is not readable: {error.strerror}"
            raise BucketError(Trouble.OTHER, why) from None

    def _bury(self, key: str) -> None:
        self._bucket.delete(key)
        # It may have been filled anew and found there, of the same size, in between.
        self._catalogue.unbury(key, self._digest_of(key))

    def _link(self, link: LinkRow) -> LinkRow:
        repository, digest = Repository.parse(link.repository), Digest.parse(link.digest)
        path = self._layout.link(repository, link.kind, digest)
        self._bucket.put(self._layout.key(path), link.digest.encode())
        return link

    def _tag(self, row: TagRow) -> TagRow:
        repository, tag = Repository.parse(row.repository), Tag.parse(row.tag)
        digest = Digest.parse(row.digest)
        for path in (
            self._layout.tag_index_link(repository, tag, digest),
            self._layout.tag_link(repository, tag),
        ):
            self._bucket.put(self._layout.key(path), row.digest.encode())
        return row

    # -- the other way -----------------------------------------------------------------------------

    def learn(self) -> None:
        """Look through the bucket: know its content, and have its links, tags and manifests here.

        So a cache on a new disk serves what the bucket has, with the upstream away too.
        """
        before = {row.digest for row in self._catalogue.rows() if row.there}
        # Content comes before its names: what has none now lost it, and is a removal's that died.
        names, tags = self._names()
        blobs = dict(self._blobs())
        # What another program deleted goes up again.
        self._catalogue.names_not_there(
            set(names), {TagKey(repository.name, tag.name) for repository, tag in tags}
        )
        links = [link for link in names if link.digest in blobs]
        self._catalogue.found_there(blobs.items())
        self._catalogue.not_there(before - blobs.keys())
        self._catalogue.add_links(links, there=True)
        with ThreadPoolExecutor(_UPLOADS * 2, thread_name_prefix="learn") as pool:
            # What is larger is no manifest, whoever linked it as one.
            wanted = {
                link.digest
                for link in links
                if link.kind == "revisions" and blobs[link.digest] <= manifests.LIMIT
            }
            for _ in pool.map(self._fetch, wanted):
                pass
            for link in links:
                if link.kind == "revisions":  # layers' links are only ever looked up in the index
                    self._place(link)
            found = pool.map(lambda tag: self._fetch_tag(tag, blobs), tags)
            self._catalogue.add_tags(filter(None, found), there=True)
        here = [digest for digest in wanted if self._layout.blob(Digest.parse(digest)).exists()]
        now = time.time()
        self._catalogue.found(Found(each, blobs[each], now) for each in here)
        for digest in self._catalogue.unread():
            read_manifest(self._layout, self._catalogue, digest)
        self._catalogue.know_mirror()

    def _blobs(self) -> Iterator[tuple[str, int]]:
        for key, size in self._bucket.objects(f"{self._layout.key(self._layout.blobs)}/"):
            digest = self._digest_of(key)
            if digest is not None:
                yield str(digest), size

    def _digest_of(self, key: str) -> Digest | None:
        """Return the digest whose content stands at ``key``."""
        match key.removeprefix(f"{self._layout.key(self._layout.blobs)}/").split("/"):
            case [algorithm, _, hexadecimal, "data"]:
                try:
                    return Digest.parse(f"{algorithm}:{hexadecimal}")
                except DigestInvalid:
                    return None
        return None

    def _names(self) -> tuple[list[LinkRow], list[tuple[Repository, Tag]]]:
        prefix = self._layout.key(self._layout.repositories)
        links, tags = [], []
        for key, size in self._bucket.objects(f"{prefix}/"):
            if size > LINK_LIMIT:
                continue
            path = key.removeprefix(f"{prefix}/")
            try:
                if "/_manifests/" in path:
                    name, _, rest = path.partition("/_manifests/")
                    match rest.split("/"):
                        case ["revisions", algorithm, hexadecimal, "link"]:
                            links.append(_link_row(name, "revisions", algorithm, hexadecimal))
                        case ["tags", tag, "current", "link"]:
                            tags.append((Repository.parse(name), Tag.parse(tag)))
                elif "/_layers/" in path:
                    name, _, rest = path.partition("/_layers/")
                    match rest.split("/"):
                        case [algorithm, hexadecimal, "link"]:
                            links.append(_link_row(name, "layers", algorithm, hexadecimal))
            except (NameInvalid, DigestInvalid):
                continue
        return links, tags

    def _place(self, link: LinkRow) -> None:
        repository, digest = Repository.parse(link.repository), Digest.parse(link.digest)
        path = self._layout.link(repository, link.kind, digest)
        if not path.exists():
            self._write(path.as_posix(), link.digest.encode())

    def _fetch(self, text: str) -> None:
        """Have a manifest here, if it is sound."""
        digest = Digest.parse(text)
        path = self._layout.blob(digest)
        if path.exists():
            return
        content = self._bucket.get(self._layout.key(path), manifests.LIMIT)
        if content is not None and digest.matches(content):
            self._write(path.as_posix(), content)

    def _fetch_tag(self, name: tuple[Repository, Tag], blobs: Container[str]) -> TagRow | None:
        """Have a tag of something here, unless it is already, which may be newer."""
        path = self._layout.tag_link(*name)
        if path.exists():
            return None
        content = self._bucket.get(self._layout.key(path), LINK_LIMIT) or b""
        try:
            digest = Digest.parse(content.decode("ascii").strip())
        except (DigestInvalid, UnicodeDecodeError):
            return None
        if str(digest) not in blobs:
            return None
        self._write(path.as_posix(), content)
        return TagRow(name[0].name, name[1].name, str(digest))

    def _write(self, path: str, content: bytes) -> None:
        write_whole(
            self._layout.root / path, content, temporary=self._layout.temporary, durable=False
        )


def _link_row(name: str, kind: str, algorithm: str, hexadecimal: str) -> LinkRow:
    digest = Digest.parse(f"{algorithm}:{hexadecimal}")
    return LinkRow(str(digest), kind, Repository.parse(name).name)
