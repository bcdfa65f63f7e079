"""Readiness: what counts, and when the store's state turns."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import pytest
from structlog.testing import LogCapture

from pullthrough.server.health import Readiness


class _End(Exception):
    """The test has no more checks."""


async def watched(outcomes: Sequence[bool | Exception], threshold: int) -> list[bool]:
    """Return whether the store counted as well after each check with one of ``outcomes``."""
    readiness = Readiness(lambda: True)
    left, seen, slept = list(outcomes), list[bool](), list[float]()

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) > 1:
            seen.append(readiness.store_ok)
        if not left:
            raise _End

    async def check() -> bool:
        outcome = left.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    with pytest.raises(_End):
        await readiness.watch(check, interval=30.0, threshold=threshold, sleep=sleep)
    assert set(slept) == {30.0}
    return seen


@pytest.mark.parametrize(
    ("outcomes", "threshold", "expected"),
    [
        ([True, True], 3, "++"),
        ([False, False, True], 3, "+++"),
        ([False, False, False, False], 3, "++--"),
        ([False, False, True, False, False], 3, "+++++"),
        ([False, False, False, True], 3, "++-+"),
        ([False, True, False], 1, "-+-"),
        ([OSError("Input/output error"), OSError("again"), True], 2, "+-+"),
        ([TimeoutError(), PermissionError("no"), True], 2, "+-+"),
    ],
)
async def test_threshold(outcomes: list[bool | Exception], threshold: int, expected: str) -> None:
    """So many failures in a row count, one success ends them; an error is a failure."""
    assert "".join("+" if ok else "-" for ok in await watched(outcomes, threshold)) == expected


async def test_each_turn_is_logged_once(log: LogCapture) -> None:
    """The log says when the store goes and when it comes back, not at every check."""
    await watched([False] * 5 + [True] * 3, 2)
    assert [entry["event"] for entry in log.entries] == ["store not readable", "store recovered"]


async def test_check_that_hangs_is_a_failure() -> None:
    """A disk that answers nothing is not waited for longer than until the next check."""
    readiness, hung = Readiness(lambda: True), asyncio.Event()

    async def check() -> bool:
        hung.set()
        await asyncio.Event().wait()
        return True

    task = asyncio.create_task(readiness.watch(check, interval=0.01, threshold=1))
    await asyncio.wait_for(hung.wait(), 20)
    async with asyncio.timeout(20):
        while readiness.store_ok:  # noqa: ASYNC110 - the watch tells nobody
            await asyncio.sleep(0.005)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not readiness.ready


@pytest.mark.parametrize(
    ("change", "ready"),
    [
        (lambda _: None, True),
        (lambda readiness: setattr(readiness, "store_ok", False), False),
        (lambda readiness: setattr(readiness, "draining", True), False),
        (lambda readiness: setattr(readiness, "upstream_up", lambda: False), True),
    ],
)
def test_what_decides(change: Callable[[Readiness], None], *, ready: bool) -> None:
    """Store and drain decide; the upstream's state is told, and a dead link takes nobody out."""
    readiness = Readiness(lambda: True)
    change(readiness)
    assert readiness.ready is ready
    assert readiness.details()["ready"] is ready


def test_details_tell_each_part() -> None:
    """Whoever looks sees which part it is."""
    readiness = Readiness(lambda: False, store_ok=False, draining=True)
    assert readiness.details() == {
        "ready": False,
        "store": "failing",
        "upstream": "down",
        "draining": True,
    }


def test_details_of_the_keeping() -> None:
    """Bounds and bucket are told beside the rest, as they are now, and decide nothing."""
    told: dict[str, object] = {}
    readiness = Readiness(lambda: True, lambda: told)
    assert set(readiness.details()) == {"ready", "store", "upstream", "draining"}
    told |= {"bucket": "failing", "pinned": "exceeds the quota", "stored_bytes": 7}
    assert readiness.ready
    assert readiness.details() == {
        "ready": True,
        "store": "ok",
        "upstream": "up",
        "draining": False,
        "bucket": "failing",
        "pinned": "exceeds the quota",
        "stored_bytes": 7,
    }
