"""An open download of a blob, and what its headers must say."""

from __future__ import annotations

from http import HTTPStatus

from pullthrough.upstream.answers import Span, nonsense, span
from pullthrough.upstream.base import Failure, UpstreamError
from pullthrough.upstream.transport import Reply


class Body:
    """A :class:`pullthrough.upstream.base.BlobBody` that counts: a short one never ends cleanly.

    ``start`` and ``end`` are what was asked for; raises NOT_A_REGISTRY when a 206 is none of it.
    """

    def __init__(self, reply: Reply, start: int, end: int | None, *, stall: float) -> None:
        part = _part(reply, start, end) if reply.status == HTTPStatus.PARTIAL_CONTENT else None
        self._reply = reply
        self._stall = stall
        self.start = part.start if part else 0
        self.size = part.total if part else reply.length
        self._left = part.end - part.start if part else reply.length

    async def read(self) -> bytes:
        """Return the next bytes as they came, ``b""`` when all have come.

        Raises :class:`UpstreamError` CUT or TIMEOUT.
        """
        data = await self._reply.chunk(self._stall)
        if self._left is not None:
            self._left -= len(data)
            if self._left < 0:
                raise nonsense(self._reply, "more bytes than it announced")
            if not data and self._left:
                message = f"{self._reply.host}: {self._left} bytes are missing"
                raise UpstreamError(Failure.CUT, message)
        return data


def _part(reply: Reply, start: int, end: int | None) -> Span:
    part = span(reply)
    if part is None or part.start != start or (end is not None and part.end > end):
        raise nonsense(reply, "a range that was not asked for")
    if reply.length not in {None, part.end - part.start}:
        raise nonsense(reply, "a range and a length that differ")
    return part
