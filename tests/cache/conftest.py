"""Workers on one store, and a look at what they leave open."""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import structlog
from structlog.testing import LogCapture

from pullthrough.cache import fill
from pullthrough.store.filesystem import prepare
from pullthrough.store.layout import Layout
from tests.cache.scripted import FakeSource
from tests.cache.worker import Worker, open_files

Start = Callable[..., Awaitable[Worker]]


@pytest.fixture
def source() -> FakeSource:
    return FakeSource()


@pytest.fixture
async def layout(tmp_path: Path) -> AsyncIterator[Layout]:
    """Prepare a store, and see that nothing of its content is left open at the end."""
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    layout, in_use = prepare(tmp_path / "store")
    yield layout
    os.close(in_use)
    gc.collect(1)  # the young ones: all that a test made, in a tenth of the time
    assert open_files(tmp_path) == []
    assert complaints == []


@pytest.fixture
async def start(layout: Layout, source: FakeSource) -> AsyncIterator[Start]:
    """Start a worker: of the one ``source``, if no other is given; with a bucket, if one is."""
    started: list[Worker] = []

    async def start(its_source: FakeSource = source, *mirrored: Any) -> Worker:
        worker = Worker(layout, its_source, *mirrored)
        started.append(worker)
        await worker.store.open()
        return worker

    yield start
    for worker in started:
        await worker.close()


@pytest.fixture
async def worker(start: Start) -> Worker:
    """Start one worker."""
    return await start()


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


@pytest.fixture(autouse=True)
def _look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a fill look at another's progress more often than it does in service."""
    monkeypatch.setattr(fill, "_POLL", 0.001)
