"""A client of a fake registry, and the logs it leaves."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import structlog
from structlog.testing import LogCapture

from pullthrough.upstream import transport
from pullthrough.upstream.client import RegistryClient, Settings
from tests.fakes.content import Image
from tests.fakes.registry import FakeRegistry
from tests.upstream.kit import LOGIN, NAME, TAG, Bench, Connect


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.fixture(scope="session")
def authorities() -> ssl.SSLContext:
    return ssl.create_default_context()


@pytest.fixture(autouse=True)
def _read_authorities_once(authorities: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare each test the 50 ms in which the machine's authorities are read."""
    read = transport._tls

    def tls(cafile: Path | None, *, skipverify: bool) -> ssl.SSLContext:
        return read(cafile, skipverify=skipverify) if cafile or skipverify else authorities

    monkeypatch.setattr(transport, "_tls", tls)


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
