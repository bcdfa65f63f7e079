"""Lists: as the upstream gives them, and as it gave them last when it is away."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest

from pullthrough.cache.base import HIT, Outcome, Served
from pullthrough.cache.listings import Listings
from pullthrough.cache.manifests import Freshness
from pullthrough.oci import referrers
from pullthrough.oci.digest import Digest
from pullthrough.oci.errors import BadUpstream, Denied, NameUnknown, RegistryError
from pullthrough.oci.manifest import OCI_INDEX
from pullthrough.oci.reference import Repository, Tag, referrers_tag
from pullthrough.store.filesystem import FileStore
from pullthrough.store.layout import Layout
from pullthrough.upstream.base import Failure, FetchedManifest
from tests.cache.scripted import NAME, OTHER, FakeSource, broken, until
from tests.cache.worker import Worker

SUBJECT = Digest.of(b"subject")
INDEX = json.dumps(
    {"mediaType": OCI_INDEX, "manifests": [{"artifactType": "a/signature"}]}, indent=3
).encode()


class Bench:
    """A worker's lists, over a real store. The clock is the machine's, and can be put forward."""

    def __init__(self, layout: Layout, source: FakeSource) -> None:
        self.store, self.source, self.ahead = FileStore(layout), source, 0.0
        self.listings = self.configured()

    def configured(self, *, maxage: float = 0, deadline: float = 3600) -> Listings:
        """Have lists of these settings, as after a restart."""
        freshness = Freshness(maxage, deadline, lambda: time.time() + self.ahead)
        self.listings = Listings(self.store, self.source, freshness)
        return self.listings

    async def tags(self, repository: Repository = NAME) -> tuple[tuple[str, ...], Served]:
        return await self.listings.tags(repository)

    async def referrers(self) -> tuple[bytes, Served]:
        listing = await self.listings.referrers(NAME, SUBJECT)
        return listing.body, listing.served


@pytest.fixture
async def bench(layout: Layout, source: FakeSource) -> AsyncIterator[Bench]:
    """Open a store, with a source that has tags and referrers."""
    bench = Bench(layout, source)
    source.tag_list = ("v10", "v1", "V2", "v1")
    source.referrers_list = INDEX
    await bench.store.open()
    yield bench
    await bench.listings.close()
    await bench.store.close()


TAGS = ("V2", "v1", "v10")
"""By bytes, each once."""


async def test_tags(bench: Bench) -> None:
    """Tags are asked for each time, sorted by bytes, and never twice in the list."""
    for _ in range(2):
        assert await bench.tags() == (TAGS, Served(Outcome.MISS))
    assert len(bench.source.asked) == 2
    bench.source.tag_list = ("v3",)
    assert await bench.tags() == (("v3",), Served(Outcome.MISS))


async def test_referrers(bench: Bench) -> None:
    """Referrers are given as the upstream's own bytes."""
    assert await bench.referrers() == (INDEX, Served(Outcome.MISS))


async def test_maxage(bench: Bench) -> None:
    """Within maxage what was seen last is the answer."""
    bench.configured(maxage=60)
    await bench.tags()
    bench.source.tag_list = ("v3",)
    bench.ahead = 50
    assert await bench.tags() == (TAGS, HIT)
    bench.ahead = 61
    assert await bench.tags() == (("v3",), Served(Outcome.MISS))


async def test_questions_collapse(bench: Bench) -> None:
    """Many who ask at once cost one question; lists of other repositories are others."""
    bench.source.gate = asyncio.Event()
    asking = asyncio.gather(*(bench.tags() for _ in range(5)), bench.tags(OTHER))
    # The index has one thread: when the last one has come past it, all have.
    await until(lambda: len(bench.source.asked) == 2, "both lists were asked for")
    bench.source.gate.set()
    answers = await asking
    outcomes = Counter(served.outcome for _, served in answers)
    assert outcomes == {Outcome.MISS: 2, Outcome.COLLAPSED: 4}
    assert sorted(map(str, bench.source.asked)) == sorted(
        str(("tags", repository)) for repository in (NAME, OTHER)
    )


OUTAGES = [
    Failure.UNAUTHORIZED,
    Failure.FORBIDDEN,
    Failure.RATE_LIMITED,
    Failure.SERVER_ERROR,
    Failure.REFUSED,
    Failure.TIMEOUT,
    Failure.CUT,
    Failure.INVALID,
    Failure.NOT_A_REGISTRY,
    Failure.DOWN,
    Failure.RESTED,
]


@pytest.mark.parametrize("failure", OUTAGES)
async def test_outage(bench: Bench, failure: Failure) -> None:
    """In an outage what was seen last is served as stale, after a restart too."""
    await bench.tags()
    await bench.referrers()
    bench.source.failing = broken(failure)
    bench.configured()
    assert await bench.tags() == (TAGS, Served(Outcome.STALE, failure.value))
    assert await bench.referrers() == (INDEX, Served(Outcome.STALE, failure.value))


async def test_down(bench: Bench) -> None:
    """While the breaker is open nobody is asked."""
    await bench.tags()
    bench.source.asked.clear()
    bench.source.up = False
    assert await bench.tags() == (TAGS, Served(Outcome.STALE, "down"))
    assert bench.source.asked == []


async def test_deadline(bench: Bench) -> None:
    """A late answer is not waited for; it goes on behind, and is what the next one sees."""
    await bench.tags()
    bench.configured(deadline=0.001)
    bench.source.tag_list = ("v3",)
    bench.source.gate = asyncio.Event()
    assert await bench.tags() == (TAGS, Served(Outcome.STALE, "deadline"))
    assert await bench.tags() == (TAGS, Served(Outcome.STALE, "deadline"))
    await until(lambda: len(bench.source.asked) == 2, "the source was asked")
    assert bench.source.late == 2
    bench.source.gate.set()
    for _ in range(1000):
        seen = await bench.store.read_listing(NAME, "tags")
        if seen is not None and b"v3" in seen[0]:
            break
        await asyncio.sleep(0.001)  # a bounded poll: the check goes on behind
    bench.source.up = False
    assert (await bench.tags())[0] == ("v3",)


@pytest.mark.parametrize(
    ("failure", "kind"), [(Failure.NOT_FOUND, NameUnknown), (Failure.POLICY, Denied)]
)
async def test_no_is_believed(bench: Bench, failure: Failure, kind: type[RegistryError]) -> None:
    """A 404 or a policy's refusal is no outage, though there was a list once."""
    await bench.tags()
    bench.source.failing = broken(failure)
    with pytest.raises(kind):
        await bench.tags()


@pytest.mark.parametrize(
    ("failure", "status", "code"),
    [
        (Failure.NOT_FOUND, 404, "NAME_UNKNOWN"),
        (Failure.DOWN, 503, "UNAVAILABLE"),
        (Failure.REFUSED, 503, "UNAVAILABLE"),
        (Failure.TIMEOUT, 504, "UNAVAILABLE"),
    ],
)
async def test_never_seen(bench: Bench, failure: Failure, status: int, code: str) -> None:
    """What was never seen is the spec's error: no empty list is made up."""
    bench.source.failing = broken(failure)
    for ask in (bench.tags, bench.referrers):
        with pytest.raises(RegistryError) as caught:
            await ask()
        assert (caught.value.status, caught.value.code) == (status, code)


async def test_cached_tags(bench: Bench, worker: Worker) -> None:
    """With no list seen, the tags that are cached are the list in an outage."""
    await worker.name(SUBJECT, 7)
    for tag in ("v2", "v1"):
        await bench.store.write_tag(NAME, Tag(tag), SUBJECT, 1.0)
    assert await bench.tags() == (TAGS, Served(Outcome.MISS))
    await bench.store.write_tag(OTHER, Tag("v1"), SUBJECT, 1.0)
    bench.source.failing = broken(Failure.REFUSED)
    assert await bench.tags(OTHER) == (("v1",), Served(Outcome.STALE, "refused"))
    bench.source.up = False
    assert await bench.tags(OTHER) == (("v1",), Served(Outcome.STALE, "down"))


async def test_cached_tags_are_never_fresh(bench: Bench) -> None:
    """Tags that are cached are not what the upstream said: maxage does not count for them."""
    bench.configured(maxage=1e9)
    await bench.store.write_tag(NAME, Tag("v9"), SUBJECT, 1.0)
    assert await bench.tags() == (TAGS, Served(Outcome.MISS))


async def test_repositories(bench: Bench, worker: Worker) -> None:
    """The catalogue is of what is cached."""
    assert await bench.listings.repositories() == ()
    await worker.name(SUBJECT, 7, OTHER)
    await worker.name(SUBJECT, 7, NAME)
    assert await bench.listings.repositories() == (str(NAME), str(OTHER))


# -- referrers of an upstream without the API -----------------------------------------------------


async def test_referrers_tag(bench: Bench) -> None:
    """Without a referrers API the tag of the spec is the list, and is remembered as one."""
    bench.source.referrers_list = None
    tag = referrers_tag(SUBJECT)
    bench.source.manifests[str(tag)] = FetchedManifest(INDEX, OCI_INDEX, None)
    assert await bench.referrers() == (INDEX, Served(Outcome.MISS))
    assert bench.source.asked[-1] == ("GET", NAME, tag)
    bench.source.up = False
    assert await bench.referrers() == (INDEX, Served(Outcome.STALE, "down"))


async def test_no_referrers(bench: Bench) -> None:
    """Without the tag either there are none: an empty index."""
    bench.source.referrers_list = None
    assert await bench.referrers() == (referrers.EMPTY, Served(Outcome.MISS))


async def test_outage_before_the_tag(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """An outage at the tag is no empty list: that would say that nothing is signed."""

    async def failing(*_: Any) -> FetchedManifest:
        raise broken(Failure.SERVER_ERROR)

    bench.source.referrers_list = None
    monkeypatch.setattr(bench.source, "get_manifest", failing)
    with pytest.raises(BadUpstream):
        await bench.referrers()


@pytest.mark.parametrize("body", [b"", b"<html>", b"{}", b'{"manifests": [1]}'])
async def test_no_list(bench: Bench, body: bytes) -> None:
    """What is no list is not remembered, nor given out: stale if there is one, else an error."""
    good, bench.source.referrers_list = bench.source.referrers_list, body
    with pytest.raises(BadUpstream):
        await bench.referrers()
    bench.source.referrers_list = good
    await bench.referrers()
    bench.source.referrers_list = body
    assert await bench.referrers() == (INDEX, Served(Outcome.STALE, "invalid"))
