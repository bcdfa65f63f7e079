"""Pulls, uses, moving tags, evictions, removals, deaths and restarts at random, against a model.

The model knows what was published. What is neither evicted by the rules nor removed has to be
served without the source, whatever happened meanwhile; nothing is ever served wrong; and at rest
no bound is exceeded.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import Callable, Coroutine
from collections.abc import Set as AbstractSet
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any, Final

import pytest
import structlog
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from structlog.testing import LogCapture

from pullthrough.cache import fill
from pullthrough.cache.base import BlobReader
from pullthrough.cache.manifests import Freshness, Manifests
from pullthrough.oci.digest import Digest
from pullthrough.oci.errors import RegistryError
from pullthrough.oci.reference import Repository, Tag
from pullthrough.store.catalogue import Catalogue, Row
from pullthrough.store.filesystem import prepare
from pullthrough.store.layout import Layout
from pullthrough.store.reconcile import reconcile
from pullthrough.store.trouble import BucketError
from pullthrough.tending.eviction import Reason
from pullthrough.tending.janitor import Bounds, Janitor
from pullthrough.tending.leftovers import filling
from pullthrough.tending.pins import pattern
from pullthrough.tending.removal import Removal, tending
from pullthrough.tending.uploads import Mirror
from pullthrough.upstream.base import Failure, FetchedManifest
from tests.cache.scripted import Body, Clock, FakeMirror, FakeSource, Step, broken, until
from tests.cache.worker import Reading, Worker
from tests.tending.kit import Death, FakeBucket, dying, index, manifest, of, on_disk, tags_on_disk

HOUR: Final = 3600.0
MAXAGE: Final = HOUR

BLOBS: Final = (b"", *(bytes([65 + n]) * size for n, size in enumerate((90, 400, 900, 2000, 4000))))
IMAGES: Final = (
    manifest(BLOBS[1], BLOBS[2], BLOBS[3]),
    manifest(BLOBS[1], BLOBS[3], BLOBS[4]),
    manifest(BLOBS[2], BLOBS[0], BLOBS[5]),
)
INDEX: Final = index(IMAGES[0], IMAGES[2])
MANIFESTS: Final = (*IMAGES, INDEX)
CONTENT: Final = {Digest.of(content): content for content in (*BLOBS, *MANIFESTS)}
TAGS: Final = (
    (Repository("library/app"), Tag("a1")),
    (Repository("library/app"), Tag("a2")),
    (Repository("library/other"), Tag("o1")),
)

REPOSITORIES = st.sampled_from([repository for repository, _ in TAGS])
BLOB = st.sampled_from([Digest.of(content) for content in BLOBS])
MANIFEST = st.sampled_from([Digest.of(content) for content in MANIFESTS])
TAG = st.sampled_from(TAGS)
QUOTA = st.sampled_from([None, 8000, 6500, 5000, 3000, 0])
PINS = st.sampled_from([(), (), ("library/app:a1",), ("library/other:o?", "**/app:a2")])


class Caches(RuleBasedStateMachine):
    """One cache on one disk, over many lives of its process."""

    mirrored = False

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.before = structlog.get_config()
        self.log = LogCapture()
        structlog.configure(processors=[self.log], cache_logger_on_first_use=False)
        self.clock = Clock(time.time())
        for module in ("store.index", "store.catalogue", "tending.uploads"):
            self.patch.setattr(f"pullthrough.{module}.time", SimpleNamespace(time=self.clock))
        self.patch.setattr(fill, "_POLL", 0.001)
        self.directory = TemporaryDirectory()
        self.layout = Layout(Path(self.directory.name) / "store")
        self.runner = asyncio.Runner()
        self.source = FakeSource()
        self.source.blobs = {Digest.of(content): content for content in BLOBS}
        for content in MANIFESTS:
            self.source.manifests[str(Digest.of(content))] = _fetched(content)
        self.bucket = FakeBucket() if self.mirrored else None
        self.mirror = FakeMirror()
        self.published: set[Digest] = set()
        self.used: dict[Digest, float] = {}
        """When it was surely used, and this is surely written."""
        self.noted: dict[Digest, float] = {}
        self.readers: list[tuple[Digest, Any]] = []
        self.filling: dict[Digest, tuple[Reading, asyncio.Event]] = {}
        self.quota: int | None = None
        self.local: int | None = None
        self.pins: tuple[str, ...] = ()
        self.ttl = 0.0
        self._begin()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(work)

    def teardown(self) -> None:
        try:
            self._end(orderly=True)
        finally:
            self.runner.close()
            self.directory.cleanup()
            self.patch.undo()
            structlog.configure(**self.before)

    # -- life --------------------------------------------------------------------------------------

    def _begin(self) -> None:
        prepared = prepare(self.layout.root)
        self.in_use = prepared.in_use
        mirror = (self.mirror,) if self.mirrored else ()
        self.worker = Worker(self.layout, self.source, *mirror)
        self.run(self.worker.store.open())
        self.manifests = Manifests(
            self.worker.store,
            self.worker.store.locks,
            self.source,
            Freshness(MAXAGE, deadline=20.0, clock=self.clock),
        )
        self.catalogue = Catalogue(self.layout.index)
        reconcile(self.layout, self.catalogue)

    def _end(self, *, orderly: bool) -> None:
        if not orderly:  # what was only in memory is lost
            self.worker.store._index._used.clear()
            self.noted.clear()
        self.run(self._stop())
        self.catalogue.__exit__()
        os.close(self.in_use)
        if orderly:
            self._written()
        assert not [entry for entry in self.log.entries if entry.get("exc_info")]

    async def _stop(self) -> None:
        for _, reader in self.readers:
            reader.close()
        self.readers.clear()
        reading = [reading for reading, _ in self.filling.values()]
        self.filling.clear()
        await self.manifests.close()
        await self.worker.blobs.close()
        for each in reading:
            await each.leave()
        await self.worker.store.close()

    def _written(self) -> None:
        for digest, when in self.noted.items():
            self.used[digest] = max(when, self.used.get(digest, 0))
        self.noted.clear()

    # -- the bounds --------------------------------------------------------------------------------

    @initialize(quota=QUOTA, local=QUOTA, ttl=st.sampled_from([0, 5 * HOUR]), pins=PINS)
    def configured(
        self, quota: int | None, local: int | None, ttl: float, pins: tuple[str, ...]
    ) -> None:
        self.quota, self.local, self.ttl, self.pins = quota, local, ttl, pins

    @rule(local=QUOTA, pins=PINS)
    def configured_anew(self, local: int | None, pins: tuple[str, ...]) -> None:
        self.local, self.pins = local, pins

    def janitor(self) -> Janitor:
        bounds = Bounds(
            lambda: self.quota, lambda: self.local, self.ttl, tuple(map(pattern, self.pins))
        )
        return Janitor(self.layout, self.catalogue, bounds, self.mirrored, self.clock)

    # -- the upstream ------------------------------------------------------------------------------

    @rule(tag=TAG, content=st.sampled_from(MANIFESTS))
    def tag_moves(self, tag: tuple[Repository, Tag], content: bytes) -> None:
        self.source.manifests[tag[1].name] = _fetched(content)

    @rule(tag=TAG)
    def tag_goes(self, tag: tuple[Repository, Tag]) -> None:
        self.source.manifests.pop(tag[1].name, None)

    @rule(up=st.booleans())
    def outage(self, *, up: bool) -> None:
        self.source.up, self.source.failing = up, None if up else broken(Failure.DOWN)

    # -- clients -----------------------------------------------------------------------------------

    def _use(self, digest: Digest, *, written: bool = False) -> None:
        (self.used if written else self.noted)[digest] = self.clock()

    @rule(repository=REPOSITORIES, digest=BLOB)
    def pull_blob(self, repository: Repository, digest: Digest) -> None:
        if digest in self.filling:
            return
        known, asked = self._served(digest), len(self.source.ranges)
        self.tick()
        try:
            content = self.run(self._read(repository, digest))
        except RegistryError:
            assert not known, f"a published blob was lost: {digest}"
            assert self.source.failing is not None
            return
        assert content == CONTENT[digest]
        if known:
            assert len(self.source.ranges) == asked, f"asked for a published blob: {digest}"
        self.published.add(digest)
        self._use(digest, written=not known)

    async def _read(self, repository: Repository, digest: Digest) -> bytes:
        self._look()
        reader = await self.worker.open(repository, digest)
        content = await _whole(reader)
        await until(lambda: digest not in self.worker.blobs._growing, "the fill ended")
        return content

    @rule(repository=REPOSITORIES, digest=MANIFEST)
    def pull_manifest(self, repository: Repository, digest: Digest) -> None:
        known = digest in self.published
        self.tick()
        asked = len(self.source.asked)
        try:
            answer = self.run(self.manifests.get(repository, digest))
        except RegistryError:
            assert not known, f"a published manifest was lost: {digest}"
            assert self.source.failing is not None
            return
        assert (answer.digest, answer.content) == (digest, CONTENT[digest])
        if known:
            assert len(self.source.asked) == asked
        self.published.add(digest)
        self._use(digest, written=not known)

    @rule(tag=TAG)
    def use_image(self, tag: tuple[Repository, Tag]) -> None:
        """Have a client that has the layers ask for the manifest alone, and see what goes first."""
        self.pull_tag(tag)
        here = sum(on_disk(self.layout).values())
        self.tidy(here - 1, flushed=True)

    @rule(tag=TAG)
    def pull_tag(self, tag: tuple[Repository, Tag]) -> None:
        cached = tags_on_disk(self.layout).get((tag[0].name, tag[1].name))
        known = cached is not None and Digest.parse(cached) in self.published
        self.tick()
        try:
            answer = self.run(self.manifests.get(*tag))
        except RegistryError:
            if self.source.failing is not None:
                assert not known, f"a published tag was lost: {tag}"
            else:
                assert tag[1].name not in self.source.manifests
            return
        assert answer.content == CONTENT[answer.digest]
        fresh = self.published.issuperset({answer.digest})
        self.published.add(answer.digest)
        self._use(answer.digest, written=not fresh)

    @rule(tag=TAG, content=st.sampled_from(MANIFESTS), partly=st.booleans())
    def pull_image(self, tag: tuple[Repository, Tag], content: bytes, *, partly: bool) -> None:
        """Have a tag be an image, and a client pull all of it, or not the last of it."""
        self.outage(up=True)
        self.clock.now += 2 * MAXAGE  # the tag is asked for again
        self.tag_moves(tag, content)
        self.pull_tag(tag)
        for below in _BELOW[content]:
            if below in MANIFESTS:
                self.pull_manifest(tag[0], Digest.of(below))
        blobs = [each for each in _all_below(content) if each not in MANIFESTS]
        for blob in blobs[:-1] if partly else blobs:
            self.pull_blob(tag[0], Digest.of(blob))

    @rule(digest=BLOB, quota=st.sampled_from([0, 1500, 3000]))
    def tidy_while_it_is_read(self, digest: Digest, quota: int) -> None:
        self.open_reader(digest)
        self.tidy(quota, flushed=True)

    @rule(repository=REPOSITORIES, digest=BLOB)
    def begin_fill(self, repository: Repository, digest: Digest) -> None:
        """Have a client read the first half of a blob, and the link fall silent."""
        if not CONTENT[digest] or digest in self.filling or self.source.failing is not None:
            return
        if self._anywhere(digest) or self._left(digest) >= len(CONTENT[digest]):
            return
        self.tick()
        self.filling[digest] = self.run(self._half(repository, digest))

    async def _half(self, repository: Repository, digest: Digest) -> tuple[Reading, asyncio.Event]:
        content, event = CONTENT[digest], asyncio.Event()
        self._look()
        start = self._left(digest)
        steps: list[Step] = [content[start : start + 50], event, content[start + 50 :]]
        self.source.planned.append(Body([step for step in steps if step], size=len(content)))
        opening = asyncio.create_task(self.worker.open(repository, digest))
        await until(opening.done, "an answer begins")
        reading = Reading(opening.result())
        await until(
            lambda: self._left(digest) == min(len(content), start + 50) or reading._task.done(),
            "what came is stored",
        )
        return reading, event

    def _left(self, digest: Digest) -> int:
        path = self.layout.partial(digest)
        return path.stat().st_size if path.exists() else 0

    @precondition(lambda self: self.filling)
    @rule(data=st.data())
    def end_fill(self, data: st.DataObject) -> None:
        digest = data.draw(st.sampled_from(sorted(self.filling, key=str)))
        reading, event = self.filling.pop(digest)
        self.tick()

        async def go_on() -> bytes:
            event.set()
            content = await reading.whole()
            await until(lambda: digest not in self.worker.blobs._growing, "the fill ended")
            return content

        assert self.run(go_on()) == CONTENT[digest]
        self.published.add(digest)
        self._use(digest, written=True)

    @rule(repository=REPOSITORIES, digest=BLOB)
    def wrong_content(self, repository: Repository, digest: Digest) -> None:
        """Have the upstream send something else: nobody is given all of it, and it is not kept."""
        if self.source.failing is not None or digest in self.filling or self._anywhere(digest):
            return
        rest = CONTENT[digest][self._left(digest) :]
        if not rest:
            return
        wrong = bytes([rest[0] ^ 1]) + rest[1:]
        self.source.planned.append(Body([wrong], size=len(CONTENT[digest])))
        with pytest.raises(RegistryError):
            self.run(self._read(repository, digest))
        self.run(until(lambda: not self._left(digest), "it was thrown away"))
        assert str(digest) not in on_disk(self.layout)

    @rule(digest=BLOB)
    def open_reader(self, digest: Digest) -> None:
        if str(digest) in on_disk(self.layout) and len(self.readers) < 2:
            self.tick()
            reader = self.run(self.worker.open(TAGS[0][0], digest))
            self._use(digest)
            self.readers.append((digest, reader))

    @precondition(lambda self: self.readers)
    @rule()
    def end_reader(self) -> None:
        """Have a slow reader read, after whatever happened since it began."""
        digest, reader = self.readers.pop(0)
        assert self.run(_whole(reader)) == CONTENT[digest]

    @rule(hours=st.sampled_from([0.5, 2, 4]))
    def time_passes(self, hours: float) -> None:
        self.clock.now += hours * HOUR

    def tick(self) -> None:
        """Have no two uses at the same time."""
        self.clock.now += 1

    @rule()
    def flush(self) -> None:
        self.run(self.worker.store.flush())
        self._written()

    # -- tending -----------------------------------------------------------------------------------

    @rule(quota=QUOTA, flushed=st.booleans())
    def tidy(self, quota: int | None, *, flushed: bool) -> None:
        self.quota = quota
        if flushed:
            self.flush()
        self._tidy()

    def _tidy(self) -> None:
        rows = {Digest.parse(row.digest): row for row in self.catalogue.rows()}
        for digest in self.published & rows.keys():
            assert rows[digest].used >= self.used.get(digest, 0), f"a use was lost: {digest}"
        uses = self._effective(rows)
        pinned, busy = self._pinned(), {digest for digest, _ in self.readers}
        was = self.janitor().state()
        state, went = self.janitor().tidy()
        now = {Digest.parse(row.digest): row for row in self.catalogue.rows()}
        gone = {Digest.parse(victim.digest) for victim in went}
        altogether = rows.keys() - now.keys()
        assert len(gone) == len(went), "said to go twice"
        assert altogether <= gone
        assert not gone & busy, "taken away while it was read"
        assert not altogether & pinned, "pinned content went"
        movable = now.keys() - pinned - busy
        for victim in went:
            digest = Digest.parse(victim.digest)
            if victim.reason is Reason.EXPIRED:
                assert self.ttl
                assert self.clock() - uses[digest] >= self.ttl
        if self.ttl:
            assert all(self.clock() - uses[digest] < self.ttl for digest in movable)
        if not self.mirrored:
            evicted = [Digest.parse(v.digest) for v in went if v.reason is Reason.ROOM]
            for digest in evicted:
                assert all(uses[digest] <= uses[other] for other in movable), "not the oldest went"
        self._within_bounds(state, now, movable)
        only_here = {digest for digest, row in rows.items() if row.here and not row.there}
        if self.mirrored and (self.quota is None or was.used <= self.quota):
            dropped = {Digest.parse(v.digest) for v in went if v.reason is Reason.ROOM}
            if dropped & only_here & altogether:
                left = [d for d in self._removable(now) if now[d].there and d not in busy]
                assert not left, "what only the disk had went before what the bucket has"
        self.published -= altogether
        self.used = {digest: self.used.get(digest, 0) for digest in self.published}
        self._agrees()

    def _within_bounds(self, state: Any, now: dict[Digest, Row], movable: set[Digest]) -> None:
        used = state.used - (0 if self.mirrored else filling(self.layout))
        if self.quota is not None and used > self.quota:
            assert not [digest for digest in movable if now[digest].size], "over the quota"
        if self.mirrored and self.local is not None:
            here = state.here - filling(self.layout)
            busy = {digest for digest, _ in self.readers}
            left = {
                digest for digest in self._removable(now) if now[digest].there or digest in movable
            } - busy
            assert here <= self.local or not left, "over the local quota"

    @staticmethod
    def _removable(rows: dict[Digest, Row]) -> set[Digest]:
        """Return what may leave a disk before a bucket: not manifests."""
        return {
            digest
            for digest, row in rows.items()
            if row.here and row.size and CONTENT[digest] not in MANIFESTS
        }

    def _effective(self, rows: dict[Digest, Row]) -> dict[Digest, float]:
        """Return last uses: the slow way."""
        uses = {digest: row.used for digest, row in rows.items()}
        for _ in range(3):
            for above, below in self._edges():
                if above in uses and below in uses:
                    uses[below] = max(uses[below], uses[above])
        return uses

    def _edges(self) -> list[tuple[Digest, Digest]]:
        known = {manifest for manifest, _ in self.catalogue.refers()}
        return [(above, below) for above, below in _EDGES if str(above) in known]

    def _pinned(self) -> set[Digest]:
        pins = [pattern(pin) for pin in self.pins]
        found = {
            Digest.parse(digest)
            for (repository, tag), digest in tags_on_disk(self.layout).items()
            if any(pin.matches(repository, tag) for pin in pins)
        } | {
            Digest.parse(link.digest)
            for link in self.catalogue.links("revisions")
            if any(pin.matches(link.repository, None) for pin in pins)
        }
        for _ in range(3):
            found |= {below for above, below in self._edges() if above in found}
        return found

    @rule(digests=st.sets(st.sampled_from(sorted(CONTENT, key=str)), min_size=1, max_size=4))
    def remove(self, digests: set[Digest]) -> None:
        gone = self._remove(digests)
        busy = {digest for digest, _ in self.readers}
        assert gone == digests - busy
        self.published -= gone
        self._agrees()

    def _remove(self, digests: AbstractSet[Digest]) -> set[Digest]:
        with tending(self.layout):
            removal = Removal(self.layout, self.catalogue, mirrored=self.mirrored)
            gone = removal.altogether(sorted(of(digests)))
        return {Digest.parse(digest) for digest in gone}

    # -- deaths ------------------------------------------------------------------------------------

    @rule(orderly=st.booleans(), index=st.booleans())
    def restart(self, *, orderly: bool, index: bool) -> None:
        self._restart(orderly=orderly, index=index)

    def _restart(self, *, orderly: bool, index: bool = True) -> None:
        self._end(orderly=orderly)
        if not index:
            for path in self.layout.own.glob("index.sqlite*"):
                path.unlink()
            self.used.clear()
        self._begin()
        self._agrees()

    @rule(
        after=st.integers(0, 40),
        digests=st.sets(st.sampled_from(sorted(CONTENT, key=str)), min_size=1, max_size=4),
    )
    def death_in_a_removal(self, after: int, digests: AbstractSet[Digest]) -> None:
        self._die(after, lambda: self._remove(digests), digests)

    @rule(after=st.integers(0, 40), quota=st.sampled_from([0, 1500, 3000]))
    def death_in_tidying(self, after: int, quota: int) -> None:
        self.quota = quota
        self._die(after, lambda: self.janitor().tidy(), CONTENT.keys() - self._pinned())

    def _die(
        self, after: int, work: Callable[[], object], leaving: AbstractSet[Digest] = frozenset()
    ) -> None:
        """Die in the middle of some work, by which ``leaving`` may go, and begin again."""
        try:
            with dying(after):
                work()
        except Death:
            pass
        except BucketError:
            assert self.bucket is not None
            assert self.bucket.down
        self.published -= {digest for digest in leaving if not self._anywhere(digest)}
        self._restart(orderly=False)

    @rule()
    def rest(self) -> None:
        """Come to rest: nobody reads, a new process looks through all, and tends it."""
        if self.bucket is not None:
            self.bucket.down = False
        self._restart(orderly=True)
        self._tidy()
        for digest in sorted(self.published, key=str):
            if self._served(digest):
                if CONTENT[digest] in MANIFESTS:
                    self.pull_manifest(TAGS[0][0], digest)
                else:
                    self.pull_blob(TAGS[0][0], digest)

    # -- what holds --------------------------------------------------------------------------------

    def _served(self, digest: Digest) -> bool:
        """Whether it has to be served without the source."""
        return digest in self.published

    def _anywhere(self, digest: Digest) -> bool:
        return str(digest) in on_disk(self.layout)

    def _look(self) -> None:
        """Have the worker's view of the bucket be what is there."""

    def _agrees(self) -> None:
        """Assert that files, index and model agree."""
        files = on_disk(self.layout)
        rows = {row.digest: row for row in self.catalogue.rows()}
        assert {digest: row.size for digest, row in rows.items() if row.here} == files
        for digest in files:
            path = self.layout.blob(Digest.parse(digest))
            assert path.read_bytes() == CONTENT[Digest.parse(digest)], "wrong bytes on the disk"
        lost = {digest for digest in self.published if not self._anywhere(digest)}
        assert not lost, "published content was lost"
        tags = tags_on_disk(self.layout)
        for tag, digest in tags.items():
            assert digest in rows, f"a tag without its manifest: {tag}"
        assert tags == {(tag.repository, tag.tag): tag.digest for tag in self.catalogue.tags()}


class MirroredCaches(Caches):
    """The same with a bucket, whose uploads fail, and die, at every step."""

    mirrored = True
    bucket: FakeBucket

    def _begin(self) -> None:
        super()._begin()
        self.uploads = Mirror(self.layout, self.catalogue, self.bucket.as_bucket, lambda: False)
        if not self.bucket.down:
            self.uploads.learn()

    def _key(self, digest: Digest) -> str:
        return self.layout.key(self.layout.blob(digest))

    def _look(self) -> None:
        self.mirror.failing = broken(Failure.DOWN) if self.bucket.down else None
        self.mirror.blobs = {
            digest: self.bucket.objects_here[self._key(digest)]
            for digest in CONTENT
            if self._key(digest) in self.bucket.objects_here
        }

    def _served(self, digest: Digest) -> bool:
        here = str(digest) in on_disk(self.layout)
        return digest in self.published and (here or not self.bucket.down)

    def _anywhere(self, digest: Digest) -> bool:
        """Whether it is here, or in the bucket and not only yet to be deleted there."""
        key = self._key(digest)
        there = key in self.bucket.objects_here and key not in self.catalogue.buried()
        return super()._anywhere(digest) or there

    @rule()
    def upload(self) -> None:
        if not self.bucket.down:
            self.uploads.upload()
            assert self.catalogue.usage().pending == 0
            assert not self.catalogue.pending_links()
            assert not self.catalogue.pending_tags()
            self._agrees()

    @rule(tag=TAG, content=st.sampled_from(MANIFESTS), part=st.sampled_from([0, 40, 80]))
    def disk_gets_narrow(self, tag: tuple[Repository, Tag], content: bytes, part: int) -> None:
        """Have some on the disk that is in the bucket, and some that is not yet."""
        self.upload()
        self.pull_image(tag, content, partly=False)
        self.local = sum(on_disk(self.layout).values()) * part // 100
        self.tidy(None, flushed=True)

    @rule(down=st.booleans())
    def bucket_away(self, *, down: bool) -> None:
        self.bucket.down = down

    @rule(after=st.integers(0, 80))
    def death_in_an_upload(self, after: int) -> None:
        if not self.bucket.down:
            self._die(after, self.uploads.upload)

    @rule(after=st.integers(0, 30))
    def death_in_learning(self, after: int) -> None:
        if not self.bucket.down:
            self._die(after, self.uploads.learn)

    @rule()
    def disk_is_lost(self) -> None:
        """Begin with the bucket alone: all that had come there is served."""
        if self.bucket.down:
            return
        self._end(orderly=False)
        self.published = {
            digest for digest in self.published if self._key(digest) in self.bucket.objects_here
        }
        shutil.rmtree(self.layout.root)
        self.used.clear()
        self._begin()
        self._agrees()

    def _agrees(self) -> None:
        super()._agrees()
        rows = {row.digest: row for row in self.catalogue.rows()}
        for digest, content in CONTENT.items():
            there = self.bucket.objects_here.get(self._key(digest))
            assert there in (None, content), "wrong bytes in the bucket"
            row = rows.get(str(digest))
            assert row is None or not row.there or there is not None, "known, and not there"


async def _whole(reader: BlobReader) -> bytes:
    return await Reading(reader).whole()


def _fetched(content: bytes) -> FetchedManifest:
    digest = Digest.of(content)
    kind = "index" if content == INDEX else "manifest"
    return FetchedManifest(content, f"application/vnd.oci.image.{kind}.v1+json", digest)


_BELOW: Final = {
    IMAGES[0]: (BLOBS[1], BLOBS[2], BLOBS[3]),
    IMAGES[1]: (BLOBS[1], BLOBS[3], BLOBS[4]),
    IMAGES[2]: (BLOBS[2], BLOBS[0], BLOBS[5]),
    INDEX: (IMAGES[0], IMAGES[2]),
}


def _all_below(content: bytes) -> list[bytes]:
    found = []
    for each in _BELOW.get(content, ()):
        found += [each, *_all_below(each)]
    return found


_EDGES: Final = [
    (Digest.of(above), Digest.of(each)) for above, below in _BELOW.items() for each in below
]

_SETTINGS: Final = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)

TestCaches = Caches.TestCase
TestCaches.settings = _SETTINGS
TestMirroredCaches = MirroredCaches.TestCase
TestMirroredCaches.settings = _SETTINGS
