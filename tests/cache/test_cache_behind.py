"""Writing behind: in order, a batch at a time, with a bound on what is held."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pullthrough.cache import behind
from pullthrough.cache.behind import WriteBehind


class Disk:
    """What was written; it stands still while its gate is closed."""

    def __init__(self) -> None:
        self.batches: list[bytes] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.writing = 0
        self.begun = asyncio.Event()

    async def write(self, chunks: list[bytes]) -> None:
        assert not self.writing, "two writes at once"
        self.writing += 1
        self.begun.set()
        await asyncio.sleep(0)
        await self.gate.wait()
        self.batches.append(b"".join(chunks))
        self.writing -= 1

    @property
    def content(self) -> bytes:
        return b"".join(self.batches)


@given(st.lists(st.binary(min_size=1, max_size=50), max_size=30), st.integers(1, 100))
async def test_all_in_order(chunks: list[bytes], batch: int) -> None:
    """Whatever comes in whatever pieces is written in order, without a gap, never two at once."""
    disk = Disk()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(behind, "_BATCH", batch)
        patch.setattr(behind, "_LINGER", 0)
        write_behind = WriteBehind(disk.write)
        for chunk in chunks:
            await write_behind.put(chunk)
        await write_behind.flush()
    assert disk.content == b"".join(chunks)
    assert disk.writing == 0


async def test_first_bytes_do_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first chunk is written at once, though it is small; those after it gather."""
    monkeypatch.setattr(behind, "_LINGER", 3600)
    disk = Disk()
    write_behind = WriteBehind(disk.write)
    await write_behind.put(b"a")
    await disk.begun.wait()
    for _ in range(5):
        await asyncio.sleep(0)
    for _ in range(10):
        await write_behind.put(b"b")
    await write_behind.flush()
    assert disk.batches == [b"a", b"b" * 10]


async def test_what_is_held_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the disk stands still no more than a batch is taken beside the one being written."""
    monkeypatch.setattr(behind, "_BATCH", 10)
    disk = Disk()
    disk.gate.clear()
    write_behind = WriteBehind(disk.write)
    taken = 0

    async def feed() -> None:
        nonlocal taken
        for _ in range(100):
            await write_behind.put(b"x")
            taken += 1

    feeding = asyncio.create_task(feed())
    await disk.begun.wait()
    for _ in range(50):
        await asyncio.sleep(0)
    assert taken <= 20
    disk.gate.set()
    await feeding
    await write_behind.flush()
    assert disk.content == b"x" * 100


async def test_an_error_comes_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a write raises is raised to who puts or flushes next."""
    monkeypatch.setattr(behind, "_BATCH", 1)

    async def full(_: list[bytes]) -> None:
        raise OSError("full")

    for flushes in (True, False):
        write_behind = WriteBehind(full)
        await write_behind.put(b"a")
        with pytest.raises(OSError, match="full"):
            await (write_behind.flush() if flushes else write_behind.put(b"b"))
