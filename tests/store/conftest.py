"""A prepared directory, and what is logged."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import structlog
from structlog.testing import LogCapture

from pullthrough.store.filesystem import FileStore, prepare
from pullthrough.store.layout import Layout


@pytest.fixture
def layout(tmp_path: Path) -> Iterator[Layout]:
    """Prepare a store's directory."""
    prepared = prepare(tmp_path / "root")
    yield prepared.layout
    os.close(prepared.in_use)


@pytest.fixture
async def files(layout: Layout) -> AsyncIterator[FileStore]:
    """Open a store on local disk."""
    store = FileStore(layout)
    await store.open()
    yield store
    await store.close()


@pytest.fixture(name="log")
def _log() -> Iterator[LogCapture]:
    """Catch what is logged."""
    capture, before = LogCapture(), structlog.get_config()
    structlog.configure(processors=[capture], cache_logger_on_first_use=False)
    yield capture
    structlog.configure(**before)
