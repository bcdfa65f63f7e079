"""What is on the disk and not in the bucket yet, brought there; and what is in the bucket, known.

The queue is the index itself: content that is here and not there. So nothing is forgotten when the
process dies, and an upload that was done but not noted is found done.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Container, Iterator, Sequence
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
from pullthrough.store.layout import Layout, blob_name
from pullthrough.store.quarantine import set_aside, sound
from pullthrough.store.reconcile import LINK_LIMIT, read_manifest

T = TypeVar("T")
R = TypeVar("R")

_log = structlog.get_logger()

_BATCH: Final = 500
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
        self._lacking: list[OSError] = []

    def upload(self) -> int:
        """Bring there what is not; return how many things went. Ends early when told to stop.

        What the bucket refuses does not keep the rest; it raises at the end.
        """
        self._hopeless, self._failures = False, []
        done = 0
        with ThreadPoolExecutor(_UPLOADS, thread_name_prefix="upload") as pool:
            self._delete_buried(pool)
            # What is to be deleted first, and could not be, goes up after that: in this order.
            pending, buried = self._catalogue.pending(), set(self._catalogue.buried())
            waiting = [row for row in pending if self._blob_key(row.digest) not in buried]
            for digest, result in pool.map(self._content, waiting):
                if result:
                    self._catalogue.uploaded(digest, self._blob_key(str(digest)))
                elif (
                    result is False
                    and not self._ending()
                    and not self._layout.blob(digest).exists()  # it may have come again
                ):
                    self._catalogue.not_here([str(digest)])
                done += result is True
            done += self._names_too(pool)
        self._raise()
        return done

    def bury(self) -> None:
        """Delete from the bucket all that is to go; the rest goes too when something is refused."""
        self._hopeless, self._failures = False, []
        with ThreadPoolExecutor(_UPLOADS, thread_name_prefix="bury") as pool:
            self._delete_buried(pool)
        self._raise()

    def _delete_buried(self, pool: ThreadPoolExecutor) -> None:
        # Names before what they name: tags, revisions, layers' links, content.
        keys = sorted(self._catalogue.buried(), reverse=True)
        for start in range(0, len(keys), _BATCH):
            # Another process may delete them too, and what has come again since is to stay.
            still = set(self._catalogue.buried())
            batch = [key for key in keys[start : start + _BATCH] if key in still]
            for key in filter(None, pool.map(partial(self._attempt, self._delete), batch)):
                self._catalogue.unbury(key, self._what(key))

    def _delete(self, key: str) -> str:
        every = [key]
        if key.endswith("/"):
            every = [each for each, _ in self._bucket.objects(key)]
        for each in every:
            self._bucket.delete(each)
        return key

    def _raise(self) -> None:
        for failure in self._failures:
            raise failure

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
                status = os.fstat(file.fileno())
                if not status.st_nlink:
                    return False  # it was, before
                if not verified and not sound(file, digest):
                    set_aside(self._layout, digest, file)
                    return False
                key, size = self._layout.key(path), status.st_size
                if self._bucket.size(key) == size:
                    return True
                return self._bucket.upload(key, file, size, stop=self._ending)
        except FileNotFoundError:
            return False
        except OSError as error:
            why = f"{digest} is not readable: {error.strerror}"
            raise BucketError(Trouble.OTHER, why) from None

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

        So a cache on a new disk serves what the bucket has, with the upstream away too. What the
        disk does not take is logged and passed over.
        """
        before = {row.digest for row in self._catalogue.rows() if row.there}
        # Content comes before its names: what has none now lost it, and is a removal's that died.
        names, tags = self._names()
        blobs = dict(self._blobs())
        names, tags, blobs = self._staying(names, tags, blobs)
        # What another program deleted goes up again.
        self._catalogue.names_not_there(
            set(names), {TagKey(repository.name, tag.name) for repository, tag in tags}
        )
        links = [link for link in names if link.digest in blobs]
        self._catalogue.found_there(blobs.items())
        self._catalogue.not_there(before - blobs.keys())
        self._catalogue.add_links(links, there=True)
        self._lacking = []
        with ThreadPoolExecutor(_UPLOADS * 2, thread_name_prefix="learn") as pool:
            # What is larger is no manifest, whoever linked it as one.
            wanted = {
                link.digest
                for link in links
                if link.kind == "revisions" and blobs[link.digest] <= manifests.LIMIT
            }
            for _ in pool.map(partial(self._bring, self._fetch), wanted):
                pass
            for link in links:
                if link.kind == "revisions":  # layers' links are only ever looked up in the index
                    self._bring(self._place, link)
            found = pool.map(partial(self._bring, partial(self._fetch_tag, blobs)), tags)
            self._catalogue.add_tags(filter(None, found), there=True)
        here = [digest for digest in wanted if self._layout.blob(Digest.parse(digest)).exists()]
        now = time.time()
        self._catalogue.found(Found(each, blobs[each], now) for each in here)
        for digest in self._catalogue.unread():
            self._bring(partial(read_manifest, self._layout, self._catalogue), digest)
        self._catalogue.know_mirror()
        if self._lacking:
            _log.warning(
                "not all names that the bucket has could be had here",
                count=len(self._lacking), why=str(self._lacking[0]),
            )  # fmt: skip

    def _staying(
        self, names: list[LinkRow], tags: list[tuple[Repository, Tag]], blobs: dict[str, int]
    ) -> tuple[list[LinkRow], list[tuple[Repository, Tag]], dict[str, int]]:
        """Leave out what is to be deleted."""
        buried = set(self._catalogue.buried())
        if not buried:
            return names, tags, blobs
        return (
            [link for link in names if self._link_key(link) not in buried],
            [tag for tag in tags if buried.isdisjoint(self._tag_keys(*tag))],
            {each: size for each, size in blobs.items() if self._blob_key(each) not in buried},
        )

    def _bring(self, work: Callable[[T], R], item: T) -> R | None:
        """Have one thing here; None where the disk does not take it."""
        try:
            return work(item)
        except OSError as error:
            self._lacking.append(error)
            return None

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
        links, tags = list[LinkRow](), list[tuple[Repository, Tag]]()
        for key, size in self._bucket.objects(f"{self._layout.key(self._layout.repositories)}/"):
            if size > LINK_LIMIT:
                continue
            match self._name_of(key):
                case LinkRow() as link:
                    links.append(link)
                case TagKey(name, tag) if key.endswith("/current/link"):
                    tags.append((Repository.parse(name), Tag.parse(tag)))
        return links, tags

    def _what(self, key: str) -> Digest | LinkRow | TagKey | None:
        """Return what it is that a key, or what begins with it, says something of."""
        return self._digest_of(key) or self._name_of(key)

    def _name_of(self, key: str) -> LinkRow | TagKey | None:
        path = key.removeprefix(f"{self._layout.key(self._layout.repositories)}/")
        try:
            if "/_manifests/" in path:
                name, _, rest = path.partition("/_manifests/")
                match rest.split("/"):
                    case ["revisions", algorithm, hexadecimal, "link"]:
                        return _link_row(name, "revisions", algorithm, hexadecimal)
                    case ["tags", tag, "current", "link"] | ["tags", tag, ""]:
                        return TagKey(Repository.parse(name).name, Tag.parse(tag).name)
            elif "/_layers/" in path:
                name, _, rest = path.partition("/_layers/")
                match rest.split("/"):
                    case [algorithm, hexadecimal, "link"]:
                        return _link_row(name, "layers", algorithm, hexadecimal)
        except (NameInvalid, DigestInvalid):
            pass
        return None

    def _blob_key(self, digest: str) -> str:
        return f"{self._layout.key(self._layout.blobs)}/{blob_name(Digest.parse(digest))}"

    def _link_key(self, link: LinkRow) -> str:
        repository, digest = Repository.parse(link.repository), Digest.parse(link.digest)
        return self._layout.key(self._layout.link(repository, link.kind, digest))

    def _tag_keys(self, repository: Repository, tag: Tag) -> Sequence[str]:
        """Return the keys by which a tag is buried: its own, and that of its whole place."""
        current = self._layout.key(self._layout.tag_link(repository, tag))
        return current, current.removesuffix("current/link")

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

    def _fetch_tag(self, blobs: Container[str], name: tuple[Repository, Tag]) -> TagRow | None:
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
