"""When a call to the upstream is worth another try, and how long to wait before it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final, TypeVar

from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception,
    stop_after_attempt,
    stop_any,
    stop_before_delay,
    wait_random_exponential,
)

from pullthrough.upstream.base import Failure, UpstreamError

T = TypeVar("T")
Sleep = Callable[[float], Awaitable[None]]

PASSING: Final = frozenset({Failure.REFUSED, Failure.TIMEOUT, Failure.CUT, Failure.RATE_LIMITED})
"""What may be over in a moment, beside some of the 5xx."""

_PASSING_STATUS: Final = frozenset({500, 502, 503, 504})
_BACKOFF = wait_random_exponential(multiplier=0.25, max=2)  # full jitter
_LONGEST_REST = 86400.0


async def retrying(
    attempt: Callable[[], Awaitable[T]],
    *,
    tries: int,
    patience: float,
    sleep: Sleep = asyncio.sleep,
    passing: frozenset[Failure] = PASSING,
) -> T:
    """Return what ``attempt`` returns, tried again after failures that are ``passing``.

    No try begins later than ``patience`` seconds after the first: a Retry-After that does not fit
    raises at once, with its ``retry_after`` for the client. Raises the last try's error.
    """

    async def one_try() -> T:  # tenacity awaits only what is declared async
        return await attempt()

    return await AsyncRetrying(
        retry=retry_if_exception(lambda error: _passes(error, passing)),
        wait=_wait,
        stop=stop_any(stop_after_attempt(tries), stop_before_delay(patience)),
        sleep=sleep,
        reraise=True,
    )(one_try)


def retry_after(header: str | None, now: datetime | None = None) -> float | None:
    """Return the seconds that a Retry-After asks for (RFC 9110, 10.2.3), None if it says none."""
    text = (header or "")[:64].strip()
    if text.isascii() and text.isdigit():
        return min(float(text), _LONGEST_REST)
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    seconds = (moment - (now or datetime.now(UTC))).total_seconds()
    return min(max(seconds, 0.0), _LONGEST_REST)


def _passes(error: BaseException, passing: frozenset[Failure]) -> bool:
    return isinstance(error, UpstreamError) and (
        error.failure in passing
        or (error.failure is Failure.SERVER_ERROR and error.status in _PASSING_STATUS)
    )


def _wait(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    if isinstance(error, UpstreamError) and error.retry_after is not None:
        return error.retry_after
    return _BACKOFF(state)
