"""When a tag is asked for again, and what the upstream's answer then means. Pure: one truth table.

Everything by digest never changes, so all that is about time is here.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

from pullthrough.oci.errors import (
    BadUpstream,
    Denied,
    RegistryError,
    TooManyRequests,
    Unavailable,
    UpstreamTimeout,
)
from pullthrough.upstream.base import Failure, UpstreamError


class Plan(Enum):
    """What to do before the upstream was asked."""

    HIT = "hit"
    REVALIDATE = "revalidate"
    STALE = "stale"
    FETCH = "fetch"


class Verdict(Enum):
    """What to do after it answered a question about something that is cached."""

    STALE = "stale"  # an outage: what is cached is served, and said to be stale
    STALE_LOUD = "stale-loud"  # the same, but somebody has to mend something at our end
    GONE = "gone"  # the upstream no longer has it: believed
    REFUSED = "refused"  # the upstream forbids it for what it is: believed


def plan(*, age: float | None, maxage: float, up: bool) -> Plan:
    """Decide for a tag last checked ``age`` seconds ago (None: not cached).

    ``up`` is the breaker's word: while the upstream is down nobody waits for it.
    """
    if age is None:
        return Plan.FETCH
    # A clock that was set back gives a negative age: no reason to trust the entry the longer.
    if 0 <= age < maxage:
        return Plan.HIT
    return Plan.REVALIDATE if up else Plan.STALE


_CACHED: Final = {
    Failure.NOT_FOUND: Verdict.GONE,
    Failure.POLICY: Verdict.REFUSED,
    # An expired robot must not stop a region.
    Failure.UNAUTHORIZED: Verdict.STALE_LOUD,
    Failure.FORBIDDEN: Verdict.STALE_LOUD,
    Failure.RESTED: Verdict.STALE_LOUD,
    Failure.RATE_LIMITED: Verdict.STALE,
    Failure.SERVER_ERROR: Verdict.STALE,
    Failure.REFUSED: Verdict.STALE,
    Failure.TIMEOUT: Verdict.STALE,
    Failure.CUT: Verdict.STALE,
    Failure.INVALID: Verdict.STALE,
    Failure.NOT_A_REGISTRY: Verdict.STALE,
    Failure.DOWN: Verdict.STALE,
}

_ABSENT: Final[dict[Failure, type[RegistryError]]] = {
    Failure.POLICY: Denied,
    # The client's own login was right; this says whose was not.
    Failure.UNAUTHORIZED: Denied,
    Failure.FORBIDDEN: Denied,
    Failure.RESTED: Unavailable,
    Failure.RATE_LIMITED: TooManyRequests,
    Failure.SERVER_ERROR: BadUpstream,
    Failure.REFUSED: Unavailable,
    Failure.TIMEOUT: UpstreamTimeout,
    Failure.CUT: BadUpstream,
    Failure.INVALID: BadUpstream,
    Failure.NOT_A_REGISTRY: BadUpstream,
    Failure.DOWN: Unavailable,
}


def settle(failure: Failure, *, up: bool) -> Verdict:
    """Decide for something cached, when the upstream failed to confirm it.

    A 404 from an upstream that counts as down is that of a service on its way up or down: it is
    not believed.
    """
    if failure is Failure.NOT_FOUND and not up:
        return Verdict.STALE
    return _CACHED[failure]


def absent(error: UpstreamError, unknown: type[RegistryError]) -> RegistryError:
    """Return what a client is told when nothing is cached; ``unknown`` is this resource's 404."""
    kind = unknown if error.failure is Failure.NOT_FOUND else _ABSENT[error.failure]
    return kind(str(error), detail=error.failure.value, retry_after=error.retry_after)
