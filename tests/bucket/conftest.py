"""One real gateway for the whole run; each test has a bucket of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import assert_quiet
from tests.fakes.mirrored import MirroredCache, MirroredStarter, TestBucket
from tests.fakes.registry import FakeRegistry
from tests.rgw import gateway, own_rgw
from tests.servers.rgw import Gateway

__all__ = ["gateway", "own_rgw"]


@pytest.fixture
def bucket(gateway: Gateway) -> TestBucket:
    """Make a bucket."""
    return TestBucket(gateway)


@pytest.fixture
def start_mirrored(tmp_path: Path, registry: FakeRegistry) -> Iterator[MirroredStarter]:
    """Start a cache with a bucket: ``start_mirrored(bucket, {...}, redirect=…)``."""
    started: list[MirroredCache] = []

    def start(
        bucket: TestBucket, config: dict[str, Any] | None = None, *, name: str = "", **how: Any
    ) -> MirroredCache:
        directory = tmp_path / (name or f"cache{len(started)}")
        cache = MirroredCache(directory, registry.url, bucket, config, **how)
        started.append(cache)
        cache.start()
        return cache

    yield start
    registry.heal()
    for cache in started:
        cache.close()
    for cache in started:
        assert_quiet(cache)
        assert cache.bucket.gateway.secret_key not in cache.log_text()
        assert "X-Amz-Signature" not in cache.log_text()
