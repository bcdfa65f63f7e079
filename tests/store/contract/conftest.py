"""The implementations that the contract is run on: a new one adds what opens it, and no test."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Final

import pytest

from pullthrough.store.base import Store
from pullthrough.store.filesystem import FileStore, prepare

Open = Callable[[Path], AbstractAsyncContextManager[Store]]
"""Opens the store that is kept at a place: at the same place again, the same content."""


@asynccontextmanager
async def _on_local_disk(place: Path) -> AsyncIterator[Store]:
    prepared = prepare(place)
    store = FileStore(prepared.layout)
    await store.open()
    try:
        yield store
    finally:
        await store.close()
        os.close(prepared.in_use)


IMPLEMENTATIONS: Final[dict[str, Open]] = {"local disk": _on_local_disk}


@pytest.fixture(params=sorted(IMPLEMENTATIONS))
def open_store(request: pytest.FixtureRequest) -> Open:
    """Return what opens an implementation."""
    return IMPLEMENTATIONS[request.param]


@pytest.fixture
async def store(open_store: Open, tmp_path: Path) -> AsyncIterator[Store]:
    """Open an empty store."""
    async with open_store(tmp_path / "store") as opened:
        yield opened
