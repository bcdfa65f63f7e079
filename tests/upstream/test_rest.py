"""When a refused credential rests."""

from __future__ import annotations

from pullthrough.upstream.rest import Rest
from tests.upstream.kit import Clock


def test_a_few_refusals_in_a_row_call_for_a_look() -> None:
    """The third refusal says that it is time to look, a success in between starts anew."""
    rest = Rest(Clock())
    assert [rest.refused(), rest.refused()] == [False, False]
    rest.accepted()
    assert [rest.refused() for _ in range(6)] == [False, False, True, False, False, True]


def test_the_credential_rests_longer_each_time() -> None:
    """Rests double from 60 s to 10 min while it stays refused."""
    clock = Clock()
    rest = Rest(clock)
    lengths = []
    for _ in range(6):
        lengths.append(rest.rest_credential())
        assert rest.left("any") == lengths[-1]
        clock.now += lengths[-1]
        assert rest.left("any") == 0
        assert rest.refused()
    assert lengths == [60, 120, 240, 480, 600, 600]


def test_after_a_rest_one_call_tries() -> None:
    """The others go on resting until that one has its answer, or has been silent for long."""
    clock = Clock()
    rest = Rest(clock)
    rest.rest_credential()
    clock.now += 60
    assert rest.left("one") == 0
    assert rest.left("two") > 0
    clock.now += 10
    assert rest.left("two") == 0
    rest.accepted()
    assert [rest.left("one"), rest.left("two")] == [0, 0]


def test_a_late_refusal_does_not_prolong_a_rest() -> None:
    """A call that began before the rest and is refused within it says nothing new."""
    clock = Clock()
    rest = Rest(clock)
    rest.rest_credential()
    assert not rest.refused()


def test_a_scope_rests_alone() -> None:
    """What the credential may not see rests for 30 s, everything else goes on."""
    clock = Clock()
    rest = Rest(clock)
    rest.rest_scope("secret")
    assert rest.left("secret") == 30
    assert rest.left("open") == 0
    clock.now += 30
    assert rest.left("secret") == 0
