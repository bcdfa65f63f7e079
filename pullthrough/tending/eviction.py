"""What leaves a place that is bounded, and in which order. Pure: a function of uses and a time."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from enum import Enum
from typing import Final, NamedTuple

from pullthrough.tending.pins import named

_LOW: Final = 90
"""Percent of the quota that eviction comes down to, so that it has not to begin again at once."""


class Content(NamedTuple):
    """One thing in the place: ``size`` in bytes, ``used`` when it was last used itself (Unix)."""

    digest: str
    size: int
    used: float
    manifest: bool = False


class Reason(Enum):
    """Why something leaves, in words for people."""

    EXPIRED = "unused for too long"
    ROOM = "to keep within the quota"


class Victim(NamedTuple):
    """What leaves; ``used`` is its effective last use."""

    digest: str
    size: int
    used: float
    reason: Reason


def effective(used: Mapping[str, float], refers: Iterable[tuple[str, str]]) -> dict[str, float]:
    """Return the last use of each content of ``used`` by itself or by a manifest that needs it.

    ``refers`` has edges (manifest, what it names), followed over any number of manifests, so
    nothing is older than a manifest that names it. Content that is not in ``used`` is not here:
    it gets no use and passes none on, not even that of a manifest which names it.
    """
    names = named(refers)
    latest = dict(used)
    # From the latest manifest down, everything is raised once, to what it stays at. Whatever is
    # that late already has passed it on, or has its turn yet: so cycles end too.
    for manifest in sorted(names.keys() & used.keys(), key=used.__getitem__, reverse=True):
        use = used[manifest]
        pending = [manifest]
        while pending:
            for name in names.get(pending.pop(), ()):
                if latest.get(name, use) < use:  # what is not here stays out
                    latest[name] = use
                    pending.append(name)
    return latest


def victims(
    contents: Sequence[Content],
    used: Mapping[str, float],
    *,
    kept: Collection[str],
    now: float,
    ttl: float,
    excess: int,
) -> list[Victim]:
    """Return what of ``contents`` has to leave, in the order in which it should.

    ``used`` are the uses that count (:func:`effective`); what is not in it has its own. Everything
    goes that was not used for ``ttl`` seconds (0: nothing expires), then the least recently used,
    of equals manifests before what they name, then the larger, until ``excess`` bytes are free
    together with what expired. What is ``kept`` never goes, so less than that may come free.
    """
    staying = frozenset(kept)
    candidates = sorted(
        (used.get(digest, own), not manifest, -size, digest)
        for digest, size, own, manifest in contents
        if digest not in staying
    )
    leaving: list[Victim] = []
    freed = 0
    # What expired is what was used least recently: the order's beginning.
    for use, _, negative_size, digest in candidates:
        size = -negative_size
        if ttl > 0 and now - use >= ttl:
            reason = Reason.EXPIRED
        elif freed < excess:
            reason = Reason.ROOM
        else:
            break
        leaving.append(Victim(digest, size, use, reason))
        freed += size
    return leaving


def excess(usage: int, quota: int | None) -> int:
    """Return how many bytes have to go: none up to ``quota``, beyond it what exceeds 90 % of it.

    None is no quota.
    """
    if quota is None or usage <= quota:
        return 0
    return usage - quota * _LOW // 100
