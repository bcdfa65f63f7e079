"""Time in which there could be no use: a clock that jumped, a cache that was switched off.

Uses are in Unix time, and what was not used for too long is dropped: neither a wrong clock nor a
week's outage of ours is to empty a region's cache.
"""

from __future__ import annotations

from typing import Final

import structlog

from pullthrough.store.catalogue import Catalogue

_log = structlog.get_logger()

_JUMP: Final = 3600.0
"""Seconds: what clocks are set by, and short stops, are less."""
_NOTE: Final = "last seen"
_NOTE_EVERY: Final = 60.0


def jumped(*, wall: float, expected: float) -> float:
    """Return by how many seconds the clock is off what was expected; 0 for little."""
    return wall - expected if abs(wall - expected) > _JUMP else 0.0


class UsesClock:
    """Moves all uses along when the clock jumps; for one thread."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._last: tuple[float, float] | None = None
        self._noted = float("-inf")

    def look(self, wall: float, monotonic: float) -> None:
        """Take the time: Unix's, and that of a clock which nobody sets."""
        if self._last is None:
            noted = self._catalogue.noted(_NOTE)
            by = 0.0 if noted is None else jumped(wall=wall, expected=float(noted))
        else:
            by = jumped(wall=wall, expected=self._last[0] + monotonic - self._last[1])
        if by:
            _log.warning("time has passed without uses, or the clock was set", seconds=round(by))
            self._catalogue.shift_uses(by)
        if by or monotonic - self._noted > _NOTE_EVERY:
            self._catalogue.note(_NOTE, str(wall))
            self._noted = monotonic
        self._last = (wall, monotonic)
