"""Putting an answer on the wire, with the faults that concern its bytes."""

from __future__ import annotations

import array
import asyncio
import fcntl
import socket
import struct
import termios
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from aiohttp import web

from tests.fakes.faults import Fault
from tests.fakes.logins import Reply

PIECE: Final = 64 * 1024


@dataclass
class Seen:
    """A request as it came, and how far its answer got; ``sent`` is in bytes of body."""

    method: str
    path: str
    query: dict[str, str]
    headers: Mapping[str, str]
    at: float
    status: int = 0
    sent: int = 0
    finished: bool = False


async def send(
    request: web.BaseRequest, seen: Seen, fault: Fault, reply: Reply
) -> web.StreamResponse:
    """Send ``reply`` as ``fault`` has it, and note in ``seen`` how far it got."""
    headers = dict(reply.headers)
    if fault.content_type is not None:
        headers["Content-Type"] = fault.content_type
    if fault.content_range is not None and reply.status == 206:
        headers["Content-Range"] = fault.content_range
    body = _corrupted(reply, fault)[: fault.end_after]
    seen.status = reply.status
    response = web.StreamResponse(status=reply.status, headers=headers)
    if fault.chunked:
        response.enable_chunked_encoding()
    else:
        response.content_length = len(body)
    await response.prepare(request)
    if request.method != "HEAD" and reply.status != 304:
        started = time.monotonic()
        stops = {fault.hold_at, fault.cut_after}
        for start, end in _pieces(len(body), stops):
            if fault.hold is not None and start == fault.hold_at:
                await wait_at(fault)
            if start == fault.cut_after:
                return await broken(request)
            seen.sent += end - start
            await response.write(body[start:end])
            if fault.rate:
                # The rate is the fault.
                await asyncio.sleep(started + seen.sent / fault.rate - time.monotonic())
    await response.write_eof()
    seen.finished = True
    return response


def _pieces(size: int, stops: set[int | None]) -> list[tuple[int, int]]:
    """Return the spans to send in turn; one begins at each of ``stops``."""
    starts = {*range(0, size, PIECE), *(stop for stop in stops if stop and stop < size)}
    return list(pairwise([*sorted(starts), size]))


def _corrupted(reply: Reply, fault: Fault) -> bytes:
    if fault.corrupt_at is None:
        return reply.body
    place = fault.corrupt_at - reply.offset
    if not 0 <= place < len(reply.body):
        return reply.body
    return reply.body[:place] + bytes([reply.body[place] ^ 0xFF]) + reply.body[place + 1 :]


async def wait_at(fault: Fault) -> None:
    """Wait at the fault's gate."""
    gate = fault.hold
    assert gate is not None
    gate.arrived += 1
    await until(lambda: gate.is_open)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what another thread does."""
    while not condition():  # noqa: ASYNC110 - the test's thread sets it, not this loop
        await asyncio.sleep(0.005)


async def broken(request: web.BaseRequest) -> web.StreamResponse:
    """Reset the connection, once the other side has what was sent before."""
    transport = request.transport
    if transport is not None:
        connection = transport.get_extra_info("socket")
        unsent = array.array("i", [1])
        deadline = time.monotonic() + 5
        while unsent[0] and time.monotonic() < deadline and not transport.is_closing():
            await asyncio.sleep(0.002)  # a bounded poll: the kernel tells nobody
            fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, unsent)
        if not transport.is_closing():
            linger = struct.pack("ii", 1, 0)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            transport.abort()
    return web.Response()
