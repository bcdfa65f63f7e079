"""Uses move along with a clock that jumps, and with time in which there could be none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pullthrough.store.catalogue import Catalogue, Found
from pullthrough.store.index import prepare
from pullthrough.tending.clock import UsesClock, jumped

HOUR = 3600.0
DAY = 24 * HOUR
DIGEST = "sha256:" + "a" * 64


@pytest.fixture
def catalogue(tmp_path: Path) -> Iterator[Catalogue]:
    """Open an index with one thing in it."""
    prepare(tmp_path / "index.sqlite")
    with Catalogue(tmp_path / "index.sqlite") as opened:
        opened.found([Found(DIGEST, 1, 0.0)])
        yield opened


def used(catalogue: Catalogue) -> float:
    (row,) = catalogue.rows()
    return row.used


@pytest.mark.parametrize(
    ("wall", "expected", "by"),
    [(100, 100, 0), (100 + HOUR, 100, 0), (8 * DAY, 0, 8 * DAY), (0, 8 * DAY, -8 * DAY)],
)
def test_jumps(wall: float, expected: float, by: float) -> None:
    """Only what no drift and no short stop explains is a jump."""
    assert jumped(wall=wall, expected=expected) == by


@pytest.mark.parametrize("by", [8 * DAY, -8 * DAY], ids=["forward", "back"])
def test_clock_is_set_while_it_runs(catalogue: Catalogue, by: float) -> None:
    """What was used lately still was."""
    clock, before = UsesClock(catalogue), used(catalogue)
    clock.look(1000.0, 1.0)
    clock.look(1060.0, 61.0)
    assert used(catalogue) == before
    clock.look(1061.0 + by, 62.0)
    assert used(catalogue) == before + by
    clock.look(1062.0 + by, 63.0)
    assert used(catalogue) == before + by


def test_switched_off(catalogue: Catalogue) -> None:
    """A week without the cache is no week without uses."""
    UsesClock(catalogue).look(1000.0, 1.0)
    before = used(catalogue)
    UsesClock(catalogue).look(1000.0 + 8 * DAY, 5.0)
    assert used(catalogue) == before + 8 * DAY
    UsesClock(catalogue).look(1001.0 + 8 * DAY, 6.0)
    assert used(catalogue) == before + 8 * DAY


def test_restart(catalogue: Catalogue) -> None:
    """A short stop moves nothing."""
    UsesClock(catalogue).look(1000.0, 1.0)
    before = used(catalogue)
    UsesClock(catalogue).look(1060.0, 1.0)
    assert used(catalogue) == before
