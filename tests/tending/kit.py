"""What the tests of tending share: a bucket in memory, and a death between any two steps."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, BinaryIO, Final, cast

import pytest

from pullthrough.oci.digest import Digest
from pullthrough.oci.manifest import OCI_INDEX, OCI_MANIFEST
from pullthrough.oci.reference import Repository, Tag
from pullthrough.store.bucket import Bucket
from pullthrough.store.catalogue import Catalogue
from pullthrough.store.index import execute
from pullthrough.store.layout import Layout
from pullthrough.store.trouble import BucketError, Trouble
from pullthrough.tending import removal, uploads
from pullthrough.tending.removal import Removal
from tests.fakes.content import OCI_CONFIG, OCI_LAYER, encode
from tests.store.kit import place


class Death(BaseException):
    """The process ends here."""


class FakeBucket:
    """Implements what is used of :class:`Bucket`, in memory."""

    def __init__(self) -> None:
        self.objects_here: dict[str, bytes] = {}
        self.down = False
        self.refused: set[str] = set()
        """Keys that it takes nothing under."""
        self.asked: list[tuple[str, str]] = []
        self._lock = threading.Lock()

    @property
    def as_bucket(self) -> Bucket:
        """This, as one that is typed."""
        return cast("Bucket", self)

    def _answer(self, what: str, key: str) -> None:
        with self._lock:
            self.asked.append((what, key))
        if self.down:
            raise BucketError(Trouble.AWAY, "the bucket is away")
        if key in self.refused and what in {"put", "upload", "delete"}:
            raise BucketError(Trouble.OTHER, "the bucket does not do this")

    def size(self, key: str) -> int | None:
        self._answer("size", key)
        content = self.objects_here.get(key)
        return None if content is None else len(content)

    def get(self, key: str, limit: int) -> bytes | None:
        self._answer("get", key)
        content = self.objects_here.get(key)
        assert content is None or len(content) <= limit
        return content

    def put(self, key: str, content: bytes) -> None:
        self._answer("put", key)
        self.objects_here[key] = content

    def upload(
        self, key: str, file: BinaryIO, size: int, *, stop: Callable[[], bool] = lambda: False
    ) -> bool:
        self._answer("upload", key)
        if stop():
            return False
        content = os.pread(file.fileno(), size + 1, 0)
        assert len(content) == size
        self.objects_here[key] = content
        return True

    def delete(self, key: str) -> None:
        self._answer("delete", key)
        self.objects_here.pop(key, None)

    def objects(self, prefix: str) -> Iterator[tuple[str, int]]:
        self._answer("objects", prefix)
        found = sorted(key for key in self.objects_here if key.startswith(prefix))
        yield from ((key, len(self.objects_here[key])) for key in found)

    def sweep(self) -> int:
        self._answer("sweep", "")
        return 0


STEPS: Final[tuple[tuple[type | ModuleType, str], ...]] = (
    (Removal, "_unread"),
    (Removal, "_untag"),
    (removal, "_unlink"),
    (Removal, "_forget"),
    (Removal, "_tidy"),
    (Catalogue, "removed"),
    (Catalogue, "not_here"),
    (Catalogue, "uploaded"),
    (Catalogue, "linked_there"),
    (Catalogue, "tagged_there"),
    (Catalogue, "unbury"),
    (Catalogue, "found_there"),
    (Catalogue, "add_links"),
    (Catalogue, "add_tags"),
    (Catalogue, "found"),
    (FakeBucket, "put"),
    (FakeBucket, "upload"),
    (FakeBucket, "delete"),
)
"""Before and after each of these a process may die."""


@contextmanager
def dying(after: int) -> Iterator[Callable[[], bool]]:
    """Have everything end at the ``after``-th place between two steps; tells whether it did.

    One thread, and once dead nothing more is done: what happened before is the same every time.
    """
    left = after
    lock = threading.Lock()

    def pass_by() -> None:
        nonlocal left
        with lock:
            left -= 1
            if left < 0:
                raise Death

    def dangerous(real: Callable[..., Any]) -> Callable[..., Any]:
        def step(*given: Any, **named: Any) -> Any:
            pass_by()
            result = real(*given, **named)
            pass_by()
            return result

        return step

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(removal, "_AT_ONCE", 1)
        patch.setattr(uploads, "_UPLOADS", 1)
        for owner, name in STEPS:
            patch.setattr(owner, name, dangerous(getattr(owner, name)))
        yield lambda: left < 0


def manifest(config: bytes, *layers: bytes) -> bytes:
    """Return an image's manifest."""
    return encode(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": _descriptor(OCI_CONFIG, config),
            "layers": [_descriptor(OCI_LAYER, layer) for layer in layers],
        }
    )


def index(*manifests: bytes) -> bytes:
    """Return an index of manifests."""
    return encode(
        {
            "schemaVersion": 2,
            "mediaType": OCI_INDEX,
            "manifests": [_descriptor(OCI_MANIFEST, each) for each in manifests],
        }
    )


def _descriptor(media_type: str, content: bytes) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": str(Digest.of(content)), "size": len(content)}


def lay(layout: Layout, content: bytes) -> Digest:
    """Put content where the store has it, and return its digest."""
    digest = Digest.of(content)
    place(layout.blob(digest), content)
    return digest


def have(
    layout: Layout, repository: Repository, tag: str, top: bytes, *more: bytes
) -> tuple[Digest, ...]:
    """Have an image whose ``top`` manifest the tag names; ``more``: config and layers, in order."""
    digests = tuple(lay(layout, content) for content in (top, *more))
    for digest, kind in zip(digests, ["revisions", *["layers"] * len(more)], strict=True):
        place(layout.link(repository, kind, digest), str(digest).encode())
    for link in (
        layout.tag_link(repository, Tag(tag)),
        layout.tag_index_link(repository, Tag(tag), digests[0]),
    ):
        place(link, str(digests[0]).encode())
    return digests


def use(catalogue: Catalogue, when: float, *digests: Digest) -> None:
    """Have content last used at a time."""
    rows = [(when, str(digest)) for digest in digests]
    execute(catalogue._connection, ("UPDATE blob SET used=? WHERE digest=?", rows))


def on_disk(layout: Layout) -> dict[str, int]:
    """Return all blobs' sizes in bytes."""
    return {
        f"{path.parts[-4]}:{path.parts[-2]}": path.stat().st_size
        for path in layout.blobs.glob("*/*/*/data")
    }


def tags_on_disk(layout: Layout) -> dict[tuple[str, str], str]:
    """Return what each tag's link says, by repository and tag."""
    found = {}
    for path in layout.repositories.glob("**/_manifests/tags/*/current/link"):
        place = path.parents[4].relative_to(layout.repositories)
        found[(place.as_posix(), path.parts[-3])] = path.read_text()
    return found


def links_on_disk(layout: Layout) -> set[str]:
    """Return the digests of all links of repositories, tags' aside."""
    return {
        f"{path.parts[-3]}:{path.parts[-2]}"
        for pattern in ("_layers", "_manifests/revisions")
        for path in layout.repositories.glob(f"**/{pattern}/*/*/link")
    }


def of(digests: Iterable[Digest]) -> set[str]:
    """Return digests as text."""
    return {str(digest) for digest in digests}
