"""The order of eviction: examples, and properties against a slow model that is obviously right."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pullthrough.tending.eviction import Content, Reason, Victim, effective, excess, victims

EXPIRED, ROOM = Reason.EXPIRED, Reason.ROOM

# Few names and times, so that ties, cycles and unknown names are common.
DIGESTS = st.sampled_from("abcdefgh")
TIMES = st.integers(0, 12).map(float)
USES = st.dictionaries(DIGESTS, TIMES)
EDGES = st.lists(st.tuples(DIGESTS, DIGESTS), max_size=20)
CONTENTS = st.builds(
    lambda found: [Content(digest, *rest) for digest, rest in found.items()],
    st.dictionaries(DIGESTS, st.tuples(st.integers(0, 5), TIMES, st.booleans())),
)


@pytest.mark.parametrize(
    ("used", "refers", "expected"),
    [
        ({}, [], {}),
        ({"m": 5, "l": 1}, [], {"m": 5, "l": 1}),
        # A use of the manifest is one of its layer, but not the other way round.
        ({"m": 5, "l": 1}, [("m", "l")], {"m": 5, "l": 5}),
        ({"m": 1, "l": 5}, [("m", "l")], {"m": 1, "l": 5}),
        # Of several manifests the latest counts.
        ({"m": 5, "n": 7, "l": 1}, [("m", "l"), ("n", "l")], {"m": 5, "n": 7, "l": 7}),
        ({"m": 5, "n": 7, "l": 1}, [("n", "l"), ("m", "l")], {"m": 5, "n": 7, "l": 7}),
        # An index's use goes down to the layers.
        ({"i": 9, "m": 5, "l": 1}, [("m", "l"), ("i", "m")], {"i": 9, "m": 9, "l": 9}),
        ({"i": 3, "m": 5, "l": 1}, [("m", "l"), ("i", "m")], {"i": 3, "m": 5, "l": 5}),
        # What is not here gets nothing and passes nothing on.
        ({"i": 9, "l": 1}, [("i", "m"), ("m", "l"), ("x", "y")], {"i": 9, "l": 1}),
        # A cycle has one use; itself named is no news.
        ({"m": 5, "n": 7, "l": 1}, [("m", "n"), ("n", "m"), ("m", "l")], dict.fromkeys("mnl", 7)),
        ({"m": 5}, [("m", "m")], {"m": 5}),
    ],
)
def test_effective(
    used: dict[str, float], refers: list[tuple[str, str]], expected: dict[str, float]
) -> None:
    """Content is as recently used as the latest of itself and what names it."""
    assert effective(used, refers) == expected


@given(USES, EDGES)
def test_effective_is_the_models(used: dict[str, float], refers: list[tuple[str, str]]) -> None:
    """The answer is that of raising each end of each edge until nothing changes."""
    expected = dict(used)
    for _ in used:
        for manifest, name in refers:
            if manifest in used and name in used:
                expected[name] = max(expected[name], expected[manifest])
    given_uses = dict(used)
    assert effective(used, iter(refers)) == expected
    assert used == given_uses


@given(USES, EDGES)
def test_manifest_is_never_later_than_what_it_names(
    used: dict[str, float], refers: list[tuple[str, str]]
) -> None:
    """Nothing is older than itself, nor than a manifest that names it."""
    found = effective(used, refers)
    assert all(found[digest] >= own for digest, own in used.items())
    for manifest, name in refers:
        if manifest in used and name in used:
            assert found[manifest] <= found[name]


@pytest.mark.timeout(20)
def test_long_chain_does_not_hang() -> None:
    """However long a chain of manifests is, each is raised once."""
    digests = [str(number) for number in range(40_000)]
    used = {digest: -float(digest) for digest in digests}
    assert effective(used, pairwise(digests)) == dict.fromkeys(digests, 0)


OLD, MIDDLE, NEW = Content("o", 10, 100), Content("m", 20, 200), Content("n", 30, 300)


@pytest.mark.parametrize(
    ("ttl", "to_free", "kept", "expected"),
    [
        # No bound is exceeded.
        (0, 0, "", []),
        (301, 0, "", []),
        # What was unused for just the time goes, and no more.
        (300, 0, "", [("o", EXPIRED)]),
        (200, 0, "", [("o", EXPIRED), ("m", EXPIRED)]),
        (1, 0, "", [("o", EXPIRED), ("m", EXPIRED), ("n", EXPIRED)]),
        # The least recently used goes, until there is enough.
        (0, 1, "", [("o", ROOM)]),
        (0, 10, "", [("o", ROOM)]),
        (0, 11, "", [("o", ROOM), ("m", ROOM)]),
        (0, 1000, "", [("o", ROOM), ("m", ROOM), ("n", ROOM)]),
        # What expires counts, and goes even where it is more than enough.
        (300, 10, "", [("o", EXPIRED)]),
        (300, 11, "", [("o", EXPIRED), ("m", ROOM)]),
        (200, 1, "", [("o", EXPIRED), ("m", EXPIRED)]),
        # What is pinned stays, expired or not, and others go instead.
        (300, 0, "o", []),
        (0, 5, "o", [("m", ROOM)]),
        (1, 1000, "omn", []),
    ],
)
def test_victims(ttl: float, to_free: int, kept: str, expected: list[tuple[str, Reason]]) -> None:
    """What expired goes first and wholly, then the oldest until there is room; no pin goes."""
    found = victims([NEW, OLD, MIDDLE], {}, kept=list(kept), now=400, ttl=ttl, excess=to_free)
    assert [(victim.digest, victim.reason) for victim in found] == expected


def test_effective_use_counts() -> None:
    """The uses handed in go before the content's own, in the order and in what is told."""
    found = victims([OLD, MIDDLE], {"o": 350.0}, kept=(), now=400, ttl=100, excess=25)
    assert found == [Victim("m", 20, 200, EXPIRED), Victim("o", 10, 350, ROOM)]


def test_of_equals_the_larger_goes_first() -> None:
    """One large thing makes room where many small ones could stay; the rest is by digest."""
    contents = [Content("c", 1, 7), Content("b", 9, 7), Content("a", 1, 7), Content("d", 5, 6)]
    found = victims(contents, {}, kept=(), now=400, ttl=0, excess=15)
    assert [victim.digest for victim in found] == ["d", "b", "a"]


def test_use_in_the_future_is_no_reason() -> None:
    """After the clock was set back nothing expires for it, and room is still made."""
    assert victims([NEW], {}, kept=(), now=0, ttl=1, excess=0) == []
    assert victims([NEW], {}, kept=(), now=0, ttl=1, excess=1) == [Victim("n", 30, 300, ROOM)]


@given(
    contents=CONTENTS,
    used=USES,
    kept=st.sets(DIGESTS, max_size=3),
    now=TIMES,
    ttl=st.integers(0, 6).map(float),
    to_free=st.integers(0, 40),
)
def test_victims_are_the_models(
    *,
    contents: list[Content],
    used: dict[str, float],
    kept: set[str],
    now: float,
    ttl: float,
    to_free: int,
) -> None:
    """The answer is that of choosing one at a time among all that is left."""
    left = [each._replace(used=used.get(each.digest, each.used)) for each in contents]
    left = [each for each in left if each.digest not in kept]
    expected: list[Victim] = []
    while left:
        expired = [each for each in left if ttl and each.used <= now - ttl]
        if not expired and sum(victim.size for victim in expected) >= to_free:
            break
        among = expired or left
        oldest = min(each.used for each in among)
        among = [each for each in among if each.used == oldest]
        among = [each for each in among if each.manifest] or among
        largest = max(each.size for each in among)
        one = min(each for each in among if each.size == largest)
        left.remove(one)
        reason = EXPIRED if expired else ROOM
        expected.append(Victim(one.digest, one.size, one.used, reason))
    found = victims(contents, used, kept=kept, now=now, ttl=ttl, excess=to_free)
    assert found == expected


@given(CONTENTS, EDGES, st.integers(0, 40))
def test_manifest_goes_no_later_than_what_it_names(
    contents: list[Content], refers: list[tuple[str, str]], to_free: int
) -> None:
    """No manifest that is here stays behind what it names: it is taken for one, and goes first."""
    used = effective({each.digest: each.used for each in contents}, refers)
    manifests = {manifest for manifest, _ in refers} - {name for _, name in refers}
    contents = [each._replace(manifest=each.digest in manifests) for each in contents]
    found = victims(contents, used, kept=(), now=0, ttl=0, excess=to_free)
    gone = {victim.digest for victim in found}
    for manifest, name in refers:
        if name in gone and manifest in used and manifest in manifests:
            assert manifest in gone


@pytest.mark.parametrize(
    ("usage", "quota", "expected"),
    [
        (10**15, None, 0),
        (0, 1000, 0),
        (950, 1000, 0),
        (1000, 1000, 0),
        (1001, 1000, 101),
        (5000, 1000, 4100),
        # Rounded so that what stays is never more than 90 %.
        (12, 11, 3),
        (1, 0, 1),
        (0, 0, 0),
    ],
)
def test_excess(usage: int, quota: int | None, expected: int) -> None:
    """Nothing goes up to the quota; beyond it, all that is more than 90 % of it."""
    assert excess(usage, quota) == expected
