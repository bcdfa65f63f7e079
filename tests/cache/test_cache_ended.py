"""A drain in mid-fill: whatever it was doing, it ends, lets go of its files and loses nothing."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Sequence
from typing import Any

import pytest

from pullthrough.oci.digest import Digest
from pullthrough.oci.errors import Unavailable
from pullthrough.store.partial import Partial
from pullthrough.upstream.base import Failure
from tests.cache.conftest import Start
from tests.cache.scripted import NAME, Body, FakeSource, broken, until
from tests.cache.worker import Worker, open_files

CONTENT = random.Random(2).randbytes(2_500_000)  # noqa: S311 - an example, not a secret
SIZE = len(CONTENT)
DIGEST = Digest.of(CONTENT)
HALF = 1_000_000


@pytest.fixture(autouse=True)
def _has_it(source: FakeSource) -> None:
    source.add(CONTENT)


def _nothing_open(worker: Worker) -> bool:
    layout = worker.layout
    return not open_files(layout.partials) and not open_files(layout.blobs)


async def _let_run() -> None:
    """Let run what can run, while a thread stands still."""
    for _ in range(50):
        await asyncio.sleep(0)


async def _assert_goes_on(start: Start) -> None:
    """Assert that the next process has the blob, and asks for no byte that was here."""
    source = FakeSource()
    source.add(CONTENT)
    worker = await start(source)
    await worker.name(DIGEST, SIZE)
    here = worker.stored(DIGEST) or worker.partial(DIGEST) or b""
    assert CONTENT.startswith(here)
    assert await worker.read(DIGEST) == CONTENT
    assert source.ranges == ([] if len(here) == SIZE else [(len(here), None)])


@pytest.mark.parametrize(
    ("phase", "call"),
    [
        ("open_partial", 1),
        ("open_blob", 2),  # the first is the reader's own
        ("named_size", 1),
        ("publish", 1),
        ("link_blob", 1),
        ("secure", 1),
    ],
)
async def test_ended_in_the_store(
    start: Start, monkeypatch: pytest.MonkeyPatch, phase: str, call: int
) -> None:
    """A fill that is ended while it waits for the store lets go, and the next process goes on."""
    worker = await start()
    method = getattr(worker.store, phase)
    reached = asyncio.Event()
    calls = 0

    async def never(*args: object) -> Any:
        nonlocal calls
        calls += 1
        if calls < call:
            return await method(*args)
        reached.set()
        return await asyncio.Event().wait()

    monkeypatch.setattr(worker.store, phase, never)
    opening = asyncio.create_task(worker.open(NAME, DIGEST))
    await reached.wait()
    await worker.blobs.close()
    (result,) = await asyncio.gather(opening, return_exceptions=True)
    if isinstance(result, BaseException):
        assert isinstance(result, Unavailable)
    else:
        result.close()
    assert worker.blobs.filling == 0
    assert _nothing_open(worker)
    await _assert_goes_on(start)


async def test_ended_while_it_connects(start: Start, source: FakeSource) -> None:
    """The same while the source has not answered yet."""
    worker = await start()
    source.gate = asyncio.Event()
    opening = asyncio.create_task(worker.open(NAME, DIGEST))
    await until(lambda: source.asked, "the source was asked")
    await worker.blobs.close()
    (result,) = await asyncio.gather(opening, return_exceptions=True)
    assert isinstance(result, Unavailable)
    assert _nothing_open(worker)
    await _assert_goes_on(start)


async def test_ended_while_it_receives(start: Start, source: FakeSource) -> None:
    """The same in the middle: the connection is closed, the readers are told, what came is kept."""
    worker = await start()
    source.planned.append(Body([CONTENT[:HALF], asyncio.Event()], size=SIZE))
    reading = await worker.reading(DIGEST)
    await until(lambda: len(reading.received) == HALF - 1, "as far as the source")
    await worker.blobs.close()
    assert isinstance(await reading.failure(), Unavailable)
    assert source.connections == 0
    assert worker.partial(DIGEST) == CONTENT[:HALF]
    assert _nothing_open(worker)
    await _assert_goes_on(start)


async def test_ended_before_the_clean_end(start: Start, source: FakeSource) -> None:
    """The same when all bytes are here, and only the end is not: nobody was given the last one."""
    worker = await start()
    source.planned.append(Body([CONTENT, asyncio.Event()], size=SIZE))
    reading = await worker.reading(DIGEST)
    await until(lambda: len(reading.received) == SIZE - 1, "all but the last byte")
    await worker.blobs.close()
    assert isinstance(await reading.failure(), Unavailable)
    assert worker.partial(DIGEST) == CONTENT
    assert _nothing_open(worker)
    await _assert_goes_on(start)


async def test_ended_in_a_pause(
    start: Start, source: FakeSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same between two tries."""
    worker = await start()
    pausing = asyncio.Event()

    async def sleep(_: float) -> None:
        pausing.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(type(worker.sleep), "__call__", lambda _, seconds: sleep(seconds))
    source.planned.append(Body([CONTENT[:HALF], broken(Failure.CUT)], size=SIZE))
    reading = await worker.reading(DIGEST)
    await pausing.wait()
    await worker.blobs.close()
    assert isinstance(await reading.failure(), Unavailable)
    assert _nothing_open(worker)
    await _assert_goes_on(start)


@pytest.mark.parametrize(
    ("chunks", "clean"),
    [
        ([CONTENT[:HALF]], False),
        ([CONTENT[:HALF], CONTENT[HALF : HALF + 10]], False),
        ([CONTENT[:10], CONTENT[10 : 2 * HALF]], False),  # more than is held: the source waits too
        ([CONTENT], True),
        ([CONTENT[: 2 * HALF], CONTENT[2 * HALF :]], True),
    ],
    ids=["nothing waits", "some waits", "much waits", "clean end", "clean end and some waits"],
)
async def test_ended_while_a_thread_writes(
    start: Start, source: FakeSource, monkeypatch: pytest.MonkeyPatch,
    chunks: list[bytes], *, clean: bool,
) -> None:  # fmt: skip
    """A write that has begun is let finish before its file is closed, and all that came is kept."""
    worker = await start()
    writing, go_on = threading.Event(), threading.Event()
    append = Partial.append
    closed: list[bool] = []

    def slowly(partial: Partial, offset: int, chunks: Sequence[bytes], hasher: Any) -> int:
        writing.set()
        assert go_on.wait(60)
        closed.append(partial.data.closed or not partial.owned)
        return append(partial, offset, chunks, hasher)

    monkeypatch.setattr(Partial, "append", slowly)
    ends = () if clean else (asyncio.Event(),)
    source.planned.append(Body([*chunks, *ends], size=SIZE))
    reading = await worker.reading(DIGEST)
    await until(writing.is_set, "a thread writes")
    await reading.leave()
    await _let_run()
    closing = asyncio.create_task(worker.blobs.close())
    await _let_run()
    assert not closing.done()
    go_on.set()
    await closing
    assert not any(closed)
    assert worker.partial(DIGEST) == b"".join(chunks)
    assert _nothing_open(worker)
    await _assert_goes_on(start)
