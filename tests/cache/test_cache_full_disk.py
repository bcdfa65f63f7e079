"""A full disk: the pull goes through unstored, and is verified none the less.

Out of descriptors, which is no full disk, it does not.
"""

from __future__ import annotations

import asyncio
import errno
import os
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from structlog.testing import LogCapture

from pullthrough.cache.base import HIT, Outcome, Served
from pullthrough.oci.digest import Digest
from pullthrough.oci.errors import BadUpstream, BlobUnknown, Unavailable, UpstreamTimeout
from pullthrough.store.partial import Partial
from pullthrough.upstream.base import Failure
from tests.cache.scripted import NAME, Body, FakeSource, body_of, broken, until
from tests.cache.worker import TRIES, Worker

CONTENT = random.Random(3).randbytes(300_000)  # noqa: S311 - an example, not a secret
SIZE = len(CONTENT)
WRONG = CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])
DIGEST = Digest.of(CONTENT)

Fill = Callable[[int], bool]


@pytest.fixture(autouse=True)
def _has_it(source: FakeSource) -> None:
    source.add(CONTENT)


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Fill:
    """Leave room for so many bytes of a partial: what fits is written, then the disk is full."""
    append = Partial.append

    def limit(room: int) -> bool:
        def limited(partial: Partial, offset: int, chunks: Sequence[bytes], hasher: Any) -> int:
            whole = b"".join(chunks)
            fits = whole[: max(0, room - offset)]
            if len(fits) < len(whole):
                os.pwrite(partial.data.fileno(), fits, offset)
                raise OSError(errno.ENOSPC, "No space left on device")
            return append(partial, offset, chunks, hasher)

        monkeypatch.setattr(Partial, "append", limited)
        return True

    return limit


def _no_room(*_: object) -> Any:
    raise OSError(errno.ENOSPC, "No space left on device")


async def _no_room_async(*_: object) -> Any:
    _no_room()


ROOMS = [0, 1, 64 * 1024, 100_000, SIZE - 1]


@pytest.mark.parametrize("left", ROOMS)
async def test_pull_goes_through(
    worker: Worker, source: FakeSource, room: Fill, log: LogCapture, left: int
) -> None:
    """Wherever the disk is full, readers have all the bytes, nothing is kept, and it is said."""
    room(left)
    stop = asyncio.Event()
    source.planned.append(Body([stop, *_pieces(CONTENT)], size=SIZE))
    readings = [await worker.reading(DIGEST) for _ in range(3)]
    readings.append(await worker.reading(DIGEST, start=7))
    readings.append(await worker.reading(DIGEST, start=100, end=SIZE - 100))
    stop.set()
    assert [await reading.whole() for reading in readings] == [
        CONTENT, CONTENT, CONTENT, CONTENT[7:], CONTENT[100:-100],
    ]  # fmt: skip
    assert (worker.stored(DIGEST), worker.partials()) == (None, [])
    assert [entry["error"] for entry in log.entries if "no room" in entry["event"]] == [
        "No space left on device"
    ]


def _pieces(content: bytes) -> list[bytes]:
    return [content[at : at + 64 * 1024] for at in range(0, len(content), 64 * 1024)]


async def test_chunk_that_fits_after_one_that_did_not(
    worker: Worker, source: FakeSource, room: Fill, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a failed write nothing more is written: it would stand in the wrong place."""
    room(150_000)
    go_on, failed = asyncio.Event(), asyncio.Event()
    in_thread = worker.store.in_thread

    async def telling(work: Callable[[], int]) -> int:
        try:
            return await in_thread(work)
        except OSError:
            failed.set()
            raise

    monkeypatch.setattr(worker.store, "in_thread", telling)
    first, second = CONTENT[:100_000], CONTENT[100_000:200_000]
    small, rest = CONTENT[200_000:210_000], CONTENT[210_000:]
    source.planned.append(Body([first, go_on, second, failed, small, rest], size=SIZE))
    whole = await worker.reading(DIGEST)
    ranged = await worker.reading(DIGEST, 100, SIZE - 100)
    await until(lambda: len(whole.received) == len(first) - 1, "the first chunk")
    go_on.set()
    assert await ranged.whole() == CONTENT[100:-100]
    assert await whole.whole() == CONTENT


@pytest.mark.parametrize("left", ROOMS)
async def test_wrong_content_unstored(
    worker: Worker, source: FakeSource, room: Fill, left: int
) -> None:
    """Unstored content is verified too: wrong bytes never end well."""
    room(left)
    source.blobs[DIGEST] = WRONG
    reading = await worker.reading(DIGEST)
    assert isinstance(await reading.failure(), BadUpstream)
    assert len(reading.received) < SIZE
    assert WRONG.startswith(reading.received)


async def test_unstored_pull_mends_breaks(worker: Worker, source: FakeSource, room: Fill) -> None:
    """A break is mended as it is in a fill; one that is not mended is told."""
    room(0)
    source.planned.append(body_of(CONTENT))  # the fill's own
    source.planned.append(Body([CONTENT[:1000], broken(Failure.CUT)], size=SIZE))
    assert await worker.read(DIGEST) == CONTENT
    source.planned.append(body_of(CONTENT))
    source.planned.append(Body([CONTENT[:1000], broken(Failure.CUT)], size=SIZE))
    source.planned.extend([broken(Failure.TIMEOUT)] * (TRIES - 1))
    reading = await worker.reading(DIGEST)
    assert isinstance(await reading.failure(), UpstreamTimeout)
    assert len(reading.received) < SIZE


async def test_no_room_to_begin(
    worker: Worker, source: FakeSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where not even a partial can be begun, the blob is passed through, and that is said."""
    monkeypatch.setattr(worker.store, "open_partial", _no_room_async)
    reading = await worker.reading(DIGEST)
    assert await reading.whole() == CONTENT
    assert reading.reader.size == SIZE
    assert reading.served == Served(Outcome.BYPASS, "unstored")
    assert source.ranges == [(0, None), (0, None)]  # the first one only tells the size


async def test_no_room_to_begin_and_the_size_is_named(
    worker: Worker, source: FakeSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A size that a cached manifest names is not asked for."""
    await worker.name(DIGEST, SIZE)
    monkeypatch.setattr(worker.store, "open_partial", _no_room_async)
    reading = await worker.reading(DIGEST)
    assert (await reading.whole(), reading.reader.size) == (CONTENT, SIZE)
    assert source.ranges == [(0, None)]


async def test_no_room_to_begin_and_no_head(
    worker: Worker, source: FakeSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A source whose HEAD does not find what its GET does (harbor#22609) is no harm."""
    monkeypatch.setattr(worker.store, "open_partial", _no_room_async)

    async def not_found(*_: object) -> int:
        raise broken(Failure.NOT_FOUND)

    monkeypatch.setattr(source, "head_blob", not_found)
    assert await worker.read(DIGEST) == CONTENT


async def test_no_room_to_begin_and_nothing_there(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A blob that the source does not have is a 404 then, as ever."""
    monkeypatch.setattr(worker.store, "open_partial", _no_room_async)
    with pytest.raises(BlobUnknown):
        await worker.open(NAME, Digest.of(b"nowhere"))


async def test_room_again(worker: Worker, source: FakeSource, room: Fill) -> None:
    """Once there is room again the blob is kept, and the next pull costs nothing."""
    room(100_000)
    assert await worker.read(DIGEST) == CONTENT
    room(SIZE)
    assert await worker.read(DIGEST) == CONTENT
    await until(lambda: not worker.blobs.filling, "the fill ended")
    asked = len(source.asked)
    assert await worker.served(DIGEST) == HIT
    assert len(source.asked) == asked


async def test_no_room_to_publish(
    worker: Worker, source: FakeSource, monkeypatch: pytest.MonkeyPatch, log: LogCapture
) -> None:
    """Where only the name cannot be given, readers have the verified bytes from the open file."""
    monkeypatch.setattr(worker.store, "publish", _no_room_async)
    stop = asyncio.Event()
    source.planned.append(Body([stop, CONTENT], size=SIZE))
    readings = [await worker.reading(DIGEST) for _ in range(3)]
    stop.set()
    for reading in readings:
        assert await reading.whole() == CONTENT
    await until(lambda: not worker.blobs.filling, "the fill ended")
    assert (worker.stored(DIGEST), worker.partials()) == (None, [])
    assert [entry["event"] for entry in log.entries] == ["a blob was not kept"]
    assert source.ranges == [(0, None)]


async def test_not_safe_on_the_disk(
    worker: Worker, source: FakeSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What could not be synced is served, but counts as unverified: its next use hashes it."""
    monkeypatch.setattr(worker.store, "secure", _no_room_async)
    assert await worker.read(DIGEST) == CONTENT
    await until(lambda: not worker.blobs.filling, "the fill ended")
    blob = await worker.store.open_blob(DIGEST)
    assert blob is not None
    assert not blob.verified
    blob.file.close()
    worker.put(DIGEST, WRONG)  # what a power cut may do to it
    assert await worker.read(DIGEST) == CONTENT
    assert source.ranges == [(0, None), (0, None)]


# -- room that is made -----------------------------------------------------------------------------


@pytest.mark.parametrize("left", ROOMS)
@pytest.mark.parametrize("sized", [True, False])
async def test_room_is_made_for_the_rest(
    worker: Worker, source: FakeSource, room: Fill, *, left: int, sized: bool
) -> None:
    """A fill that finds the disk full goes on once there is room, and is kept like any other."""
    room(left)
    worker.room.make = lambda: room(SIZE)
    source.planned.append(Body(_pieces(CONTENT), size=SIZE if sized else None))
    assert await worker.read(DIGEST) == CONTENT
    await until(lambda: not worker.blobs.filling, "the fill ended")
    assert (worker.stored(DIGEST), worker.partials()) == (CONTENT, [])
    assert source.ranges == [(0, None)]
    if sized:
        (asked,) = worker.room.asked
        assert SIZE - left <= asked <= SIZE


async def test_room_for_content_of_unknown_size(
    worker: Worker, source: FakeSource, room: Fill
) -> None:
    """Room is asked for at least for what has come and could not be written."""
    room(100_000)
    worker.room.make = lambda: room(SIZE)
    source.planned.append(Body(_pieces(CONTENT)))
    assert await worker.read(DIGEST) == CONTENT
    assert min(worker.room.asked) > 0


async def test_wrong_content_in_the_room_that_was_made(
    worker: Worker, source: FakeSource, room: Fill
) -> None:
    """All of it is hashed once: what is wrong is found, before and after the disk was full."""
    room(100_000)
    worker.room.make = lambda: room(SIZE)
    source.blobs[DIGEST] = WRONG
    reading = await worker.reading(DIGEST)
    assert isinstance(await reading.failure(), BadUpstream)
    assert (worker.stored(DIGEST), worker.partials()) == (None, [])


@pytest.mark.parametrize("says", [False, True])
async def test_no_room_to_be_made(
    worker: Worker, source: FakeSource, room: Fill, *, says: bool
) -> None:
    """Where there is none to make, or it is gone at once, the pull goes through unstored."""
    room(100_000)
    worker.room.make = lambda: says
    assert await worker.read(DIGEST) == CONTENT
    assert len(worker.room.asked) == 1
    assert (worker.stored(DIGEST), worker.partials()) == (None, [])
    assert len(source.ranges) == 2


async def test_broken_disk_is_not_emptied(
    worker: Worker, source: FakeSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only for want of room something goes; the pull goes through as ever."""

    def broken_disk(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Partial, "append", broken_disk)
    assert await worker.read(DIGEST) == CONTENT
    assert worker.room.asked == []
    assert len(source.ranges) == 2


# -- out of descriptors ----------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
@pytest.mark.parametrize(
    ("phase", "call"),
    [("open_partial", 1), ("open_blob", 2)],  # the first look into the store is the reader's own
)
async def test_no_descriptor(
    worker: Worker,
    source: FakeSource,
    monkeypatch: pytest.MonkeyPatch,
    *,
    number: int,
    phase: str,
    call: int,
) -> None:
    """That is no full disk: passing through would take more of them, so it is "ask again"."""
    method, calls = getattr(worker.store, phase), 0

    async def none_left(*args: object) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            raise OSError(number, os.strerror(number))
        return await method(*args)

    monkeypatch.setattr(worker.store, phase, none_left)
    with pytest.raises(Unavailable, match="too many open files"):
        await worker.open(NAME, DIGEST)
    assert source.asked == []
    await until(lambda: not worker.blobs.filling, "the fill ended")
    reading = await worker.reading(DIGEST)
    assert (await reading.whole(), reading.served) == (CONTENT, Served(Outcome.MISS))
    await until(lambda: not worker.blobs.filling, "the fill ended")
    assert worker.stored(DIGEST) == CONTENT
