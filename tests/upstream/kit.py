"""What the tests of the upstream side share: names, a clock, an observer."""

from __future__ import annotations

import asyncio
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from aiohttp import web

from pullthrough.oci.reference import Repository, Tag
from pullthrough.upstream.base import Credential
from pullthrough.upstream.breaker import Breaker
from pullthrough.upstream.client import RegistryClient

NAME: Final = Repository("library/app")
TAG: Final = Tag("v1")
LOGIN: Final = Credential("robot$region", "upstream-secret")
WRONG: Final = Credential("robot$region", "no-longer-right")


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Recorder:
    """An observer that keeps what it is told."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, str]] = Counter()
        self.received = 0
        self.token_failures: list[str] = []
        self.refusals = 0

    def request(self, operation: str, outcome: str, seconds: float) -> None:
        assert seconds >= 0
        self.requests[operation, outcome] += 1

    def bytes_received(self, count: int) -> None:
        self.received += count

    def token_failure(self, reason: str) -> None:
        self.token_failures.append(reason)

    def credential_refused(self) -> None:
        self.refusals += 1


@dataclass
class Bench:
    """What a client is built with, and what it did with it."""

    clock: Clock = field(default_factory=Clock)
    observer: Recorder = field(default_factory=Recorder)
    breaker: Breaker = field(default_factory=Breaker)
    watch: asyncio.Event = field(default_factory=asyncio.Event)
    slept: list[float] = field(default_factory=list)

    async def sleep(self, seconds: float) -> None:
        """Note how long, let others run for a moment; the breaker's watch waits to be let go."""
        task = asyncio.current_task()
        if task is not None and task.get_name().startswith("watch "):
            await self.watch.wait()
        else:
            self.slept.append(seconds)
        await asyncio.sleep(0.005)  # for what a real pause would let happen meanwhile


Connect = Callable[..., Awaitable[RegistryClient]]


async def until(condition: Callable[[], Any], what: str) -> None:
    """Wait until ``condition`` holds; fail with ``what`` when it does not."""
    for _ in range(4000):
        if condition():
            return
        await asyncio.sleep(0.005)  # a bounded poll: threads tell no event
    raise AssertionError(f"never: {what}")


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def serving(handler: Handler, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """Serve ``handler`` for every path, and give its address."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
        await site.start()
        yield f"{'https' if tls else 'http'}://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def listed(*pages: dict[str, Any]) -> Handler:
    """Answer with one page after another, each with a link to the next."""
    left = list(pages)

    async def handle(request: web.Request) -> web.StreamResponse:
        page = left.pop(0)
        links = {"Link": f'<{request.path}?left={len(left)}>; rel="next"'} if left else {}
        return web.json_response(page, headers=links)

    return handle
