"""The bucket over a real socket: what it says, how it fails, and how soon it is asked again."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Literal

import pytest
from aiohttp import web
from structlog.testing import LogCapture

from pullthrough.oci.digest import Digest
from pullthrough.upstream import bucket
from pullthrough.upstream.base import Failure, UpstreamError
from pullthrough.upstream.breaker import Breaker
from pullthrough.upstream.bucket import BucketSource, Reading
from tests.fakes.listener import hold_port
from tests.upstream.kit import NAME, serving, until

CONTENT = b"0123456789" * 100_000
SIZE = len(CONTENT)
DIGEST = Digest.of(CONTENT)
OTHER = Digest.of(b"not there")
SECRET = "a-presigned-secret"


@dataclass
class Store:
    """A bucket of one blob, which fails as it is told."""

    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    silent: asyncio.Event | None = None
    cut_after: int | None = None
    ignore_range: bool = False
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    """Method and Range of what was asked for the blob."""
    probes: int = 0

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer as S3 does."""
        assert request.query["X-Amz-Signature"] == f"{request.method}-{SECRET}"
        assert request.raw_path.startswith("/root/a%7Eb/"), "signed as it is written"
        assert "Authorization" not in request.headers
        if request.path.endswith(DIGEST.hex):
            self.asked.append((request.method, request.headers.get("Range")))
        elif request.path.endswith(Digest.of(b"").hex):
            self.probes += 1
        if self.silent is not None:
            await self.silent.wait()
        if self.status is not None:
            return web.Response(status=self.status, headers=self.headers, body=b"<Error/>")
        if not request.path.endswith(DIGEST.hex):
            return web.Response(status=404)
        return await self._give(request)

    async def _give(self, request: web.Request) -> web.StreamResponse:
        start, stop, status, headers = 0, SIZE, 200, dict(self.headers)
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))
        if wanted and not self.ignore_range:
            start, stop = int(wanted[1]), int(wanted[2]) + 1 if wanted[2] else SIZE
            if start >= SIZE:
                return web.Response(status=416)
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{SIZE}"
            status = 206
        response = web.StreamResponse(status=status, headers=headers)
        response.content_length = stop - start
        await response.prepare(request)
        if request.method != "HEAD":
            await response.write(
                CONTENT[start : stop if self.cut_after is None else self.cut_after]
            )
            if self.cut_after is not None and request.transport is not None:
                request.transport.close()
        return response


Made = Callable[..., Any]


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def breaker() -> Breaker:
    return Breaker()


@pytest.fixture
def received() -> list[int]:
    return []


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a watch that looks at once, and a clock by which each of its turns has come."""
    now = 0.0

    def leaping() -> float:
        nonlocal now
        now += 60.0
        return now

    monkeypatch.setattr(bucket, "_LOOK_EVERY", 0.005)
    monkeypatch.setattr(bucket, "time", SimpleNamespace(monotonic=leaping))


def signer(address: str) -> Callable[[str, Digest, bool], str]:
    """Return what signs addresses below ``address``, and for clients those of another host."""

    def sign(method: str, digest: Digest, public: bool) -> str:
        host = "https://public.example.com" if public else address
        return f"{host}/root/a%7Eb/{digest.hex}?X-Amz-Signature={method}-{SECRET}"

    return sign


@pytest.fixture
async def connect(breaker: Breaker, received: list[int]) -> AsyncIterator[Made]:
    """Read the bucket at an address."""
    async with AsyncExitStack() as stack:

        async def make(address: str, **changes: Any) -> BucketSource:
            reading: dict[str, Any] = {
                "sign": signer(address), "secure": False, "cafile": None, "skipverify": False,
                "stall": 10.0, "user_agent": "a cache",
            }  # fmt: skip
            source = BucketSource(Reading(**(reading | changes)), breaker, received.append)
            return await stack.enter_async_context(source)

        yield make


@pytest.fixture
async def source(store: Store, connect: Made) -> AsyncIterator[BucketSource]:
    """Read the bucket of ``store``."""
    async with serving(store.handle) as address:
        yield await connect(address)
        if store.silent is not None:
            store.silent.set()


async def content(source: BucketSource, start: int = 0, end: int | None = None) -> bytes:
    """Return what a download gives; raises what it does."""
    parts = []
    async with source.get_blob(NAME, DIGEST, start=start, end=end) as body:
        while data := await body.read():
            parts.append(data)
    return b"".join(parts)


async def failure(source: BucketSource, method: Literal["size", "get"]) -> UpstreamError:
    """Return how the bucket fails; that tells no secret, its causes neither."""
    with pytest.raises(UpstreamError) as caught:
        await (source.size(DIGEST) if method == "size" else content(source))
    error: BaseException | None = caught.value
    while error is not None:
        assert SECRET not in f"{error} {error!r} {error.args}"
        assert error.__suppress_context__ or error.__context__ is error.__cause__
        error = error.__cause__
    return caught.value


# -- what it says ----------------------------------------------------------------------------------


async def test_size(source: BucketSource) -> None:
    """What is there has a size, what is not has none."""
    assert await source.size(DIGEST) == SIZE
    assert await source.size(OTHER) is None


async def test_what_was_seen_is_not_asked_for_again(source: BucketSource, store: Store) -> None:
    """A look is believed for a while; one that found nothing is not."""
    for _ in range(3):
        assert await source.size(DIGEST) == SIZE
    assert store.asked == [("HEAD", None)]
    store.status = 404
    assert await source.size(DIGEST) == SIZE
    assert await source.size(OTHER) is None
    store.status = None
    assert (await source.size(OTHER), source.up) == (None, True)


async def test_what_is_found_gone_was_not_seen(source: BucketSource, store: Store) -> None:
    """A download that is refused takes the look's word away."""
    assert await source.size(DIGEST) == SIZE
    store.status = 404
    assert (await failure(source, "get")).failure is Failure.NOT_FOUND
    assert await source.size(DIGEST) is None


@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize(
    ("start", "end", "asked"),
    [
        (0, None, None),
        (7, None, "bytes=7-"),
        (0, 5, "bytes=0-4"),
        (7, SIZE, f"bytes=7-{SIZE - 1}"),
        (SIZE - 1, None, f"bytes={SIZE - 1}-"),
    ],
)
async def test_ranges(
    source: BucketSource,
    store: Store,
    received: list[int],
    *,
    start: int,
    end: int | None,
    asked: str | None,
    ignored: bool,
) -> None:
    """A range is asked for where one is wanted; the size is the whole's; every byte is counted."""
    store.ignore_range = ignored
    async with source.get_blob(NAME, DIGEST, start=start, end=end) as body:
        assert (body.start, body.size) == (0 if ignored else start, SIZE)
        parts = []
        while data := await body.read():
            parts.append(data)
    expected = CONTENT if ignored else CONTENT[start:end]
    assert b"".join(parts) == expected
    assert store.asked == [("GET", asked)]
    assert sum(received) == len(expected)


async def test_beyond_the_end(source: BucketSource) -> None:
    """What is not there is said with its status, and is no reason to count the bucket as away."""
    with pytest.raises(UpstreamError) as caught:
        await content(source, SIZE)
    assert caught.value.status == 416
    assert source.up


async def test_cut_in_the_middle(source: BucketSource, store: Store) -> None:
    """A short body never ends cleanly."""
    store.cut_after = 500_000
    assert (await failure(source, "get")).failure is Failure.CUT


async def test_address_for_clients(source: BucketSource, store: Store) -> None:
    """It is signed for GET and as clients see the bucket, without asking it."""
    assert await source.address(DIGEST) == (
        f"https://public.example.com/root/a%7Eb/{DIGEST.hex}?X-Amz-Signature=GET-{SECRET}"
    )
    assert store.asked == []


async def test_no_secret_is_shown(source: BucketSource) -> None:
    """Nor by what holds what signs."""
    assert SECRET not in repr(source)
    assert SECRET not in repr(source._reading)


# -- how it fails ----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["size", "get"])
@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (401, Failure.UNAUTHORIZED),
        (403, Failure.FORBIDDEN),
        (400, Failure.SERVER_ERROR),
        (429, Failure.SERVER_ERROR),
        (500, Failure.SERVER_ERROR),
        (503, Failure.SERVER_ERROR),
        pytest.param(
            499, Failure.SERVER_ERROR,
        ),
        pytest.param(
            520, Failure.SERVER_ERROR,
        ),
    ],
)  # fmt: skip
async def test_refusals(
    source: BucketSource,
    store: Store,
    *,
    method: Literal["size", "get"],
    status: int,
    expected: Failure,
) -> None:
    """Every answer that is none is an error with its status."""
    store.status = status
    error = await failure(source, method)
    assert (error.failure, error.status) == (expected, status)


@pytest.mark.parametrize("status", [400, 401, 403, 404])
async def test_refusals_are_answers(source: BucketSource, store: Store, status: int) -> None:
    """A bucket that says no is not away."""
    store.status = status
    for _ in range(5):
        await failure(source, "get")
    assert source.up
    assert len(store.asked) == 5


async def test_errors_in_a_row_take_it_down(
    source: BucketSource, store: Store, breaker: Breaker, log: LogCapture
) -> None:
    """Then it is not asked for a client; one answer among them begins the count anew."""
    store.status = 500
    for _ in range(2):
        await failure(source, "get")
    store.status = None
    assert await content(source) == CONTENT
    store.status = 500
    for _ in range(3):
        await failure(source, "get")
    assert breaker.down
    asked = len(store.asked)
    assert (await failure(source, "get")).failure is Failure.DOWN
    assert (await failure(source, "size")).failure is Failure.DOWN
    assert len(store.asked) == asked
    assert [entry["why"] for entry in log.entries] == ["status 500"]


async def test_silence_takes_it_down_at_once(
    source: BucketSource, store: Store, monkeypatch: pytest.MonkeyPatch, log: LogCapture
) -> None:
    """One client has waited, briefly; no other does, until a look finds it back."""
    monkeypatch.setattr(bucket, "_PATIENCE", 0.05)
    monkeypatch.setattr(bucket, "_CONNECT", 0.05)
    silent = store.silent = asyncio.Event()
    assert (await failure(source, "size")).failure is Failure.TIMEOUT
    assert not source.up
    assert (await failure(source, "size")).failure is Failure.DOWN
    assert len(store.asked) == 1
    await until(lambda: store.probes > 1, "another look")
    assert not source.up
    store.silent = None
    silent.set()
    await until(lambda: source.up, "it is back")
    assert len(store.asked) == 1, "no client was made to look"
    assert await source.size(DIGEST) == SIZE
    assert [entry["event"] for entry in log.entries] == [
        "the bucket is away", "the bucket is back",
    ]  # fmt: skip


async def test_silence_of_a_download(
    store: Store, connect: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is given up long before a client that waits would be told no."""
    assert bucket._FIRST_BYTE < 10
    monkeypatch.setattr(bucket, "_FIRST_BYTE", 0.05)
    silent = store.silent = asyncio.Event()
    async with serving(store.handle) as address:
        source = await connect(address)
        assert (await failure(source, "get")).failure is Failure.TIMEOUT
        assert not source.up
        silent.set()


async def test_nobody_is_sent_to_a_dead_bucket(source: BucketSource, breaker: Breaker) -> None:
    """What was seen a moment ago is not there while the bucket is away, nor is an address."""
    assert await source.size(DIGEST) == SIZE
    breaker.overdue(1.0)
    assert (await failure(source, "size")).failure is Failure.DOWN
    with pytest.raises(UpstreamError) as caught:
        await source.address(DIGEST)
    assert caught.value.failure is Failure.DOWN


async def test_silence_in_the_middle(connect: Made) -> None:
    """A download that comes to a halt is given up, with the stall limit."""
    go_on = asyncio.Event()

    async def handle(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        response.content_length = SIZE
        await response.prepare(request)
        await response.write(CONTENT[:1000])
        await go_on.wait()
        return response

    async with serving(handle) as address:
        source = await connect(address, stall=0.05)
        error = await failure(source, "get")
        go_on.set()
    assert error.failure is Failure.TIMEOUT


async def test_nobody_listens(connect: Made, breaker: Breaker) -> None:
    """A port that refuses is an error each time, and down after a few."""
    with hold_port() as port:
        source = await connect(f"http://127.0.0.1:{port.getsockname()[1]}")
        for _ in range(3):
            assert (await failure(source, "size")).failure is Failure.REFUSED
        assert breaker.down
        assert (await failure(source, "size")).failure is Failure.DOWN


async def test_down_for_all_workers(source: BucketSource, store: Store, breaker: Breaker) -> None:
    """What one has found out the others know, by the breaker that they share."""
    breaker.overdue(1.0)
    store.status = 500
    assert (await failure(source, "size")).failure is Failure.DOWN
    assert store.asked == []


@pytest.mark.parametrize("method", ["size", "get"])
async def test_address_that_cannot_be_signed(connect: Made, method: Literal["size", "get"]) -> None:
    """Credentials that are not to be had are a bucket that gives nothing, not a failed pull."""

    def no_credentials(*_: object) -> str:
        raise RuntimeError(f"no credentials {SECRET}")

    source = await connect("http://127.0.0.1:9", sign=no_credentials)
    await failure(source, method)


async def test_watch_outlives_whatever_happens(
    connect: Made, store: Store, breaker: Breaker
) -> None:
    """A look that fails in an odd way is not the last one."""
    broken = True

    async with serving(store.handle) as address:
        sign = signer(address)

        def sometimes(method: str, digest: Digest, public: bool) -> str:
            nonlocal broken
            if broken:
                broken = False
                raise RuntimeError("no credentials")
            return sign(method, digest, public)

        source = await connect(address, sign=sometimes)
        breaker.overdue(1.0)
        await until(lambda: not broken, "a look that fails")
        async with asyncio.timeout(5):
            while not source.up:  # noqa: ASYNC110 - the watch tells nobody
                await asyncio.sleep(0.005)
