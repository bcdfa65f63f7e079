"""Downloads of blobs: ranges, breaks, and leaving early."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import BaseConnector, web

from pullthrough.oci.digest import Digest
from pullthrough.upstream.base import Failure, UpstreamError
from pullthrough.upstream.client import RegistryClient
from tests.fakes.content import MIB, Image, noise
from tests.fakes.faults import Fault, Gate
from tests.fakes.registry import FakeRegistry
from tests.upstream.kit import NAME, Bench, Connect, serving, until

BLOBS = ".*/blobs/.*"
CONTENT = noise(300_000)
DIGEST = Digest.of(CONTENT)


@pytest.fixture(autouse=True)
def _blob(registry: FakeRegistry) -> None:
    registry.put_blob(str(NAME), CONTENT)


async def fetch(
    client: RegistryClient, start: int = 0, end: int | None = None
) -> tuple[bytes, int, int | None]:
    """Return what came, where it starts, and the blob's size."""
    content = b""
    async with client.get_blob(NAME, DIGEST, start=start, end=end) as body:
        while piece := await body.read():
            content += piece
        assert await body.read() == b""
        return content, body.start, body.size


class Reader:
    """Reads a blob, and keeps count of what came before it failed."""

    def __init__(self) -> None:
        self.came = 0

    async def read(self, client: RegistryClient, start: int = 0) -> None:
        async with client.get_blob(NAME, DIGEST, start=start) as body:
            while piece := await body.read():
                self.came += len(piece)


async def failure_of(
    client: RegistryClient, start: int = 0, end: int | None = None
) -> UpstreamError:
    with pytest.raises(UpstreamError) as raised:
        await fetch(client, start, end)
    return raised.value


class TestRanges:
    """What was asked for, and what came."""

    @pytest.mark.parametrize(
        "row",
        [
            (0, None, None),
            (1, None, "bytes=1-"),
            (0, 1, "bytes=0-0"),
            (1000, 2000, "bytes=1000-1999"),
            (299_999, None, "bytes=299999-"),
        ],
    )
    async def test_right_answers(
        self,
        registry: FakeRegistry,
        client: RegistryClient,
        bench: Bench,
        row: tuple[int, int | None, str | None],
    ) -> None:
        """The bytes asked for come, with their start and the whole size."""
        start, end, header = row
        assert await fetch(client, start, end) == (CONTENT[start:end], start, len(CONTENT))
        assert registry.requests("GET", BLOBS)[-1].headers.get("Range") == header
        assert bench.observer.received >= len(CONTENT[start:end])

    async def test_range_ignored(self, registry: FakeRegistry, client: RegistryClient) -> None:
        """A 200 starts at 0, and says so."""
        registry.inject(Fault(path=BLOBS, ignore_range=True))
        assert await fetch(client, 1000) == (CONTENT, 0, len(CONTENT))

    async def test_no_such_range(
        self, registry: FakeRegistry, client: RegistryClient, bench: Bench
    ) -> None:
        """416 is CUT with its status: whoever resumes can start anew."""
        error = await failure_of(client, len(CONTENT))
        assert (error.failure, error.status) == (Failure.CUT, 416)
        assert registry.count("GET", BLOBS) == 2
        assert bench.observer.requests["get_blob", "ok"] == 1

    @pytest.mark.parametrize(
        "content_range",
        [
            "",
            "bytes 999-299999/300000",
            "bytes 1001-299999/300000",
            "bytes 1000-300000/300000",
            "bytes 1000-999/300000",
            "bytes 1000-299998/300000",
            "bytes */300000",
            "items 1000-299999/300000",
            "bytes 1000-299999/299999",
            "bytes 1000-299999",
        ],
    )
    async def test_a_wrong_content_range(
        self, registry: FakeRegistry, client: RegistryClient, content_range: str
    ) -> None:
        """A 206 that is not what was asked for is no registry's."""
        registry.inject(Fault(path=BLOBS, content_range=content_range))
        assert (await failure_of(client, 1000)).failure is Failure.NOT_A_REGISTRY

    async def test_more_than_was_asked_for(self, connect: Connect) -> None:
        """A range that goes on past the end that was asked for is not taken."""

        async def handle(_: web.Request) -> web.Response:
            headers = {"Content-Range": "bytes 0-19/100"}
            return web.Response(status=206, body=bytes(20), headers=headers)

        async with serving(handle) as url:
            error = await failure_of(await connect(url=url), 0, 19)
        assert error.failure is Failure.NOT_A_REGISTRY

    async def test_an_unknown_size(self, connect: Connect) -> None:
        """A server may not know how large the whole is."""

        async def handle(_: web.Request) -> web.Response:
            headers = {"Content-Range": "bytes 5-9/*"}
            return web.Response(status=206, body=b"56789", headers=headers)

        async with serving(handle) as url:
            assert await fetch(await connect(url=url), 5) == (b"56789", 5, None)

    async def test_without_a_length(self, registry: FakeRegistry, client: RegistryClient) -> None:
        """A chunked answer is of unknown size."""
        registry.inject(Fault(path=BLOBS, chunked=True))
        assert await fetch(client) == (CONTENT, 0, None)


class TestBreaks:
    """What ends before its time."""

    @pytest.mark.parametrize("chunked", [False, True])
    @pytest.mark.parametrize("start", [0, 1000])
    async def test_cut(
        self, registry: FakeRegistry, client: RegistryClient, start: int, *, chunked: bool
    ) -> None:
        """A connection that breaks raises CUT after the bytes that came, and is not tried again."""
        registry.inject(Fault(path=BLOBS, cut_after=100_000, chunked=chunked))
        reader = Reader()
        with pytest.raises(UpstreamError) as raised:
            await reader.read(client, start)
        assert raised.value.failure is Failure.CUT
        assert reader.came <= 100_000
        assert registry.count("GET", BLOBS) == 2

    async def test_a_short_range_that_ends_cleanly(self, connect: Connect) -> None:
        """Fewer bytes than Content-Range announced never end cleanly."""

        async def handle(request: web.Request) -> web.StreamResponse:
            headers = {"Content-Range": "bytes 5-9/10"}
            response = web.StreamResponse(status=206, headers=headers)
            response.enable_chunked_encoding()
            await response.prepare(request)
            await response.write(b"567")
            return response

        async with serving(handle) as url:
            error = await failure_of(await connect(url=url), 5)
        assert error.failure is Failure.CUT

    async def test_a_long_range(self, connect: Connect) -> None:
        """More bytes than Content-Range announced are not handed on."""

        async def handle(request: web.Request) -> web.StreamResponse:
            headers = {"Content-Range": "bytes 5-9/10"}
            response = web.StreamResponse(status=206, headers=headers)
            response.enable_chunked_encoding()
            await response.prepare(request)
            await response.write(b"567890")
            return response

        async with serving(handle) as url:
            error = await failure_of(await connect(url=url), 5)
        assert error.failure is Failure.NOT_A_REGISTRY

    async def test_stall(self, registry: FakeRegistry, connect: Connect) -> None:
        """A pause within the body is bounded, and what came before it arrives."""
        registry.inject(Fault(path=BLOBS, hold=Gate(), hold_at=65_536))
        client = await connect(stall=0.3)
        reader = Reader()
        with pytest.raises(UpstreamError) as raised:
            await reader.read(client)
        assert (raised.value.failure, reader.came) == (Failure.TIMEOUT, 65_536)

    async def test_no_limit_on_the_whole(self, registry: FakeRegistry, connect: Connect) -> None:
        """A slow transfer takes its time, however short the limits on a wait are."""
        registry.inject(Fault(path=BLOBS, rate=200_000))
        client = await connect(firstbyte=0.5, stall=0.6)
        assert (await fetch(client))[0] == CONTENT

    async def test_a_slow_reader_is_no_stall(
        self, registry: FakeRegistry, connect: Connect
    ) -> None:
        """The limit counts only while somebody waits for bytes."""
        client = await connect(stall=0.3)
        async with client.get_blob(NAME, DIGEST) as body:
            size = len(await body.read())
            await asyncio.sleep(0.5)  # the pause is what is tested
            while piece := await body.read():
                size += len(piece)
        assert size == len(CONTENT)
        assert registry.count("GET", BLOBS) == 2


class TestLeaving:
    """Readers that have enough."""

    @pytest.mark.parametrize("how", ["return", "raise", "cancel"])
    async def test_the_connection_is_closed(
        self, registry: FakeRegistry, client: RegistryClient, how: str
    ) -> None:
        """Leaving early closes the connection rather than reading what nobody wants."""
        image = registry.put_image(str(NAME), layers=(noise(64 * MIB),))
        reading = asyncio.Event()

        async def leave() -> None:
            async with client.get_blob(NAME, Digest.parse(image.layer)) as body:
                await body.read()
                reading.set()
                if how == "raise":
                    raise ZeroDivisionError
                if how == "cancel":
                    await asyncio.Event().wait()

        task = asyncio.create_task(leave())
        await reading.wait()
        if how == "cancel":
            task.cancel()
        await asyncio.wait([task])
        assert _open(client) == 0
        [seen] = [each for each in registry.requests("GET", BLOBS) if each.status == 200]
        await until(lambda: seen.sent < 64 * MIB and not seen.finished, "it was not drained")

    async def test_a_read_blob_keeps_the_connection(
        self, registry: FakeRegistry, client: RegistryClient
    ) -> None:
        """After the last byte the connection serves the next call."""
        await fetch(client)
        connector = _connector(client)
        assert sum(len(each) for each in connector._conns.values()) == 1
        assert registry.count("GET", BLOBS) == 2

    @pytest.mark.parametrize("path", ["/service/token", BLOBS])
    async def test_cancelled_before_the_answer(
        self, registry: FakeRegistry, client: RegistryClient, bench: Bench, path: str
    ) -> None:
        """A call that is cancelled while it waits leaves no connection behind."""
        gate = Gate()
        registry.inject(Fault(path=path, hold=gate))
        call = asyncio.create_task(fetch(client))
        await until(lambda: gate.arrived, "it waits")
        call.cancel()
        await asyncio.wait([call])
        gate.open()
        assert call.cancelled()
        assert bench.observer.requests == {("get_blob", "cancelled"): 1}
        await until(lambda: _open(client) == 0, "all connections are given back")

    async def test_a_page_in_its_place_is_not_read(
        self, registry: FakeRegistry, client: RegistryClient
    ) -> None:
        """HTML where a blob should be is refused; a blob that is HTML says its digest."""
        registry.inject(Fault(path=BLOBS, content_type="text/html"))
        assert (await fetch(client))[0] == CONTENT
        registry.inject(
            Fault(path=BLOBS, status=200, body=b"<html>", headers={"Content-Type": "text/html"})
        )
        assert (await failure_of(client)).failure is Failure.NOT_A_REGISTRY
        assert _open(client) == 0


async def test_head_of_a_blob(client: RegistryClient, image: Image) -> None:
    """A HEAD tells the size."""
    assert await client.head_blob(NAME, Digest.parse(image.layer)) == len(image.layer_content)


async def test_head_without_a_length(connect: Connect) -> None:
    """A HEAD that does not tell the size is of no use."""

    async def handle(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        response.enable_chunked_encoding()
        await response.prepare(request)
        return response

    async with serving(handle) as url:
        client = await connect(url=url)
        with pytest.raises(UpstreamError) as raised:
            await client.head_blob(NAME, DIGEST)
    assert raised.value.failure is Failure.NOT_A_REGISTRY


def _connector(client: RegistryClient) -> BaseConnector:
    session = client._transport._session
    assert session is not None
    assert session.connector is not None
    return session.connector


def _open(client: RegistryClient) -> int:
    return len(_connector(client)._acquired)
