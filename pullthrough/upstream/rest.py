"""When a refused credential is left alone, so that no robot is locked out: pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from cachetools import TTLCache

_FIRST, _LONGEST = 60.0, 600.0
_SCOPE_REST: Final = 30.0
_TRIAL = 10.0
"""Seconds in which the one call that tries after a rest is alone; then another may."""


class Rest:
    """How often in a row the upstream refused, and what rests because of it."""

    def __init__(self, clock: Callable[[], float], *, limit: int = 3) -> None:
        self._clock = clock
        self._limit = limit
        self._refusals = 0
        self._spell = (
            0.0  # length of the last rest in seconds; 0 when there has been none since a success
        )
        self._until = 0.0
        self._trial_until = 0.0
        self._scopes: TTLCache[str, float] = TTLCache(1024, _SCOPE_REST, timer=clock)

    def left(self, scope: str) -> float:
        """Return the seconds for which ``scope`` is not to be asked for, 0 for go ahead.

        When the credential's rest is over, one call is let through to try it.
        """
        now = self._clock()
        until = max(self._until, self._trial_until, self._scopes.get(scope, 0.0))
        if now < until:
            return until - now
        if self._spell:
            self._trial_until = now + _TRIAL
        return 0.0

    def refused(self) -> bool:
        """Count a refusal; True when it is time to look whether it is the credential's fault."""
        if self._spell and self._clock() < self._until:
            return False  # of a call that began before the rest
        self._refusals += 1
        if self._refusals < self._limit and not self._spell:
            return False
        self._refusals = 0
        return True

    def accepted(self) -> None:
        """End all counting: the credential works."""
        self._refusals = 0
        self._spell = self._until = self._trial_until = 0.0

    def rest_credential(self) -> float:
        """Let the credential rest, each time twice as long; return for how many seconds."""
        self._spell = min(self._spell * 2, _LONGEST) or _FIRST
        self._until = self._clock() + self._spell
        self._trial_until = 0.0
        return self._spell

    def rest_scope(self, scope: str) -> None:
        """Let only ``scope`` rest: the credential is good, it may just not see that."""
        self._scopes[scope] = self._clock() + _SCOPE_REST
        self._spell = self._until = self._trial_until = 0.0
