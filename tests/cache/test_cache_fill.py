"""A fill: fetched once, verified before anyone has all of it, and gone on with after a break."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Sequence
from typing import Any

import pytest

from pullthrough.cache.base import HIT, Outcome, Served
from pullthrough.oci.digest import Digest
from pullthrough.oci.errors import BadUpstream, BlobUnknown, RegistryError
from pullthrough.store.partial import Partial
from pullthrough.upstream.base import Failure
from tests.cache.conftest import Start
from tests.cache.scripted import NAME, OTHER, Body, FakeSource, body_of, broken, until
from tests.cache.worker import TRIES, Reading, Worker

CONTENT = random.Random(1).randbytes(2_500_000)  # noqa: S311 - an example, not a secret
SIZE = len(CONTENT)
WRONG = CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])
DIGEST = Digest.of(CONTENT)
HALF = 1_000_000


@pytest.fixture(autouse=True)
def _has_it(source: FakeSource) -> None:
    source.add(CONTENT)


def _halting(source: FakeSource, at: int = HALF) -> asyncio.Event:
    """Have the source stop at a byte until the event is set."""
    stop = asyncio.Event()
    source.planned.append(Body([CONTENT[:at], stop, CONTENT[at:]], size=SIZE))
    return stop


async def test_one_fill_for_many_readers(worker: Worker, source: FakeSource) -> None:
    """Sixteen that ask for one blob cost one download; the first one fetched, the others joined."""
    stop = _halting(source)
    readings = await asyncio.gather(*(worker.reading(DIGEST) for _ in range(16)))
    assert worker.blobs.filling == 1
    assert [reading.reader.size for reading in readings] == [SIZE] * 16
    stop.set()
    for reading in readings:
        assert await reading.whole() == CONTENT
    assert sorted(reading.served.outcome.value for reading in readings) == (
        ["collapsed"] * 15 + ["miss"]
    )
    assert source.ranges == [(0, None)]
    await until(lambda: not worker.blobs.filling, "the fill ended")
    assert (worker.stored(DIGEST), worker.partials()) == (CONTENT, [])


async def test_hit_afterwards(start: Start, source: FakeSource) -> None:
    """What was filled is served without asking: here, in another worker and after a restart."""
    worker = await start()
    assert await worker.read(DIGEST) == CONTENT
    await worker.blobs.close()
    for other in (worker, await start()):
        reading = await other.reading(DIGEST)
        assert await reading.whole() == CONTENT
        assert reading.served == HIT
    assert len(source.asked) == 1


async def test_hit_while_it_is_secured(
    worker: Worker, source: FakeSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its publication and its being safe on the disk it is a hit already."""
    securing, go_on = asyncio.Event(), asyncio.Event()
    secure = worker.store.secure

    async def slowly(partial: Partial, digest: Digest, size: int) -> None:
        securing.set()
        await go_on.wait()
        await secure(partial, digest, size)

    monkeypatch.setattr(worker.store, "secure", slowly)
    assert await worker.read(DIGEST) == CONTENT
    await securing.wait()
    assert await worker.served(DIGEST) == HIT
    go_on.set()
    assert source.ranges == [(0, None)]


async def test_readers_read_as_it_grows(worker: Worker, source: FakeSource) -> None:
    """All but the last byte of what has come is given out at once, to who comes late as well."""
    stop = _halting(source)
    first = await worker.reading(DIGEST)
    await until(lambda: len(first.received) == HALF - 1, "as far as the source")
    late = await worker.reading(DIGEST, start=7)
    await until(lambda: len(late.received) == HALF - 1 - 7, "as far as the source")
    inside = await worker.reading(DIGEST, start=10, end=1000)
    assert await inside.whole() == CONTENT[10:1000]
    stop.set()
    assert await first.whole() == CONTENT
    assert await late.whole() == CONTENT[7:]


async def test_what_came_while_a_thread_wrote(
    worker: Worker, source: FakeSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes that came during a write are given out after it: they do not wait for the next ones."""
    append, writing, go_on = Partial.append, threading.Event(), threading.Event()

    def slowly(partial: Partial, offset: int, chunks: Sequence[bytes], hasher: Any) -> int:
        writing.set()
        assert go_on.wait(60)
        return append(partial, offset, chunks, hasher)

    monkeypatch.setattr(Partial, "append", slowly)
    more, rest = asyncio.Event(), asyncio.Event()
    body = Body([CONTENT[:1000], more, CONTENT[1000:2000], rest, CONTENT[2000:]], size=SIZE)
    source.planned.append(body)
    reading = await worker.reading(DIGEST)
    await until(writing.is_set, "a thread writes")
    more.set()
    await until(lambda: len(body._steps) == 1, "more has come")
    go_on.set()
    await until(lambda: len(reading.received) == 1999, "all that has come")
    rest.set()
    assert await reading.whole() == CONTENT


@pytest.mark.parametrize("sizes", [True, False])
async def test_last_byte_is_held_back(worker: Worker, source: FakeSource, *, sizes: bool) -> None:
    """Until the digest is known to be right nobody has the last byte, though it is there."""
    stop = _halting(source, at=SIZE)
    body = source.planned[0]
    assert isinstance(body, Body)
    body.size = SIZE if sizes else None
    reading = await worker.reading(DIGEST)
    await until(lambda: worker.partial(DIGEST) == CONTENT, "all is here")
    await until(lambda: len(reading.received) == SIZE - 1, "all but the last byte")
    assert worker.stored(DIGEST) is None
    stop.set()
    assert await reading.whole() == CONTENT


async def test_sha512(worker: Worker, source: FakeSource) -> None:
    """A digest is verified by its own algorithm."""
    digest = source.add(CONTENT, "sha512")
    assert await worker.read(digest) == CONTENT
    await worker.blobs.close()
    assert worker.stored(digest) == CONTENT
    wrong = Digest.of(WRONG, "sha512")
    source.blobs[wrong] = CONTENT
    reading = await worker.reading(wrong)
    assert isinstance(await reading.failure(), BadUpstream)


async def test_empty(worker: Worker, source: FakeSource) -> None:
    """A blob of no bytes is one too; its answer is not begun before it is verified."""
    digest = source.add(b"")
    reading = await worker.reading(digest)
    assert (await reading.whole(), reading.reader.size) == (b"", 0)
    await worker.blobs.close()
    assert worker.stored(digest) == b""
    source.blobs[Digest.of(b"not empty")] = b""
    with pytest.raises(BadUpstream):
        await worker.open(NAME, Digest.of(b"not empty"))


async def test_size_that_nobody_says(worker: Worker, source: FakeSource) -> None:
    """Without a size the digest alone says where the end is."""
    source.planned.append(Body([CONTENT[:HALF], CONTENT[HALF:]]))
    reading = await worker.reading(DIGEST)
    assert reading.reader.size is None
    assert await reading.whole() == CONTENT


async def test_linked_into_its_repository(worker: Worker) -> None:
    """What was filled belongs to the repository it was asked for in, if that is a known one."""
    await worker.name(DIGEST, SIZE)
    assert await worker.read(DIGEST) == CONTENT
    await worker.blobs.close()
    assert worker.layout.link(NAME, "layers", DIGEST).read_text() == str(DIGEST)


async def test_linked_into_every_repository(worker: Worker, source: FakeSource) -> None:
    """It belongs to whichever repositories it was asked for in while it came."""
    for repository in (NAME, OTHER):
        await worker.name(DIGEST, SIZE, repository)
    stop = _halting(source)
    readers = [await worker.open(repository, DIGEST) for repository in (NAME, OTHER)]
    stop.set()
    await until(lambda: not worker.blobs.filling, "the fill ended")
    for repository in (NAME, OTHER):
        assert worker.layout.link(repository, "layers", DIGEST).read_text() == str(DIGEST)
    for reader in readers:
        reader.close()


# -- wrong content ---------------------------------------------------------------------------------


async def test_wrong_digest(worker: Worker, source: FakeSource) -> None:
    """Wrong bytes end well for nobody and are not kept; the next who asks has them fetched anew."""
    stop = asyncio.Event()
    source.planned.append(Body([WRONG[:HALF], stop, WRONG[HALF:]], size=SIZE))
    readings = [await worker.reading(DIGEST) for _ in range(3)]
    readings.append(await worker.reading(DIGEST, start=SIZE - 1))
    stop.set()
    for reading in readings:
        error = await reading.failure()
        assert (type(error), error.status) == (BadUpstream, 502)
        assert len(reading.received) < SIZE
    assert readings[-1].received == b""
    assert (worker.stored(DIGEST), worker.partials()) == (None, [])
    assert await worker.read(DIGEST) == CONTENT
    assert source.ranges == [(0, None), (0, None)]


@pytest.mark.parametrize("named", [SIZE - 1, SIZE + 1, HALF])
async def test_named_size_against_the_sources(
    worker: Worker, source: FakeSource, named: int
) -> None:
    """A source that offers another size than the manifest names is refused before a byte."""
    await worker.name(DIGEST, named)
    with pytest.raises(BadUpstream):
        await worker.open(NAME, DIGEST)
    assert (worker.stored(DIGEST), worker.partials()) == (None, [])
    assert source.connections == 0


async def test_more_than_the_named_size(worker: Worker, source: FakeSource) -> None:
    """More bytes than the manifest names are wrong, whatever their digest."""
    await worker.name(DIGEST, SIZE - 10)
    source.planned.append(Body([CONTENT[:HALF], CONTENT[HALF:]]))
    reading = await worker.reading(DIGEST)
    assert reading.reader.size == SIZE - 10
    assert isinstance(await reading.failure(), BadUpstream)
    assert (worker.stored(DIGEST), worker.partials()) == (None, [])


async def test_fewer_than_the_named_size(worker: Worker, source: FakeSource) -> None:
    """A clean end before the named size is a break that is mended (harbor#23374)."""
    await worker.name(DIGEST, SIZE)
    source.planned.append(Body([CONTENT[:HALF]]))
    assert await worker.read(DIGEST) == CONTENT
    assert source.ranges == [(0, None), (HALF, None)]


# -- breaks ----------------------------------------------------------------------------------------


async def test_break_is_the_fills_affair(worker: Worker, source: FakeSource) -> None:
    """A reader sees nothing of breaks upstream, nor of a source that ignores Range."""
    source.planned.extend(
        [
            Body([CONTENT[:100], broken(Failure.CUT)], size=SIZE),
            Body([CONTENT[100:HALF], broken(Failure.TIMEOUT)], size=SIZE),
            body_of(CONTENT),
        ]
    )
    assert await worker.read(DIGEST) == CONTENT
    assert source.ranges == [(0, None), (100, None), (HALF, None)]
    assert len(worker.sleep.slept) == 2


async def test_fill_gives_up(worker: Worker, source: FakeSource) -> None:
    """When the tries are used up the reader is told, and the next fill goes on with what came."""
    source.planned.append(Body([CONTENT[:HALF], broken(Failure.CUT)], size=SIZE))
    source.planned.extend(broken(Failure.REFUSED) for _ in range(TRIES - 1))
    reading = await worker.reading(DIGEST)
    error = await reading.failure()
    assert (error.status, error.detail) == (503, "refused")
    assert reading.received == CONTENT[: HALF - 1]
    await until(lambda: not worker.blobs.filling, "the fill ended")
    assert worker.partial(DIGEST) == CONTENT[:HALF]
    assert await worker.read(DIGEST) == CONTENT
    assert source.ranges[-1] == (HALF, None)


@pytest.mark.parametrize(
    ("failure", "status", "code"),
    [
        (Failure.NOT_FOUND, 404, "BLOB_UNKNOWN"),
        (Failure.FORBIDDEN, 403, "DENIED"),
        (Failure.DOWN, 503, "UNAVAILABLE"),
        (Failure.TIMEOUT, 504, "UNAVAILABLE"),
        (Failure.INVALID, 502, "UNAVAILABLE"),
    ],
)
async def test_nothing_comes(
    worker: Worker, source: FakeSource, failure: Failure, status: int, code: str
) -> None:
    """Where nothing comes at all everyone who asked has the spec's error, and no answer begins."""
    source.planned.append(broken(failure))
    source.gate = asyncio.Event()
    opening = [asyncio.create_task(worker.open(NAME, DIGEST)) for _ in range(3)]
    await until(lambda: source.asked, "the source was asked")
    source.gate.set()
    for result in await asyncio.gather(*opening, return_exceptions=True):
        assert isinstance(result, RegistryError)
        assert (result.status, result.code) == (status, code)
    assert len(source.asked) == 1
    assert await worker.read(DIGEST) == CONTENT


async def test_unknown_here_and_there(worker: Worker) -> None:
    """A blob that the source does not have leaves nothing behind that would be served."""
    digest = Digest.of(b"nowhere")
    with pytest.raises(BlobUnknown):
        await worker.open(NAME, digest)
    await until(lambda: not worker.blobs.filling, "the fill ended")
    assert worker.stored(digest) is None
    assert not worker.partial(digest)


# -- partials --------------------------------------------------------------------------------------


async def test_partial_is_gone_on_with(worker: Worker, source: FakeSource) -> None:
    """What a killed process left is hashed, given out and gone on from."""
    worker.leave(DIGEST, CONTENT[:HALF])
    stop = asyncio.Event()
    source.planned.append(Body([stop, CONTENT[HALF:]], size=SIZE))
    reading = await worker.reading(DIGEST)
    await until(lambda: len(reading.received) == HALF - 1, "what was here")
    stop.set()
    assert await reading.whole() == CONTENT
    assert source.ranges == [(HALF, None)]
    assert worker.stored(DIGEST) == CONTENT


async def test_partial_from_a_source_that_ignores_ranges(
    worker: Worker, source: FakeSource
) -> None:
    """A source that sends from the start is no harm to a partial."""
    worker.leave(DIGEST, CONTENT[:HALF])
    source.planned.append(body_of(CONTENT))
    assert await worker.read(DIGEST) == CONTENT
    assert worker.stored(DIGEST) == CONTENT


async def test_rotten_partial(worker: Worker, source: FakeSource) -> None:
    """A partial that rotted is found out by the digest, is thrown away, and then it goes well."""
    worker.leave(DIGEST, b"\0" + CONTENT[1:HALF])
    reading = await worker.reading(DIGEST)
    assert isinstance(await reading.failure(), BadUpstream)
    assert (worker.stored(DIGEST), worker.partials()) == (None, [])
    assert await worker.read(DIGEST) == CONTENT
    assert source.ranges == [(HALF, None), (0, None)]


async def test_partial_that_is_whole(worker: Worker, source: FakeSource) -> None:
    """A process that died with all bytes here leaves nothing to ask for."""
    await worker.name(DIGEST, SIZE)
    worker.leave(DIGEST, CONTENT)
    assert await worker.read(DIGEST) == CONTENT
    assert source.asked == []
    assert worker.stored(DIGEST) == CONTENT


async def test_partial_that_is_whole_and_of_unknown_size(
    worker: Worker, source: FakeSource
) -> None:
    """The same where only the source can say that there is no more (416): it is not sent again."""
    worker.leave(DIGEST, CONTENT)
    assert await worker.read(DIGEST) == CONTENT
    assert source.ranges == [(SIZE, None)]
    assert worker.stored(DIGEST) == CONTENT


@pytest.mark.parametrize("left", [WRONG, CONTENT + b"more"], ids=["wrong", "longer"])
@pytest.mark.parametrize("named", [True, False])
async def test_partial_that_is_too_much(
    worker: Worker, source: FakeSource, left: bytes, *, named: bool
) -> None:
    """A partial that cannot be gone on with (416) is begun anew, from the first byte."""
    if named:
        await worker.name(DIGEST, SIZE)
    worker.leave(DIGEST, left)
    assert await worker.read(DIGEST) == CONTENT
    assert source.ranges == ([(0, None)] if named else [(len(left), None), (0, None)])
    assert worker.stored(DIGEST) == CONTENT


async def test_partial_longer_than_it_is_named(worker: Worker, source: FakeSource) -> None:
    """A partial of the right digest is not what a manifest of another size means."""
    await worker.name(DIGEST, SIZE - 10)
    worker.leave(DIGEST, CONTENT)
    with pytest.raises(BadUpstream):
        await worker.open(NAME, DIGEST)
    assert source.ranges == [(0, None)]
    assert worker.stored(DIGEST) is None


async def test_no_such_range_of_nothing(worker: Worker, source: FakeSource) -> None:
    """A 416 for the whole blob is the source's nonsense, and does not go round in circles."""
    source.planned.append(broken(Failure.CUT, status=416))
    with pytest.raises(BadUpstream):
        await worker.open(NAME, DIGEST)
    assert source.ranges == [(0, None)]


# -- who comes and goes ----------------------------------------------------------------------------


async def test_reader_leaves(worker: Worker, source: FakeSource) -> None:
    """A fill goes on when the one that asked for it is gone, and nobody else is there."""
    stop = _halting(source)
    reading = await worker.reading(DIGEST)
    await until(lambda: reading.received, "the first bytes")
    await reading.leave()
    stop.set()
    await until(lambda: not worker.blobs.filling, "the fill ended")
    assert worker.stored(DIGEST) == CONTENT


async def test_client_leaves_before_its_answer(worker: Worker, source: FakeSource) -> None:
    """The same when it goes before there was anything to answer."""
    source.gate = asyncio.Event()
    opening = asyncio.create_task(worker.open(NAME, DIGEST))
    await until(lambda: source.asked, "the source was asked")
    opening.cancel()
    await asyncio.gather(opening, return_exceptions=True)
    source.gate.set()
    await until(lambda: not worker.blobs.filling, "the fill ended")
    assert worker.stored(DIGEST) == CONTENT


async def test_slow_reader(worker: Worker, source: FakeSource) -> None:
    """A reader that takes its time holds nobody up, and has all of it long after the end."""
    reader = await worker.open(NAME, DIGEST)
    assert await worker.read(DIGEST) == CONTENT
    await until(lambda: not worker.blobs.filling, "the fill ended")
    worker.layout.blob(DIGEST).unlink()  # evicted: the open file is all that is left
    assert await Reading(reader).whole() == CONTENT
    assert reader.served == Served(Outcome.MISS)
    assert source.ranges == [(0, None)]
