"""A few numbers that one process tells all others, in memory made before they are forked."""

from __future__ import annotations

from enum import IntEnum
from typing import Any


class Fact(IntEnum):
    """What is told; each a double's place on the board."""

    KNOWN = 0  # whether the keeper has said anything yet
    USED = 1  # bytes that the quota bounds
    QUOTA = 2  # bytes; 0 is no bound
    PENDING = 3  # bytes that are not in the bucket yet
    PINNED = 4  # bytes that never go
    MIRROR_FAILING = 5  # whether the bucket does not take what it should


class Board:
    """The numbers. One process writes, all read; a read may be of a moment ago."""

    SIZE = len(Fact) * 8

    def __init__(self, cell: memoryview[Any]) -> None:
        self._cell = cell[: self.SIZE].cast("B").cast("d")

    def __getitem__(self, fact: Fact) -> float:
        """Return a number as it was last told."""
        return self._cell[fact]

    def tell(self, **facts: float) -> None:
        """Tell numbers by the names of :class:`Fact`, in small letters."""
        for name, value in facts.items():
            self._cell[Fact[name.upper()]] = value
        self._cell[Fact.KNOWN] = 1
