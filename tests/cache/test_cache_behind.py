"""Writing behind: in order, a batch at a time, with a bound on what is held."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
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
        self.full = False

    async def write(self, chunks: list[bytes]) -> None:
        assert not self.writing, "two writes at once"
        self.writing += 1
        self.begun.set()
        await asyncio.sleep(0)  # others run during a write, also where the gate is open
        await self.gate.wait()
        self.writing -= 1
        if self.full:
            raise OSError("full")
        self.batches.append(b"".join(chunks))

    @property
    def content(self) -> bytes:
        return b"".join(self.batches)


async def settled() -> None:
    """Let run what can run."""
    for _ in range(50):
        await asyncio.sleep(0)


@settings(deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=50), max_size=30), st.integers(1, 100))
async def test_all_in_order(chunks: list[bytes], held: int) -> None:
    """Whatever comes in whatever pieces is written in order, without a gap, never two at once."""
    disk = Disk()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(behind, "_HELD", held)
        async with WriteBehind(disk.write) as write_behind:
            for chunk in chunks:
                await write_behind.put(chunk)
    assert disk.content == b"".join(chunks)
    assert disk.writing == 0


async def test_batches() -> None:
    """A chunk is written at once where nothing is; all that comes meanwhile, in one batch."""
    disk = Disk()
    disk.gate.clear()
    async with WriteBehind(disk.write) as write_behind:
        await write_behind.put(b"a")
        await disk.begun.wait()
        for _ in range(10):
            await write_behind.put(b"b")
            await settled()
        disk.gate.set()
        await settled()
        assert disk.batches == [b"a", b"b" * 10]
        await write_behind.put(b"c")
        await settled()
        assert disk.batches == [b"a", b"b" * 10, b"c"]


async def test_what_is_held_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the disk stands still no more than a bound is taken beside what is being written."""
    monkeypatch.setattr(behind, "_HELD", 10)
    disk = Disk()
    disk.gate.clear()
    taken = 0

    async def feed() -> None:
        nonlocal taken
        async with WriteBehind(disk.write) as write_behind:
            for _ in range(100):
                await write_behind.put(b"x")
                taken += 1

    feeding = asyncio.create_task(feed())
    await disk.begun.wait()
    await settled()
    assert taken <= 20
    disk.gate.set()
    await feeding
    assert disk.content == b"x" * 100


@pytest.mark.parametrize("held", [1, 100], ids=["put", "end"])
async def test_an_error_comes_out(monkeypatch: pytest.MonkeyPatch, held: int) -> None:
    """What a write raises is raised to who puts next, or at the end."""
    monkeypatch.setattr(behind, "_HELD", held)
    disk = Disk()
    disk.full = True
    taken = []

    async def feed() -> None:
        async with WriteBehind(disk.write) as write_behind:
            for chunk in (b"a", b"b"):
                await write_behind.put(chunk)
                taken.append(chunk)

    with pytest.raises(OSError, match="full"):
        await feed()
    assert taken == ([] if held == 1 else [b"a", b"b"])


async def test_nothing_is_written_after_an_error() -> None:
    """After a write that failed nothing more is written: it would stand in the wrong place."""
    disk = Disk()
    disk.gate.clear()
    disk.full = True

    async def feed() -> None:
        async with WriteBehind(disk.write) as write_behind:
            await write_behind.put(b"a")
            await disk.begun.wait()
            await write_behind.put(b"b")
            disk.gate.set()
            await settled()
            disk.full = False
            await write_behind.put(b"c")

    with pytest.raises(OSError, match="full"):
        await feed()
    await settled()
    assert disk.batches == []


@pytest.mark.parametrize("full", [False, True])
async def test_ends_with_what_ended_it(*, full: bool) -> None:
    """What came is written whatever ended it, and that is what comes out: not the disk's error."""
    disk = Disk()
    disk.full = full

    async def feed() -> None:
        async with WriteBehind(disk.write) as write_behind:
            await write_behind.put(b"a")
            await write_behind.put(b"b")
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        await feed()
    assert disk.content == (b"" if full else b"ab")


@pytest.mark.parametrize("size", [1, 10], ids=["at the end", "in put"])
async def test_cancelled_while_it_writes(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Cancelled, be it twice, it ends only when the write that is under way and the rest are."""
    monkeypatch.setattr(behind, "_HELD", 10)
    disk = Disk()
    disk.gate.clear()

    async def feed() -> None:
        async with WriteBehind(disk.write) as write_behind:
            await write_behind.put(b"x")
            await disk.begun.wait()
            await write_behind.put(b"y" * size)

    feeding = asyncio.create_task(feed())
    await disk.begun.wait()
    for _ in range(2):
        await settled()
        feeding.cancel()
    await settled()
    assert not feeding.done()
    disk.gate.set()
    with pytest.raises(asyncio.CancelledError):
        await feeding
    assert disk.content == b"x" + b"y" * size
