"""Every request's way: request id, login, route, handler, and whatever happened as one answer.

This is the only place where an exception becomes a response, where a request is counted, and
where its access line is written.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import secrets
import socket
import struct
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

import structlog
from aiohttp import web
from aiohttp.web_protocol import RequestHandler
from multidict import CIMultiDict

from pullthrough.cache.base import Served
from pullthrough.cache.blobs import Blobs
from pullthrough.cache.listings import Listings
from pullthrough.cache.manifests import Manifests
from pullthrough.oci.errors import RegistryError, Unavailable, Unsupported
from pullthrough.server import routes
from pullthrough.server.auth import Htpasswd
from pullthrough.server.base import Exchange, flat
from pullthrough.server.blobs import serve_blob
from pullthrough.server.health import Readiness, serve_health
from pullthrough.server.listings import serve_catalog, serve_referrers, serve_tags
from pullthrough.server.manifests import serve_manifest

_log = structlog.get_logger()

_INTERNAL: Final = 500
_GONE: Final = 499  # nginx's number for a client that closed; in logs and metrics only
_LOGGED_PATH: Final = 512
_ON_EVERY_ANSWER: Final = (
    ("Docker-Distribution-Api-Version", "registry/2.0"),
    ("Server", "pullthrough"),
)


class InternalError(RegistryError):
    """A fault of ours."""

    code, status = "UNAVAILABLE", _INTERNAL


class BadRequest(RegistryError):
    """Not HTTP as we understand it."""

    code, status = "UNSUPPORTED", 400


class Access(NamedTuple):
    """One finished request; ``seconds`` from its head read to its last byte handed over."""

    request_id: str
    address: str
    user: str
    method: str
    path: str
    route: str
    status: int
    bytes_sent: int
    seconds: float
    served: Served | None


class Recorder(Protocol):
    """Where finished requests are counted and written down."""

    def finished(self, access: Access) -> None:
        """Take note of one."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What requests are answered from."""

    manifests: Manifests
    blobs: Blobs
    listings: Listings
    readiness: Readiness
    htpasswd: Htpasswd | None
    realm: str


class Edge:
    """The request handler of one worker."""

    def __init__(
        self, parts: Parts, recorder: Recorder, headers: Mapping[str, Sequence[str]]
    ) -> None:
        self._parts, self._recorder = parts, recorder
        self._headers = [*_ON_EVERY_ANSWER, *flat(headers)]
        self._ids = itertools.count()
        self._id_prefix = secrets.token_hex(6)

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request."""
        started = time.perf_counter()
        request_id = f"{self._id_prefix}-{next(self._ids):x}"
        headers = CIMultiDict(self._headers)
        headers["X-Request-Id"] = request_id
        exchange = Exchange(request, headers)
        target = routes.origin_form(request.raw_path)
        # A socket for both families shows IPv4 clients in IPv6's clothes.
        address = (request.remote or "").removeprefix("::ffff:")
        label, status = "other", _GONE
        try:
            if not routes.is_public(target):
                await self._login(exchange, address)
            if request.method not in ("GET", "HEAD"):
                headers["Allow"] = "GET, HEAD"
                raise Unsupported("this is a cache: it takes no writes")  # noqa: TRY301 - mapped like any other
            route = routes.parse(target)
            label = route.label
            response = await self._dispatch(exchange, route)
            status = response.status
        except RegistryError as error:
            label, status = routes.label_of(target), error.status
            response = self._refuse(exchange, error)
        except (ConnectionError, asyncio.CancelledError):
            _abort(exchange)
            raise
        except Exception as failure:  # noqa: BLE001 - a client gets no traceback, whatever it is
            internal = _internal(failure, request_id)
            status = internal.status
            response = self._refuse(exchange, internal)
        finally:
            self._recorder.finished(
                Access(
                    request_id=request_id,
                    address=address,
                    user=exchange.user,
                    method=request.method,
                    path=_loggable(target),
                    route=label,
                    status=status,
                    bytes_sent=exchange.bytes_sent,
                    seconds=time.perf_counter() - started,
                    served=exchange.served,
                )
            )
        return response

    async def _login(self, exchange: Exchange, address: str) -> None:
        htpasswd = self._parts.htpasswd
        if htpasswd is not None:
            header = exchange.request.headers.get("Authorization")
            exchange.user = await htpasswd.user(header, address)

    async def _dispatch(  # noqa: PLR0911 - a table of routes
        self, exchange: Exchange, route: routes.Route
    ) -> web.StreamResponse:
        parts = self._parts
        match route:
            case routes.ManifestRoute():
                return await serve_manifest(exchange, route, parts.manifests)
            case routes.BlobRoute():
                return await serve_blob(exchange, route, parts.blobs)
            case routes.Ping():
                exchange.headers["Cache-Status"] = "pullthrough; hit"
                return exchange.reply(b"{}", "application/json")
            case routes.TagsRoute():
                return await serve_tags(exchange, route, parts.listings)
            case routes.ReferrersRoute():
                return await serve_referrers(exchange, route, parts.listings)
            case routes.CatalogRoute():
                return await serve_catalog(exchange, route, parts.listings)
            case routes.Health():
                return serve_health(exchange, route, parts.readiness)

    def _refuse(self, exchange: Exchange, error: RegistryError) -> web.StreamResponse:
        if exchange.response is None:
            return exchange.error(error, self._parts.realm)
        # The headers are out: an answer that cannot be finished must not look finished.
        _log.warning(
            "answer broken off",
            request_id=exchange.headers.get("X-Request-Id"), why=error.message, status=error.status,
        )  # fmt: skip
        _abort(exchange)
        raise ConnectionResetError(error.message) from error


def _internal(failure: Exception, request_id: str) -> RegistryError:
    """Return what a client is told of a failure that nobody foresaw."""
    if isinstance(failure, OSError) and failure.errno in (errno.EMFILE, errno.ENFILE):
        _log.error("too many open files", request_id=request_id)
        return Unavailable("too many open files; ask again")
    _log.error("request failed", request_id=request_id, exc_info=failure)
    return InternalError("internal error")


def _loggable(target: str) -> str:
    path = target.partition("?")[0][:_LOGGED_PATH]
    # Bytes that are no UTF-8 come as lone surrogates, which no log can hold.
    return path if path.isascii() else path.encode(errors="backslashreplace").decode()


def _abort(exchange: Exchange) -> None:
    transport = exchange.request.transport
    if exchange.response is not None and transport is not None:
        # A reset, not an end, which without Content-Length would mean that it is whole.
        connection = transport.get_extra_info("socket")
        if connection is not None and not transport.is_closing():
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()


class _Connection(RequestHandler):
    """A client's connection, on which even what is not HTTP gets the registry's kind of error."""

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = _INTERNAL,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what could not be parsed; ``message`` is the parser's and is not repeated."""
        del message
        if isinstance(exc, ConnectionError):
            raise exc  # broken off, by us or by the client: nothing is to be said
        request_id = secrets.token_hex(8)
        headers = CIMultiDict((*_ON_EVERY_ANSWER, ("X-Request-Id", request_id)))
        error: RegistryError = BadRequest("not a request that can be understood")
        if status >= _INTERNAL:
            _log.error("request failed", request_id=request_id, exc_info=exc)
            error = InternalError("internal error")
        else:
            _log.info("not a request", request_id=request_id, address=request.remote or "")
        response = Exchange(request, headers).error(error, "")
        response.set_status(status)
        response.force_close()
        return response


class Listener(web.Server):
    """aiohttp's low-level server: no router, no middleware, no access log of its own."""

    def __call__(self) -> RequestHandler:
        """Return the protocol of a new connection."""
        return _Connection(self, loop=self._loop, **self._kwargs)


def listener(edge: Edge) -> Listener:
    """Return the server of an edge."""
    # A refused upload is not read for long, and a kept connection outlives a node's pull pauses.
    return Listener(edge.handle, access_log=None, lingering_time=1.0, keepalive_timeout=120.0)
