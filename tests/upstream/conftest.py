"""What the tests of the upstream side share: a client, its clock, and who listens to it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, Final

import pytest
import structlog
from structlog.testing import LogCapture

from pullthrough.oci.reference import Repository, Tag
from pullthrough.upstream.base import Credential
from pullthrough.upstream.breaker import Breaker
from pullthrough.upstream.client import RegistryClient, Settings
from tests.fakes.content import Image
from tests.fakes.registry import FakeRegistry

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
    slept: list[float] = field(default_factory=list)

    async def sleep(self, seconds: float) -> None:
        """Note how long, and let others run for a moment."""
        if seconds != 0.5:  # what the watch of the breaker always does
            self.slept.append(seconds)
        await asyncio.sleep(0.005)


Connect = Callable[..., Awaitable[RegistryClient]]


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.fixture
async def connect(registry: FakeRegistry, bench: Bench) -> AsyncIterator[Connect]:
    """Open a client of ``registry``, with short limits; keywords change its settings."""
    async with AsyncExitStack() as stack:

        async def make(**changes: Any) -> RegistryClient:
            settings: dict[str, Any] = {
                "url": registry.url,
                "credential": LOGIN,
                "firstbyte": 10.0,
                "stall": 10.0,
            }
            client = RegistryClient(
                Settings(**(settings | changes)),
                breaker=bench.breaker,
                observe=bench.observer,
                clock=bench.clock,
                sleep=bench.sleep,
            )
            return await stack.enter_async_context(client)

        yield make
        registry.heal()  # else the server's end waits for a silent answer


@pytest.fixture
async def client(connect: Connect) -> RegistryClient:
    """Open a client with the right login."""
    return await connect()


@pytest.fixture
def image(registry: FakeRegistry) -> Image:
    """Put an image at ``library/app:v1``."""
    return registry.put_image(str(NAME), str(TAG), (b"layer " * 50_000,))


@pytest.fixture
def log() -> LogCapture:
    """Catch what is logged."""
    return LogCapture()


@pytest.fixture(autouse=True)
def _logs(log: LogCapture) -> Any:
    before = structlog.get_config()
    structlog.configure(processors=[log], cache_logger_on_first_use=False)
    yield
    structlog.configure(**before)
    for entry in log.entries:
        assert "upstream-secret" not in str(entry)
        assert "a-presigned-secret" not in str(entry)


async def until(condition: Callable[[], Any], what: str) -> None:
    """Wait until ``condition`` holds; fail with ``what`` when it does not."""
    for _ in range(4000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError(f"never: {what}")
