"""One running region for all tests of a module that only ask and leave nothing broken."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.conftest import assert_quiet
from tests.fakes.cache import Cache, towards
from tests.fakes.client import Client
from tests.fakes.registry import FakeRegistry


@dataclass(frozen=True)
class Region:
    """A registry, and a cache of it that has no login of its own."""

    registry: FakeRegistry
    cache: Cache

    @property
    def client(self) -> Client:
        return self.cache.client()


@pytest.fixture(scope="module")
def region(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Region]:
    """Run a region that the module's tests share; each has its own repositories in it.

    The module's ``LIMITS``, where it has them, are the cache's.
    """
    limits = getattr(request.module, "LIMITS", {})
    with FakeRegistry() as registry:
        cache = Cache(tmp_path_factory.mktemp("region"), towards(registry.url, **limits))
        try:
            cache.start()
            yield Region(registry, cache)
        finally:
            registry.heal()
            cache.close()
        assert_quiet(cache)


@pytest.fixture
def repository() -> str:
    """Return a repository's name that no other test uses."""
    return f"project/{uuid.uuid4().hex[:12]}"
