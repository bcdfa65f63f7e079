"""One running call a key, whoever waits and whoever leaves."""

from __future__ import annotations

import asyncio
import gc

import pytest

from pullthrough.singleflight import SingleFlight


class Call:
    """A call that waits for its gate, and counts how often it was made."""

    def __init__(self, error: Exception | None = None) -> None:
        self.made = 0
        self.ended = 0
        self.begun = asyncio.Event()
        self.gate = asyncio.Event()
        self._error = error

    async def __call__(self) -> int:
        self.made += 1
        number = self.made
        self.begun.set()
        try:
            await self.gate.wait()
        finally:
            self.ended += 1
        if self._error is not None:
            raise self._error
        return number


async def test_calls_join() -> None:
    """However many ask at once, the call is made once and all have its result."""
    flight: SingleFlight[str, int] = SingleFlight()
    call = Call()
    waiting = [asyncio.create_task(flight.run("key", call)) for _ in range(20)]
    await asyncio.sleep(0)  # all of them ask
    call.gate.set()
    assert await asyncio.gather(*waiting) == [1] * 20
    assert call.made == 1


async def test_join_says_who_began() -> None:
    """The first of them is told that it began the call, the others that they joined."""
    flight: SingleFlight[str, int] = SingleFlight()
    call = Call()
    (task, first), (same, second) = flight.join("key", call), flight.join("key", call)
    assert (first, second) == (False, True)
    assert same is task
    call.gate.set()
    await task


async def test_keys_are_apart() -> None:
    """Calls of different keys run at the same time."""
    flight: SingleFlight[str, int] = SingleFlight()
    one, other = Call(), Call()
    waiting = asyncio.create_task(flight.run("one", one))
    other.gate.set()
    assert await flight.run("other", other) == 1
    assert not waiting.done()
    one.gate.set()
    assert await waiting == 1


async def test_nothing_is_remembered() -> None:
    """A call that ended, well or not, is made anew for the next who asks."""
    flight: SingleFlight[str, int] = SingleFlight()
    failing = Call(ValueError("why"))
    failing.gate.set()
    for _ in range(2):
        with pytest.raises(ValueError, match="why"):
            await flight.run("key", failing)
    call = Call()
    call.gate.set()
    assert [await flight.run("key", call) for _ in range(2)] == [1, 2]
    assert failing.made == 2


async def test_one_waiter_leaves() -> None:
    """Who is cancelled while it waits, the one that began the call too, ends nothing."""
    flight: SingleFlight[str, int] = SingleFlight()
    call = Call()
    first, second = (asyncio.create_task(flight.run("key", call)) for _ in range(2))
    await call.begun.wait()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert call.ended == 0
    call.gate.set()
    assert await second == 1


async def test_all_waiters_leave() -> None:
    """A call that nobody waits for any more runs on, and whoever asks joins it."""
    flight: SingleFlight[str, int] = SingleFlight()
    call = Call()
    waiting = asyncio.create_task(flight.run("key", call))
    await call.begun.wait()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    task, joined = flight.join("key", call)
    assert joined
    call.gate.set()
    assert await task == 1


async def test_all_have_the_exception() -> None:
    """What the call raises is raised for everyone who waits."""
    flight: SingleFlight[str, int] = SingleFlight()
    call = Call(ValueError("why"))
    waiting = [asyncio.create_task(flight.run("key", call)) for _ in range(3)]
    await asyncio.sleep(0)  # all of them ask
    call.gate.set()
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert [str(result) for result in results] == ["why"] * 3
    assert call.made == 1


async def test_an_exception_that_nobody_waits_for() -> None:
    """A failure after the last one left is not complained of by the loop."""
    complaints: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    flight: SingleFlight[str, int] = SingleFlight()
    call = Call(ValueError("why"))
    waiting = asyncio.create_task(flight.run("key", call))
    await call.begun.wait()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    task, _ = flight.join("key", call)
    call.gate.set()
    await asyncio.wait((task,))
    del task
    gc.collect()
    await asyncio.sleep(0)  # the loop's chance to complain
    assert complaints == []


async def test_close() -> None:
    """Closing ends every call and whoever waits for it."""
    flight: SingleFlight[str, int] = SingleFlight()
    calls = {"one": Call(), "other": Call()}
    waiting = [asyncio.create_task(flight.run(key, call)) for key, call in calls.items()]
    await asyncio.gather(*(call.begun.wait() for call in calls.values()))
    await flight.close()
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(result, asyncio.CancelledError) for result in results)
    assert [call.ended for call in calls.values()] == [1, 1]
    await flight.close()  # nothing is left to end
