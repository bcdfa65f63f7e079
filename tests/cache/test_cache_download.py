"""A download: gapless and in order over broken connections, and stubborn within its limits."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pullthrough.cache.download import Download, Persistence
from pullthrough.upstream.base import Failure, UpstreamError
from tests.cache.scripted import NAME, Body, FakeSource, Sleep, broken

CONTENT = bytes(range(200)) * 5
SIZE = len(CONTENT)

PASSING = {
    Failure.CUT,
    Failure.TIMEOUT,
    Failure.REFUSED,
    Failure.SERVER_ERROR,
    Failure.RATE_LIMITED,
    Failure.DOWN,
    Failure.NOT_A_REGISTRY,
}


class Attempt:
    """A download of ``CONTENT`` over planned connections; what came is kept though it fails."""

    def __init__(self, *planned: Body | UpstreamError, tries: int = 3, **options: Any) -> None:
        self.source, self.sleep = FakeSource(), Sleep()
        self.source.planned.extend(planned)
        self._digest = self.source.add(CONTENT)
        self._tries, self._options = tries, options
        self.received = b""
        self.size: int | None = None

    async def run(self) -> bytes:
        """Receive what comes."""
        persistence = Persistence(self._tries, self.sleep)
        download = Download(
            self.source, NAME, self._digest, persistence=persistence, **self._options
        )
        try:
            async with download:
                async for chunk in download.chunks():
                    assert chunk
                    self.received += chunk
        finally:
            self.size = download.size
            assert self.source.connections == 0
        return self.received

    async def fail(self) -> UpstreamError:
        """Receive what comes until it fails."""
        with pytest.raises(UpstreamError) as caught:
            await self.run()
        return caught.value


async def test_whole() -> None:
    """One good connection is all it takes; the size is what the source said."""
    attempt = Attempt()
    assert await attempt.run() == CONTENT
    assert attempt.source.ranges == [(0, None)]
    assert (attempt.size, attempt.sleep.slept) == (SIZE, [])


@pytest.mark.parametrize("failure", sorted(PASSING, key=str))
async def test_goes_on_after_a_break(failure: Failure) -> None:
    """After a break it asks for the rest, from the first byte that is missing."""
    attempt = Attempt(Body([CONTENT[:100], CONTENT[100:300], broken(failure)], size=SIZE))
    assert await attempt.run() == CONTENT
    assert attempt.source.ranges == [(0, None), (300, None)]
    assert len(attempt.sleep.slept) == 1


@pytest.mark.parametrize("failure", sorted(set(Failure) - PASSING, key=str))
async def test_a_no_is_a_no(failure: Failure) -> None:
    """What would only be said again is raised at once."""
    attempt = Attempt(Body([CONTENT[:100], broken(failure, status=499)], size=SIZE))
    error = await attempt.fail()
    assert (error.failure, error.status) == (failure, 499)
    assert (attempt.received, attempt.sleep.slept) == (CONTENT[:100], [])


async def test_no_such_range_is_a_no() -> None:
    """A 416 is raised at once, though it is a CUT: there is nothing to go on with."""
    attempt = Attempt(Body([CONTENT[:100], broken(Failure.CUT)], size=SIZE),
                      broken(Failure.CUT, status=416))  # fmt: skip
    assert (await attempt.fail()).status == 416
    assert len(attempt.source.ranges) == 2


async def test_first_connection() -> None:
    """A source that cannot be reached at all is the caller's affair: it was tried already."""
    attempt = Attempt(broken(Failure.REFUSED))
    assert (await attempt.fail()).failure is Failure.REFUSED
    assert attempt.source.ranges == [(0, None)]


@pytest.mark.parametrize("chunk", [1, 99, 100, 101, 300, 1000])
async def test_range_ignored(chunk: int) -> None:
    """A source that sends the beginning again has it thrown away, however it is cut in pieces."""
    again = [CONTENT[at : at + chunk] for at in range(0, SIZE, chunk)]
    attempt = Attempt(
        Body([CONTENT[:300], broken(Failure.CUT)], size=SIZE), Body(again, start=0, size=SIZE)
    )
    assert await attempt.run() == CONTENT


async def test_range_ignored_and_cut_in_the_beginning() -> None:
    """A break while the beginning is thrown away is no progress, and loses nothing."""
    again = Body([CONTENT[:200], broken(Failure.CUT)], start=0, size=SIZE)
    attempt = Attempt(Body([CONTENT[:300], broken(Failure.CUT)], size=SIZE), again)
    assert await attempt.run() == CONTENT
    assert attempt.source.ranges == [(0, None), (300, None), (300, None)]
    assert attempt.sleep.slept[1] >= 0.5  # the second failure in a row


async def test_clean_short_end_is_a_break() -> None:
    """An end before the size is not believed (harbor#23374): it goes on from there."""
    attempt = Attempt(Body([CONTENT[:100]]), size=SIZE)
    assert await attempt.run() == CONTENT
    assert attempt.source.ranges == [(0, None), (100, None)]


@pytest.mark.parametrize("known", [True, False])
async def test_cut_after_the_last_byte(*, known: bool) -> None:
    """Once all bytes of a known size are here a break is none: there is nothing to ask for."""
    body = Body([CONTENT, broken(Failure.CUT)], size=None if known else SIZE)
    attempt = Attempt(body, size=SIZE if known else None)
    assert await attempt.run() == CONTENT
    assert attempt.source.ranges == [(0, None)]
    assert attempt.sleep.slept == []


async def test_end_without_a_size() -> None:
    """Where nobody says a size, a clean end is the end."""
    attempt = Attempt(Body([CONTENT[:100]]))
    assert await attempt.run() == CONTENT[:100]
    assert attempt.size is None


async def test_size_learned_on_the_way() -> None:
    """A size that the second connection says holds for the rest."""
    attempt = Attempt(
        Body([CONTENT[:100], broken(Failure.CUT)]), Body([CONTENT[100:200]], size=SIZE)
    )
    assert await attempt.run() == CONTENT
    assert attempt.source.ranges == [(0, None), (100, None), (200, None)]


@pytest.mark.parametrize("chunk", [SIZE + 1, 64])
async def test_more_than_the_size(chunk: int) -> None:
    """Bytes beyond the size are wrong content, and none of them is given out."""
    much = CONTENT + b"!" * 100
    body = Body([much[at : at + chunk] for at in range(0, len(much), chunk)])
    attempt = Attempt(body, size=SIZE)
    assert (await attempt.fail()).failure is Failure.INVALID
    assert CONTENT.startswith(attempt.received)


async def test_another_size() -> None:
    """A source that offers another size than was known has other content."""
    attempt = Attempt(Body([CONTENT], size=SIZE + 1), size=SIZE)
    assert (await attempt.fail()).failure is Failure.INVALID
    assert attempt.received == b""


async def test_another_size_after_a_break() -> None:
    """The same when it is the connection after a break that offers it."""
    attempt = Attempt(
        Body([CONTENT[:100], broken(Failure.CUT)], size=SIZE), Body([CONTENT[100:]], size=SIZE - 1)
    )
    assert (await attempt.fail()).failure is Failure.INVALID
    assert attempt.received == CONTENT[:100]


@pytest.mark.parametrize(("start", "end"), [(0, 1), (0, 500), (10, 11), (300, 700), (900, SIZE)])
async def test_range(start: int, end: int) -> None:
    """A range is asked for as a range, after a break too, and given exactly."""
    attempt = Attempt(start=start, end=end)
    assert await attempt.run() == CONTENT[start:end]
    assert attempt.source.ranges == [(start, end)]
    middle = (start + end) // 2
    attempt = Attempt(
        Body([CONTENT[start:middle], broken(Failure.TIMEOUT)], size=SIZE), start=start, end=end
    )
    assert await attempt.run() == CONTENT[start:end]
    assert attempt.source.ranges == [(start, end), (middle, end)]


async def test_range_from_a_source_that_ignores_ranges() -> None:
    """Of a whole blob only the range is given out, and the rest is not waited for."""
    attempt = Attempt(Body([CONTENT, broken(Failure.CUT)], start=0, size=SIZE), start=300, end=400)
    assert await attempt.run() == CONTENT[300:400]
    assert attempt.sleep.slept == []


async def test_range_that_ends_short() -> None:
    """A range that ends cleanly before its end is a break too."""
    attempt = Attempt(Body([CONTENT[300:350]]), start=300, end=400)
    assert await attempt.run() == CONTENT[300:400]
    assert attempt.source.ranges == [(300, 400), (350, 400)]


async def test_tries() -> None:
    """As many failures in a row as there are tries, without a byte between, are the end."""
    attempt = Attempt(
        Body([CONTENT[:100], broken(Failure.CUT)], size=SIZE),
        broken(Failure.REFUSED),
        Body([broken(Failure.TIMEOUT)], size=SIZE),
        tries=3,
    )
    assert (await attempt.fail()).failure is Failure.TIMEOUT
    assert attempt.received == CONTENT[:100]
    assert len(attempt.source.ranges) == 3
    assert len(attempt.sleep.slept) == 2


async def test_progress_gives_new_tries() -> None:
    """Any byte of progress begins the count anew: a bad link is gone on with for ever."""
    cut = [
        Body([CONTENT[at : at + 10], broken(Failure.CUT)], size=SIZE) for at in range(0, 900, 10)
    ]
    attempt = Attempt(*cut, tries=2)
    assert await attempt.run() == CONTENT
    assert len(attempt.source.ranges) == 91
    assert max(attempt.sleep.slept) <= 0.5


async def test_retry_after() -> None:
    """A source that says when to come again is not asked sooner."""
    attempt = Attempt(
        Body([CONTENT[:100], broken(Failure.RATE_LIMITED, retry_after=7)], size=SIZE),
        broken(Failure.SERVER_ERROR, retry_after=0.001),
    )
    assert await attempt.run() == CONTENT
    first, second = attempt.sleep.slept
    assert first == 7
    assert 0.5 <= second <= 1


async def test_retry_after_too_long() -> None:
    """A source that wants to be left alone for more than a minute is not waited for."""
    attempt = Attempt(
        Body([CONTENT[:100], broken(Failure.RATE_LIMITED, retry_after=60)], size=SIZE),
        Body([CONTENT[100:200], broken(Failure.RATE_LIMITED, retry_after=60.1)], size=SIZE),
    )
    assert (await attempt.fail()).retry_after == 60.1
    assert attempt.received == CONTENT[:200]
    assert attempt.sleep.slept == [60]


@settings(deadline=None)
@given(st.integers(1, 12), st.none() | st.floats(0, 100))
async def test_pauses(failures: int, at_least: float | None) -> None:
    """Each pause may be twice the one before, up to 15 s; half of it is sure."""
    sleep = Sleep()
    await Persistence(1, sleep).pause(failures, at_least)
    longest = min(0.5 * 2 ** (failures - 1), 15.0)
    (slept,) = sleep.slept
    assert max(longest / 2, at_least or 0) <= slept <= max(longest, at_least or 0)


async def test_pauses_are_not_in_step() -> None:
    """Two downloads that broke at the same moment do not come again at the same moment."""
    sleep = Sleep()
    for _ in range(10):
        await Persistence(1, sleep).pause(3, None)
    assert len(set(sleep.slept)) > 1


@settings(deadline=None)
@given(
    breaks=st.lists(st.tuples(st.integers(1, 400), st.booleans()), max_size=20),
    known=st.booleans(),
)
async def test_any_breaks(breaks: list[tuple[int, bool]], *, known: bool) -> None:
    """Whatever breaks where, and whether ranges are obeyed or not, the bytes are all and right."""
    planned, offset = [], 0
    for count, obeys in breaks:
        end = min(offset + count, SIZE - 1)
        start = offset if obeys else 0
        planned.append(Body([CONTENT[start:end], broken(Failure.CUT)], start=start, size=SIZE))
        offset = end
    attempt = Attempt(*planned, tries=len(planned) + 1, size=SIZE if known else None)
    assert await attempt.run() == CONTENT
