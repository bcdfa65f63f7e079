"""The truth table of freshness, a test a row."""

from __future__ import annotations

from typing import Final

import pytest

from pullthrough.cache.freshness import Plan, Verdict, absent, plan, settle
from pullthrough.oci.errors import BlobUnknown, ManifestUnknown, NameUnknown, RegistryError
from pullthrough.upstream.base import Failure, UpstreamError


@pytest.mark.parametrize(
    ("age", "maxage", "up", "expected"),
    [
        # Nothing is cached: there is no choice, whatever the breaker says.
        (None, 0, True, Plan.FETCH),
        (None, 0, False, Plan.FETCH),
        (None, 60, True, Plan.FETCH),
        (None, 60, False, Plan.FETCH),
        # Young enough: nobody is asked.
        (0, 60, True, Plan.HIT),
        (0, 60, False, Plan.HIT),
        (59.9, 60, True, Plan.HIT),
        (59.9, 60, False, Plan.HIT),
        # As old as maxage is too old.
        (60, 60, True, Plan.REVALIDATE),
        (60, 60, False, Plan.STALE),
        (1e9, 60, True, Plan.REVALIDATE),
        (1e9, 60, False, Plan.STALE),
        # maxage 0: always asked, even in the same instant.
        (0, 0, True, Plan.REVALIDATE),
        (0, 0, False, Plan.STALE),
        # A clock that was set back: not trusted the longer for it.
        (-0.1, 60, True, Plan.REVALIDATE),
        (-0.1, 60, False, Plan.STALE),
        (-1e9, 60, True, Plan.REVALIDATE),
        (-1e9, 60, False, Plan.STALE),
        (-1, 0, True, Plan.REVALIDATE),
        (-1, 0, False, Plan.STALE),
    ],
)
def test_plan(age: float | None, maxage: float, expected: Plan, *, up: bool) -> None:
    """What is done before the upstream is asked."""
    assert plan(age=age, maxage=maxage, up=up) is expected


_SETTLED: Final = {
    (Failure.NOT_FOUND, True): Verdict.GONE,
    # A service on its way up or down says 404 of everything.
    (Failure.NOT_FOUND, False): Verdict.STALE,
    (Failure.POLICY, True): Verdict.REFUSED,
    (Failure.POLICY, False): Verdict.REFUSED,
    # Our own credential: a region must not stop for it, but somebody has to hear of it.
    (Failure.UNAUTHORIZED, True): Verdict.STALE_LOUD,
    (Failure.UNAUTHORIZED, False): Verdict.STALE_LOUD,
    (Failure.FORBIDDEN, True): Verdict.STALE_LOUD,
    (Failure.FORBIDDEN, False): Verdict.STALE_LOUD,
    (Failure.RESTED, True): Verdict.STALE_LOUD,
    (Failure.RESTED, False): Verdict.STALE_LOUD,
    # An outage, in all its forms.
    (Failure.RATE_LIMITED, True): Verdict.STALE,
    (Failure.RATE_LIMITED, False): Verdict.STALE,
    (Failure.SERVER_ERROR, True): Verdict.STALE,
    (Failure.SERVER_ERROR, False): Verdict.STALE,
    (Failure.REFUSED, True): Verdict.STALE,
    (Failure.REFUSED, False): Verdict.STALE,
    (Failure.TIMEOUT, True): Verdict.STALE,
    (Failure.TIMEOUT, False): Verdict.STALE,
    (Failure.CUT, True): Verdict.STALE,
    (Failure.CUT, False): Verdict.STALE,
    (Failure.INVALID, True): Verdict.STALE,
    (Failure.INVALID, False): Verdict.STALE,
    (Failure.NOT_A_REGISTRY, True): Verdict.STALE,
    (Failure.NOT_A_REGISTRY, False): Verdict.STALE,
    (Failure.DOWN, True): Verdict.STALE,
    (Failure.DOWN, False): Verdict.STALE,
}


@pytest.mark.parametrize(
    ("failure", "up", "expected"),
    [(failure, up, verdict) for (failure, up), verdict in _SETTLED.items()],
)
def test_settle(failure: Failure, expected: Verdict, *, up: bool) -> None:
    """What an upstream's failure means for something that is cached."""
    assert settle(failure, up=up) is expected


_ABSENT: Final = {
    Failure.NOT_FOUND: (404, "MANIFEST_UNKNOWN"),
    Failure.POLICY: (403, "DENIED"),
    Failure.UNAUTHORIZED: (403, "DENIED"),
    Failure.FORBIDDEN: (403, "DENIED"),
    Failure.RESTED: (503, "UNAVAILABLE"),
    Failure.RATE_LIMITED: (429, "TOOMANYREQUESTS"),
    Failure.SERVER_ERROR: (502, "UNAVAILABLE"),
    Failure.REFUSED: (503, "UNAVAILABLE"),
    Failure.TIMEOUT: (504, "UNAVAILABLE"),
    Failure.CUT: (502, "UNAVAILABLE"),
    Failure.INVALID: (502, "UNAVAILABLE"),
    Failure.NOT_A_REGISTRY: (502, "UNAVAILABLE"),
    Failure.DOWN: (503, "UNAVAILABLE"),
}


@pytest.mark.parametrize(
    ("failure", "status", "code"),
    [(failure, status, code) for failure, (status, code) in _ABSENT.items()],
)
def test_absent(failure: Failure, status: int, code: str) -> None:
    """What a client is told of an upstream's failure when nothing is cached."""
    error = absent(UpstreamError(failure, "why", retry_after=7), ManifestUnknown)
    assert (error.status, error.code) == (status, code)
    assert (error.message, error.detail, error.retry_after) == ("why", failure.value, 7)


@pytest.mark.parametrize("unknown", [BlobUnknown, ManifestUnknown, NameUnknown])
def test_absent_is_the_resources_own_404(unknown: type[RegistryError]) -> None:
    """A 404 has the code of what was asked for."""
    assert type(absent(UpstreamError(Failure.NOT_FOUND, "no"), unknown)) is unknown


def test_every_failure_has_its_rows() -> None:
    """A new failure cannot be forgotten: the tables here, and so those of the product, have all."""
    assert {failure for failure, _ in _SETTLED} == set(Failure)
    assert set(_ABSENT) == set(Failure)
    for failure in Failure:
        assert isinstance(settle(failure, up=True), Verdict)
        assert isinstance(settle(failure, up=False), Verdict)
        assert isinstance(absent(UpstreamError(failure, ""), BlobUnknown), RegistryError)
