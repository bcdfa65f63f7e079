"""A small far-away registry with Harbor's login: ``python -m pullthrough.demo.upstream``.

It is led over standard input and output, a line each way, so that its link carries nothing but what
a registry is asked: first come its :class:`Settings` in JSON, answered with its port and its tags,
then a line for each new version of an image, answered with the tags as they are now. It ends when
its standard input does: a demo that dies leaves no upstream behind.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
from aiohttp import hdrs, web

from pullthrough.demo import images
from pullthrough.demo.counters import Counters, Meter
from pullthrough.demo.registry import Registry

_CHUNK = 64 * 1024
_TOKEN_LIFETIME = 1800  # seconds, as Harbor says

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Settings:
    """The robot's login, the file to count in, and the link: see :class:`Link`."""

    username: str
    password: str = field(repr=False)
    counters: str
    delay: float
    rate: float

    def to_json(self) -> bytes:
        """Return the line that :func:`main` reads."""
        return orjson.dumps(asdict(self), option=orjson.OPT_APPEND_NEWLINE)


class Link:
    """A long line that all answers share: ``delay`` seconds for each, ``rate`` bytes a second."""

    def __init__(
        self,
        delay: float,
        rate: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._delay = delay
        self._rate = rate
        self._clock = clock
        self._sleep = sleep
        self._busy_until = 0.0

    async def travel(self) -> None:
        """Wait as long as a request is on its way and its answer on the way back."""
        await self._sleep(self._delay)

    async def carry(self, size: int) -> None:
        """Wait until ``size`` more bytes are through, behind those that other answers have sent."""
        now = self._clock()
        self._busy_until = max(self._busy_until, now) + size / self._rate
        await self._sleep(self._busy_until - now)


def application(registry: Registry, link: Link, meter: Meter) -> web.Application:
    """Return ``registry`` as an HTTP server at the far end of ``link``, counted by ``meter``."""

    @web.middleware
    async def over_the_link(request: web.Request, handler: Handler) -> web.StreamResponse:
        meter.add(Counters(requests=1))
        await link.travel()
        response = await handler(request)
        # A blob's answer is a stream, which has counted itself on its way.
        if isinstance(response, web.Response) and request.method == hdrs.METH_GET:
            size = response.content_length or 0
            await link.carry(size)
            meter.add(Counters(sent=size))
        return response

    harbor = _Harbor(registry, link, meter)
    app = web.Application(middlewares=[over_the_link])
    app.add_routes(
        [
            web.get("/service/token", harbor.token),
            web.get("/v2/", harbor.ping),
            web.get("/v2/{name:.+}/manifests/{reference}", harbor.manifest),
            web.get("/v2/{name:.+}/blobs/{digest}", harbor.blob),
            web.get("/{path:.*}", harbor.nothing),
        ]
    )
    return app


class _Harbor:
    """Harbor's answers. Each route answers HEAD too: aiohttp then leaves the body out."""

    def __init__(self, registry: Registry, link: Link, meter: Meter) -> None:
        self._registry = registry
        self._link = link
        self._meter = meter

    async def token(self, request: web.Request) -> web.Response:
        scope = request.query.get("scope", "")
        known = self._registry.knows(_authorization(request))
        if not known and not scope:
            return _error(401, "UNAUTHORIZED", "wrong name or password")
        # Asked for a scope, Harbor gives a wrong login a token as well, which opens nothing.
        token = self._registry.issue(scope) if known else "anonymous"
        now = datetime.now(UTC).isoformat()
        return _json({"token": token, "expires_in": _TOKEN_LIFETIME, "issued_at": now})

    async def ping(self, request: web.Request) -> web.Response:
        return self._refusal(request, scope="") or _json({})

    async def manifest(self, request: web.Request) -> web.Response:
        name, reference = request.match_info["name"], request.match_info["reference"]
        if refusal := self._refusal(request, f"repository:{name}:pull"):
            return refusal
        found = self._registry.manifest(name, reference)
        if found is None:
            return _not_found(f"artifact {name}:{reference}")
        headers = {"Docker-Content-Digest": str(found.digest), hdrs.CONTENT_TYPE: found.media_type}
        return web.Response(body=found.content, headers=headers)

    async def blob(self, request: web.Request) -> web.StreamResponse:
        name, digest = request.match_info["name"], request.match_info["digest"]
        if refusal := self._refusal(request, f"repository:{name}:pull"):
            return refusal
        found = self._registry.blob(name, digest)
        if found is None:
            return _not_found(f"blob {digest}")
        response = web.StreamResponse(headers={"Docker-Content-Digest": digest})
        response.content_length = len(found)
        await response.prepare(request)
        if request.method == hdrs.METH_GET:
            for chunk in _chunks(found):
                await self._link.carry(len(chunk))
                self._meter.add(Counters(sent=len(chunk), blob_bytes=len(chunk)))
                await response.write(chunk)
        return response

    async def nothing(self, request: web.Request) -> web.Response:
        return _not_found(request.path)

    def _refusal(self, request: web.Request, scope: str) -> web.Response | None:
        if self._registry.allows(_authorization(request), scope):
            return None
        # The realm's host is the one that the client asked, as in Harbor.
        realm = f"{request.scheme}://{request.host}/service/token"
        challenge = f'Bearer realm="{realm}",service="harbor-registry"'
        if scope:
            challenge += f',scope="{scope}"'
        return _error(401, "UNAUTHORIZED", "log in", {hdrs.WWW_AUTHENTICATE: challenge})


def _authorization(request: web.Request) -> str:
    return request.headers.get(hdrs.AUTHORIZATION, "")


def _chunks(content: bytes) -> Iterator[memoryview]:
    view = memoryview(content)
    for start in range(0, len(view), _CHUNK):
        yield view[start : start + _CHUNK]


def _json(document: Any, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(
        body=orjson.dumps(document),
        status=status,
        headers={hdrs.CONTENT_TYPE: "application/json"} | (headers or {}),
    )


def _error(
    status: int, code: str, message: str, headers: dict[str, str] | None = None
) -> web.Response:
    return _json({"errors": [{"code": code, "message": message}]}, status, headers)


def _not_found(what: str) -> web.Response:
    # Harbor's own code, which is none of the spec's.
    return _error(404, "NOT_FOUND", f"{what} not found")


async def serve(orders: asyncio.StreamReader, say: Callable[[Any], None]) -> None:
    """Be the upstream that the first of ``orders`` describes, until they end."""
    settings = Settings(**orjson.loads(await orders.readline()))
    registry = Registry(settings.username, settings.password)
    version = 1
    for image in (images.app(version), images.tools()):
        registry.push(image)
    meter = Meter(Path(settings.counters))
    app = application(registry, Link(settings.delay, settings.rate), meter)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    try:
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        say({"port": runner.addresses[0][1], "tags": registry.tags()})
        while await orders.readline():
            version += 1
            registry.push(images.app(version))
            say({"tags": registry.tags()})
    finally:
        await runner.cleanup()
        meter.close()


async def main() -> None:
    """Serve by the orders on standard input."""
    orders = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(orders), sys.stdin
    )

    def say(answer: Any) -> None:
        sys.stdout.buffer.write(orjson.dumps(answer, option=orjson.OPT_APPEND_NEWLINE))
        sys.stdout.flush()

    await serve(orders, say)


if __name__ == "__main__":
    asyncio.run(main())
