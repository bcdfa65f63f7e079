"""One running call a key, however many wait for it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


class SingleFlight(Generic[K, T]):
    """Calls in flight. A call is a task of its own: whoever waits may leave without ending it."""

    def __init__(self) -> None:
        self._tasks: dict[K, asyncio.Task[T]] = {}

    def join(
        self, key: K, call: Callable[[], Coroutine[Any, Any, T]]
    ) -> tuple[asyncio.Task[T], bool]:
        """Return the task that runs for ``key``, and whether it ran already."""
        task = self._tasks.get(key)
        if task is not None:
            return task, True
        task = asyncio.get_running_loop().create_task(call())
        self._tasks[key] = task
        task.add_done_callback(lambda done: self._finished(key, done))
        return task, False

    async def run(self, key: K, call: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Return the call's result, or raise what it raised; cancelling this wait ends nothing."""
        task, _ = self.join(key, call)
        return await unhurried(task)

    def _finished(self, key: K, task: asyncio.Task[T]) -> None:
        del self._tasks[key]
        if not task.cancelled():
            task.exception()  # the last to wait may have left; the loop need not complain

    async def close(self) -> None:
        """End every call."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def unhurried(task: Awaitable[T]) -> T:
    """Wait for a task that others wait for too."""
    return await asyncio.shield(task)
