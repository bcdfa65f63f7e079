"""The demo's upstream inside the test: the same answers, with a link that costs no time."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp.test_utils import TestServer

from pullthrough.demo.client import Login
from pullthrough.demo.counters import Meter
from pullthrough.demo.images import tools
from pullthrough.demo.registry import Registry
from pullthrough.demo.upstream import Link, application

ROBOT = Login("robot$demo", "correct horse")


@pytest.fixture
def robot() -> Login:
    """Return the login that the upstream knows."""
    return ROBOT


@pytest.fixture
def meter_path(tmp_path: Path) -> Path:
    """Return the file that the upstream counts in."""
    return tmp_path / "counters"


@pytest.fixture
def content() -> Registry:
    """Return what the upstream has: one image."""
    content = Registry(ROBOT.username, ROBOT.password)
    content.push(tools())
    return content


@pytest.fixture
async def far(content: Registry, meter_path: Path) -> AsyncIterator[str]:
    """Run the upstream, and give its URL."""
    meter = Meter(meter_path)
    server = TestServer(application(content, Link(delay=0, rate=float("inf")), meter))
    await server.start_server()
    yield str(server.make_url("")).rstrip("/")
    await server.close()
    meter.close()
