"""The demo demands what it shows: each fault of a cache is found in what was measured."""

from dataclasses import replace

import pytest

from pullthrough.demo.client import Pulled
from pullthrough.demo.counters import Counters
from pullthrough.demo.report import closing, table
from pullthrough.demo.story import Step, problems
from pullthrough.oci.digest import Digest

TAG = "demo/app:stable"
IMAGE = Digest.of(b"image")
OLD, NEW = Digest.of(b"old"), Digest.of(b"new")
SEEN = {OLD: 100}


def _step(
    status: str = "pullthrough; hit", cost: Counters | None = None, *, alive: bool = True
) -> Step:
    pulled = {TAG: Pulled(IMAGE, {OLD: 100, NEW: 10}, status)}
    return Step("a pull", alive, 0.5, cost or Counters(), pulled)


def _found(step: Step, seen: dict[Digest, int], tag: Digest = IMAGE) -> str:
    return "; ".join(problems(step, {TAG: str(tag)}, seen))


@pytest.mark.parametrize(
    ("step", "seen"),
    [
        (_step(cost=Counters(5, 200, 110)), {}),
        (_step(cost=Counters(5, 90, 10)), SEEN),
        (_step(cost=Counters(1, 0, 0)), SEEN | {NEW: 10}),
        (_step("pullthrough; hit; fwd=stale", alive=False), SEEN | {NEW: 10}),
    ],
    ids=["cold", "a new version", "warm", "dead"],
)
def test_a_good_cache_has_no_problems(step: Step, seen: dict[Digest, int]) -> None:
    """What is new crosses the link once, what was seen never; stale answers say so."""
    assert _found(step, seen) == ""


def test_an_old_image_is_a_problem() -> None:
    """The tag moved, and the cache did not see it."""
    assert "not as" in _found(_step(), SEEN | {NEW: 10}, tag=Digest.of(b"moved"))


def test_a_blob_that_crosses_again_is_a_problem() -> None:
    """A warm pull costs no byte of a blob."""
    assert "110 bytes" in _found(_step(cost=Counters(3, 110, 110)), SEEN)


def test_a_pull_that_costs_nothing_at_first_is_a_problem() -> None:
    """The bytes of a cold pull can only have come over the link."""
    assert "0 bytes" in _found(_step(), {})


def test_an_answer_that_is_not_the_caches_is_a_problem() -> None:
    """Every answer of the cache says what it was to the cache."""
    assert "Cache-Status" in _found(_step(""), SEEN | {NEW: 10})


def test_a_stale_answer_that_does_not_say_so_is_a_problem() -> None:
    """With the upstream dead a tag can only be stale."""
    assert "stale" in _found(_step(alive=False), SEEN | {NEW: 10})


def test_an_upstream_that_outlives_its_killing_is_a_problem() -> None:
    """What answers is not dead."""
    step = _step("pullthrough; fwd=stale", Counters(requests=1), alive=False)
    assert "answered 1" in _found(step, SEEN | {NEW: 10})


def test_the_table_and_the_closing_sentence_say_what_was_measured() -> None:
    """Each step is a row; the sentence adds the steps up."""
    cold = _step(cost=Counters(5, 2000, 110))
    dead = replace(_step("pullthrough; fwd=stale", alive=False), name="another")
    drawn = table([cold, dead])
    columns = [list(column.cells) for column in drawn.columns]
    assert columns == [
        ["a pull", "another"],
        ["500 ms", "500 ms"],
        ["5", "0"],
        ["2.0 kB", "0 bytes"],
        ["pullthrough; hit", "pullthrough; fwd=stale"],
    ]
    assert closing([cold, dead]) == (
        "2 pulls brought 220 bytes, every byte verified, and cost the link 2.0 kB; "
        "1 of them came while the upstream was dead."
    )
