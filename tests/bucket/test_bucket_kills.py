"""Kill -9 of the whole cache at every step of an upload: nothing is lost, nothing is half there."""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Self
from urllib.parse import urlsplit

import pytest

from tests.fakes.content import MIB, Image, noise
from tests.fakes.faults import eventually
from tests.fakes.mirrored import V2, MirroredCache, MirroredStarter, TestBucket, blob_key
from tests.fakes.registry import FakeRegistry

LAYERS = (2 * MIB, 12 * MIB, 5)
"""Sizes in bytes: one object, three parts, next to nothing."""
_BLOCK = 64 * 1024


class Tap:
    """A way to the gateway on which so many bytes, or answers, pass and then nothing more."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._target = (parts.hostname or "", parts.port or 0)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._lock = threading.Lock()
        self._all: list[socket.socket] = []
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._left: dict[str, int] = {}
        self.reached = threading.Event()
        """All that was to pass has passed, and something waits."""
        self._accepting = self._start(self._accept)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.drop()
        for thread in self._threads:
            thread.join(10)
        for connection in self._all:
            connection.close()

    def limit(self, *, sent: int | None = None, answers: int | None = None) -> None:
        """Let only so many bytes to the gateway, or so many pieces of answers back, pass."""
        limits = {"sent": sent, "answers": answers}
        self.reached.clear()
        with self._lock:
            self._left = {way: limit for way, limit in limits.items() if limit is not None}

    def drop(self) -> None:
        """Break all connections, with what waits on them, and let everything pass again."""
        with self._lock:
            self._left = {}
            connections, self._open = self._open, set()
        for connection in connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _start(self, target: object, *given: object) -> threading.Thread:
        thread = threading.Thread(target=target, args=given, daemon=True)  # type: ignore[arg-type]  # any of ours
        self._threads.append(thread)
        thread.start()
        return thread

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
                self._all.append(near)
                far = socket.create_connection(self._target, timeout=30)
                self._all.append(far)
            except OSError:
                return
            far.settimeout(None)
            with self._lock:
                self._open |= {near, far}
            self._start(self._pump, near, far, "sent")
            self._start(self._pump, far, near, "answers")

    def _pump(self, source: socket.socket, sink: socket.socket, way: str) -> None:
        with suppress(OSError):
            while block := source.recv(_BLOCK):
                passing = self._passing(block, way)
                sink.sendall(passing)
                if len(passing) < len(block):
                    self.reached.set()
                    while source.recv(_BLOCK):  # until it is broken; none of it arrives
                        pass
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _passing(self, block: bytes, way: str) -> bytes:
        with self._lock:
            left = self._left.get(way)
            if left is None:
                return block
            takes = len(block) if way == "sent" else 1
            self._left[way] = max(0, left - takes)
            return block[:left] if way == "sent" else block if left else b""


@pytest.fixture
def tap(bucket: TestBucket) -> Iterator[Tap]:
    """Lay a way to the gateway."""
    with Tap(bucket.gateway.url) as made:
        yield made


def put(registry: FakeRegistry, tag: str) -> Image:
    return registry.put_image("project/app", tag, layers=tuple(map(noise, LAYERS)))


def everything(image: Image) -> dict[str, bytes]:
    return {**{each.digest: each.content for each in image.manifests}, **image.blobs}


def assert_none_is_half(bucket: TestBucket, *images: Image) -> None:
    """Assert that what stands under a digest's name is what the digest says."""
    contents = {
        blob_key(digest): content
        for image in images
        for digest, content in everything(image).items()
    }
    for key in bucket.objects(f"{V2}/blobs/"):
        assert bucket.get(key) == contents[key], f"half an object: {key}"


def bucket_has(bucket: TestBucket, key: str, content: bytes) -> None:
    eventually(lambda: bucket.find(key) == content, f"{key} in the bucket")


def assert_all_is_there(cache: MirroredCache, *images: Image) -> None:
    """Assert that it comes into the bucket, whole, with its names, and that no parts stay."""
    bucket = cache.bucket
    for image in images:
        cache.uploaded(*everything(image))
        for digest, content in everything(image).items():
            assert bucket.get(blob_key(digest)) == content
        tag = f"{V2}/repositories/project/app/_manifests/tags/{image.tag}/current/link"
        bucket_has(bucket, tag, image.digest.encode())
        links = bucket.objects(f"{V2}/repositories/project/app/")
        for digest in image.blobs:
            hexadecimal = digest.partition(":")[2]
            assert f"{V2}/repositories/project/app/_layers/sha256/{hexadecimal}/link" in links
    assert bucket.uploads() == []


def killed_at(cache: MirroredCache, tap: Tap, image: Image, limit: dict[str, int]) -> None:
    """Have the cache killed once so much of an upload has passed."""
    eventually(lambda: cache.metric("pullthrough_bucket_up") == 1, "the bucket's word", seconds=30)
    tap.limit(**limit)
    cache.client().pull(image)
    assert tap.reached.wait(60), f"it sent less\n{cache.log_text()[-2000:]}"
    cache.kill()
    tap.drop()


@pytest.mark.parametrize(
    "limit",
    [
        *({"sent": at} for at in (0, 600, 3_000, 1 * MIB, 3 * MIB, 6 * MIB, 10 * MIB, 13 * MIB)),
        *({"answers": at} for at in (0, 1, 2, 4, 6, 8, 11, 14, 17, 20)),
    ],
    ids=lambda limit: "-".join(f"{way}{at}" for way, at in limit.items()),
)
def test_killed_in_an_upload(
    start_mirrored: MirroredStarter,
    registry: FakeRegistry,
    bucket: TestBucket,
    tap: Tap,
    limit: dict[str, int],
) -> None:
    """Wherever it dies, the bucket has nothing half, and after the restart it has everything."""
    image = put(registry, "v1")
    cache = start_mirrored(bucket, endpoint=tap.url)
    killed_at(cache, tap, image, limit)
    assert_none_is_half(bucket, image)
    registry.refuse()  # nothing of it may have to be fetched again
    cache.start()
    assert_all_is_there(cache, image)
    cache.client().pull(image)


def test_killed_again_and_again(
    start_mirrored: MirroredStarter, registry: FakeRegistry, bucket: TestBucket, tap: Tap
) -> None:
    """Deaths at random moments, one after another, on one store: nothing is lost in the end."""
    chance = random.Random(3)  # noqa: S311 - the same moments each time
    images: list[Image] = []
    cache = start_mirrored(bucket, endpoint=tap.url)
    for number in range(4):
        images.append(put(registry, f"v{number}"))
        killed_at(cache, tap, images[-1], {"sent": chance.randrange(14 * MIB)})
        assert_none_is_half(bucket, *images)
        cache.start()
    registry.refuse()
    assert_all_is_there(cache, *images)
    for image in images:
        cache.client().pull(image)
