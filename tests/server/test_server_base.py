"""The headers that all answers share, and the form of errors."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from aiohttp.test_utils import make_mocked_request
from multidict import CIMultiDict

from pullthrough.cache.base import Outcome, Served
from pullthrough.oci import errors
from pullthrough.oci.digest import Digest
from pullthrough.oci.errors import RegistryError
from pullthrough.server.base import Exchange, cache_status, flat, matches

ETAG = str(Digest.of(b"content"))
ALL_ERRORS = [
    each
    for each in vars(errors).values()
    if isinstance(each, type) and issubclass(each, RegistryError)
]


def exchange(method: str = "GET") -> Exchange:
    return Exchange(make_mocked_request(method, "/v2/"), CIMultiDict())


def told(error: RegistryError, realm: str = "the realm") -> tuple[int, Any, CIMultiDict[str]]:
    """Return status, JSON and headers of an error's answer."""
    answer = exchange().error(error, realm)
    assert isinstance(answer.body, bytes)
    return answer.status, orjson.loads(answer.body), CIMultiDict(answer.headers)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, False),
        ("", False),
        (f'"{ETAG}"', True),
        (ETAG, True),  # as docker has sent it
        (f'W/"{ETAG}"', True),  # If-None-Match compares weakly (RFC 9110, 13.1.2)
        ("*", True),
        (" * ", True),
        (f'"other", "{ETAG}"', True),
        (f'"other","{ETAG}" , W/"more"', True),
        (f'"{ETAG}', True),
        ('"other"', False),
        (f'"{ETAG}x"', False),
        (f'"{ETAG[:-1]}"', False),
        (f'"{ETAG.upper()}"', False),
        ('"*"', False),
        ('""', False),
        (",,,", False),
    ],
)
def test_if_none_match(header: str | None, *, expected: bool) -> None:
    """Each way in which a client may say that it has these bytes, and none in which it does not."""
    assert matches(header, ETAG) is expected


@pytest.mark.parametrize(
    ("served", "expected"),
    [
        (Served(Outcome.HIT), "pullthrough; hit"),
        (Served(Outcome.REVALIDATED), "pullthrough; hit; detail=revalidated"),
        (Served(Outcome.MISS), "pullthrough; fwd=miss; stored"),
        (Served(Outcome.COLLAPSED), "pullthrough; fwd=miss; collapsed"),
        (Served(Outcome.BYPASS), "pullthrough; fwd=miss"),
        (Served(Outcome.BYPASS, "range"), "pullthrough; fwd=miss; detail=range"),
        (Served(Outcome.STALE, "timeout"), "pullthrough; fwd=stale; detail=timeout"),
    ],
)
def test_cache_status(served: Served, expected: str) -> None:
    """Each outcome in RFC 9211's words."""
    assert cache_status(served) == expected


@pytest.mark.parametrize("outcome", Outcome)
def test_only_stale_answers_warn(outcome: Outcome) -> None:
    """Warning 110 stands on stale answers and on no others; the outcome is kept for the log."""
    made = exchange()
    made.mark(Served(outcome))
    assert ("Warning" in made.headers) is (outcome is Outcome.STALE)
    assert made.headers.get("Warning", "110 ").startswith("110 ")
    assert made.headers["Cache-Status"] == cache_status(Served(outcome))
    assert made.served == Served(outcome)


@pytest.mark.parametrize("kind", ALL_ERRORS)
def test_errors_have_the_specs_form(kind: type[RegistryError]) -> None:
    """Every error is JSON with its code and message, under its status."""
    status, document, headers = told(kind("what happened", detail="more of it"))
    assert status == kind.status
    assert document == {
        "errors": [{"code": kind.code, "message": "what happened", "detail": "more of it"}]
    }
    assert headers["Content-Type"] == "application/json"
    assert headers["Cache-Status"].startswith("pullthrough; fwd=")


def test_login_is_asked_for_on_401_only() -> None:
    """A 401 says which login is wanted, nothing else does."""
    _, _, headers = told(errors.Unauthorized("authentication required"))
    assert headers["WWW-Authenticate"] == 'Basic realm="the realm"'
    for kind in ALL_ERRORS:
        if kind is not errors.Unauthorized:
            assert "WWW-Authenticate" not in told(kind(""))[2]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (errors.TooManyRequests(""), "1"),
        (errors.TooManyRequests("", retry_after=30.4), "30"),
        (errors.Unavailable("", retry_after=0.1), "1"),
        (errors.Unavailable(""), None),
    ],
)
def test_retry_after(error: RegistryError, expected: str | None) -> None:
    """Whole seconds, at least one; on every 429, and where the upstream asked for it."""
    assert told(error)[2].get("Retry-After") == expected


def test_error_keeps_what_is_known_of_the_cache() -> None:
    """A range beyond a cached blob's end is a hit all the same."""
    made = exchange()
    made.mark(Served(Outcome.HIT))
    answer = made.error(errors.RangeInvalid(""), "")
    assert answer.headers["Cache-Status"] == "pullthrough; hit"


def test_reply_to_head_has_the_length_without_the_bytes() -> None:
    """HEAD is told what GET would send, and the log counts nothing sent."""
    made = exchange("HEAD")
    answer = made.reply(b"12345", "text/plain")
    assert (answer.headers["Content-Length"], answer.body) == ("5", None)
    assert made.bytes_sent == 0
    made = exchange()
    assert made.reply(b"12345", "text/plain").body == b"12345"
    assert made.bytes_sent == 5


def test_configured_headers_may_have_several_values() -> None:
    """Each value of http.headers is a header of its own, in order."""
    assert flat({"A": ["1", "2"], "B": ["3"], "C": []}) == [("A", "1"), ("A", "2"), ("B", "3")]
