"""A feed: how far content may be read, and who is woken when."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pullthrough.cache.feed import Feed, Unstored
from pullthrough.oci.errors import BadUpstream, Unavailable


async def _waiting(*tasks: asyncio.Task[object]) -> bool:
    """Let everything run that can, and tell whether all the tasks still wait."""
    for _ in range(5):
        await asyncio.sleep(0)
    return not any(task.done() for task in tasks)


@settings(deadline=None)
@given(st.lists(st.integers(0, 1000)))
def test_the_last_byte_is_held_back(presents: list[int]) -> None:
    """However it advances, the last byte that is there is not visible until it is finished."""
    feed = Feed()
    for count, present in enumerate(presents, 1):
        feed.advance(present, size=1000)
        assert feed.visible == max(0, max(presents[:count]) - 1)
        assert feed.visible < 1000
        assert not feed.complete
    feed.finish(1000)
    assert feed.visible == 1000


async def test_it_never_goes_back() -> None:
    """Progress reported out of order takes nothing back that was visible."""
    feed = Feed()
    feed.advance(100)
    feed.advance(10)
    assert feed.visible == 99


async def test_past() -> None:
    """A reader waits for bytes after its place, is given all there are, and ends at the end."""
    feed = Feed()
    waiting = asyncio.create_task(feed.past(5))
    assert await _waiting(waiting)
    feed.advance(6, size=10)  # bytes 0 to 5 are there, and the last of them is held back
    assert await _waiting(waiting)
    feed.advance(8)
    assert await waiting == 7
    last = asyncio.create_task(feed.past(9))
    feed.advance(10)
    assert await _waiting(last)
    feed.finish(10)
    assert await last == 10
    assert await feed.past(10) == 10


@pytest.mark.parametrize(("present", "size"), [(0, 10), (2, None), (10, 10)])
async def test_sized(present: int, size: int | None) -> None:
    """An answer can be begun when the size is known, or bytes that may be given out have come."""
    feed = Feed()
    waiting = asyncio.create_task(feed.sized())
    feed.advance(1)  # one byte may be the last
    assert await _waiting(waiting)
    feed.advance(present, size)
    await waiting


async def test_sized_at_the_end() -> None:
    """An answer can be begun when all has come, be it nothing at all."""
    feed = Feed()
    waiting = asyncio.create_task(feed.sized())
    assert await _waiting(waiting)
    feed.finish(0)
    await waiting


async def test_failure_wakes_all() -> None:
    """Whoever waits hears of a failure, and so does whoever comes later."""
    feed = Feed()
    error = Unavailable("gone")
    waiting = [asyncio.create_task(wait) for wait in (feed.sized(), feed.past(0), feed.past(10))]
    assert await _waiting(*waiting)
    before = feed.failed
    feed.fail(error)
    assert await asyncio.gather(*waiting, return_exceptions=True) == [error] * 3
    assert (before, feed.failed) == (False, True)
    for wait in (feed.sized(), feed.past(0)):
        with pytest.raises(Unavailable):
            await wait


async def test_failure_after_the_size() -> None:
    """Who comes when it has failed is not told to begin an answer, though the size is known."""
    feed = Feed()
    feed.advance(5, size=10)
    feed.fail(BadUpstream("wrong"))
    with pytest.raises(BadUpstream):
        await feed.sized()


async def test_wrong_content_takes_all_back() -> None:
    """Of content that is known to be wrong nothing more is given out, not even what is there."""
    feed = Feed()
    feed.advance(8, size=10)
    feed.fail(BadUpstream("wrong"))
    with pytest.raises(BadUpstream):
        await feed.past(0)


async def test_no_room_takes_nothing_back() -> None:
    """What is there can be read though there is no room for the rest; then the reader is told."""
    feed = Feed()
    feed.advance(8, size=10)
    feed.fail(Unstored())
    assert await feed.past(0) == 7
    with pytest.raises(Unstored):
        await feed.past(7)
