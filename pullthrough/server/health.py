"""Liveness and readiness: whether to restart this process, whether to send it requests."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import orjson
import structlog
from aiohttp import web

from pullthrough.server.base import Exchange
from pullthrough.server.routes import Health

_log = structlog.get_logger()


@dataclass(slots=True)
class Readiness:
    """What ``/readyz`` says. The upstream's state is told, and decides nothing."""

    upstream_up: Callable[[], bool]
    keeping: Callable[[], dict[str, object]] = dict
    """Says more of the store: its bounds, the bucket. It decides nothing either."""
    store_ok: bool = True
    draining: bool = False

    @property
    def ready(self) -> bool:
        """Whether requests are welcome."""
        return self.store_ok and not self.draining

    def details(self) -> dict[str, Any]:
        """Return the state of each part."""
        return {
            "ready": self.ready,
            "store": "ok" if self.store_ok else "failing",
            "upstream": "up" if self.upstream_up() else "down",
            "draining": self.draining,
            **self.keeping(),
        }

    async def watch(
        self,
        check: Callable[[], Awaitable[bool]],
        *,
        interval: float,
        threshold: int,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Check the store every ``interval`` seconds; ``threshold`` failures in a row count."""
        failures = 0
        while True:
            await sleep(interval)
            try:
                ok = await asyncio.wait_for(check(), interval)
            except (OSError, TimeoutError):
                ok = False
            failures = 0 if ok else failures + 1
            was, self.store_ok = self.store_ok, failures < threshold
            if was != self.store_ok:
                _log.error("store recovered" if self.store_ok else "store not readable")


def serve_health(exchange: Exchange, route: Health, readiness: Readiness) -> web.Response:
    """Answer ``/livez`` and ``/readyz``."""
    exchange.headers["Cache-Status"] = "pullthrough; hit"
    if not route.ready:
        return exchange.reply(b"ok\n", "text/plain")
    status = 200 if readiness.ready else 503
    return exchange.reply(orjson.dumps(readiness.details()), "application/json", status)
