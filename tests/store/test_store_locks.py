"""Named locks between real processes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from pullthrough.store.locks import Locks
from tests.store.kit import child

HOLD = """
import asyncio, sys
from pathlib import Path
from pullthrough.store.locks import Locks

sleep = asyncio.sleep

async def told(seconds):
    print("waits", flush=True)
    await sleep(seconds)

asyncio.sleep = told

async def main():
    async with Locks(Path(sys.argv[1])).hold(sys.argv[2]) as waited:
        print("waited" if waited else "at once", flush=True)
        sys.stdin.readline()
    print("let go", flush=True)
    sys.stdin.readline()

asyncio.run(main())
"""

# Without the lock another process's mark is found there sooner or later.
TAKE_TURNS = """
import asyncio, os, sys
from pathlib import Path
from pullthrough.store.locks import Locks

async def main():
    locks, mark = Locks(Path(sys.argv[1])), Path(sys.argv[1] + ".mark")
    print("ready", flush=True)
    sys.stdin.readline()
    for turn in range(40):
        async with locks.hold("the mark"):
            mark.write_text(f"{os.getpid()} {turn}")
            os.sched_yield()
            await asyncio.sleep(0)  # the others' chance to come in
            if mark.read_text() != f"{os.getpid()} {turn}":
                sys.exit("not alone")

asyncio.run(main())
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "locks"


@pytest.fixture
def ours(path: Path) -> Iterator[Locks]:
    made = Locks(path)
    yield made
    made.close()


@pytest.fixture
def tries(monkeypatch: pytest.MonkeyPatch) -> asyncio.Queue[float]:
    """Return the pauses between tries as they are made."""
    pauses: asyncio.Queue[float] = asyncio.Queue()
    real = asyncio.sleep

    async def sleep(seconds: float) -> None:
        pauses.put_nowait(seconds)
        await real(0.001)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    return pauses


async def _hold(ours: Locks, name: str) -> bool:
    async with ours.hold(name) as waited:
        return waited


async def test_held_elsewhere_is_waited_for(
    path: Path, ours: Locks, tries: asyncio.Queue[float]
) -> None:
    """While another process holds the name it is not given; once let go it is, and says so."""
    with child(HOLD, str(path), "name") as other:
        assert other.says() == "at once"
        waiting = asyncio.create_task(_hold(ours, "name"))
        pauses = [await tries.get() for _ in range(10)]
        assert not waiting.done()
        other.go_on()
        assert other.says() == "let go"
        assert await asyncio.wait_for(waiting, 20) is True
    # Longer and longer, with a bound: neither a busy loop nor a late awakening.
    assert pauses == sorted(pauses)
    assert 0 < pauses[0] < pauses[-1] <= 0.1


async def test_another_process_waits_for_us(path: Path, ours: Locks) -> None:
    """The same the other way round: the value says that somebody was waited for."""
    async with AsyncExitStack() as holding:
        assert await holding.enter_async_context(ours.hold("name")) is False
        with child(HOLD, str(path), "name") as other:
            assert other.says() == "waits"
            await holding.aclose()
            while (said := other.says()) == "waits":
                pass
            assert said == "waited"


async def test_names_do_not_wait_for_each_other(path: Path, ours: Locks) -> None:
    """Another name is free, whoever holds the first one."""
    with child(HOLD, str(path), "name") as other:
        assert other.says() == "at once"
        assert await asyncio.wait_for(_hold(ours, "another name"), 20) is False


async def test_death_lets_go(path: Path, ours: Locks) -> None:
    """A kill -9 of the holder frees the name at once: no lock outlives its process."""
    with child(HOLD, str(path), "name") as other:
        assert other.says() == "at once"
        waiting = asyncio.create_task(_hold(ours, "name"))
        other.kill()
        await asyncio.wait_for(waiting, 20)
    assert await _hold(ours, "name") is False


async def test_cancelled_while_waiting(
    path: Path, ours: Locks, tries: asyncio.Queue[float]
) -> None:
    """Who gives up waiting has nothing, and keeps it from nobody."""
    with child(HOLD, str(path), "name") as other:
        assert other.says() == "at once"
        waiting = asyncio.create_task(_hold(ours, "name"))
        await tries.get()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        other.go_on()
        assert other.says() == "let go"
        with child(HOLD, str(path), "name") as third:
            assert third.says() == "at once"


async def test_cancelled_while_holding(path: Path, ours: Locks) -> None:
    """Who is cancelled with the lock in hand lets it go."""
    held = asyncio.Event()

    async def hold_for_ever() -> None:
        async with ours.hold("name"):
            held.set()
            await asyncio.Event().wait()

    holding = asyncio.create_task(hold_for_ever())
    await held.wait()
    holding.cancel()
    with pytest.raises(asyncio.CancelledError):
        await holding
    with child(HOLD, str(path), "name") as other:
        assert other.says() == "at once"


def test_one_at_a_time(path: Path) -> None:
    """Three processes that take turns never find another's mark."""
    with (
        child(TAKE_TURNS, str(path)) as one,
        child(TAKE_TURNS, str(path)) as two,
        child(TAKE_TURNS, str(path)) as three,
    ):
        together = (one, two, three)
        assert [each.says() for each in together] == ["ready"] * 3
        for each in together:
            each.go_on()
        assert [each.wait() for each in together] == [0, 0, 0]
