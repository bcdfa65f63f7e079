"""Clients that are sent to the bucket: the answer's form, and who is never sent."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, cast

import pytest

from pullthrough.cache.base import Moved
from pullthrough.oci.errors import BlobUnknown
from tests.server.wire import BLOB, DIGEST, Wire, edge

PATH = f"/v2/project/app/blobs/{DIGEST}"
SECRET = "a-presigned-secret"
ADDRESS = f"https://s3.example.com/root/a%2Bb/data?X-Amz-Signature={SECRET}&x=%C3%A4"

pytestmark = pytest.mark.usefixtures("log")


@pytest.fixture
async def wire() -> AsyncIterator[Wire]:
    """Serve an edge whose blob is in the bucket."""
    async with edge() as serving:
        serving.stub.reader = cast("Any", Moved(ADDRESS))
        yield serving


async def test_redirect(wire: Wire) -> None:
    """It leads to the address as it was signed, says how it was come by, and is for now only."""
    reply = await wire.ask("GET", PATH)
    assert reply.status == 307
    assert reply.headers["Location"] == ADDRESS
    assert reply.headers["Cache-Status"] == "pullthrough; hit; detail=redirect"
    assert reply.headers["Cache-Control"] == "no-store"
    assert reply.headers["Content-Length"] == "0"
    assert reply.headers["Docker-Content-Digest"] == str(DIGEST)
    assert reply.headers["X-Request-Id"]
    assert reply.body == b""


async def test_redirect_keeps_the_connection(wire: Wire) -> None:
    """The next request on it is answered."""
    one = f"GET {PATH} HTTP/1.1\r\nHost: cache\r\n"
    reply = await wire.send((one + "\r\n" + one + "Connection: close\r\n\r\n").encode())
    assert reply.raw.count(b"HTTP/1.1 307") == 2


async def test_record_has_no_address(wire: Wire) -> None:
    """It says that a client was sent, and nothing that would let another go there."""
    await wire.ask("GET", PATH)
    (line,) = wire.recorded.lines
    assert line.status == 307
    assert line.bytes_sent == 0
    assert SECRET not in repr(line)


async def test_head_is_answered_here(wire: Wire) -> None:
    """Size and digest are told by us: nobody is sent anywhere for them."""
    reply = await wire.ask("HEAD", PATH)
    assert reply.status == 200
    assert reply.headers["Content-Length"] == str(len(BLOB))
    assert "Location" not in reply.headers
    assert "Cache-Control" not in reply.headers


@pytest.mark.parametrize(
    "header",
    [f'If-None-Match: "{DIGEST}"', "If-None-Match: *", "Range: bytes=5-9", "Range: bytes=900-"],
)
async def test_conditions_and_ranges_go_along(wire: Wire, header: str) -> None:
    """They are for the bucket: an answer that is no success ignores them (RFC 9110, 13.2.1)."""
    assert (await wire.ask("GET", PATH, header)).status == 307


async def test_condition_of_what_is_here(wire: Wire) -> None:
    """What need not be sent again is not, whether by GET or HEAD."""
    for method in ("GET", "HEAD"):
        async with edge() as here:
            reply = await here.ask(method, PATH, f'If-None-Match: "{DIGEST}"')
        assert reply.status == 304
    assert (await wire.ask("HEAD", PATH, f'If-None-Match: "{DIGEST}"')).status == 304


async def asked_host(wire: Wire, host: str | None, version: str = "1.1") -> str:
    """Return the host that the cache was told the client asked."""
    line = "" if host is None else f"Host: {host}\r\n"
    request = f"GET {PATH} HTTP/{version}\r\n{line}Connection: close\r\n\r\n"
    reply = await wire.send(request.encode("latin-1"))
    assert reply.status == 307, reply.raw
    ((_, _, host_asked),) = wire.stub.asked
    assert isinstance(host_asked, str)
    return host_asked


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("cache.example.com", "cache.example.com"),
        ("Cache.EXAMPLE.com:5000", "cache.example.com"),
        ("127.0.0.1:5000", "127.0.0.1"),
        ("[::1]:5000", "::1"),
    ],
)
async def test_host_that_was_asked(wire: Wire, host: str, expected: str) -> None:
    """It is told without its port, in small letters."""
    assert await asked_host(wire, host) == expected


@pytest.mark.parametrize(
    "host",
    [
        "", ":", ":5000", "a:b:c", "[", "[::1", "]", "a b", "a/b", "a?b", "a#b", "a@b", "@", "%",
        "%zz", "a%2Fb", "..", ".", "a" * 300, "xn--", "xn--a", "\xe4\xf6", "a:99999999", "a:-1",
        "[v1.x]:5", "[fe80::1%25eth0]",
    ],
)  # fmt: skip
async def test_odd_host(wire: Wire, host: str) -> None:
    """Whatever a client calls us, it is answered, by a refusal if need be, and nothing falls over.

    aiohttp itself may refuse it, with 400.
    """
    request = f"GET {PATH} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
    reply = await wire.send(request.encode("latin-1"))
    assert reply.status in {307, 400}


async def test_no_host(wire: Wire) -> None:
    """A client of HTTP/1.0 need not say whom it asks."""
    request = f"GET {PATH} HTTP/1.0\r\n\r\n"
    reply = await wire.send(request.encode())
    assert reply.status == 307


async def test_error_is_no_redirect(wire: Wire) -> None:
    """What is nowhere is the spec's error."""
    wire.stub.error = BlobUnknown("no such blob")
    reply = await wire.ask("GET", PATH)
    assert reply.status == 404
    assert "Location" not in reply.headers
