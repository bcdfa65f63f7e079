"""Blobs on the wire: whole, one range or several, sent from the file by the kernel."""

from __future__ import annotations

import os
import secrets
from typing import Final

from aiofiles.base import wrap
from aiohttp import web
from yarl import URL

from pullthrough.cache.base import BlobReader, FileSlice, Moved, Piece
from pullthrough.cache.blobs import Blobs
from pullthrough.server.base import Exchange, matches
from pullthrough.server.ranges import ByteRange, parse
from pullthrough.server.routes import BlobRoute
from pullthrough.server.sendfile import sendfile

_CONTENT_TYPE: Final = "application/octet-stream"
_BLOCK: Final = 256 << 10
_pread = wrap(os.pread)


async def serve_blob(exchange: Exchange, route: BlobRoute, blobs: Blobs) -> web.StreamResponse:
    """Answer GET and HEAD of a blob; raises :class:`RegistryError` before the first byte only."""
    etag = str(route.digest)
    exchange.headers["Docker-Content-Digest"] = etag
    exchange.headers["ETag"] = f'"{etag}"'
    exchange.headers["Accept-Ranges"] = "bytes"
    if exchange.is_head:
        size, served = await blobs.size(route.repository, route.digest)
        exchange.mark(served)
        if matches(exchange.request.headers.get("If-None-Match"), etag):
            return exchange.not_modified()
        exchange.headers["Content-Type"] = _CONTENT_TYPE
        exchange.headers["Content-Length"] = str(size)
        return web.Response(headers=exchange.headers)
    reader = await blobs.open(route.repository, route.digest, _hostname(exchange.request))
    if isinstance(reader, Moved):
        exchange.mark(reader.served)
        exchange.headers["Location"] = reader.address
        exchange.headers["Content-Length"] = "0"
        # The address is signed for this client and these minutes.
        exchange.headers["Cache-Control"] = "no-store"
        return web.Response(status=307, headers=exchange.headers)
    try:
        exchange.mark(reader.served)
        if matches(exchange.request.headers.get("If-None-Match"), etag):
            return exchange.not_modified()
        return await _send(exchange, reader)
    finally:
        reader.close()


def _hostname(request: web.BaseRequest) -> str:
    """Return the host that the client asked, without its port; "" when it named none."""
    try:
        return (URL(f"//{request.host}").host or "").lower()
    except ValueError:
        return ""


async def _send(exchange: Exchange, reader: BlobReader) -> web.StreamResponse:
    ranges = _ranges(exchange, reader)
    if len(ranges) > 1 and reader.size is not None:
        return await _send_multipart(exchange, reader, ranges, reader.size)
    start, end, status, length = 0, None, 200, reader.size
    if ranges and reader.size is not None:
        asked = ranges[0]
        # Without an end of its own it is one of many by which a parallel puller reads the whole.
        start, end = asked.start, None if asked.open else asked.end
        status, length = 206, asked.end - asked.start
        exchange.headers["Content-Range"] = asked.content_range(reader.size)
    exchange.headers["Content-Type"] = _CONTENT_TYPE
    if length is not None:
        exchange.headers["Content-Length"] = str(length)
    response = web.StreamResponse(status=status, headers=exchange.headers)
    exchange.response = response
    await response.prepare(exchange.request)
    await _send_pieces(exchange, response, reader, start, end)
    await response.write_eof()
    return response


def _ranges(exchange: Exchange, reader: BlobReader) -> tuple[ByteRange, ...]:
    condition = exchange.request.headers.get("If-Range")
    if reader.size is None or (condition and condition.strip('"') != str(reader.digest)):
        return ()
    try:
        return parse(exchange.request.headers.get("Range"), reader.size)
    except Exception:
        exchange.headers["Content-Range"] = f"bytes */{reader.size}"
        raise


async def _send_multipart(
    exchange: Exchange, reader: BlobReader, ranges: tuple[ByteRange, ...], size: int
) -> web.StreamResponse:
    """Send several ranges as multipart/byteranges (RFC 9110, section 14.6)."""
    boundary = secrets.token_hex(16)
    heads = [
        f"\r\n--{boundary}\r\nContent-Type: {_CONTENT_TYPE}\r\n"
        f"Content-Range: {each.content_range(size)}\r\n\r\n".encode()
        for each in ranges
    ]
    tail = f"\r\n--{boundary}--\r\n".encode()
    length = sum(map(len, heads)) + sum(each.end - each.start for each in ranges) + len(tail)
    exchange.headers["Content-Type"] = f"multipart/byteranges; boundary={boundary}"
    exchange.headers["Content-Length"] = str(length)
    response = web.StreamResponse(status=206, headers=exchange.headers)
    exchange.response = response
    await response.prepare(exchange.request)
    for head, each in zip(heads, ranges, strict=True):
        await response.write(head)
        await _send_pieces(exchange, response, reader, each.start, None if each.open else each.end)
    await response.write(tail)
    await response.write_eof()
    return response


async def _send_pieces(
    exchange: Exchange,
    response: web.StreamResponse,
    reader: BlobReader,
    start: int,
    end: int | None,
) -> None:
    async for piece in reader.pieces(start, end):
        await _send_piece(exchange, response, piece)


async def _send_piece(exchange: Exchange, response: web.StreamResponse, piece: Piece) -> None:
    if isinstance(piece, bytes):
        await response.write(piece)
        exchange.bytes_sent += len(piece)
        return
    transport = exchange.request.transport
    if transport is None or transport.is_closing():
        raise ConnectionResetError("the client left")
    if response.chunked or response.content_length is None:
        # Without a length aiohttp frames the body, so the bytes must pass through it.
        await _copy(response, piece)
    else:
        await sendfile(transport, piece.file, piece.offset, piece.count)
    exchange.bytes_sent += piece.count


async def _copy(response: web.StreamResponse, piece: FileSlice) -> None:
    offset, end = piece.offset, piece.offset + piece.count
    while offset < end:
        # By offset: the file's own position is everybody's who reads it.
        block = await _pread(piece.file.fileno(), min(_BLOCK, end - offset), offset)
        if not block:
            raise ConnectionResetError("the file is shorter than it was")
        await response.write(block)
        offset += len(block)
