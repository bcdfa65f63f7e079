"""HTTP to registries: connections, TLS, redirects. The only place that knows aiohttp's errors."""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import aiohttp
from aiohttp import hdrs
from yarl import URL

from pullthrough.upstream.base import Failure, UpstreamError
from pullthrough.upstream.resolver import Resolver

ERROR_LIMIT: Final = 64 * 1024
"""Bytes of an error's body that are read."""

_REDIRECTS = 5
_REDIRECT_STATUSES = frozenset({301, 302, 303, 307, 308})
_LOCATION_LIMIT = 8192
_ADDRESS = re.compile(r"[!-~]+")  # visible ASCII: nothing that could break a request line
_KEEPALIVE = 45.0
_BUFFER = 256 * 1024
"""Bytes; measured: with aiohttp's own 64 KiB a body comes a third slower."""


class ElsewhereError(UpstreamError):
    """A host failed to which the upstream had sent us: that says nothing of the upstream itself."""


class Reply:
    """An answer whose body has yet to be read; a context that closes it."""

    def __init__(
        self, response: aiohttp.ClientResponse, received: Callable[[int], None], *, elsewhere: bool
    ) -> None:
        self._response = response
        self._received = received
        self.elsewhere = elsewhere
        self.status = response.status
        self.headers = response.headers
        self.url = response.url
        self.host = response.url.host or ""

    @property
    def length(self) -> int | None:
        """The Content-Length in bytes."""
        return self._response.content_length

    async def chunk(self, stall: float | None = None) -> bytes:
        """Return the next bytes, ``b""`` at the end; at most ``stall`` seconds without any."""
        with _translated(self.host, ElsewhereError if self.elsewhere else UpstreamError):
            async with asyncio.timeout(stall):
                data = await self._response.content.readany()
        self._received(len(data))
        return data

    async def body(self, limit: int) -> bytes:
        """Return the body, no more than ``limit`` bytes of it."""
        parts, size = [], 0
        while size < limit and (data := await self.chunk()):
            parts.append(data)
            size += len(data)
        return b"".join(parts)[:limit]

    def close(self) -> None:
        """Close the connection at once, unless the body was read to its end."""
        self._response.close()

    async def discard(self) -> None:
        """Read a short rest, so that the connection can serve again, and close."""
        with self:
            await self.body(ERROR_LIMIT)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class Transport:
    """Sends requests; open between ``__aenter__`` and ``__aexit__``.

    ``connect`` (seconds) bounds name, connection and TLS of one try; the caller bounds the whole.
    """

    def __init__(
        self,
        upstream: URL,
        *,
        resolve: Mapping[str, str],
        cafile: Path | None,
        skipverify: bool,
        connect: float,
        user_agent: str,
        received: Callable[[int], None],
    ) -> None:
        self._origin = upstream.origin()
        self._resolve = resolve
        self._tls = _tls(cafile, skipverify=skipverify)
        self._connect = connect
        self._headers = {hdrs.USER_AGENT: user_agent, hdrs.ACCEPT_ENCODING: "identity"}
        self._received = received
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=0,  # who may ask how much at once is decided above
                keepalive_timeout=_KEEPALIVE,
                resolver=Resolver(self._resolve),
                ssl=self._tls,
                socket_factory=self._socket,
            ),
            timeout=aiohttp.ClientTimeout(total=None, connect=self._connect),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=self._headers,
            auto_decompress=False,
            trust_env=False,
            read_bufsize=_BUFFER,
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def send(
        self,
        method: str,
        url: URL,
        *,
        headers: Mapping[str, str] | None = None,
        authorization: str | None = None,
    ) -> Reply:
        """Return the answer at the end of the redirects.

        ``authorization`` goes to ``url``'s own origin and nowhere else; ``headers`` go along.
        Raises :class:`UpstreamError`; :class:`ElsewhereError` if it was not the upstream's origin.
        """
        if self._session is None:
            raise RuntimeError("used outside of its context")
        home = url.origin()
        for _ in range(_REDIRECTS + 1):
            elsewhere = url.origin() != self._origin
            sent = dict(headers or {})
            if authorization is not None and url.origin() == home:
                sent[hdrs.AUTHORIZATION] = authorization
            with _translated(url.host or "", ElsewhereError if elsewhere else UpstreamError):
                # A kept connection that the peer has closed: aiohttp tries once more on a new one.
                response = await self._session.request(
                    method, url, headers=sent, allow_redirects=False
                )
            reply = Reply(response, self._received, elsewhere=elsewhere)
            location = response.headers.get(hdrs.LOCATION)
            if reply.status not in _REDIRECT_STATUSES or location is None:
                return reply
            await reply.discard()
            url = self._target(url, location)
            if url.origin() != home:
                authorization = None  # not even if the next redirect leads back
        raise UpstreamError(Failure.NOT_A_REGISTRY, f"{url.host}: more than {_REDIRECTS} redirects")

    def _target(self, url: URL, location: str) -> URL:
        target = _join(url, location)
        if target is None:
            message = f"{url.host}: a redirect to no http address"
            raise UpstreamError(Failure.NOT_A_REGISTRY, message)
        if self._origin.scheme == "https" and target.scheme == "http":
            message = f"{url.host}: a redirect from https to http"
            raise UpstreamError(Failure.NOT_A_REGISTRY, message)
        return target

    def _socket(self, address: aiohttp.connector.AddrInfoType) -> socket.socket:
        family, kind, protocol, *_ = address
        made = socket.socket(family, kind, protocol)
        # A kept connection whose peer has vanished without a word breaks after this time without an
        # acknowledgement, rather than eating the whole wait for an answer (tcp(7)).
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(self._connect * 1000))
        return made


def _tls(cafile: Path | None, *, skipverify: bool) -> ssl.SSLContext:
    """Return the TLS settings: ``cafile`` beside the machine's own authorities; raises OSError."""
    context = ssl.create_default_context()
    if cafile is not None:
        context.load_verify_locations(cafile)
    if skipverify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _join(url: URL, location: str) -> URL | None:
    """Return where ``location`` leads, as written, since it may be signed; None if nowhere."""
    if len(location) > _LOCATION_LIMIT or not _ADDRESS.fullmatch(location):
        return None
    try:
        target = url.join(URL(location, encoded=True)).with_user(None)
    except ValueError:
        return None
    return target if target.scheme in {"http", "https"} and target.host else None


@contextmanager
def _translated(host: str, error: type[UpstreamError]) -> Iterator[None]:
    """Raise ``error`` in place of aiohttp's.

    aiohttp's messages may show a signed address, so they are left out, of the chain of causes too.
    """
    try:
        yield
    except aiohttp.ConnectionTimeoutError:
        raise error(Failure.TIMEOUT, f"{host}: no connection in time") from None
    except aiohttp.ClientConnectorError as failed:
        # The cause is the system's or TLS's own: "Connection refused", "certificate verify failed".
        raise error(Failure.REFUSED, f"{host}: {failed.__cause__}") from None
    except (aiohttp.ClientResponseError, aiohttp.InvalidURL):
        raise error(Failure.NOT_A_REGISTRY, f"{host}: an answer that is no HTTP") from None
    except TimeoutError:
        raise error(Failure.TIMEOUT, f"{host}: silent for too long") from None
    except (aiohttp.ClientError, OSError) as failed:
        kind = type(failed).__name__
        raise error(Failure.CUT, f"{host}: the connection broke ({kind})") from None
