"""The bounds applied: what is unused for too long, and what does not fit, is taken away."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import structlog

from pullthrough.store.catalogue import Catalogue
from pullthrough.store.layout import Layout
from pullthrough.tending.eviction import Content, Victim, effective, excess, victims
from pullthrough.tending.leftovers import clear, filling
from pullthrough.tending.pins import Pin, closure
from pullthrough.tending.removal import Removal, tending

_log = structlog.get_logger()

_ROUNDS: Final = 4
"""How often another one is looked for in place of what is being read."""
_PATIENCE: Final = 2.0
"""Seconds: a client waits for room, and others may be taking much away."""
_SPARE: Final = 64 << 20
"""Bytes that are freed beyond what is wanted when a disk is full: not a little for each write."""
_SPARE_PART: Final = 20
"""Of a small disk this part is spare enough."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What may be kept.

    ``quota`` bounds the store, and ``local`` the disk before a bucket: each returns bytes, or None
    for no bound. ``ttl`` is in seconds, 0 for ever.
    """

    quota: Callable[[], int | None]
    local: Callable[[], int | None]
    ttl: float
    pins: tuple[Pin, ...] = ()


class State(NamedTuple):
    """How the store is to its bounds: bytes; ``pinned`` is what must not go."""

    used: int
    """What ``quota`` bounds: the disk, or the bucket where there is one, with what is to come."""
    quota: int | None
    here: int
    local: int | None
    pending: int = 0
    """Not in the bucket yet."""
    pinned: int = 0

    @property
    def over(self) -> bool:
        """Whether something has to go."""
        return excess(self.used, self.quota) > 0 or excess(self.here, self.local) > 0

    @property
    def overpinned(self) -> bool:
        """Whether the pins alone exceed the quota."""
        return self.quota is not None and self.pinned > self.quota


class Janitor:
    """Keeps a store within its bounds; for one thread. Asks no bucket: ``mirrored`` says of one."""

    def __init__(
        self,
        layout: Layout,
        catalogue: Catalogue,
        bounds: Bounds,
        mirrored: bool,
        clock: Callable[[], float],
    ) -> None:
        self._layout, self._catalogue, self._bounds = layout, catalogue, bounds
        self._mirrored, self._clock = mirrored, clock
        self._removal = Removal(layout, catalogue, mirrored=mirrored)

    def state(self) -> State:
        """Return how things are, without what is pinned."""
        usage = self._catalogue.usage()
        here = usage.here + filling(self._layout)
        if not self._mirrored:
            return State(here, self._bounds.quota(), here, None)
        quota, local = self._bounds.quota(), self._bounds.local()
        # What is yet to come there counts: to take it away makes room as well.
        return State(usage.there + usage.pending, quota, here, local, usage.pending)

    def plan(self, busy: Collection[str] = ()) -> tuple[State, list[Victim], list[Victim]]:
        """Return how things are, what is to go altogether, and what only from the local tier."""
        rows, refers = self._catalogue.rows(), self._catalogue.refers()
        if not self._mirrored:
            rows = [row for row in rows if row.here]
        pinned = self._pinned(refers)
        # As what is read here: clients were sent to the bucket for it.
        lent = self._catalogue.lent(self._clock()) if self._mirrored else set()
        staying = pinned.union(busy, lent)
        manifests = {manifest for manifest, _ in refers}
        used = effective({row.digest: row.used for row in rows}, refers)
        state = self.state()._replace(pinned=sum(row.size for row in rows if row.digest in pinned))
        now = self._clock()
        gone = victims(
            [Content(row.digest, row.size, row.used, row.digest in manifests) for row in rows],
            used, kept=staying, now=now, ttl=self._bounds.ttl,
            excess=excess(state.used, state.quota),
        )  # fmt: skip
        if not self._mirrored:
            return state, gone, []
        going = {victim.digest for victim in gone}
        here = [row for row in rows if row.here and row.digest not in going]
        left = excess(state.here, state.local) - sum(
            row.size for row in rows if row.here and row.digest in going
        )
        aside: list[Victim] = []
        # What the bucket has can be had again; what it has not, only from far away.
        for there in (True, False):
            if left > 0:
                aside += victims(
                    [
                        Content(row.digest, row.size, row.used)
                        for row in here
                        if row.there is there and row.digest not in manifests
                    ],
                    used, kept=busy if there else staying, now=now, ttl=0, excess=left,
                )  # fmt: skip
                left -= sum(victim.size for victim in aside)
        return state, gone, aside

    def tidy(self) -> tuple[State, list[Victim]]:
        """Apply the bounds; return how things are then, and what went."""
        went: list[Victim] = []
        busy: set[str] = set()
        with tending(self._layout):
            planned = state = self.state()
            clear(self._layout, excess(state.here, state.local if self._mirrored else state.quota))
            for _ in range(_ROUNDS):
                planned, gone, aside = self.plan(busy)
                left = set(self._removal.altogether(each.digest for each in gone))
                left |= set(self._removal.from_the_disk(each.digest for each in aside))
                went += [each for each in (*gone, *aside) if each.digest in left]
                kept = {each.digest for each in (*gone, *aside)} - left
                busy |= kept
                if not kept:
                    break
            if self._bounds.ttl:
                self._catalogue.forget_listings(self._clock() - self._bounds.ttl)
            state = self.state()._replace(pinned=planned.pinned)
        return state, went

    def free(self, size: int, *, refused: bool = False) -> bool:
        """Take away what was not used for longest until ``size`` bytes are free; True if any went.

        For a disk that is full, whatever filled it: the bounds do not matter. ``refused``: there is
        no room whatever the disk says, for it has a quota of its own.
        """
        with tending(self._layout, patience=_PATIENCE):
            room, spare = _room(self._layout.own)
            if refused:
                room, spare = 0, 0
            elif room >= size + spare:
                return True  # another one has made room meanwhile
            cleared = clear(self._layout, size + spare - room)
            room += cleared
            if room >= size + spare:
                return True
            rows, refers = self._catalogue.rows(), self._catalogue.refers()
            used = effective({row.digest: row.used for row in rows}, refers)
            manifests = {manifest for manifest, _ in refers}
            chosen = victims(
                [
                    Content(row.digest, row.size, row.used, row.digest in manifests)
                    for row in rows
                    # The bucket's manifests stay: without them nobody knows what it has.
                    if row.here and not (row.there and row.digest in manifests)
                ],
                used, kept=self._pinned(refers), now=self._clock(), ttl=0,
                excess=size + spare - room,
            )  # fmt: skip
            if room + sum(victim.size for victim in chosen) < size:
                return False  # it does not fit, whatever goes
            there = {row.digest for row in rows if row.there}
            went = self._removal.from_the_disk(v.digest for v in chosen if v.digest in there)
            went += self._removal.altogether(v.digest for v in chosen if v.digest not in there)
        if went:
            _log.warning("the disk is full, made room", taken_away=len(went))
        return bool(went or cleared)

    def _pinned(self, refers: list[tuple[str, str]]) -> set[str]:
        pins = self._bounds.pins
        if not pins:
            return set()
        roots = {
            tag.digest
            for tag in self._catalogue.tags()
            if any(pin.matches(tag.repository, tag.tag) for pin in pins)
        } | {
            link.digest
            for link in self._catalogue.links("revisions")
            if any(pin.matches(link.repository, None) for pin in pins)
        }
        return closure(roots, refers)


def _room(path: Path) -> tuple[int, int]:
    """Return the bytes that are free on the disk that holds ``path``, and what is to be spare."""
    disk = os.statvfs(path)
    spare = min(_SPARE, disk.f_blocks * disk.f_frsize // _SPARE_PART)
    # No file can be made without an inode, however many bytes are free; some disks count none.
    full = disk.f_files and not disk.f_favail
    return 0 if full else disk.f_bavail * disk.f_frsize, spare


def share_of_disk(path: Path, percent: float) -> int:
    """Return so many percent of the disk that holds ``path``, in bytes."""
    disk = os.statvfs(path)
    return int(disk.f_blocks * disk.f_frsize * percent / 100)
