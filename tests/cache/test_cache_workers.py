"""Worker processes on one store: one fills, the others follow, and one takes over.

A flock belongs to an open file, so two stores in this process keep each other out as two processes
would.
"""

from __future__ import annotations

import asyncio
import errno
import random
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO

import pytest

from pullthrough.cache.base import HIT, Outcome, Served
from pullthrough.oci.digest import Digest
from pullthrough.oci.errors import BadUpstream
from pullthrough.store.partial import Partial, Progress, State
from pullthrough.upstream.base import Failure
from tests.cache.conftest import Start
from tests.cache.scripted import NAME, Body, FakeSource, broken, until
from tests.cache.worker import TRIES, Reading, Worker

CONTENT = random.Random(4).randbytes(300_000)  # noqa: S311 - an example, not a secret
SIZE = len(CONTENT)
WRONG = CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])
DIGEST = Digest.of(CONTENT)
HALF = 100_000


class Pair:
    """An owner, stopped in the middle of its fill, and a worker that follows it."""

    def __init__(self, owner: Worker, follower: Worker) -> None:
        self.owner, self.follower = owner, follower
        self.stop = asyncio.Event()

    async def read(self, rest: bytes = CONTENT[HALF:], *more: Body) -> tuple[Reading, Reading]:
        """Have both read the blob: the owner as far as it comes, then the follower as far."""
        self.owner.source.planned.append(Body([CONTENT[:HALF], self.stop, rest], size=SIZE))
        self.owner.source.planned.extend(more)
        first = await self.owner.reading(DIGEST)
        await until(lambda: len(first.received) == HALF - 1, "as far as the source")
        second = await self.follower.reading(DIGEST)
        await until(lambda: len(second.received) == HALF - 1, "as far as the owner")
        assert self.follower.source.asked == []
        return first, second


@pytest.fixture
async def pair(start: Start) -> Pair:
    """Start two workers, each with a source of its own that has the blob."""
    workers = []
    for _ in range(2):
        source = FakeSource()
        source.add(CONTENT)
        workers.append(await start(source))
    return Pair(*workers)


async def test_follower(pair: Pair) -> None:
    """The second worker streams what the first one fetches, and asks the source for nothing."""
    first, second = await pair.read()
    assert second.reader.size == SIZE
    pair.stop.set()
    assert await first.whole() == await second.whole() == CONTENT
    assert first.served == Served(Outcome.MISS)
    assert second.served == Served(Outcome.COLLAPSED)
    assert pair.follower.source.asked == []
    await until(lambda: not pair.follower.blobs.filling, "the follower's fill ended")
    assert await pair.follower.served(DIGEST) == HIT
    assert pair.owner.partials() == []


async def test_many_readers_of_many_workers(start: Start, source: FakeSource) -> None:
    """Four workers with four readers each cost one download."""
    source.add(CONTENT)
    workers = [await start() for _ in range(4)]
    readings = await asyncio.gather(
        *(worker.reading(DIGEST) for worker in workers for _ in range(4))
    )
    for reading in readings:
        assert await reading.whole() == CONTENT
    assert len(source.asked) == 1


async def test_follower_waits_for_the_last_byte(pair: Pair) -> None:
    """The follower does not have the last byte either before the owner has verified it."""
    pair.owner.source.planned.append(Body([CONTENT, pair.stop], size=SIZE))
    first = await pair.owner.reading(DIGEST)
    second = await pair.follower.reading(DIGEST)
    await until(lambda: len(second.received) == SIZE - 1, "all but the last byte")
    assert pair.follower.stored(DIGEST) is None
    pair.stop.set()
    assert await second.whole() == await first.whole() == CONTENT


async def test_size_that_nobody_says(pair: Pair) -> None:
    """The follower knows as much of the size as the owner: nothing, before the end."""
    pair.owner.source.planned.append(Body([CONTENT[:HALF], pair.stop, CONTENT[HALF:]]))
    first = await pair.owner.reading(DIGEST)
    second = await pair.follower.reading(DIGEST)
    assert (first.reader.size, second.reader.size) == (None, None)
    pair.stop.set()
    assert await second.whole() == await first.whole() == CONTENT


async def test_wrong_content(pair: Pair) -> None:
    """Wrong bytes end well for the follower's readers no more than for the owner's."""
    first, second = await pair.read(WRONG[HALF:])
    pair.stop.set()
    for reading in (first, second):
        assert isinstance(await reading.failure(), BadUpstream)
        assert len(reading.received) < SIZE
    await until(lambda: not pair.follower.blobs.filling, "the follower's fill ended")
    assert (pair.owner.stored(DIGEST), pair.owner.partials()) == (None, [])
    assert await pair.follower.read(DIGEST) == CONTENT


async def test_owner_ends(pair: Pair) -> None:
    """When the owner goes in mid-fill the follower takes over, from where it was."""
    first, second = await pair.read()
    await pair.owner.blobs.close()
    await first.failure()
    assert await second.whole() == CONTENT
    assert pair.follower.source.ranges == [(HALF, None)]
    await until(lambda: not pair.follower.blobs.filling, "the follower's fill ended")
    assert (pair.owner.stored(DIGEST), pair.owner.partials()) == (CONTENT, [])


async def test_owner_ends_before_it_begins(pair: Pair) -> None:
    """The same when the owner had nothing yet."""
    pair.owner.source.gate = asyncio.Event()
    opening = asyncio.create_task(pair.owner.reading(DIGEST))
    await until(lambda: pair.owner.source.asked, "the source was asked")
    following = asyncio.create_task(pair.follower.reading(DIGEST))
    await until(lambda: pair.follower.blobs.filling, "the follower's fill began")
    await pair.owner.blobs.close()
    await asyncio.gather(opening, return_exceptions=True)
    assert await (await following).whole() == CONTENT
    assert pair.follower.source.ranges == [(0, None)]


async def test_rotten_when_it_is_taken_over(pair: Pair) -> None:
    """Whoever takes over trusts nothing that is here: it hashes it."""
    first, second = await pair.read()
    path = pair.owner.layout.partial(DIGEST)
    with path.open("r+b") as file:
        file.write(b"\0\0\0\0")
    await pair.owner.blobs.close()
    await first.failure()
    assert isinstance(await second.failure(), BadUpstream)
    assert pair.follower.stored(DIGEST) is None


async def test_owner_gives_up(pair: Pair) -> None:
    """When the owner's tries are used up the follower has tries of its own."""
    first, second = await pair.read(b"")
    pair.owner.source.planned.extend([broken(Failure.REFUSED)] * TRIES)
    pair.stop.set()
    assert (await first.failure()).detail == "refused"
    assert await second.whole() == CONTENT
    assert pair.follower.source.ranges == [(HALF, None)]


async def test_owner_has_a_slow_reader(pair: Pair) -> None:
    """A reader that still has the owner's file open keeps nobody from taking over."""
    first, second = await pair.read()
    slow = await pair.owner.open(NAME, DIGEST)
    await pair.owner.blobs.close()
    await first.failure()
    assert await second.whole() == CONTENT
    slow.close()


async def test_owner_has_no_room(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the disk is full the follower's readers have the rest from the source too."""
    first, second = await pair.read()

    def full(_: Partial, offset: int, chunks: Sequence[bytes], hasher: Any) -> int:
        raise OSError(errno.ENOSPC, f"at {offset}, {len(chunks)} more for {hasher}")

    monkeypatch.setattr(Partial, "append", full)
    pair.stop.set()
    assert await first.whole() == await second.whole() == CONTENT
    assert pair.follower.source.ranges == [(HALF - 1, None)]
    assert (pair.owner.stored(DIGEST), pair.owner.partials()) == (None, [])


async def test_published_between_the_look_and_the_lock(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that looked too early, and locked too late, finds what the other one published."""
    open_partial = pair.follower.store.open_partial

    async def late(digest: Digest) -> Partial:
        assert await pair.owner.read(digest) == CONTENT
        await until(lambda: not pair.owner.blobs.filling, "the owner's fill ended")
        return await open_partial(digest)

    monkeypatch.setattr(pair.follower.store, "open_partial", late)
    assert await pair.follower.read(DIGEST) == CONTENT
    assert pair.follower.source.asked == []
    assert pair.owner.partials() == []


@pytest.mark.parametrize("content", [CONTENT, WRONG], ids=["sound", "rotten"])
async def test_put_there_between_the_look_and_the_lock(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    """What somebody put there meanwhile is hashed first, and replaced where it is not right."""
    worker = pair.follower
    open_partial = worker.store.open_partial

    async def late(digest: Digest) -> Partial:
        worker.put(digest, content)
        return await open_partial(digest)

    monkeypatch.setattr(worker.store, "open_partial", late)
    assert await worker.read(DIGEST) == CONTENT
    assert len(worker.source.asked) == (content is WRONG)
    await until(lambda: not worker.blobs.filling, "the fill ended")
    assert (worker.stored(DIGEST), worker.partials()) == (CONTENT, [])


async def test_files_taken_away(pair: Pair) -> None:
    """A follower whose files are taken away before it had a byte of them begins anew."""
    owner = Partial.open(pair.owner.layout, DIGEST)
    assert owner.acquire()
    owner.record(Progress(SIZE, 0))
    reading = await pair.follower.reading(DIGEST)
    pair.owner.layout.partial(DIGEST).unlink()
    owner.close()
    assert await reading.whole() == CONTENT
    assert pair.follower.stored(DIGEST) == CONTENT


async def test_files_taken_away_in_the_middle(pair: Pair) -> None:
    """One whose readers have some of it already ends; the next fill is well."""
    owner = Partial.open(pair.owner.layout, DIGEST)
    assert owner.acquire()
    owner.append(0, [CONTENT[:HALF]], DIGEST.hasher())
    owner.record(Progress(SIZE, HALF - 1))
    reading = await pair.follower.reading(DIGEST)
    await until(lambda: len(reading.received) == HALF - 1, "as far as the owner")
    pair.owner.layout.partial(DIGEST).unlink()
    owner.close()
    assert "ask again" in str(await reading.failure())
    assert await pair.follower.read(DIGEST) == CONTENT


@pytest.mark.parametrize(
    "end", [Partial.remove, lambda owner: owner.discard(State.DONE)], ids=["no word", "done"]
)
async def test_owner_found_it_published(pair: Pair, end: Callable[[Partial], None]) -> None:
    """A follower of a fill that found the blob published already has it from there."""
    worker = pair.follower
    owner = Partial.open(worker.layout, DIGEST)
    assert owner.acquire()
    following = asyncio.create_task(worker.read(DIGEST))
    await until(
        lambda: any(growing.followed for growing in worker.blobs._growing.values()), "it follows"
    )
    await pair.owner.store.confirm(DIGEST, SIZE)
    worker.put(DIGEST, CONTENT)
    end(owner)
    owner.close()
    assert await following == CONTENT
    assert worker.source.asked == []


async def test_owner_cannot_publish(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where only the name cannot be given, the follower's readers too have the verified bytes."""

    async def no_room(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    first, second = await pair.read()
    monkeypatch.setattr(pair.owner.store, "publish", no_room)
    pair.stop.set()
    assert await first.whole() == await second.whole() == CONTENT
    assert pair.follower.source.asked == []
    assert (pair.owner.stored(DIGEST), pair.owner.partials()) == (None, [])


async def test_end_is_told(pair: Pair) -> None:
    """A follower that begins as the owner ends is told the end, not left waiting."""
    owner = Partial.open(pair.owner.layout, DIGEST)
    assert owner.acquire()
    following = asyncio.create_task(pair.follower.reading(DIGEST))
    await until(lambda: pair.follower.blobs.filling, "the follower's fill began")
    owner.append(0, [CONTENT], DIGEST.hasher())
    owner.record(Progress(SIZE, SIZE, State.DONE))
    assert await (await following).whole() == CONTENT
    assert pair.follower.source.asked == []
    owner.close()


async def test_both_find_the_same_damage(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that is later to set it aside does not take away what the other one fetched."""
    quick, late = pair.owner, pair.follower
    late.put(DIGEST, WRONG)
    found, go_on = asyncio.Event(), asyncio.Event()
    quarantine = late.store.quarantine

    async def slowly(digest: Digest, file: BinaryIO | None = None) -> None:
        found.set()
        await go_on.wait()
        await quarantine(digest, file)

    monkeypatch.setattr(late.store, "quarantine", slowly)
    reading = asyncio.create_task(late.read(DIGEST))
    await found.wait()
    assert await quick.read(DIGEST) == CONTENT
    await until(lambda: not quick.blobs.filling, "the fill ended")
    go_on.set()
    assert await reading == CONTENT
    assert late.source.asked == []
    assert late.stored(DIGEST) == CONTENT
    aside = late.layout.quarantine / f"sha256-{DIGEST.hex}"
    assert aside.read_bytes() == WRONG
