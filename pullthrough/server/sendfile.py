"""From a file to a socket, by the kernel (sendfile(2)).

asyncio's ``loop.sendfile`` registers and unregisters the socket around every piece that fits its
buffer, and makes a future of it: on a fast network that is most of the work. Here the socket is
registered once a call.
"""

from __future__ import annotations

import asyncio
import os
from typing import BinaryIO, Final

_MOST: Final = 4 << 20
"""Bytes at once: a client that reads as fast as we send must not keep the others waiting."""


async def sendfile(transport: asyncio.Transport, file: BinaryIO, offset: int, count: int) -> None:
    """Send ``count`` bytes of ``file`` from ``offset``; raises :class:`ConnectionError`."""
    loop = asyncio.get_running_loop()
    if transport.get_extra_info("sslcontext") is not None or transport.get_write_buffer_size():
        # Bytes that must be encrypted, or must wait for others: asyncio knows how.
        await loop.sendfile(transport, file, offset, count)
        return
    # A descriptor of our own, as the loop lets nobody else watch a transport's.
    connection = os.dup(transport.get_extra_info("socket").fileno())
    source, end = file.fileno(), offset + count
    sent: asyncio.Future[None] = loop.create_future()

    def send() -> bool:
        """Send what fits now; whether it is over."""
        nonlocal offset
        try:
            written = os.sendfile(connection, source, offset, min(end - offset, _MOST))
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            sent.set_exception(ConnectionResetError(error.strerror or "the client left"))
            return True
        offset += written
        if offset == end:
            sent.set_result(None)
        elif not written:
            sent.set_exception(ConnectionResetError("the file is shorter than it was"))
        return sent.done()

    def more() -> None:
        if sent.done() or send():
            loop.remove_writer(connection)

    try:
        if not send():
            loop.add_writer(connection, more)
        await sent
    finally:
        loop.remove_writer(connection)
        os.close(connection)
