"""An edge on a real socket with stub parts behind it, and a client that sees every byte."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from email.message import Message
from email.parser import BytesHeaderParser
from typing import Any, Final, cast

from aiohttp import web

from pullthrough.cache.base import (
    HIT,
    Listing,
    ManifestAnswer,
    Outcome,
    Piece,
    Served,
)
from pullthrough.oci.digest import Digest
from pullthrough.oci.manifest import OCI_MANIFEST
from pullthrough.oci.referrers import EMPTY
from pullthrough.server.auth import Htpasswd
from pullthrough.server.edge import Access, Edge, Parts, listener
from pullthrough.server.health import Readiness

BLOB: Final = b"0123456789" * 10
DIGEST: Final = Digest.of(BLOB)
MANIFEST: Final = b'{"schemaVersion":2}'


@dataclass
class Reader:
    """A blob on its way: pieces, and perhaps an error after them."""

    size: int | None
    pieces_: list[Piece]
    error: Exception | None = None
    wait: asyncio.Event | None = None
    served: Served = HIT
    digest: Digest = DIGEST
    closed: int = 0

    async def pieces(self, start: int, end: int | None) -> AsyncIterator[Piece]:
        for piece in self.pieces_:
            yield piece[start:end] if isinstance(piece, bytes) else piece
        if self.wait is not None:
            await self.wait.wait()
        if self.error is not None:
            raise self.error

    def close(self) -> None:
        self.closed += 1


@dataclass
class Stub:
    """Answers in the cache's place; ``error`` is raised by everything that is asked."""

    error: Exception | None = None
    reader: Reader = field(default_factory=lambda: Reader(len(BLOB), [BLOB]))
    served: Served = HIT
    started: asyncio.Event = field(default_factory=asyncio.Event)
    hold: asyncio.Event | None = None
    asked: list[tuple[Any, ...]] = field(default_factory=list)

    async def _ask(self, *what: Any) -> None:
        self.asked.append(what)
        self.started.set()
        if self.hold is not None:
            await self.hold.wait()
        if self.error is not None:
            raise self.error

    async def get(self, *what: Any) -> ManifestAnswer:
        await self._ask(*what)
        return ManifestAnswer(Digest.of(MANIFEST), OCI_MANIFEST, MANIFEST, self.served)

    async def open(self, *what: Any) -> Reader:
        await self._ask(*what)
        return self.reader

    async def size(self, *what: Any) -> tuple[int, Served]:
        await self._ask(*what)
        return len(BLOB), self.served

    async def tags(self, *what: Any) -> tuple[tuple[str, ...], Served]:
        await self._ask(*what)
        return ("v1", "v2"), self.served

    async def referrers(self, *what: Any) -> Listing:
        await self._ask(*what)
        return Listing(EMPTY, self.served)

    async def repositories(self) -> tuple[str, ...]:
        await self._ask()
        return ("a", "b")


class Recorded:
    """The access records, as they come."""

    def __init__(self) -> None:
        self.lines: list[Access] = []

    def finished(self, access: Access) -> None:
        self.lines.append(access)


@dataclass
class Reply:
    """An answer; ``ending`` is how the connection ended: ``end`` or ``reset``."""

    raw: bytes
    ending: str

    @property
    def status(self) -> int:
        return int(self.raw.split(b" ", 2)[1])

    @property
    def headers(self) -> Message:
        head = self.raw.partition(b"\r\n\r\n")[0].partition(b"\r\n")[2]
        return BytesHeaderParser().parsebytes(head + b"\r\n\r\n")

    @property
    def body(self) -> bytes:
        return self.raw.partition(b"\r\n\r\n")[2]

    @property
    def whole(self) -> bool:
        """Whether a client takes it for a complete answer (RFC 9112, section 8)."""
        if self.headers["Transfer-Encoding"] == "chunked":
            return self.body.endswith(b"0\r\n\r\n")
        length = self.headers["Content-Length"]
        if length is not None:
            return len(self.body) == int(length)
        return self.ending == "end"

    def error(self) -> dict[str, Any]:
        """Return the one error that the body holds."""
        assert self.headers["Content-Type"] == "application/json"
        (entry,) = json.loads(self.body)["errors"]
        return cast("dict[str, Any]", entry)


@dataclass
class Wire:
    """The edge as a client sees it."""

    port: int
    stub: Stub
    recorded: Recorded
    readiness: Readiness

    async def send(self, raw: bytes) -> Reply:
        """Send ``raw`` and read until the connection ends; it must ask for that."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        received, ending = b"", "end"
        try:
            writer.write(raw)
            while piece := await asyncio.wait_for(reader.read(65536), 20):
                received += piece
        except ConnectionResetError:
            ending = "reset"
        finally:
            writer.close()
        return Reply(received, ending)

    async def ask(self, method: str, target: str, *headers: str, version: str = "1.1") -> Reply:
        """Send one request on a connection of its own."""
        lines = [f"{method} {target} HTTP/{version}", "Host: cache", "Connection: close", *headers]
        return await self.send("\r\n".join([*lines, "", ""]).encode())

    async def leave(self, target: str) -> None:
        """Ask, and reset the connection once the cache works on it."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(f"GET {target} HTTP/1.1\r\nHost: cache\r\n\r\n".encode())
        await asyncio.wait_for(self.stub.started.wait(), 20)
        connection = writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
        del reader


@asynccontextmanager
async def edge(htpasswd: Htpasswd | None = None) -> AsyncIterator[Wire]:
    """Serve an edge whose parts are stubs."""
    stub, recorded, readiness = Stub(), Recorded(), Readiness(lambda: True)
    part = cast("Any", stub)
    parts = Parts(part, part, part, readiness, htpasswd, "the realm")
    handler = Edge(parts, recorded, {"X-Content-Type-Options": ["nosniff"], "X-Two": ["1", "2"]})
    runner = web.ServerRunner(listener(handler), shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield Wire(runner.addresses[0][1], stub, recorded, readiness)
    finally:
        await runner.cleanup()


MISS: Final = Served(Outcome.MISS)
