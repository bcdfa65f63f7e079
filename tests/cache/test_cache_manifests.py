"""Manifests and tags: asked for no oftener than need be, and believed no further than proven."""

from __future__ import annotations

import asyncio
import errno
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest
from structlog.testing import LogCapture

from pullthrough.cache.base import HIT, ManifestAnswer, Outcome, Served
from pullthrough.cache.manifests import Freshness, Manifests
from pullthrough.oci.digest import Digest
from pullthrough.oci.errors import (
    BadUpstream,
    Denied,
    ManifestUnknown,
    RegistryError,
    TooManyRequests,
    Unavailable,
    UpstreamTimeout,
)
from pullthrough.oci.manifest import DOCKER_MANIFEST, LIMIT, OCI_INDEX, OCI_MANIFEST
from pullthrough.oci.reference import Tag
from pullthrough.singleflight import SingleFlight
from pullthrough.store.catalogue import Catalogue
from pullthrough.store.filesystem import FileStore
from pullthrough.store.generation import Generation
from pullthrough.store.layout import Layout
from pullthrough.upstream.base import Failure, FetchedManifest
from tests.cache.scripted import NAME, OTHER, TAG, Clock, FakeSource, broken, until

NEVER = 3600.0
"""Seconds: a deadline that no test reaches."""


class Locks:
    """Locks of a worker among others: ``before`` is what another does while it is waited for."""

    def __init__(self) -> None:
        self.held: list[str] = []
        self.before: Callable[[], Awaitable[None]] | None = None

    @asynccontextmanager
    async def hold(self, name: str) -> AsyncIterator[bool]:
        """Take note of it."""
        self.held.append(name)
        before, self.before = self.before, None
        if before is not None:
            await before()
        yield before is not None


class Bench:
    """A worker's manifests, over a real store."""

    def __init__(self, layout: Layout, source: FakeSource) -> None:
        self.source, self.clock, self.locks = source, Clock(), Locks()
        self.layout, self.store = layout, FileStore(layout)
        self.manifests = self.configured()

    def configured(self, *, maxage: float = 0, deadline: float = NEVER) -> Manifests:
        """Have manifests of these settings, as after a restart."""
        freshness = Freshness(maxage, deadline, self.clock)
        self.manifests = Manifests(self.store, self.locks, self.source, freshness)
        return self.manifests

    async def close(self) -> None:
        await self.manifests.close()
        await self.store.close()

    def offer(self, content: bytes, content_type: str = OCI_MANIFEST) -> Digest:
        """Have the source give this manifest by tag and digest."""
        digest = Digest.of(content)
        fetched = FetchedManifest(content, content_type, digest)
        self.source.manifests[str(digest)] = self.source.manifests[str(TAG)] = fetched
        self.source.heads[str(TAG)] = digest
        return digest

    async def pull(self) -> ManifestAnswer:
        return await self.manifests.get(NAME, TAG)

    async def failure(self) -> RegistryError:
        with pytest.raises(RegistryError) as caught:
            await self.pull()
        return caught.value

    def asked(self) -> list[str]:
        """Return what the source was asked since the last time."""
        asked = [f"{kind} {what}" for kind, _, what in self.source.asked]
        self.source.asked.clear()
        return asked


def image(layer: str) -> bytes:
    """Return a manifest of one layer."""
    descriptor = {"digest": str(Digest.of(layer.encode())), "size": len(layer), "mediaType": "a/b"}
    document = {"mediaType": OCI_MANIFEST, "config": descriptor, "layers": [descriptor]}
    return orjson.dumps(document)


V1, V2 = image("one"), image("two")
D1, D2 = Digest.of(V1), Digest.of(V2)


@pytest.fixture
async def bench(layout: Layout, source: FakeSource) -> AsyncIterator[Bench]:
    """Open a store, with a source whose tag is the first manifest."""
    bench = Bench(layout, source)
    bench.offer(V1)
    await bench.store.open()
    yield bench
    await bench.close()


@pytest.fixture
async def cached(bench: Bench) -> Bench:
    """Open the same, with the tag cached."""
    await bench.pull()
    bench.asked()
    return bench


def _full(*_: object) -> Any:
    raise OSError(errno.ENOSPC, "No space left on device")


# -- by digest -------------------------------------------------------------------------------------


async def together(
    bench: Bench,
    flight: SingleFlight[Any, Any],
    asking: Iterable[Coroutine[Any, Any, ManifestAnswer]],
) -> list[ManifestAnswer]:
    """Let the upstream answer only when all who ask have come to the question."""
    joined, join = [], flight.join

    def counted(key: Any, call: Any) -> Any:
        joined.append(key)
        return join(key, call)

    flight.join = counted  # type: ignore[method-assign]  # counts, and goes on
    bench.source.gate = asyncio.Event()
    calls = [asyncio.ensure_future(each) for each in asking]
    await until(lambda: len(joined) == len(calls), "all have asked")
    bench.source.gate.set()
    return await asyncio.gather(*calls)


async def test_by_digest(bench: Bench) -> None:
    """A digest is fetched once, and never asked for again, not in an outage either."""
    answer = await bench.manifests.get(NAME, D1)
    assert answer == (D1, OCI_MANIFEST, V1, Served(Outcome.MISS))
    assert bench.asked() == [f"GET {D1}"]
    bench.source.up, bench.source.failing = False, broken(Failure.DOWN)
    assert await bench.manifests.get(NAME, D1) == (D1, OCI_MANIFEST, V1, HIT)
    bench.configured()
    assert await bench.manifests.get(NAME, D1) == (D1, OCI_MANIFEST, V1, HIT)
    assert bench.asked() == []


async def test_by_digest_at_once(bench: Bench) -> None:
    """Many who ask at once cost one question."""
    asking = (bench.manifests.get(NAME, D1) for _ in range(8))
    answers = await together(bench, bench.manifests._fetches, asking)
    outcomes = Counter(answer.served.outcome for answer in answers)
    assert outcomes == {Outcome.MISS: 1, Outcome.COLLAPSED: 7}
    assert bench.asked() == [f"GET {D1}"]


async def test_by_digest_while_another_worker_fetches(bench: Bench) -> None:
    """Who waited for another worker's lock finds what that one brought."""
    other = Bench(bench.layout, bench.source)

    async def fetch() -> None:
        await other.manifests.get(NAME, D1)

    bench.locks.before = fetch
    assert (await bench.manifests.get(NAME, D1)).content == V1
    assert bench.asked() == [f"GET {D1}"]
    await other.close()


@pytest.mark.parametrize("reference", [TAG, Digest.of(image("one"))])
async def test_another_worker_takes_too_long(bench: Bench, reference: Tag | Digest) -> None:
    """Waiting for another worker's call is part of the wait: nobody waits for two in a row."""
    bench.locks.before = asyncio.Event().wait  # type: ignore[assignment]  # its value is not looked at
    freshness = Freshness(0, NEVER, bench.clock, patience=0.01)
    manifests = Manifests(bench.store, bench.locks, bench.source, freshness)
    with pytest.raises(UpstreamTimeout):
        await manifests.get(NAME, reference)
    await manifests.close()


async def test_by_sha512(bench: Bench) -> None:
    """A sha512 digest is verified as such, and kept under it."""
    digest = Digest.of(V1, "sha512")
    bench.source.manifests[str(digest)] = FetchedManifest(V1, OCI_MANIFEST, digest)
    assert (await bench.manifests.get(NAME, digest)).digest == digest
    bench.configured()
    assert (await bench.manifests.get(NAME, digest)).served == HIT


async def test_linked_into_its_repository(bench: Bench) -> None:
    """What another repository brought becomes this one's by being pulled from it."""
    await bench.manifests.get(NAME, D1)
    bench.source.manifests[str(D2)] = FetchedManifest(V2, OCI_MANIFEST, D2)
    await bench.manifests.get(OTHER, D2)
    assert (await bench.manifests.get(OTHER, D1)).served == HIT
    assert bench.layout.link(OTHER, "revisions", D1).read_text() == str(D1)


@pytest.mark.parametrize(
    ("failure", "status", "code"),
    [
        (Failure.NOT_FOUND, 404, "MANIFEST_UNKNOWN"),
        (Failure.UNAUTHORIZED, 403, "DENIED"),
        (Failure.RATE_LIMITED, 429, "TOOMANYREQUESTS"),
        (Failure.TIMEOUT, 504, "UNAVAILABLE"),
        (Failure.NOT_A_REGISTRY, 502, "UNAVAILABLE"),
        (Failure.DOWN, 503, "UNAVAILABLE"),
    ],
)
async def test_nothing_cached(bench: Bench, failure: Failure, status: int, code: str) -> None:
    """With nothing cached, by digest and by tag, the client has the spec's error."""
    bench.source.failing = broken(failure)
    for reference in (D1, TAG):
        with pytest.raises(RegistryError) as caught:
            await bench.manifests.get(NAME, reference)
        assert (caught.value.status, caught.value.code) == (status, code)
        assert caught.value.detail == failure.value


# -- what is sent ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reference", "fetched"),
    [
        (D1, FetchedManifest(V2, OCI_MANIFEST, D2)),
        (D1, FetchedManifest(V2, OCI_MANIFEST, D1)),
        (TAG, FetchedManifest(V2, OCI_MANIFEST, D1)),
        *(
            (reference, fetched)
            for reference in (D1, TAG)
            for fetched in (
                FetchedManifest(V1[:-1], OCI_MANIFEST, D1),
                FetchedManifest(V1, OCI_INDEX, D1),
                FetchedManifest(V1, DOCKER_MANIFEST, D1),
                FetchedManifest(V1, "text/html", D1),
            )
        ),
    ],
)
async def test_not_what_it_says(
    bench: Bench, reference: Tag | Digest, fetched: FetchedManifest
) -> None:
    """What is not what its digest, claim or media type says is refused, and not kept."""
    bench.source.manifests[str(reference)] = fetched
    with pytest.raises(BadUpstream) as caught:
        await bench.manifests.get(NAME, reference)
    assert caught.value.detail == "invalid"
    assert not list(bench.layout.blobs.rglob("data"))
    assert await bench.store.read_tag(NAME, TAG) is None


@pytest.mark.parametrize(
    "content", [b"", b"<html>", b"{}", b"[]", V1.ljust(LIMIT + 1)],
    ids=["empty", "html", "object", "list", "large"],
)  # fmt: skip
async def test_no_manifest(bench: Bench, content: bytes) -> None:
    """What is no manifest is refused, though its digest be right."""
    digest = bench.offer(content)
    for reference in (TAG, digest):
        with pytest.raises(BadUpstream):
            await bench.manifests.get(NAME, reference)
    assert not list(bench.layout.blobs.rglob("data"))


async def test_without_a_claim(bench: Bench) -> None:
    """A source that does not say a digest has it reckoned."""
    bench.source.manifests[str(TAG)] = FetchedManifest(V1, OCI_MANIFEST, None)
    assert (await bench.pull()).digest == D1


async def test_sizes_are_remembered(bench: Bench) -> None:
    """A cached manifest tells the sizes of the blobs that it names."""
    await bench.pull()
    assert await bench.store.named_size(Digest.of(b"one")) == 3


@pytest.mark.parametrize("method", ["write_manifest", "write_tag"])
async def test_no_room(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, log: LogCapture, method: str
) -> None:
    """A full disk is no reason not to answer, and it is said."""
    monkeypatch.setattr(bench.store, method, _full)
    assert (await bench.pull()).content == V1
    assert (await bench.pull()).content == V1
    assert (await bench.manifests.get(NAME, D1)).content == V1
    assert {entry["error"] for entry in log.entries} == {"No space left on device"}


async def test_warm_manifests_are_in_memory(cached: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was served lately is served from memory."""
    monkeypatch.setattr(cached.store, "read_manifest", _full)
    assert (await cached.manifests.get(NAME, D1)).content == V1


# -- by tag ----------------------------------------------------------------------------------------


async def test_first_pull(bench: Bench) -> None:
    """A tag that is not cached is fetched by one GET."""
    assert await bench.pull() == (D1, OCI_MANIFEST, V1, Served(Outcome.MISS))
    assert bench.asked() == [f"GET {TAG}"]


async def test_second_pull(cached: Bench) -> None:
    """A tag that is cached is asked for by one HEAD, with maxage 0 at every pull."""
    for _ in range(2):
        assert await cached.pull() == (D1, OCI_MANIFEST, V1, Served(Outcome.REVALIDATED))
        assert cached.asked() == [f"HEAD {TAG}"]


async def test_maxage(cached: Bench) -> None:
    """Within maxage nobody is asked; a check begins it anew, and a restart does not end it."""
    cached.configured(maxage=60)
    cached.clock.now += 59
    assert (await cached.pull()).served == HIT
    cached.configured(maxage=60)
    assert (await cached.pull()).served == HIT
    assert cached.asked() == []
    cached.clock.now += 1
    assert (await cached.pull()).served == Served(Outcome.REVALIDATED)
    cached.clock.now += 59
    assert (await cached.pull()).served == HIT
    assert cached.asked() == [f"HEAD {TAG}"]


async def test_clock_set_back(cached: Bench) -> None:
    """A clock that was set back does not make a tag fresh."""
    cached.configured(maxage=60)
    cached.clock.now -= 1000
    assert (await cached.pull()).served == Served(Outcome.REVALIDATED)


async def test_another_worker_checked(cached: Bench, source: FakeSource) -> None:
    """What another worker asked within maxage need not be asked again."""
    cached.configured(maxage=60)
    await cached.pull()
    cached.clock.now += 100
    other = Bench(cached.layout, source)
    other.clock = cached.clock
    other.configured(maxage=60)
    await other.store.open()
    assert (await other.pull()).served == Served(Outcome.REVALIDATED)
    cached.asked()
    assert (await cached.pull()).served == HIT
    assert cached.asked() == []
    await other.close()


async def test_checks_collapse(cached: Bench) -> None:
    """Many pulls at once cost one HEAD."""
    asking = (cached.pull() for _ in range(8))
    answers = await together(cached, cached.manifests._checks, asking)
    assert {answer.served for answer in answers} == {Served(Outcome.REVALIDATED)}
    assert cached.asked() == [f"HEAD {TAG}"]


async def test_first_pulls_collapse(bench: Bench) -> None:
    """Many first pulls at once cost one GET."""
    asking = (bench.pull() for _ in range(8))
    answers = await together(bench, bench.manifests._checks, asking)
    outcomes = Counter(answer.served.outcome for answer in answers)
    assert outcomes == {Outcome.MISS: 1, Outcome.COLLAPSED: 7}
    assert bench.asked() == [f"GET {TAG}"]


async def test_check_while_another_worker_checks(cached: Bench, source: FakeSource) -> None:
    """Who waited for another worker's check has its answer, be it that the tag moved."""
    other = Bench(cached.layout, source)
    other.clock = cached.clock
    await other.store.open()

    async def check() -> None:
        other.offer(V2)
        assert (await other.pull()).content == V2
        cached.asked()

    cached.locks.before = check
    answer = await cached.pull()
    assert (answer.content, answer.served) == (V2, Served(Outcome.REVALIDATED))
    assert cached.asked() == []
    assert cached.locks.held[-1] == f"tag {NAME}:{TAG}"
    await other.close()


async def test_moved_tag(cached: Bench) -> None:
    """A moved tag is seen at the next pull, and fetched by its digest."""
    cached.offer(V2)
    assert await cached.pull() == (D2, OCI_MANIFEST, V2, Served(Outcome.MISS))
    assert cached.asked() == [f"HEAD {TAG}", f"GET {D2}"]
    assert (await cached.manifests.get(NAME, D1)).served == HIT


async def test_tag_moved_to_what_is_here(cached: Bench) -> None:
    """A tag that moved to, or back to, what is here costs no more than the question."""
    cached.offer(V2)
    await cached.pull()
    cached.offer(V1)
    cached.asked()
    answer = await cached.pull()
    assert (answer.content, answer.served) == (V1, Served(Outcome.REVALIDATED))
    assert cached.asked() == [f"HEAD {TAG}"]


async def test_moves_seen_together(cached: Bench) -> None:
    """Of many who see a tag move, one fetched and the others joined."""
    cached.offer(V2)
    answers = await asyncio.gather(*(cached.pull() for _ in range(4)))
    assert [answer.content for answer in answers] == [V2] * 4
    outcomes = Counter(answer.served.outcome for answer in answers)
    assert outcomes == {Outcome.MISS: 1, Outcome.COLLAPSED: 3}


# -- when the upstream does not confirm ------------------------------------------------------------

OUTAGES = [
    Failure.RATE_LIMITED,
    Failure.SERVER_ERROR,
    Failure.REFUSED,
    Failure.TIMEOUT,
    Failure.CUT,
    Failure.INVALID,
    Failure.NOT_A_REGISTRY,
    Failure.DOWN,
]
LOUD = [Failure.UNAUTHORIZED, Failure.FORBIDDEN, Failure.RESTED]


@pytest.mark.parametrize("failure", [*OUTAGES, *LOUD])
async def test_outage(cached: Bench, log: LogCapture, failure: Failure) -> None:
    """In an outage the cached one is served as stale, after a restart too; our fault is logged."""
    cached.source.failing = broken(failure)
    for _ in range(2):
        assert await cached.pull() == (D1, OCI_MANIFEST, V1, Served(Outcome.STALE, failure.value))
        cached.configured()
    errors = [entry for entry in log.entries if entry["log_level"] == "error"]
    assert len(errors) == (2 if failure in LOUD else 0)
    cached.source.failing = None
    assert (await cached.pull()).served == Served(Outcome.REVALIDATED)


@pytest.mark.parametrize("failure", [*OUTAGES, *LOUD])
async def test_outage_between_two_questions(
    cached: Bench, monkeypatch: pytest.MonkeyPatch, failure: Failure
) -> None:
    """A tag that moved to what cannot be fetched is answered with what it was."""

    async def failing(*_: object) -> FetchedManifest:
        raise broken(failure)

    cached.offer(V2)
    with monkeypatch.context() as outage:
        outage.setattr(cached.source, "get_manifest", failing)
        assert await cached.pull() == (D1, OCI_MANIFEST, V1, Served(Outcome.STALE, failure.value))
    assert (await cached.pull()).content == V2


async def test_down(cached: Bench) -> None:
    """While the breaker is open nobody is asked, and nobody waits."""
    cached.source.up = False
    assert (await cached.pull()).served == Served(Outcome.STALE, "down")
    cached.configured(maxage=60)
    assert (await cached.pull()).served == HIT
    assert cached.asked() == []


async def test_deadline(cached: Bench) -> None:
    """A late check is not waited for: stale, the source is told so, and the check goes on."""
    cached.configured(deadline=0.001)
    cached.offer(V2)
    cached.source.gate = asyncio.Event()
    assert await cached.pull() == (D1, OCI_MANIFEST, V1, Served(Outcome.STALE, "deadline"))
    assert cached.source.late == 1
    cached.source.gate.set()
    cached.source.gate = None

    async def moved() -> bool:
        tag = await cached.store.read_tag(NAME, TAG)
        return tag is not None and tag.digest == D2 and tag.checked == cached.clock.now

    for _ in range(1000):
        if await moved():
            break
        await asyncio.sleep(0.001)  # a bounded poll: the check goes on behind
    assert await moved()
    assert cached.asked() == [f"HEAD {TAG}", f"GET {D2}"]
    cached.configured(maxage=60)
    assert (await cached.pull()).content == V2
    assert cached.asked() == []


async def test_pulls_after_the_deadline_join(cached: Bench) -> None:
    """Pulls during a late check ask nothing of their own."""
    cached.configured(deadline=0.001)
    cached.source.gate = asyncio.Event()
    for _ in range(3):
        assert (await cached.pull()).served == Served(Outcome.STALE, "deadline")
    await until(lambda: cached.source.asked, "the source was asked")
    assert cached.asked() == [f"HEAD {TAG}"]
    cached.source.gate.set()


async def test_no_deadline_for_what_is_not_cached(bench: Bench) -> None:
    """With nothing to serve instead, the source is waited for."""
    bench.configured(deadline=0)
    bench.source.gate = asyncio.Event()
    pulling = asyncio.create_task(bench.pull())
    await until(lambda: bench.source.asked, "the source was asked")
    bench.clock.now += 20
    assert not pulling.done()
    bench.source.gate.set()
    assert (await pulling).content == V1
    assert bench.source.late == 0


async def test_gone(cached: Bench) -> None:
    """A 404 is believed: the tag is gone here too, the manifest stays by its digest."""
    cached.source.failing = broken(Failure.NOT_FOUND)
    assert isinstance(await cached.failure(), ManifestUnknown)
    assert await cached.store.read_tag(NAME, TAG) is None
    cached.source.failing, cached.source.up = broken(Failure.DOWN), False
    assert isinstance(await cached.failure(), Unavailable)
    assert (await cached.manifests.get(NAME, D1)).served == HIT


async def test_gone_within_maxage(cached: Bench) -> None:
    """A tag that is gone is gone from memory too: maxage does not bring it back."""
    cached.configured(maxage=60)
    await cached.pull()
    cached.clock.now += 61
    cached.source.failing = broken(Failure.NOT_FOUND)
    await cached.failure()
    cached.clock.now -= 30
    cached.source.failing = broken(Failure.DOWN)
    assert isinstance(await cached.failure(), Unavailable)


async def test_gone_and_the_disk_does_not_let_it(
    cached: Bench, monkeypatch: pytest.MonkeyPatch, log: LogCapture
) -> None:
    """A tag that cannot be removed is a 404 all the same."""
    monkeypatch.setattr(cached.store, "remove_tag", _full)
    cached.source.failing = broken(Failure.NOT_FOUND)
    assert isinstance(await cached.failure(), ManifestUnknown)
    assert [entry["event"] for entry in log.entries] == ["a tag was not removed"]


async def test_moved_to_what_is_not_found(cached: Bench) -> None:
    """A 404 for the manifest that a tag moved to, a replica being behind, is not the tag's."""
    cached.offer(V2)
    cached.source.manifests.clear()
    assert await cached.pull() == (D1, OCI_MANIFEST, V1, Served(Outcome.STALE, "invalid"))
    assert await cached.store.read_tag(NAME, TAG) is not None
    cached.offer(V2)
    assert (await cached.pull()).content == V2


async def test_late_404(cached: Bench) -> None:
    """A 404 after the deadline is that of a service on its way up or down: it is not believed."""
    cached.configured(deadline=1.5)
    cached.source.failing = broken(Failure.NOT_FOUND)
    cached.source.gate = asyncio.Event()
    pulling = asyncio.create_task(cached.pull())
    await until(lambda: cached.source.asked, "the source was asked")
    cached.clock.now += 1.6
    cached.source.gate.set()
    assert await pulling == (D1, OCI_MANIFEST, V1, Served(Outcome.STALE, "down"))
    assert await cached.store.read_tag(NAME, TAG) is not None


async def test_404_within_the_deadline(cached: Bench) -> None:
    """One within the deadline is believed."""
    cached.configured(deadline=1.5)
    cached.source.failing = broken(Failure.NOT_FOUND)
    cached.source.gate = asyncio.Event()
    pulling = asyncio.create_task(cached.failure())
    await until(lambda: cached.source.asked, "the source was asked")
    cached.clock.now += 1.4
    cached.source.gate.set()
    assert isinstance(await pulling, ManifestUnknown)


async def test_policy(cached: Bench) -> None:
    """What the upstream's policy forbids is refused, and the tag is kept for when it does not."""
    cached.source.failing = broken(Failure.POLICY)
    assert isinstance(await cached.failure(), Denied)
    cached.source.failing = None
    assert (await cached.pull()).served == Served(Outcome.REVALIDATED)


async def test_tag_without_its_manifest(cached: Bench) -> None:
    """A tag whose manifest was lost is fetched as if it had not been cached."""
    cached.layout.blob(D1).unlink()
    cached.configured()
    assert await cached.pull() == (D1, OCI_MANIFEST, V1, Served(Outcome.MISS))
    cached.layout.blob(D1).write_bytes(V1[:-1] + b" ")
    cached.configured()
    assert await cached.pull() == (D1, OCI_MANIFEST, V1, Served(Outcome.MISS))
    cached.layout.blob(D1).unlink()
    cached.configured()
    cached.source.failing = broken(Failure.RATE_LIMITED, retry_after=7)
    error = await cached.failure()
    assert isinstance(error, TooManyRequests)
    assert error.retry_after == 7


async def test_close(cached: Bench) -> None:
    """Closing ends what is under way."""
    cached.source.gate = asyncio.Event()
    pulling = asyncio.create_task(cached.pull())
    fetching = asyncio.create_task(cached.manifests.get(NAME, D2))
    await until(lambda: len(cached.source.asked) == 2, "both were asked")
    await cached.manifests.close()
    for result in await asyncio.gather(pulling, fetching, return_exceptions=True):
        assert isinstance(result, asyncio.CancelledError)


# -- what is taken away ----------------------------------------------------------------------------


@pytest.fixture
def keeper(layout: Layout) -> Iterator[Generation]:
    """Be another process, which takes things away."""
    generation = Generation(layout.generation)
    yield generation
    generation.close()


async def test_memory_goes_with_what_was_taken_away(cached: Bench, keeper: Generation) -> None:
    """What another process took away is not served from memory: it is asked for and kept anew."""
    cached.configured(maxage=60)
    await cached.pull()
    cached.asked()
    cached.layout.blob(D1).unlink()
    cached.layout.tag_link(NAME, TAG).unlink()
    assert (await cached.pull()).served == HIT  # nobody said a word
    keeper.advance()
    assert (await cached.pull()).served.outcome is Outcome.MISS
    assert cached.asked() == [f"GET {TAG}"]
    assert cached.layout.blob(D1).read_bytes() == V1
    assert cached.layout.tag_link(NAME, TAG).read_text() == str(D1)


async def test_memory_that_was_cleared_is_filled_again(cached: Bench, keeper: Generation) -> None:
    """What is still here is read from the disk once, and then held as before."""
    cached.configured(maxage=60)
    await cached.pull()
    keeper.advance()
    assert (await cached.pull()).served == HIT
    cached.layout.blob(D1).unlink()
    assert (await cached.pull()).served == HIT
    assert cached.asked() == []


async def test_use_from_memory_is_a_use(cached: Bench) -> None:
    """What is served from memory only is not taken away for having rested on the disk."""
    await cached.store.flush()
    with Catalogue(cached.layout.index) as catalogue:
        before = catalogue.row(D1)
        await cached.pull()
        await cached.store.flush()
        after = catalogue.row(D1)
    assert before is not None
    assert after is not None
    assert after.used > before.used
