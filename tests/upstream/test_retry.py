"""When a call is tried again, and after how long."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pullthrough.upstream.base import Failure, UpstreamError
from pullthrough.upstream.retry import retry_after, retrying

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("", None),
        ("0", 0),
        (" 7 ", 7),
        ("soon", None),
        ("-3", None),
        ("1.5", None),
        ("9" * 60, 86400),
        ("Sun, 01 Mar 2026 12:00:30 GMT", 30),
        ("Sun, 01 Mar 2026 11:00:00 GMT", 0),
        ("Sunday, 01-Mar-26 12:00:30 GMT", 30),
        ("Sun Mar  1 12:00:30 2026", 30),
        ("Sun, 01 Mar 2126 11:00:00 GMT", 86400),
    ],
)
def test_retry_after(header: str | None, seconds: float | None) -> None:
    """Seconds and dates are read, nonsense is nothing, and no value is longer than a day."""
    assert retry_after(header, NOW) == seconds


@given(st.text() | st.from_regex(r"\w{3}, \d{1,5} \w{3} \d{1,7} \d+:\d+:\d+ [+-]\d{1,9}"))
def test_retry_after_never_breaks(header: str) -> None:
    """Whatever the header says, the answer is a bounded time or none."""
    seconds = retry_after(header, NOW)
    assert seconds is None or 0 <= seconds <= 86400


class Attempts:
    """An attempt that fails as it is told to, and the sleeps between."""

    def __init__(self, *errors: UpstreamError) -> None:
        self.errors = list(errors)
        self.made = 0
        self.slept: list[float] = []

    async def __call__(self) -> str:
        self.made += 1
        if self.errors:
            raise self.errors.pop(0)
        return "content"

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)


def error(failure: Failure, status: int | None = None, after: float | None = None) -> UpstreamError:
    return UpstreamError(failure, "no", status=status, retry_after=after)


@pytest.mark.parametrize(
    "passing",
    [
        error(Failure.REFUSED),
        error(Failure.TIMEOUT),
        error(Failure.CUT),
        error(Failure.RATE_LIMITED, 429),
        *(error(Failure.SERVER_ERROR, status) for status in (500, 502, 503, 504)),
    ],
    ids=str,
)
async def test_what_passes_is_tried_again(passing: UpstreamError) -> None:
    """A failure that may pass gets another try after a short, random pause."""
    attempts = Attempts(passing, passing)
    assert await retrying(attempts, tries=3, patience=20, sleep=attempts.sleep) == "content"
    assert attempts.made == 3
    assert len(attempts.slept) == 2
    assert all(0 <= pause <= 2 for pause in attempts.slept)


@pytest.mark.parametrize(
    "final",
    [
        error(Failure.NOT_FOUND, 404),
        error(Failure.UNAUTHORIZED, 401),
        error(Failure.FORBIDDEN, 403),
        error(Failure.POLICY, 412),
        error(Failure.NOT_A_REGISTRY, 200),
        error(Failure.SERVER_ERROR, 501),
        error(Failure.RESTED),
    ],
)
async def test_an_answer_is_final(final: UpstreamError) -> None:
    """What would be answered the same again is not asked again."""
    attempts = Attempts(final)
    with pytest.raises(UpstreamError) as raised:
        await retrying(attempts, tries=3, patience=20, sleep=attempts.sleep)
    assert raised.value is final
    assert attempts.made == 1


async def test_the_tries_are_few() -> None:
    """The last try's own error is raised."""
    errors = [error(Failure.REFUSED) for _ in range(5)]
    attempts = Attempts(*errors)
    with pytest.raises(UpstreamError) as raised:
        await retrying(attempts, tries=3, patience=20, sleep=attempts.sleep)
    assert raised.value is errors[2]


async def test_retry_after_is_honoured() -> None:
    """The upstream's own wish is the pause."""
    attempts = Attempts(
        error(Failure.RATE_LIMITED, 429, 7.0), error(Failure.SERVER_ERROR, 503, 3.0)
    )
    await retrying(attempts, tries=3, patience=20, sleep=attempts.sleep)
    assert attempts.slept == [7.0, 3.0]


async def test_a_pause_that_does_not_fit_is_not_made() -> None:
    """A longer wish than there is time raises at once, and the client learns how long."""
    attempts = Attempts(error(Failure.RATE_LIMITED, 429, 30.0))
    with pytest.raises(UpstreamError) as raised:
        await retrying(attempts, tries=3, patience=20, sleep=attempts.sleep)
    assert raised.value.retry_after == 30.0
    assert (attempts.made, attempts.slept) == (1, [])
