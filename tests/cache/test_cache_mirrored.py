"""Beside a bucket: who is sent there, what is filled from it, and what becomes of its failures."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator

import pytest
from structlog.testing import LogCapture

from pullthrough.cache.base import HIT, Moved, Outcome, Served
from pullthrough.cache.blobs import FROM_BUCKET
from pullthrough.cache.mirrored import BucketFirst, Redirecting
from pullthrough.oci.digest import Digest
from pullthrough.oci.errors import BadUpstream
from pullthrough.store.catalogue import Catalogue
from pullthrough.store.layout import Layout
from pullthrough.upstream.base import Failure, UpstreamError
from tests.cache.conftest import Start
from tests.cache.scripted import (
    NAME,
    OTHER,
    Body,
    FakeMirror,
    FakeSource,
    Step,
    body_of,
    broken,
    until,
)
from tests.cache.worker import Worker

SMALL = 1 << 20
CONTENT = random.Random(9).randbytes(SMALL + 100_000)  # noqa: S311 - an example, not a secret
SIZE = len(CONTENT)
WRONG = CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])
DIGEST = Digest.of(CONTENT)
LITTLE = b"a config"
SECRET = "a-presigned-secret"

BUCKET = "s3.example.com"
REDIRECTING = Redirecting(BUCKET)
CACHE = "cache.example.com"


@pytest.fixture
def mirror(source: FakeSource) -> FakeMirror:
    """Have a bucket with the same blobs as the registry."""
    mirror = FakeMirror()
    for content in (CONTENT, LITTLE):
        source.add(content)
        mirror.add(content)
    return mirror


@pytest.fixture
def catalogue(layout: Layout) -> Iterator[Catalogue]:
    """Open the index as the keeper does."""
    with Catalogue(layout.index) as opened:
        yield opened


@pytest.fixture
def known(catalogue: Catalogue, mirror: FakeMirror) -> Catalogue:
    """Have an index that knows all that the bucket has."""
    catalogue.found_there((str(each), len(content)) for each, content in mirror.blobs.items())
    catalogue.know_mirror()
    return catalogue


@pytest.fixture
async def beside(start: Start, source: FakeSource, mirror: FakeMirror) -> Worker:
    """Start a worker beside the bucket that sends nobody there."""
    return await start(source, mirror)


@pytest.fixture
async def sending(start: Start, source: FakeSource, mirror: FakeMirror) -> Worker:
    """Start a worker that sends clients to the bucket."""
    return await start(source, mirror, REDIRECTING)


async def filled(worker: Worker, digest: Digest = DIGEST) -> bytes | None:
    """Return what is stored once the fill has ended."""
    await until(lambda: not worker.blobs.filling, "the fill ended")
    return worker.stored(digest)


# -- who is sent there -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "asked", "sent"),
    [
        (SMALL + 1, CACHE, True),
        (SMALL, CACHE, False),
        (0, CACHE, False),
        (SMALL + 1, BUCKET, False),
        (SMALL + 1, "example.com", False),  # Go sends a login along to a host below
        (SMALL + 1, "com", False),
        (SMALL + 1, "xample.com", True),  # no parent, only the same letters
        (SMALL + 1, "a.s3.example.com", True),
        (SMALL + 1, "", True),
    ],
)
def test_who_is_sent(size: int, asked: str, *, sent: bool) -> None:
    """Who asks for much, of a host to which the client does not carry its login on."""
    assert REDIRECTING.sends(size, asked) is sent


@pytest.mark.usefixtures("known")
async def test_sent_to_the_bucket(
    sending: Worker, source: FakeSource, mirror: FakeMirror, log: LogCapture
) -> None:
    """A large blob that is only there is fetched there: nothing is filled, nothing is asked."""
    moved = await sending.blobs.open(NAME, DIGEST, CACHE)
    assert isinstance(moved, Moved)
    assert moved.address.startswith(f"https://bucket.example.com/{DIGEST.hex}?")
    assert moved.served == Served(Outcome.HIT, "redirect")
    assert SECRET not in repr(moved)
    assert (sending.blobs.filling, sending.partials(), source.asked) == (0, [], [])
    assert [kind for kind, *_ in mirror.asked] == ["size", "address"]
    assert SECRET not in str(log.entries)


async def test_sending_is_a_use_and_links(sending: Worker, known: Catalogue) -> None:
    """What clients are sent for is used, and their repository's: it does not expire for it."""
    await sending.name(DIGEST, SIZE, OTHER)
    link = sending.layout.link(OTHER, "layers", DIGEST)
    link.unlink(missing_ok=True)
    before = known.row(DIGEST)
    assert isinstance(await sending.blobs.open(OTHER, DIGEST, CACHE), Moved)
    await sending.store.flush()
    after = known.row(DIGEST)
    assert before is not None
    assert after is not None
    assert after.used > before.used
    assert link.read_text() == str(DIGEST)


@pytest.mark.usefixtures("known")
async def test_not_sent_for_a_little(sending: Worker, source: FakeSource) -> None:
    """A config comes from here, and is kept."""
    digest = Digest.of(LITTLE)
    assert await sending.read(digest) == LITTLE
    assert await filled(sending, digest) == LITTLE
    assert source.asked == []


@pytest.mark.usefixtures("known")
async def test_not_sent_to_the_host_that_was_asked(sending: Worker, source: FakeSource) -> None:
    """Who reached us by the bucket's own host is served from here."""
    reader = await sending.blobs.open(NAME, DIGEST, BUCKET)
    assert not isinstance(reader, Moved)
    assert reader.served == FROM_BUCKET
    reader.close()
    assert await filled(sending) == CONTENT
    assert source.asked == []


@pytest.mark.usefixtures("known")
async def test_not_sent_for_what_is_here(sending: Worker, mirror: FakeMirror) -> None:
    """What is on the disk is served from it, and the bucket hears nothing."""
    await sending.store.confirm(DIGEST, SIZE)
    sending.put(DIGEST, CONTENT)
    reader = await sending.blobs.open(NAME, DIGEST, CACHE)
    assert not isinstance(reader, Moved)
    assert reader.served == HIT
    reader.close()
    assert mirror.asked == []


@pytest.mark.usefixtures("known")
async def test_not_sent_for_what_is_on_its_way(
    sending: Worker, source: FakeSource, mirror: FakeMirror
) -> None:
    """Who comes while it is filled shares the fill."""
    stop = asyncio.Event()
    mirror.planned.append(Body([CONTENT[:1000], stop, CONTENT[1000:]], size=SIZE))
    first = await sending.blobs.open(NAME, DIGEST, BUCKET)
    second = await sending.blobs.open(NAME, DIGEST, CACHE)
    assert not isinstance(first, Moved)
    assert not isinstance(second, Moved)
    assert second.served.outcome is Outcome.COLLAPSED
    stop.set()
    for reader in (first, second):
        reader.close()
    assert await filled(sending) == CONTENT
    assert source.asked == []


@pytest.mark.usefixtures("known")
async def test_no_address(
    sending: Worker, mirror: FakeMirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where none can be signed the blob comes from here, by way of whoever has it."""

    async def none(_: Digest) -> str:
        raise UpstreamError(Failure.UNAUTHORIZED, "no credentials")

    monkeypatch.setattr(mirror, "address", none)
    reader = await sending.blobs.open(NAME, DIGEST, CACHE)
    assert not isinstance(reader, Moved)
    reader.close()
    assert await filled(sending) == CONTENT


@pytest.mark.usefixtures("known")
async def test_size_is_said_by_us(sending: Worker, source: FakeSource, mirror: FakeMirror) -> None:
    """HEAD of what the bucket has is answered here, and asks nobody."""
    assert await sending.blobs.size(NAME, DIGEST) == (SIZE, HIT)
    assert (source.asked, mirror.asked) == ([], [])


# -- filled from it --------------------------------------------------------------------------------


@pytest.mark.usefixtures("known")
async def test_filled_from_the_bucket(
    beside: Worker, source: FakeSource, mirror: FakeMirror
) -> None:
    """It costs the link nothing, is a hit, verified and kept; the next one is from the disk."""
    reading = await beside.reading(DIGEST)
    assert (await reading.whole(), reading.served) == (CONTENT, FROM_BUCKET)
    assert await filled(beside) == CONTENT
    assert await beside.served(DIGEST) == HIT
    assert (source.asked, mirror.ranges) == ([], [(0, None)])


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize(
    "failure",
    [Failure.NOT_FOUND, Failure.FORBIDDEN, Failure.SERVER_ERROR, Failure.DOWN, Failure.TIMEOUT],
)
async def test_bucket_that_gives_nothing(
    beside: Worker, source: FakeSource, mirror: FakeMirror, failure: Failure
) -> None:
    """However it fails, the upstream is asked at once, and the bucket only once."""
    mirror.planned.append(broken(failure))
    assert await beside.read(DIGEST) == CONTENT
    assert await filled(beside) == CONTENT
    assert (mirror.ranges, source.ranges) == ([(0, None)], [(0, None)])


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize(
    "ending", [broken(Failure.CUT), broken(Failure.TIMEOUT), None], ids=["cut", "silent", "ended"]
)
async def test_bucket_that_fails_in_the_middle(
    beside: Worker, source: FakeSource, mirror: FakeMirror, ending: UpstreamError | None
) -> None:
    """The upstream gives the rest and no more, also when it breaks too; readers notice nothing."""
    steps: list[Step] = [CONTENT[:500_000]]
    if ending is not None:
        steps.append(ending)
    mirror.planned.append(Body(steps, size=SIZE))
    source.planned.append(
        Body([CONTENT[500_000:700_000], broken(Failure.CUT)], start=500_000, size=SIZE)
    )
    assert await beside.read(DIGEST) == CONTENT
    assert await filled(beside) == CONTENT
    assert mirror.ranges == [(0, None)]
    assert source.ranges == [(500_000, None), (700_000, None)]


@pytest.mark.usefixtures("known")
async def test_goes_on_from_the_bucket(
    beside: Worker, source: FakeSource, mirror: FakeMirror
) -> None:
    """What a process that was killed left of a fill is gone on from."""
    beside.leave(DIGEST, CONTENT[:300_000])
    assert await beside.read(DIGEST) == CONTENT
    assert (mirror.ranges, source.ranges) == ([(300_000, None)], [])


async def test_both_sources_fail() -> None:
    """What the upstream says is what counts."""
    bucket, upstream = FakeMirror(), FakeSource()
    both = BucketFirst(bucket, upstream)
    bucket.failing = broken(Failure.TIMEOUT)
    with pytest.raises(UpstreamError) as caught:
        async with both.get_blob(NAME, DIGEST):
            pass
    assert caught.value.failure is Failure.NOT_FOUND
    assert not both.gave


# -- wrong content ---------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["flipped", "short", "long"])
async def test_wrong_content_from_the_bucket(
    beside: Worker,
    source: FakeSource,
    mirror: FakeMirror,
    known: Catalogue,
    how: str,
) -> None:
    """It is never served whole nor kept; the bucket is to lose it; the next pull is right."""
    wrong = {"flipped": WRONG, "short": CONTENT[:-1], "long": CONTENT + b"!"}[how]
    mirror.blobs[DIGEST] = wrong
    reading = await beside.reading(DIGEST)
    assert isinstance(await reading.failure(), BadUpstream)
    assert len(reading.received) < len(wrong)
    assert await filled(beside) is None
    assert beside.partials() == []
    row = known.row(DIGEST)
    assert row is None
    assert known.buried() == [beside.layout.key(beside.layout.blob(DIGEST))]
    assert source.asked == []
    assert await beside.read(DIGEST) == CONTENT
    assert await filled(beside) == CONTENT
    assert source.ranges == [(0, None)]


async def test_wrong_size_in_the_bucket(
    beside: Worker, source: FakeSource, mirror: FakeMirror, known: Catalogue
) -> None:
    """What is not as long as its manifest says is not taken from there, and is to be deleted."""
    await beside.name(DIGEST, SIZE)
    mirror.blobs[DIGEST] = CONTENT[:-1]
    assert await beside.read(DIGEST) == CONTENT
    assert known.buried() != []
    assert len(source.ranges) == 1


async def test_wrong_content_from_the_upstream(
    beside: Worker, source: FakeSource, mirror: FakeMirror, known: Catalogue
) -> None:
    """The bucket, which gave nothing of it, is not blamed."""
    source.blobs[DIGEST] = WRONG
    mirror.planned.append(broken(Failure.SERVER_ERROR))
    reading = await beside.reading(DIGEST)
    assert isinstance(await reading.failure(), BadUpstream)
    await until(lambda: not beside.blobs.filling, "the fill ended")
    assert known.buried() == []
    assert known.row(DIGEST) is not None


async def test_wrong_content_while_not_all_is_known(
    beside: Worker, source: FakeSource, mirror: FakeMirror
) -> None:
    """What is to be deleted is not asked for again, though the bucket still has it."""
    mirror.blobs[DIGEST] = WRONG
    reading = await beside.reading(DIGEST)
    assert isinstance(await reading.failure(), BadUpstream)
    await until(lambda: not beside.blobs.filling, "the fill ended")
    assert await beside.read(DIGEST) == CONTENT
    assert len(source.ranges) == 1


# -- what is known ---------------------------------------------------------------------------------


async def test_looked_for_until_all_is_known(
    beside: Worker, source: FakeSource, mirror: FakeMirror, catalogue: Catalogue
) -> None:
    """What a new index does not know may still be there; one that knows all need not ask."""
    reading = await beside.reading(DIGEST)
    assert (await reading.whole(), reading.served) == (CONTENT, FROM_BUCKET)
    assert (mirror.looks, source.asked) == (1, [])
    catalogue.know_mirror()
    new = source.add(b"not in the bucket")
    assert await beside.served(new) == Served(Outcome.MISS)
    assert mirror.looks == 1


async def test_not_there_while_not_all_is_known(
    beside: Worker, source: FakeSource, mirror: FakeMirror
) -> None:
    """A look that finds nothing leads to the upstream."""
    new = source.add(b"not in the bucket")
    assert await beside.served(new) == Served(Outcome.MISS)
    assert mirror.looks == 1
    assert mirror.ranges == []


async def test_lost_from_the_bucket(
    sending: Worker, source: FakeSource, mirror: FakeMirror, known: Catalogue
) -> None:
    """What somebody deleted there is forgotten, and fetched; nobody is sent for it."""
    del mirror.blobs[DIGEST]
    reader = await sending.blobs.open(NAME, DIGEST, CACHE)
    assert not isinstance(reader, Moved)
    assert reader.served == Served(Outcome.MISS)
    reader.close()
    assert await filled(sending) == CONTENT
    assert len(source.ranges) == 1
    row = known.row(DIGEST)
    assert row is not None
    assert (row.here, row.there) == (True, False)
    assert known.buried() == []


@pytest.mark.parametrize("failure", [Failure.DOWN, Failure.TIMEOUT, Failure.FORBIDDEN])
async def test_bucket_that_is_away(
    sending: Worker, source: FakeSource, mirror: FakeMirror, known: Catalogue, failure: Failure
) -> None:
    """Nobody is sent there; the upstream is asked; what is there is not forgotten for it."""
    mirror.failing = broken(failure)
    reader = await sending.blobs.open(NAME, DIGEST, CACHE)
    assert not isinstance(reader, Moved)
    reader.close()
    assert await filled(sending) == CONTENT
    assert len(source.ranges) == 1
    row = known.row(DIGEST)
    assert row is not None
    assert (row.here, row.there) == (True, True)


async def test_joined_while_it_is_looked_for(
    beside: Worker, source: FakeSource, mirror: FakeMirror
) -> None:
    """Who come while the bucket is asked share one fill."""
    mirror.gate = asyncio.Event()
    opening = [asyncio.create_task(beside.reading(DIGEST)) for _ in range(3)]
    await until(lambda: mirror.looks == 3, "all look")
    mirror.gate.set()
    assert [await (await each).whole() for each in opening] == [CONTENT] * 3
    assert (mirror.ranges, source.asked) == ([(0, None)], [])


@pytest.mark.usefixtures("known")
async def test_damaged_file_is_mended_from_the_bucket(
    beside: Worker, source: FakeSource, mirror: FakeMirror
) -> None:
    """What is found rotten on the disk is set aside, and the bucket has it."""
    beside.put(DIGEST, WRONG)
    reading = await beside.reading(DIGEST)
    assert await reading.whole() == CONTENT
    assert await filled(beside) == CONTENT
    assert (mirror.ranges, source.asked) == ([(0, None)], [])


@pytest.mark.usefixtures("known")
async def test_range_far_ahead_of_a_fill(
    beside: Worker, source: FakeSource, mirror: FakeMirror
) -> None:
    """A small range that does not wait comes from the bucket too: the upstream may be away."""
    stop = asyncio.Event()
    mirror.planned.append(Body([CONTENT[:10], stop, CONTENT[10:]], size=SIZE))
    mirror.planned.append(body_of(CONTENT, SIZE - 100))
    whole = await beside.reading(DIGEST)
    await until(lambda: len(whole.received) >= 9, "the first bytes")
    part = await beside.reading(DIGEST, SIZE - 100, SIZE - 50)
    assert await part.whole() == CONTENT[-100:-50]
    stop.set()
    assert await whole.whole() == CONTENT
    assert source.ranges == []
