"""Blobs: their size, what somebody else put here, and ranges that do not wait."""

from __future__ import annotations

import asyncio
import errno
import os
import random
from typing import Any

import pytest

from pullthrough.cache import blobs, fill
from pullthrough.cache.base import HIT, Outcome, Served
from pullthrough.cache.blobs import passes_through
from pullthrough.oci.digest import Digest
from pullthrough.oci.errors import BadUpstream, BlobUnknown, Unavailable, UpstreamTimeout
from pullthrough.store import partial
from pullthrough.upstream.base import Failure
from tests.cache.conftest import Start
from tests.cache.scripted import NAME, OTHER, Body, FakeSource, broken, until
from tests.cache.worker import Worker

CONTENT = random.Random(5).randbytes(300_000)  # noqa: S311 - an example, not a secret
SIZE = len(CONTENT)
WRONG = CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])
DIGEST = Digest.of(CONTENT)


@pytest.fixture(autouse=True)
def _has_it(source: FakeSource) -> None:
    source.add(CONTENT)


# -- size ------------------------------------------------------------------------------------------


async def test_size_of_what_is_here(worker: Worker, source: FakeSource) -> None:
    """The size of what is here is the file's, and nobody is asked."""
    worker.put(DIGEST, CONTENT)
    assert await worker.blobs.size(NAME, DIGEST) == (SIZE, HIT)
    assert source.asked == []


async def test_size_from_a_manifest(worker: Worker, source: FakeSource) -> None:
    """The size of what is not here is a cached manifest's, and nobody is asked."""
    await worker.name(DIGEST, SIZE)
    source.failing = broken(Failure.DOWN)
    size, served = await worker.blobs.size(NAME, DIGEST)
    assert (size, served) == (SIZE, Served(Outcome.HIT, "manifest"))
    assert source.asked == []


async def test_size_from_the_source(worker: Worker, source: FakeSource) -> None:
    """Else the source is asked by HEAD, and nothing is fetched for it."""
    assert await worker.blobs.size(NAME, DIGEST) == (SIZE, Served(Outcome.BYPASS))
    assert source.asked == [("HEAD blob", NAME, DIGEST)]
    assert (worker.blobs.filling, worker.partials()) == (0, [])


async def test_size_that_nobody_knows(worker: Worker, source: FakeSource) -> None:
    """A source that does not have it, or is away, is the spec's error."""
    with pytest.raises(BlobUnknown):
        await worker.blobs.size(NAME, Digest.of(b"nowhere"))
    source.failing = broken(Failure.TIMEOUT)
    with pytest.raises(UpstreamTimeout):
        await worker.blobs.size(NAME, DIGEST)


# -- what is here ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "end"), [(0, None), (0, SIZE), (7, None), (7, 8), (SIZE - 1, None), (SIZE, None)]
)
async def test_slices(worker: Worker, first: int, end: int | None) -> None:
    """Of what is here any slice can be read, as one piece of the file."""
    await worker.read(DIGEST)
    await until(lambda: not worker.blobs.filling, "the fill ended")
    reader = await worker.open(NAME, DIGEST)
    pieces = [piece async for piece in reader.pieces(first, end)]
    reader.close()
    assert len(pieces) == (first < SIZE)
    assert await worker.read(DIGEST, first, end) == CONTENT[first:end]


async def test_linked_when_it_is_served(worker: Worker) -> None:
    """What one repository brought becomes another's too when it is pulled from that one."""
    await worker.read(DIGEST)
    await until(lambda: not worker.blobs.filling, "the fill ended")
    await worker.name(Digest.of(b"something else"), 14, OTHER)
    link = worker.layout.link(OTHER, "layers", DIGEST)
    assert not link.exists()
    (await worker.open(OTHER, DIGEST)).close()
    assert link.read_text() == str(DIGEST)


async def test_linked_once_the_repository_is_known(worker: Worker) -> None:
    """A link that could not be written, in a repository not known yet, is written later."""
    await worker.read(DIGEST)
    await until(lambda: not worker.blobs.filling, "the fill ended")
    (await worker.open(OTHER, DIGEST)).close()
    link = worker.layout.link(OTHER, "layers", DIGEST)
    assert not link.exists()
    await worker.name(Digest.of(b"something else"), 14, OTHER)
    (await worker.open(OTHER, DIGEST)).close()
    assert link.read_text() == str(DIGEST)


# -- what somebody else put here -------------------------------------------------------------------


async def test_verified_at_first_use(
    worker: Worker, source: FakeSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What registry:2 left is hashed at its first use, once, and never asked for."""
    hashed = 0

    def counting(*args: Any, **options: Any) -> int:
        nonlocal hashed
        hashed += 1
        return partial.hash_file(*args, **options)

    monkeypatch.setattr(fill, "hash_file", counting)
    worker.put(DIGEST, CONTENT)
    for _ in range(3):
        reading = await worker.reading(DIGEST)
        assert await reading.whole() == CONTENT
        assert reading.served == HIT
        await until(lambda: not worker.blobs.filling, "the verification ended")
    assert hashed == 1
    assert source.asked == []


async def test_many_at_first_use(worker: Worker, source: FakeSource) -> None:
    """Many who come at once have the right bytes, and the source is not asked."""
    worker.put(DIGEST, CONTENT)
    readings = await asyncio.gather(*(worker.reading(DIGEST) for _ in range(8)))
    assert [await reading.whole() for reading in readings] == [CONTENT] * 8
    assert source.asked == []


async def test_linked_when_it_is_verified(worker: Worker) -> None:
    """What is verified at its first use is linked into every repository that asked for it."""
    worker.put(DIGEST, CONTENT)
    for repository in (NAME, OTHER):
        await worker.name(Digest.of(b"something else"), 14, repository)
    readers = await asyncio.gather(
        *(worker.open(repository, DIGEST) for repository in (NAME, OTHER))
    )
    await until(lambda: not worker.blobs.filling, "the verification ended")
    for repository in (NAME, OTHER):
        assert worker.layout.link(repository, "layers", DIGEST).read_text() == str(DIGEST)
    for reader in readers:
        reader.close()


@pytest.mark.parametrize("found", [WRONG, CONTENT[:-1], CONTENT + b"!", b""])
async def test_rotten(worker: Worker, source: FakeSource, found: bytes) -> None:
    """What is not what its name says is set aside before anyone has a byte, and fetched anew."""
    worker.put(DIGEST, found)
    reading = await worker.reading(DIGEST)
    assert await reading.whole() == CONTENT
    assert reading.served == Served(Outcome.MISS)
    assert source.ranges == [(0, None)]
    aside = worker.layout.quarantine / f"sha256-{DIGEST.hex}"
    assert aside.read_bytes() == found
    await until(lambda: not worker.blobs.filling, "the fill ended")
    assert worker.stored(DIGEST) == CONTENT


async def test_rotten_for_all_who_ask(worker: Worker, source: FakeSource) -> None:
    """Who asks while it is verified is not given rotten content either: one fetch serves all."""
    worker.put(DIGEST, WRONG)
    contents = await asyncio.gather(*(worker.read(DIGEST) for _ in range(3)))
    assert contents == [CONTENT] * 3
    assert source.ranges == [(0, None)]


async def test_rotten_and_nothing_better(worker: Worker, source: FakeSource) -> None:
    """With the source away, rotten content is an error and not an answer."""
    worker.put(DIGEST, WRONG)
    source.failing = broken(Failure.DOWN)
    with pytest.raises(Unavailable):
        await worker.open(NAME, DIGEST)
    assert worker.stored(DIGEST) is None


async def test_large_content_is_not_waited_for(
    worker: Worker, source: FakeSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large content is answered while it is hashed, and its last byte waits for the end."""
    monkeypatch.setattr(blobs, "_VERIFY_FIRST", SIZE - 1)
    monkeypatch.setattr(partial, "_HASH_BLOCK", 10_000)
    worker.put(DIGEST, CONTENT)
    finished = asyncio.Event()
    in_thread = worker.store.in_thread

    async def slowly(work: Any) -> int:
        result = await in_thread(work)
        await finished.wait()
        return result

    monkeypatch.setattr(worker.store, "in_thread", slowly)
    reading = await worker.reading(DIGEST)
    await until(lambda: len(reading.received) == SIZE - 1, "all but the last byte")
    finished.set()
    assert await reading.whole() == CONTENT
    assert reading.served == HIT
    assert source.asked == []


async def test_large_rotten_content(
    worker: Worker, source: FakeSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large content that turns out rotten breaks off before its end; then it is fetched anew."""
    monkeypatch.setattr(blobs, "_VERIFY_FIRST", SIZE - 1)
    worker.put(DIGEST, WRONG)
    reading = await worker.reading(DIGEST)
    assert isinstance(await reading.failure(), BadUpstream)
    assert len(reading.received) < SIZE
    assert await worker.read(DIGEST) == CONTENT
    assert source.ranges == [(0, None)]


async def test_unreadable(
    worker: Worker, source: FakeSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that cannot be read is an error of ours: nothing is set aside for it."""

    def failing(*_: object, **__: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fill, "hash_file", failing)
    path = worker.put(DIGEST, CONTENT)
    with pytest.raises(Unavailable, match="not readable"):
        await worker.open(NAME, DIGEST)
    assert path.exists()
    assert source.asked == []


async def test_empty_file(worker: Worker) -> None:
    """A file of no bytes is verified as any other."""
    digest = Digest.of(b"")
    worker.put(digest, b"")
    for _ in range(2):
        assert await worker.read(digest) == b""
        await until(lambda: not worker.blobs.filling, "the verification ended")


async def test_ended_while_it_is_verified(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """A drain during a verification closes the file, and tells who reads."""
    worker = await start()
    hashing = asyncio.Event()

    async def never(_: object) -> int:
        hashing.set()
        await asyncio.Event().wait()
        return 0

    monkeypatch.setattr(worker.store, "in_thread", never)
    path = worker.put(DIGEST, CONTENT)
    opening = asyncio.create_task(worker.open(NAME, DIGEST))
    await hashing.wait()
    await worker.blobs.close()
    (result,) = await asyncio.gather(opening, return_exceptions=True)
    assert isinstance(result, Unavailable)
    assert path.exists()


async def test_gone_between_two_looks(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two that find the same unverified file at once leave none of their files open."""
    open_blob = worker.store.open_blob
    both = asyncio.Barrier(2)

    async def together(digest: Digest) -> Any:
        found = await open_blob(digest)
        await both.wait()
        return found

    worker.put(DIGEST, CONTENT)
    monkeypatch.setattr(worker.store, "open_blob", together)
    first, second = await asyncio.gather(worker.read(DIGEST), worker.read(DIGEST))
    assert first == second == CONTENT


# -- ranges ahead of the fill ----------------------------------------------------------------------

FAR, SMALL = blobs._FAR, blobs._SMALL


@pytest.mark.parametrize(
    ("start", "end", "visible", "expected"),
    [
        (FAR + 1, FAR + 2, 0, True),
        (FAR, FAR + 1, 0, False),  # near enough to wait
        (FAR + 1001, FAR + 1002, 1000, True),
        (FAR + 1000, FAR + 1001, 1000, False),
        (FAR + 1, FAR + 1 + SMALL, 0, True),
        (FAR + 1, FAR + 2 + SMALL, 0, False),  # too much to be fetched twice
        (FAR + 1, None, 0, False),  # a parallel puller's open end
        (0, 1, 0, False),
        (0, 1, FAR, False),  # here already
        (FAR * 9, FAR * 9 + 1, FAR * 9 + 1, False),
    ],
)
def test_passes_through(start: int, end: int | None, visible: int, *, expected: bool) -> None:
    """Only a small range far ahead of the fill is asked of the source."""
    assert passes_through(start, end, visible) is expected


LARGE = os.urandom(FAR * 3)
LARGE_DIGEST = Digest.of(LARGE)


@pytest.fixture
def stop(source: FakeSource) -> asyncio.Event:
    """Have a source with a large blob, of which it sends the beginning and then waits."""
    source.add(LARGE)
    stop = asyncio.Event()
    source.planned.append(Body([LARGE[:1000], stop, LARGE[1000:]], size=len(LARGE)))
    return stop


async def test_far_range(worker: Worker, source: FakeSource, stop: asyncio.Event) -> None:
    """A small range far ahead comes at once, by a request of its own, beside the fill."""
    start, end = 2 * FAR, 2 * FAR + 5000
    assert await worker.read(LARGE_DIGEST, start, end) == LARGE[start:end]
    assert worker.blobs.filling == 1
    assert source.ranges == [(0, None), (start, end)]
    stop.set()
    assert await worker.read(LARGE_DIGEST) == LARGE
    assert source.ranges == [(0, None), (start, end)]


async def test_far_range_that_breaks(
    worker: Worker, source: FakeSource, stop: asyncio.Event
) -> None:
    """Its breaks are mended as a fill's are; what is not mended is told."""
    start, end = 2 * FAR, 2 * FAR + 5000
    source.planned.append(Body([LARGE[start : start + 9], broken(Failure.CUT)], size=len(LARGE)))
    assert await worker.read(LARGE_DIGEST, start, end) == LARGE[start:end]
    assert source.ranges[1:] == [(start, end), (start + 9, end)]
    source.planned.append(broken(Failure.NOT_FOUND))
    reading = await worker.reading(LARGE_DIGEST, start, end)
    assert isinstance(await reading.failure(), BlobUnknown)
    stop.set()
    await until(lambda: not worker.blobs.filling, "the fill ended")


async def test_other_ranges_wait(worker: Worker, source: FakeSource, stop: asyncio.Event) -> None:
    """A near range, and one without an end, wait for the fill: the link carries no byte twice."""
    far = await worker.reading(LARGE_DIGEST, 2 * FAR)
    near = await worker.reading(LARGE_DIGEST, 2000, 3000)
    for _ in range(20):
        await asyncio.sleep(0)  # both read what they are given
    assert far.received == near.received == b""
    stop.set()
    assert await near.whole() == LARGE[2000:3000]
    assert await far.whole() == LARGE[2 * FAR :]
    assert source.ranges == [(0, None)]
