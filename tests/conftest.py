"""Fixtures that start the servers of :mod:`tests.fakes`, and look at what they leave."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.cache import Cache, towards
from tests.fakes.registry import FakeRegistry

CacheStarter = Callable[..., Cache]


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    """Run a registry with Harbor's login."""
    with FakeRegistry() as running:
        yield running


@pytest.fixture
def start_cache(tmp_path: Path, registry: FakeRegistry) -> Iterator[CacheStarter]:
    """Start a cache of ``registry``: ``start_cache({...}, proxy_key=value, …)``."""
    started: list[Cache] = []

    def start(
        config: dict[str, Any] | None = None,
        *,
        environment: dict[str, str] | None = None,
        directory: str = "cache",
        **proxy: Any,
    ) -> Cache:
        cache = Cache(tmp_path / directory, config or {}, environment=environment)
        cache.configure(towards(registry.url, **proxy))
        cache.configure(config or {})
        started.append(cache)
        cache.start()
        return cache

    yield start
    registry.heal()
    for cache in started:
        cache.close()
    for cache in started:
        assert_quiet(cache)


def assert_quiet(cache: Cache) -> None:
    """Assert what holds of every log: nothing fell over, and no secret was told."""
    lines = cache.log_text().splitlines()
    assert [line for line in lines if "Traceback" in line] == []
    for secret in ("upstream-secret", "a-presigned-secret", "client-secret"):
        assert [line for line in lines if secret in line] == []
