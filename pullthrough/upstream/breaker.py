"""Whether the upstream counts as down, agreed on by all worker processes: pure."""

from __future__ import annotations

from typing import Any, Final

FIELDS: Final = 4
"""Doubles that a breaker's cell needs."""

_FAILURES, _DOWN_SINCE, _NEXT_PROBE, _PROBES = range(FIELDS)
_LONGEST_PAUSE = 10.0
"""Seconds between two probes at most."""


class Breaker:
    """Down after a few failures in a row, up again at the first answer.

    The state lives in ``cell``, a writable buffer of at least :data:`FIELDS` doubles. Made before
    the workers are forked (an anonymous mmap), it is one state for all of them: ``now`` is
    ``time.monotonic``'s, one clock for the whole machine. Writes of two processes may cross; the
    worst that comes of it is a second probe, or a failure counted once instead of twice.
    """

    def __init__(self, cell: memoryview[Any] | None = None, *, limit: int = 3) -> None:
        raw = memoryview(bytearray(FIELDS * 8)) if cell is None else cell
        self._cell = raw.cast("B").cast("d")
        self._limit = limit

    @property
    def down(self) -> bool:
        """Whether the upstream is not to be asked."""
        return self._cell[_DOWN_SINCE] > 0

    def failed(self, now: float) -> bool:
        """Count a failure; True if it is this one that takes the upstream down."""
        self._cell[_FAILURES] += 1
        return self._cell[_FAILURES] >= self._limit and self._trip(now)

    def overdue(self, now: float) -> bool:
        """Take the upstream down at once: a client has waited long enough. True if it was up."""
        return self._trip(now)

    def succeeded(self) -> bool:
        """Count an answer; True if it is this one that brings the upstream back."""
        was_down = self.down
        self._cell[_FAILURES] = 0
        self._cell[_DOWN_SINCE] = 0
        return was_down

    def claim_probe(self, now: float) -> bool:
        """Whether the caller is the one to look now if the upstream is back.

        The next turn is set before this one begins, 1 s later, then doubling to 10 s: one probe at
        a time over all workers, even when the one that took its turn is killed.
        """
        if not self.down or now < self._cell[_NEXT_PROBE]:
            return False
        pause = min(2.0 ** min(self._cell[_PROBES], 8), _LONGEST_PAUSE)
        self._cell[_NEXT_PROBE] = now + pause
        self._cell[_PROBES] += 1
        return True

    def _trip(self, now: float) -> bool:
        if self.down:
            return False
        self._cell[_NEXT_PROBE] = now
        self._cell[_PROBES] = 0
        self._cell[_DOWN_SINCE] = now
        return True
