"""The keeper: the process beside the workers that tends the store. Threads, no event loop.

tending   index and files agree; the bounds are kept
mirror    what is here comes into the bucket
scrub     what is here is read again, slowly
"""

from __future__ import annotations

import os
import select
import signal
import sqlite3
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import structlog

from pullthrough.board import Board
from pullthrough.store.catalogue import Catalogue
from pullthrough.store.layout import Layout
from pullthrough.store.quarantine import throw_away
from pullthrough.store.reconcile import reconcile
from pullthrough.telemetry import metrics
from pullthrough.tending.clock import UsesClock
from pullthrough.tending.eviction import Reason, Victim
from pullthrough.tending.janitor import Bounds, Janitor, State
from pullthrough.tending.removal import tending
from pullthrough.tending.scrub import scrub
from pullthrough.upstream.breaker import Breaker

if TYPE_CHECKING:
    from pullthrough.store.bucket import Bucket

_log = structlog.get_logger()

_LOOK_EVERY: Final = 1.0
"""Seconds between looks at how much there is."""
_EXPIRE_EVERY: Final = 60.0
_AGREE_EVERY: Final = 3600.0
"""Seconds after which files and index are compared again: a full disk may have kept a row out."""
_KEPT_ASIDE: Final = 7 * 24 * 3600.0
"""Seconds for which rotten files can be looked at."""
_HOPELESS_FOR: Final = 10.0
"""Seconds until it is tried again to take something away where nothing could be."""
_MIRROR_EVERY: Final = 0.5
_LEARN_EVERY: Final = 3600.0
"""Seconds after which the bucket is looked through again: other caches may write to it too."""
_NICE: Final = 5
"""Clients go first."""
_GRACE: Final = 2.0
"""Seconds that each task has to come to an end."""
_LOOK_AT_BUCKET_EVERY: Final = 5.0
_FIRST_PAUSE: Final = 1.0
_LONGEST_PAUSE: Final = 60.0


@dataclass(frozen=True, slots=True)
class Keeping:
    """What is kept, and how."""

    layout: Layout
    bounds: Bounds
    board: Board
    scrub_rate: int | None
    """Bytes a second."""
    breaker: Breaker
    """The bucket's, as the workers have it."""
    mirrored: bool
    """Whether there is a bucket."""
    bucket: Callable[[], Bucket | None]
    """Makes the bucket's client, in the keeper's own process; None where that fails."""


def work(keeping: Keeping, alive: int) -> None:
    """Be the keeper: the forked process's whole life, until SIGTERM or the supervisor's end.

    ``alive`` is the reading end of a pipe that ends with the supervisor.
    """
    os.nice(_NICE)
    # Taken one by one below: a handler that set an event could run while the event is waited for.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    for ignored in (signal.SIGINT, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    stop = threading.Event()
    bucket = _client(keeping, alive)
    if bucket is None and keeping.mirrored:
        return
    threads = [_thread(_tend, keeping, bucket, stop)]
    if bucket is not None:
        threads.append(_thread(_mirror, keeping, bucket, stop))
    if keeping.scrub_rate:
        threads.append(_thread(_scrub, keeping, bucket, stop))
    for thread in threads:
        thread.start()
    while not _told_to_stop(_LOOK_EVERY):
        if _orphaned(alive):
            break
    stop.set()
    for thread in threads:
        # Whatever it is at may be cut off: that is what it is made for.
        thread.join(_GRACE)


def _client(keeping: Keeping, alive: int) -> Bucket | None:
    """Return the bucket's client, however long that takes; None without a bucket, or at the end."""
    while (bucket := keeping.bucket()) is None and keeping.mirrored:
        # Without it nothing can be decided: what is on the disk may be all there is, or a copy.
        keeping.board.tell(mirror_failing=1)
        for _ in range(int(_LONGEST_PAUSE)):
            if _told_to_stop(_LOOK_EVERY) or _orphaned(alive):
                return None
    return bucket


def _orphaned(alive: int) -> bool:
    """Whether the supervisor has ended."""
    return bool(select.select([alive], [], [], 0)[0])


def _told_to_stop(seconds: float) -> bool:
    """Wait so long for SIGTERM."""
    told = signal.sigtimedwait({signal.SIGTERM}, seconds)
    # Continued after a SIGSTOP it may return what is no signal at all (CPython 3.11).
    return told is not None and told.si_signo == signal.SIGTERM


Task = Callable[[Keeping, "Bucket | None", threading.Event], None]


def _thread(
    task: Task, keeping: Keeping, bucket: Bucket | None, stop: threading.Event
) -> threading.Thread:
    # A daemon: one that is cut off must not keep the process.
    return threading.Thread(target=_guarded, args=(task, keeping, bucket, stop), daemon=True)


def _guarded(
    task: Task,
    keeping: Keeping,
    bucket: Bucket | None,
    stop: threading.Event,
) -> None:
    """Run a task again after whatever ended it, until it is time to stop."""
    pause = _FIRST_PAUSE
    while not stop.is_set():
        try:
            task(keeping, bucket, stop)
        except (OSError, sqlite3.Error) as error:
            _log.warning("tending the store failed, trying again", error=str(error))
        except Exception:  # noqa: BLE001 - what is tended is not to stay untended
            _log.exception("tending the store failed, trying again")
        stop.wait(pause)
        pause = min(pause * 2, _LONGEST_PAUSE)


def _tend(keeping: Keeping, bucket: Bucket | None, stop: threading.Event) -> None:
    with Catalogue(keeping.layout.index) as catalogue:
        catalogue.mirror_is("" if bucket is None else bucket.identity)
        janitor = Janitor(keeping.layout, catalogue, keeping.bounds, keeping.mirrored, time.time)
        clock = UsesClock(catalogue)
        agreed, expiring, hopeless = float("-inf"), 0.0, 0.0
        while not stop.is_set():
            if time.monotonic() - agreed > _AGREE_EVERY:
                _agree(keeping.layout, catalogue)
                throw_away(keeping.layout, time.time() - _KEPT_ASIDE)
                agreed = time.monotonic()
            state, now = janitor.state(), time.monotonic()
            clock.look(time.time(), now)
            if now >= expiring or (state.over and now >= hopeless):
                state, gone = janitor.tidy()
                expiring = time.monotonic() + _pause_between(keeping.bounds.ttl)
                stuck = state.over and not gone
                hopeless = time.monotonic() + _HOPELESS_FOR if stuck else 0.0
                _report(keeping.board, state, gone)
            _tell(keeping.board, state)
            stop.wait(_LOOK_EVERY)


def _agree(layout: Layout, catalogue: Catalogue) -> None:
    """Have the index say what the files say, as far as they can be read."""
    try:
        with tending(layout):  # or what is taken away meanwhile would be taken up again
            reconcile(layout, catalogue)
    except OSError as error:
        _log.warning("not all files could be looked through", why=str(error))


def _report(board: Board, state: State, gone: list[Victim]) -> None:
    """Say what went, and whether what is pinned fits."""
    for reason in Reason:
        went = [victim for victim in gone if victim.reason is reason]
        if went:
            size = sum(victim.size for victim in went)
            metrics.EVICTED.labels(reason.name.lower()).inc(len(went))
            metrics.EVICTED_BYTES.labels(reason.name.lower()).inc(size)
            _log.info("evicted", why=reason.value, count=len(went), bytes=size)
    if state.overpinned:
        _log.error("what is pinned exceeds the quota", pinned=state.pinned, quota=state.quota)
    board.tell(pinned=state.pinned)
    metrics.PINNED_BYTES.set(state.pinned)


def _pause_between(ttl: float) -> float:
    """Return the seconds until something may have expired that has not yet."""
    return min(_EXPIRE_EVERY, ttl / 4) if ttl else _EXPIRE_EVERY


def _tell(board: Board, state: State) -> None:
    board.tell(used=state.used, quota=state.quota or 0, pending=state.pending)
    metrics.STORE_BYTES.labels("store").set(state.used)
    metrics.STORE_BYTES.labels("local").set(state.here)
    metrics.STORE_QUOTA.labels("store").set(state.quota or 0)
    metrics.STORE_QUOTA.labels("local").set(state.local or state.quota or 0)
    metrics.UPLOAD_PENDING.set(state.pending)


def _mirror(keeping: Keeping, bucket: Bucket | None, stop: threading.Event) -> None:
    from pullthrough.store.bucket import BucketError, Trouble  # boto3, only where there is a bucket
    from pullthrough.tending.uploads import Mirror

    if bucket is None:
        return
    with Catalogue(keeping.layout.index) as catalogue:
        catalogue.mirror_is(bucket.identity)
        mirror = Mirror(keeping.layout, catalogue, bucket, stop.is_set)
        swept, learnt, looked, pause = False, float("-inf"), float("-inf"), _FIRST_PAUSE
        while not stop.is_set():
            failures: list[BucketError] = []

            def attempt(work: Callable[[], object], failures: list[BucketError] = failures) -> bool:
                # What one key may not do, or one thing breaks, keeps nothing else from being done.
                if any(failure.trouble is Trouble.AWAY for failure in failures):
                    return False
                try:
                    work()
                except BucketError as error:
                    failures.append(error)
                    return False
                return True

            swept = swept or attempt(bucket.sweep)
            if time.monotonic() - learnt > _LEARN_EVERY and attempt(mirror.learn):
                learnt = time.monotonic()
            attempt(lambda: metrics.UPLOADED.inc(mirror.upload()))
            if time.monotonic() - looked > _LOOK_AT_BUCKET_EVERY:
                # With nothing to upload nobody else would see that it is away.
                attempt(bucket.diagnose)
                looked = time.monotonic()
            keeping.board.tell(mirror_failing=bool(failures))
            metrics.BUCKET_UP.set(not failures)
            for failure in failures:
                if failure.trouble is Trouble.AWAY:
                    # Nobody is sent there from now on; the workers look when it is back.
                    keeping.breaker.overdue(time.monotonic())
                metrics.UPLOAD_FAILURES.labels(failure.trouble.name.lower()).inc()
                _log.warning("the bucket fails, trying again", why=str(failure), seconds=pause)
            stop.wait(pause if failures else _MIRROR_EVERY)
            pause = min(pause * 2, _LONGEST_PAUSE) if failures else _FIRST_PAUSE


def _scrub(keeping: Keeping, bucket: Bucket | None, stop: threading.Event) -> None:
    del bucket
    with Catalogue(keeping.layout.index) as catalogue:
        while not stop.is_set():
            scrub(keeping.layout, catalogue, keeping.scrub_rate or 0, stop)
            stop.wait(_EXPIRE_EVERY)
