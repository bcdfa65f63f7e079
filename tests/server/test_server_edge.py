"""Every request's way over a real socket: what is on every answer, and how failures look."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import bcrypt
import pytest
from structlog.testing import LogCapture

from pullthrough.cache.base import Outcome, Served
from pullthrough.oci.errors import (
    BadUpstream,
    ManifestUnknown,
    TooManyRequests,
    UpstreamTimeout,
)
from pullthrough.server.auth import Htpasswd
from tests.fakes.client import basic
from tests.server.wire import BLOB, DIGEST, MANIFEST, MISS, Reader, Reply, Wire, edge

pytestmark = pytest.mark.usefixtures("log")

MANIFEST_PATH = "/v2/project/app/manifests/v1"
BLOB_PATH = f"/v2/project/app/blobs/{DIGEST}"
SECRET = "a secret in an exception"


@pytest.fixture
async def wire() -> AsyncIterator[Wire]:
    """Serve an edge that is open to everyone."""
    async with edge() as serving:
        yield serving


@pytest.fixture
async def guarded(tmp_path: Path) -> AsyncIterator[Wire]:
    """Serve an edge that wants a login."""
    file = tmp_path / "htpasswd"
    file.write_bytes(b"node:" + bcrypt.hashpw(b"client-secret", bcrypt.gensalt(4)))
    htpasswd = Htpasswd(file)
    async with edge(htpasswd) as serving:
        yield serving
    htpasswd.close()


async def recorded(wire: Wire, count: int) -> None:
    """Wait until ``count`` requests were written down."""
    for _ in range(4000):
        if len(wire.recorded.lines) >= count:
            return
        await asyncio.sleep(0.005)  # a bounded poll: a record is written after the answer
    raise AssertionError(f"{len(wire.recorded.lines)} access records, not {count}")


def assert_common(reply: Reply) -> None:
    """Assert what is on every answer."""
    assert reply.headers["X-Request-Id"]
    assert reply.headers["Docker-Distribution-Api-Version"] == "registry/2.0"
    assert reply.headers["X-Content-Type-Options"] == "nosniff"
    assert reply.headers.get_all("X-Two") == ["1", "2"]


# -- every answer ----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    ("target", "content_type", "length"),
    [
        ("/v2/", "application/json", 2),
        (MANIFEST_PATH, "application/vnd.oci.image.manifest.v1+json", len(MANIFEST)),
        (BLOB_PATH, "application/octet-stream", len(BLOB)),
        ("/v2/project/app/tags/list", "application/json", 41),
        ("/v2/_catalog", "application/json", 26),
        (f"/v2/a/referrers/{DIGEST}", "application/vnd.oci.image.index.v1+json", 88),
        ("/livez", "text/plain", 3),
    ],
)
async def test_answers(
    wire: Wire, method: str, target: str, content_type: str, length: int
) -> None:
    """Each endpoint has its type, its length also for HEAD, and what is on every answer."""
    reply = await wire.ask(method, target)
    assert reply.status == 200
    assert_common(reply)
    assert reply.headers["Content-Type"] == content_type
    assert reply.headers["Content-Length"] == str(length)
    assert len(reply.body) == (0 if method == "HEAD" else length)
    assert "Content-Encoding" not in reply.headers


async def test_request_ids_are_never_the_same(wire: Wire) -> None:
    """Each request has its own id, on one connection too."""
    one = "GET /v2/ HTTP/1.1\r\nHost: cache\r\n"
    raw = await wire.send((one + "\r\n" + one + "Connection: close\r\n\r\n").encode())
    parts = raw.raw.split(b"HTTP/1.1 ")[1:]
    ids = {Reply(b"HTTP/1.1 " + part, "end").headers["X-Request-Id"] for part in parts}
    ids.add((await wire.ask("GET", "/v2/")).headers["X-Request-Id"])
    assert len(ids) == 3
    assert {line.request_id for line in wire.recorded.lines} == ids


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("/", 404),
        ("/v2/UPPER/manifests/v1", 400),
        ("/v2/a/blobs/x", 400),
        ("/v2/a/tags/list?n=x", 400),
    ],
)
async def test_refused_targets(wire: Wire, target: str, status: int) -> None:
    """An error is an answer like any other: its id, the configured headers, JSON."""
    reply = await wire.ask("GET", target)
    assert reply.status == status
    assert_common(reply)
    assert reply.error()["message"]
    assert reply.headers["Cache-Status"].startswith("pullthrough; fwd=")


@pytest.mark.parametrize("origin", ["http://cache", "https://cache:5000", "HTTP://127.0.0.1:1"])
async def test_absolute_targets(wire: Wire, origin: str) -> None:
    """A target that is a whole URL is its path's (RFC 9112, 3.2.2), and is written down as that."""
    reply = await wire.ask("GET", origin + BLOB_PATH + "?ns=docker.io")
    assert (reply.status, reply.body) == (200, BLOB)
    (line,) = wire.recorded.lines
    assert (line.path, line.route) == (BLOB_PATH, "blob")
    assert (await wire.ask("GET", origin)).status == 404


async def test_overlapping_ranges_get_the_whole(wire: Wire) -> None:
    """Many times the same range costs no more than the blob once."""
    reply = await wire.ask("GET", BLOB_PATH, "Range: bytes=" + ",".join(["0-"] * 100))
    assert (reply.status, reply.body) == (200, BLOB)
    assert "Content-Range" not in reply.headers


async def test_range_of_an_empty_blob(wire: Wire) -> None:
    """Who resumes at the end of nothing is told that it has all."""
    wire.stub.reader = Reader(0, [])
    reply = await wire.ask("GET", BLOB_PATH, "Range: bytes=0-")
    assert (reply.status, reply.body, reply.headers["Content-Length"]) == (200, b"", "0")


async def test_unready_is_503(wire: Wire) -> None:
    """A drain takes the worker out of service, and does not stop it being alive."""
    wire.readiness.draining = True
    assert (await wire.ask("GET", "/readyz")).status == 503
    assert (await wire.ask("GET", "/livez")).status == 200


@pytest.mark.parametrize("etag", [f'"{DIGEST}"', str(DIGEST), "*"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_not_modified_has_no_body(wire: Wire, method: str, etag: str) -> None:
    """A client that has it is told so, with the headers and without the bytes."""
    reply = await wire.ask(method, BLOB_PATH, f"If-None-Match: {etag}")
    assert (reply.status, reply.body) == (304, b"")
    assert reply.headers["ETag"] == f'"{DIGEST}"'
    assert_common(reply)


# -- writes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PURGE"])
@pytest.mark.parametrize("target", ["/v2/", MANIFEST_PATH, "/v2/a/blobs/uploads/", "/livez", "/x"])
async def test_writes_are_refused(wire: Wire, method: str, target: str) -> None:
    """Nothing but GET and HEAD is done, anywhere: 405 with what is allowed."""
    reply = await wire.ask(method, target, "Content-Length: 0")
    assert reply.status == 405
    assert reply.headers["Allow"] == "GET, HEAD"
    assert reply.error()["code"] == "UNSUPPORTED"
    assert_common(reply)
    assert wire.stub.asked == []


async def test_upload_is_not_read(wire: Wire) -> None:
    """A large upload is refused without being taken."""
    head = b"PUT /v2/a/manifests/v1 HTTP/1.1\r\nHost: cache\r\nContent-Length: 1000000000\r\n\r\n"
    reply = await wire.send(head + b"x" * 10000)
    assert reply.status == 405


# -- logins ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target",
    [
        "/v2/",
        "/v2",
        "/",
        "/nonsense",
        MANIFEST_PATH,
        "/livez/",
        "/v2/UPPER/manifests/x",
        "http://cache/v2/",
        "http://livez",
        "http://cache/v2/?://x/livez",
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT"])
async def test_nothing_without_a_login(guarded: Wire, method: str, target: str) -> None:
    """Before anything else it is asked who that is: not even what exists is told."""
    reply = await guarded.ask(method, target)
    assert reply.status == 401
    assert reply.headers["WWW-Authenticate"] == 'Basic realm="the realm"'
    assert_common(reply)
    assert guarded.stub.asked == []


async def test_health_without_a_login(guarded: Wire) -> None:
    """An orchestrator has no login."""
    assert (await guarded.ask("GET", "/livez")).status == 200
    assert (await guarded.ask("GET", "/readyz")).status == 200


async def test_user_is_written_down(guarded: Wire) -> None:
    """The access record says who it was; of a wrong login it says nobody."""
    good, wrong = basic("node", "client-secret"), basic("node", "guess")
    assert (await guarded.ask("GET", "/v2/", f"Authorization: {good}")).status == 200
    assert (await guarded.ask("GET", "/v2/", f"Authorization: {wrong}")).status == 401
    assert [(line.user, line.status) for line in guarded.recorded.lines] == [
        ("node", 200),
        ("", 401),
    ]


@pytest.mark.parametrize("value", ["Basic é", "Basic bm9kZTpjbGllbnQtc2VjcmV0é", "é", "Basic"])
async def test_odd_login_headers_are_401(guarded: Wire, log: LogCapture, value: str) -> None:
    """A header of any bytes is a wrong login, not a fault of ours."""
    reply = await guarded.ask("GET", "/v2/", f"Authorization: {value}")
    assert reply.status == 401
    assert [entry for entry in log.entries if entry["log_level"] == "error"] == []


# -- failures before the first byte ----------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    "target", [MANIFEST_PATH, BLOB_PATH, "/v2/a/tags/list", f"/v2/a/referrers/{DIGEST}"]
)
async def test_error_of_the_cache(wire: Wire, method: str, target: str) -> None:
    """What the cache raises is answered with its status and code, whatever was asked for."""
    wire.stub.error = UpstreamTimeout("the upstream did not answer in time")
    reply = await wire.ask(method, target)
    assert reply.status == 504
    assert_common(reply)
    if method == "GET":
        assert reply.error() == {
            "code": "UNAVAILABLE",
            "message": "the upstream did not answer in time",
            "detail": None,
        }
    else:
        assert reply.body == b""
        assert int(reply.headers["Content-Length"]) > 0


async def test_retry_after_reaches_the_client(wire: Wire) -> None:
    """The upstream's wish for patience is passed on."""
    wire.stub.error = TooManyRequests("too many", retry_after=17)
    reply = await wire.ask("GET", MANIFEST_PATH)
    assert (reply.status, reply.headers["Retry-After"]) == (429, "17")


@pytest.mark.parametrize("target", [MANIFEST_PATH, BLOB_PATH, "/v2/a/tags/list", "/v2/_catalog"])
@pytest.mark.parametrize(
    "error", [RuntimeError(SECRET), KeyError(SECRET), OSError(5, SECRET), TimeoutError(SECRET)]
)
async def test_fault_of_ours(wire: Wire, log: LogCapture, target: str, error: Exception) -> None:
    """An exception nobody thought of is a 500 in JSON: its text is for the log, with the id."""
    wire.stub.error = error
    reply = await wire.ask("GET", target)
    assert reply.status == 500
    assert_common(reply)
    assert reply.error()["message"] == "internal error"
    assert SECRET.encode() not in reply.raw
    assert b"Traceback" not in reply.raw
    (entry,) = (entry for entry in log.entries if entry["log_level"] == "error")
    assert entry["request_id"] == reply.headers["X-Request-Id"]
    assert entry["exc_info"]
    assert [line.status for line in wire.recorded.lines] == [500]
    # One request's fault is not the worker's.
    wire.stub.error = None
    assert (await wire.ask("GET", target)).status == 200


# -- failures after the first byte -----------------------------------------------------------------


@pytest.mark.parametrize("version", ["1.1", "1.0"])
@pytest.mark.parametrize("size", [len(BLOB) + 10, None])
@pytest.mark.parametrize(
    ("error", "status"), [(BadUpstream("not what its digest says"), 502), (RuntimeError("x"), 500)]
)
async def test_answer_that_breaks_off(
    wire: Wire, log: LogCapture, *, error: Exception, status: int, size: int | None, version: str
) -> None:
    """What cannot be finished is no complete answer to any client, and is written down as failed.

    An HTTP/1.0 client, where nobody knows the length, has nothing but the connection's end to go
    by: that must be a reset.
    """
    reader = wire.stub.reader = Reader(size, [BLOB], error, served=MISS)
    reply = await wire.ask("GET", BLOB_PATH, version=version)
    assert reply.status == 200
    assert (reply.ending, reply.whole) == ("reset", False)
    assert b"errors" not in reply.body
    (line,) = wire.recorded.lines
    assert (line.status, line.bytes_sent) == (status, len(BLOB))
    assert reader.closed == 1
    assert "answer broken off" in {entry["event"] for entry in log.entries}


async def test_broken_range(wire: Wire) -> None:
    """The same in the middle of several ranges."""
    wire.stub.reader = Reader(len(BLOB), [], BadUpstream("gone"))
    reply = await wire.ask("GET", BLOB_PATH, "Range: bytes=0-1,5-6")
    assert reply.status == 206
    assert not reply.whole


async def test_breaking_off_is_no_surprise_to_the_server(
    wire: Wire, caplog: pytest.LogCaptureFixture, log: LogCapture
) -> None:
    """The web server underneath logs no traceback of its own."""
    wire.stub.reader = Reader(len(BLOB) + 1, [BLOB], BadUpstream("gone"))
    with caplog.at_level(logging.DEBUG):
        await wire.ask("GET", BLOB_PATH)
        await recorded(wire, 1)
    assert [record for record in caplog.records if record.exc_info] == []
    assert [entry for entry in log.entries if entry["log_level"] == "error"] == []


# -- clients that leave ----------------------------------------------------------------------------


async def test_client_that_leaves(wire: Wire, log: LogCapture) -> None:
    """A client that resets in the middle of a blob costs no error; the reader is let go of."""
    gate = asyncio.Event()
    reader = wire.stub.reader = Reader(1 << 30, [b"x" * (4 << 20)] * 20, wait=gate)
    await wire.leave(BLOB_PATH)
    gate.set()
    await recorded(wire, 1)
    assert wire.recorded.lines[0].status == 499
    assert reader.closed == 1
    assert [entry for entry in log.entries if entry["log_level"] == "error"] == []


# -- the access record -----------------------------------------------------------------------------


async def test_access_record(wire: Wire) -> None:
    """A request is written down once, with all that an operator looks for."""
    wire.stub.served = Served(Outcome.STALE, "timeout")
    reply = await wire.ask("GET", MANIFEST_PATH + "?ns=docker.io")
    (line,) = wire.recorded.lines
    assert line._replace(seconds=0.0) == (
        reply.headers["X-Request-Id"],
        "127.0.0.1",
        "",
        "GET",
        MANIFEST_PATH,  # without the query, which may be anything
        "manifest",
        200,
        len(MANIFEST),
        0.0,
        Served(Outcome.STALE, "timeout"),
    )
    assert 0 < line.seconds < 60


@pytest.mark.parametrize(
    ("method", "target", "route", "status"),
    [
        ("GET", "/v2/", "ping", 200),
        ("HEAD", "/v2/", "ping", 200),
        ("GET", MANIFEST_PATH, "manifest", 200),
        ("HEAD", MANIFEST_PATH, "manifest", 200),
        ("GET", BLOB_PATH, "blob", 200),
        ("HEAD", BLOB_PATH, "blob", 200),
        ("GET", "/v2/a/tags/list", "tags", 200),
        ("GET", "/v2/_catalog", "catalog", 200),
        ("GET", f"/v2/a/referrers/{DIGEST}", "referrers", 200),
        ("GET", "/livez", "health", 200),
        ("GET", "/nonsense", "other", 404),
        ("GET", "/v2/UPPER/manifests/v1", "other", 400),
        ("PUT", MANIFEST_PATH, "manifest", 405),
        ("PUT", "/v2/a/blobs/uploads/x", "other", 405),
    ],
)
async def test_record_of_each_route(
    wire: Wire, method: str, target: str, route: str, status: int
) -> None:
    """Route, status and the body's bytes as they were; HEAD sends none, an error its JSON."""
    reply = await wire.ask(method, target)
    (line,) = wire.recorded.lines
    assert (line.method, line.route, line.status) == (method, route, status)
    assert line.bytes_sent == len(reply.body)


async def test_range_counts_what_was_sent(wire: Wire) -> None:
    """Of a range as many bytes as it has."""
    reply = await wire.ask("GET", BLOB_PATH, "Range: bytes=10-14")
    assert (reply.status, reply.body) == (206, BLOB[10:15])
    assert wire.recorded.lines[0].bytes_sent == 5


async def test_missing_has_no_outcome(wire: Wire) -> None:
    """An error that came before anything was served has no cache outcome."""
    wire.stub.error = ManifestUnknown("no such manifest")
    await wire.ask("GET", MANIFEST_PATH)
    assert wire.recorded.lines[0].served is None


async def test_long_path_is_cut_in_the_record(wire: Wire) -> None:
    """A client cannot fill the log's disk with one request's line."""
    await wire.ask("GET", "/v2/" + "a/" * 3000 + "manifests/v1")
    assert len(wire.recorded.lines[0].path) <= 512


# -- what is not HTTP ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "raw",
    [
        b"NOT HTTP AT ALL\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /v2/ HTTP/9.9\r\nHost: cache\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",  # TLS to a plain port
        b"GET /v2/\xff HTTP/1.1\r\nHost: cache\r\nConnection: close\r\n\r\n",
        b"GET /v2/ HTTP/1.1\r\nHost: cache\r\nBad Header: x\r\n\r\n",
        b"GET /v2/ HTTP/1.1\r\nHost: cache\r\nX: a\x00b\r\n\r\n",
        b"GET /v2/ HTTP/1.1\r\nHost: cache\r\nContent-Length: -1\r\n\r\n",
        b"GET /v2/ HTTP/1.1\r\nHost: cache\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: cache\r\n\r\n",
        b"GET /v2/ HTTP/1.1\r\nHost: cache\r\nX: " + b"a" * 20_000 + b"\r\n\r\n",
        b"GET /v2/ HTTP/1.1\r\nHost: cache\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
    ],
)
async def test_what_is_not_http(wire: Wire, raw: bytes) -> None:
    """Nonsense gets a 400 in the registry's JSON with an id, which repeats nothing of it."""
    reply = await wire.send(raw)
    assert reply.status == 400
    assert reply.headers["X-Request-Id"]
    assert reply.error() == {
        "code": "UNSUPPORTED",
        "message": "not a request that can be understood",
        "detail": None,
    }
    assert wire.stub.asked == []
    # The worker is none the worse for it.
    assert (await wire.ask("GET", "/v2/")).status == 200
