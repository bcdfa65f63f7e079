"""Whether the upstream may be asked: what answers tell the breaker, and who looks again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

import structlog
from yarl import URL

from pullthrough.upstream.answers import is_api
from pullthrough.upstream.base import Failure, UpstreamError
from pullthrough.upstream.breaker import Breaker
from pullthrough.upstream.retry import Sleep
from pullthrough.upstream.transport import ERROR_LIMIT, ElsewhereError, Transport

log = structlog.get_logger()

_PAUSE = 0.5
"""Seconds between two looks at the breaker, and between two probes that calls ask for."""

_ANSWERS: Final = frozenset(
    {
        Failure.NOT_FOUND,
        Failure.POLICY,
        Failure.UNAUTHORIZED,
        Failure.FORBIDDEN,
        Failure.RATE_LIMITED,
    }
)
_NOT_ASKED: Final = frozenset({Failure.DOWN, Failure.RESTED})


class Health:
    """The breaker in use: watches the upstream for as long as it is down, as a context.

    ``limit`` bounds a probe, in seconds.
    """

    def __init__(
        self,
        upstream: URL,
        transport: Transport,
        breaker: Breaker,
        *,
        limit: float,
        clock: Callable[[], float],
        sleep: Sleep,
    ) -> None:
        self._upstream = upstream
        self._transport = transport
        self._breaker = breaker
        self._limit = limit
        self._clock = clock
        self._sleep = sleep
        self._watching: asyncio.Task[None] | None = None
        self._probing: asyncio.Task[None] | None = None
        self._probed = float("-inf")

    async def __aenter__(self) -> Self:
        self._watching = asyncio.create_task(self._watch(), name=f"watch {self._upstream.host}")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        tasks = [task for task in (self._watching, self._probing) if task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def up(self) -> bool:
        """False while the upstream counts as down."""
        return not self._breaker.down

    def overdue(self) -> None:
        """Count the upstream as down until it answers."""
        if self._breaker.overdue(self._clock()):
            self._say_down("no answer within the deadline")

    def answered(self) -> None:
        """Take note of a registry's answer, a refusal included."""
        if self._breaker.succeeded():
            log.warning("upstream is back", upstream=self._upstream.host)

    def failed(self, error: UpstreamError) -> None:
        """Take note of what a call's failure says about the upstream."""
        if error.failure in _ANSWERS:
            self.answered()
        elif error.failure in _NOT_ASKED or isinstance(error, ElsewhereError):
            return
        elif self._breaker.failed(self._clock()):
            self._say_down(str(error))

    async def require(self) -> None:
        """Let a call go ahead if the upstream is up, or turns out to be; else raise DOWN.

        A call never fails because of an old verdict: while the upstream is down it waits for a
        probe, one for all that wait, and two a second at most.
        """
        if self.up:
            return
        if self._probing is None or self._probing.done():
            self._probing = asyncio.create_task(self._probe(), name=f"probe {self._upstream.host}")
        await asyncio.shield(self._probing)
        if not self.up:
            raise UpstreamError(Failure.DOWN, f"{self._upstream.host} is down")

    async def _watch(self) -> None:
        while True:
            await self._sleep(_PAUSE)
            if self._breaker.claim_probe(self._clock()):
                try:
                    await self._ping()
                except Exception:  # a watch that ended would leave the upstream down for good
                    log.exception("probe failed", upstream=self._upstream.host)

    async def _probe(self) -> None:
        if (pause := self._probed + _PAUSE - self._clock()) > 0:
            await self._sleep(pause)
        if not self.up:
            await self._ping()

    async def _ping(self) -> None:
        """Ask for ``/v2/`` without a login."""
        try:
            async with asyncio.timeout(self._limit):
                with await self._transport.send("GET", self._upstream / "v2" / "") as reply:
                    back = is_api(reply, await reply.body(ERROR_LIMIT))
        except (UpstreamError, TimeoutError):
            back = False
        self._probed = self._clock()
        if back:
            self.answered()

    def _say_down(self, reason: str) -> None:
        log.warning("upstream is down", upstream=self._upstream.host, reason=reason)
