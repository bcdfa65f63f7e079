"""The breaker's verdict, as a table and as one state for several workers."""

from __future__ import annotations

import mmap

import pytest

from pullthrough.upstream.breaker import FIELDS, Breaker


@pytest.mark.parametrize(
    ("events", "down"),
    [
        ("", False),
        ("ff", False),
        ("fff", True),
        ("ffsff", False),
        ("ffsfff", True),
        ("o", True),
        ("os", False),
        ("fffs", False),
        ("fffsff", False),
        ("ofs", False),
    ],
)
def test_verdict(events: str, *, down: bool) -> None:
    """Three failures in a row or one overdue answer take it down, any answer brings it back."""
    breaker = Breaker()
    for event in events:
        match event:
            case "f":
                breaker.failed(100.0)
            case "o":
                breaker.overdue(100.0)
            case _:
                breaker.succeeded()
    assert breaker.down is down


def test_each_turn_is_told_once() -> None:
    """Only the call that changes the verdict says so, whichever worker makes it."""
    cell = memoryview(mmap.mmap(-1, mmap.PAGESIZE))
    one, other = Breaker(cell), Breaker(cell)
    assert [worker.failed(100.0) for worker in (one, other, one, other)] == [
        False,
        False,
        True,
        False,
    ]
    assert not other.overdue(100.0)
    assert other.succeeded()
    assert not one.succeeded()
    assert one.overdue(100.0)


def test_probes_take_turns_over_all_workers() -> None:
    """One worker claims a probe, the next is due 1 s later, then doubling to 10 s."""
    cell = memoryview(bytearray(FIELDS * 8)).cast("d")
    one, other = Breaker(cell), Breaker(cell)
    assert not one.claim_probe(100.0)
    one.overdue(100.0)
    claimed = [
        100 + quarter / 4
        for quarter in range(160)
        for worker in (one, other)
        if worker.claim_probe(100 + quarter / 4)
    ]
    assert claimed == [100, 101, 103, 107, 115, 125, 135]


def test_a_new_outage_is_probed_at_once() -> None:
    """The pause between probes starts anew with each outage."""
    breaker = Breaker()
    breaker.overdue(100.0)
    for now in (100.0, 101.0, 103.0, 107.0):
        assert breaker.claim_probe(now)
    breaker.succeeded()
    assert not breaker.claim_probe(200.0)
    breaker.overdue(200.0)
    assert breaker.claim_probe(200.0)
    assert not breaker.claim_probe(200.9)
    assert breaker.claim_probe(201.0)
