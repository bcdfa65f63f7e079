"""What the tests of the store share: an image's manifest, a small blob, a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

from pullthrough.oci.digest import Digest
from pullthrough.oci.manifest import parse
from pullthrough.oci.reference import Repository, Tag
from pullthrough.store.base import BlobStore, StoredManifest
from pullthrough.store.layout import Layout
from pullthrough.store.partial import Partial
from tests.fakes.cache import ROOT
from tests.fakes.content import Image, Manifest, make_image

NAME: Final = Repository("library/app")
OTHER: Final = Repository("library/other")
TAG: Final = Tag("v1")
CONTENT: Final = b"a layer's bytes " * 1000
DIGEST: Final = Digest.of(CONTENT)
SHA512: Final = Digest.of(CONTENT, "sha512")


def image(*, index: bool = False) -> Image:
    """Return an image that no other test has."""
    return make_image(NAME.name, TAG.name, (os.urandom(100),), index=index)


def stored(manifest: Manifest) -> StoredManifest:
    """Return a manifest as the store takes it."""
    return StoredManifest(Digest.parse(manifest.digest), manifest.content, parse(manifest.content))


def place(path: Path, content: bytes) -> None:
    """Write a file, and the directories above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def as_registry_2(layout: Layout, pulled: Image) -> None:
    """Write what registry:2 has on its disk after a pull of ``pulled``."""
    blobs = {**{each.digest: each.content for each in pulled.manifests}, **pulled.blobs}
    for name, content in blobs.items():
        place(layout.blob(Digest.parse(name)), content)
    for name in pulled.blobs:
        place(layout.link(NAME, "layers", Digest.parse(name)), name.encode())
    for manifest in pulled.manifests:
        digest = Digest.parse(manifest.digest)
        place(layout.link(NAME, "revisions", digest), manifest.digest.encode())
    top = Digest.parse(pulled.digest)
    place(layout.tag_link(NAME, TAG), pulled.digest.encode())
    place(layout.tag_index_link(NAME, TAG, top), pulled.digest.encode())


async def publish(store: BlobStore, content: bytes, digest: Digest) -> None:
    """Put ``content`` under ``digest``, whether it is right or not, and not yet secured."""
    partial = await store.open_partial(digest)
    try:
        write(partial, content)
        await store.publish(partial, digest)
    finally:
        partial.close()


async def put(store: BlobStore, content: bytes, digest: Digest) -> None:
    """Put verified content."""
    await publish(store, content, digest)
    await store.confirm(digest, len(content))


async def read(store: BlobStore, digest: Digest) -> bytes | None:
    """Return all the bytes of a blob, None if it is not here."""
    blob = await store.open_blob(digest)
    if blob is None:
        return None
    with blob.file:
        content = blob.file.read()
    assert len(content) == blob.size
    return content


async def is_verified(store: BlobStore, digest: Digest) -> bool:
    """Whether what is here is believed as it is."""
    blob = await store.open_blob(digest)
    assert blob is not None
    blob.file.close()
    return blob.verified


def write(partial: Partial, content: bytes) -> None:
    """Fill a partial with ``content``."""
    assert partial.acquire()
    assert partial.append(0, [content], Digest.of(b"").hasher()) == len(content)


class Child:
    """A process that is told to go on, and says how far it is, by lines."""

    def __init__(self, code: str, *arguments: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )

    def _pipes(self) -> tuple[IO[str], IO[str]]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        return self._process.stdin, self._process.stdout

    @property
    def pid(self) -> int:
        return self._process.pid

    def says(self) -> str:
        """Return its next line, empty at its end."""
        return self._pipes()[1].readline().strip()

    def go_on(self) -> None:
        """Let it read a line."""
        stdin = self._pipes()[0]
        stdin.write("\n")
        stdin.flush()

    def wait(self) -> int:
        """Return its exit code once it has ended."""
        return self._process.wait(30)

    def kill(self) -> None:
        """End it as kill -9 does."""
        self._process.kill()
        self._process.wait()
        for pipe in self._pipes():
            pipe.close()


@contextmanager
def child(code: str, *arguments: str) -> Iterator[Child]:
    """Run ``code`` in a process that does not outlive the block."""
    process = Child(code, *arguments)
    try:
        yield process
    finally:
        process.kill()
