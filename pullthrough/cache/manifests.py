"""Manifests and tags: what a reference is, from here or from the upstream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import structlog
from cachetools import LRUCache

from pullthrough.cache.base import HIT, ManifestAnswer, Outcome, Served
from pullthrough.cache.freshness import Plan, Verdict, absent, plan, settle
from pullthrough.oci import manifest as manifests
from pullthrough.oci.digest import Digest
from pullthrough.oci.errors import Denied, ManifestUnknown, RegistryError
from pullthrough.oci.reference import Repository, Tag
from pullthrough.singleflight import SingleFlight, unhurried
from pullthrough.store.base import Locking, ManifestStore, StoredManifest, StoredTag
from pullthrough.upstream.base import Failure, Source, UpstreamError

_log = structlog.get_logger()

_HOT_BYTES: Final = 32 << 20
_HOT_TAGS: Final = 50_000


@dataclass(frozen=True, slots=True)
class Freshness:
    """For how long a tag is believed unasked, and how long its check may keep a client waiting.

    Both in seconds, as is ``patience``: how long one waits that nothing is cached for, for other
    workers too. ``clock`` is Unix time, as what was checked when outlives the process.
    """

    maxage: float
    deadline: float
    clock: Callable[[], float]
    patience: float = 25.0


@dataclass(frozen=True, slots=True)
class _Checked:
    manifest: StoredManifest
    outcome: Outcome


class Manifests:
    """All manifests of one worker."""

    def __init__(
        self, store: ManifestStore, locks: Locking, source: Source, freshness: Freshness
    ) -> None:
        self._store, self._locks, self._source = store, locks, source
        self._freshness = freshness
        self._hot: LRUCache[Digest, StoredManifest] = LRUCache(
            _HOT_BYTES, getsizeof=lambda manifest: len(manifest.content) * 2 + 1024
        )
        self._seen = store.generation
        self._tags: LRUCache[tuple[Repository, Tag], StoredTag] = LRUCache(_HOT_TAGS)
        self._checks: SingleFlight[tuple[Repository, Tag], _Checked] = SingleFlight()
        self._fetches: SingleFlight[tuple[Repository, Digest], StoredManifest] = SingleFlight()

    async def get(self, repository: Repository, reference: Tag | Digest) -> ManifestAnswer:
        """Return the manifest; raises :class:`RegistryError` where there is none to give."""
        if isinstance(reference, Digest):
            return await self._by_digest(repository, reference)
        return await self._by_tag(repository, reference)

    async def close(self) -> None:
        """End what is under way."""
        await self._checks.close()
        await self._fetches.close()

    # -- by digest: once here, never asked for again -----------------------------------------------

    async def _by_digest(self, repository: Repository, digest: Digest) -> ManifestAnswer:
        manifest = await self._local(digest)
        if manifest is not None:
            await self._store.link_manifest(repository, digest)
            return _answer(manifest, HIT)
        task, joined = self._fetches.join(
            (repository, digest), lambda: self._fetch_once(repository, digest)
        )
        try:
            manifest = await unhurried(task)
        except UpstreamError as error:
            raise absent(error, ManifestUnknown) from error
        return _answer(manifest, Served(Outcome.COLLAPSED if joined else Outcome.MISS))

    async def _fetch_once(self, repository: Repository, digest: Digest) -> StoredManifest:
        async with (
            within(self._freshness.patience),
            self._locks.hold(f"manifest {repository}@{digest}") as waited,
        ):
            manifest = await self._local(digest) if waited else None
            return manifest or await self._fetch(repository, digest)

    # -- by tag ------------------------------------------------------------------------------------

    async def _by_tag(self, repository: Repository, tag: Tag) -> ManifestAnswer:
        key, now = (repository, tag), self._freshness.clock()
        entry = self._tags.get(key)
        decision = self._plan(entry, now)
        if decision is not Plan.HIT:
            # Another worker may know better than this one's memory.
            entry = await self._store.read_tag(repository, tag)
            decision = self._plan(entry, now)
            if decision is Plan.HIT and entry is not None:
                self._tags[key] = entry
        manifest = None if entry is None else await self._local(entry.digest)
        if entry is None or manifest is None:
            return await self._fetch_tag(key, now)
        if decision is Plan.HIT:
            return _answer(manifest, HIT)
        if decision is Plan.STALE:
            return _answer(manifest, Served(Outcome.STALE, Failure.DOWN.value))
        return await self._revalidate(key, now, manifest)

    def _plan(self, entry: StoredTag | None, now: float) -> Plan:
        return plan(
            age=None if entry is None else now - entry.checked,
            maxage=self._freshness.maxage,
            up=self._source.up,
        )

    async def _fetch_tag(self, key: tuple[Repository, Tag], now: float) -> ManifestAnswer:
        task, joined = self._checks.join(key, lambda: self._check(*key, now))
        try:
            checked = await unhurried(task)
        except UpstreamError as error:
            raise absent(error, ManifestUnknown) from error
        outcome = Outcome.COLLAPSED if joined else checked.outcome
        return _answer(checked.manifest, Served(outcome))

    async def _revalidate(
        self, key: tuple[Repository, Tag], now: float, manifest: StoredManifest
    ) -> ManifestAnswer:
        task, joined = self._checks.join(key, lambda: self._check(*key, now))
        await asyncio.wait((task,), timeout=self._freshness.deadline)
        if not task.done():
            # The check goes on behind, and tells when the upstream is back.
            self._source.overdue()
            return _answer(manifest, Served(Outcome.STALE, "deadline"))
        try:
            checked = task.result()
        except UpstreamError as error:
            # What comes of it was settled where it was asked: see _check.
            if (refusal := _believed(error)) is not None:
                raise refusal from error
            return _answer(manifest, Served(Outcome.STALE, error.failure.value))
        outcome = checked.outcome
        if joined and outcome is Outcome.MISS:
            outcome = Outcome.COLLAPSED
        return _answer(checked.manifest, Served(outcome))

    async def _check(self, repository: Repository, tag: Tag, asked: float) -> _Checked:
        """Ask the upstream what ``tag`` is, once over all workers; raises :class:`UpstreamError`.

        NOT_FOUND and POLICY are raised only where they are believed.
        """
        key = (repository, tag)
        async with (
            within(self._freshness.patience),
            self._locks.hold(f"tag {repository}:{tag}") as waited,
        ):
            entry = await self._store.read_tag(repository, tag)
            manifest = None if entry is None else await self._local(entry.digest)
            if waited and entry is not None and manifest is not None and entry.checked >= asked:
                self._tags[key] = entry
                return _Checked(manifest, Outcome.REVALIDATED)
            try:
                checked = await self._ask(repository, tag, manifest)
            except UpstreamError as error:
                if manifest is None:
                    raise
                # Later than the deadline it is the answer of an upstream that counted as down.
                late = self._freshness.clock() - asked > self._freshness.deadline
                verdict = settle(error.failure, up=not late)
                if verdict is Verdict.GONE:
                    self._tags.pop(key, None)
                    await self._remove(repository, tag)
                elif verdict is Verdict.STALE_LOUD:
                    _log.error(
                        "the upstream refuses our credential, serving what is cached",
                        repository=str(repository), tag=str(tag), why=error.failure.value,
                    )  # fmt: skip
                if error.failure is Failure.NOT_FOUND and verdict is Verdict.STALE:
                    raise UpstreamError(Failure.DOWN, "not found, while it was down") from error
                raise
            await self._remember(repository, tag, checked.manifest.digest)
            return checked

    async def _ask(
        self, repository: Repository, tag: Tag, manifest: StoredManifest | None
    ) -> _Checked:
        if manifest is None:
            return _Checked(await self._fetch(repository, tag), Outcome.MISS)
        head = await self._source.head_manifest(repository, tag)
        if head.digest == manifest.digest:
            return _Checked(manifest, Outcome.REVALIDATED)
        moved = await self._local(head.digest)
        if moved is not None:
            await self._store.link_manifest(repository, head.digest)
            return _Checked(moved, Outcome.REVALIDATED)
        try:
            return _Checked(await self._fetch(repository, head.digest), Outcome.MISS)
        except UpstreamError as error:
            if error.failure is not Failure.NOT_FOUND:
                raise
            # A replica that is behind, say: it is not the tag that is gone.
            raise UpstreamError(
                Failure.INVALID, f"the tag's manifest is missing: {error}"
            ) from error

    async def _remember(self, repository: Repository, tag: Tag, digest: Digest) -> None:
        when = self._freshness.clock()
        self._tags[(repository, tag)] = StoredTag(digest, when)
        try:
            await self._store.write_tag(repository, tag, digest, when)
        except OSError as error:
            _log.warning("a tag was not kept", repository=str(repository), error=error.strerror)

    async def _remove(self, repository: Repository, tag: Tag) -> None:
        try:
            await self._store.remove_tag(repository, tag)
        except OSError as error:
            _log.warning("a tag was not removed", repository=str(repository), error=error.strerror)

    # -- content -----------------------------------------------------------------------------------

    async def _local(self, digest: Digest) -> StoredManifest | None:
        if self._seen != self._store.generation:
            self._seen = self._store.generation
            self._hot.clear()
            self._tags.clear()
        manifest = self._hot.get(digest)
        if manifest is not None:
            self._store.touch(digest)
        else:
            manifest = await self._store.read_manifest(digest)
            if manifest is not None:
                self._keep_hot(manifest)
        return manifest

    def _keep_hot(self, manifest: StoredManifest) -> None:
        if self._hot.getsizeof(manifest) <= self._hot.maxsize:
            self._hot[manifest.digest] = manifest

    async def _fetch(self, repository: Repository, reference: Tag | Digest) -> StoredManifest:
        """Fetch, verify and keep a manifest; raises :class:`UpstreamError`."""
        fetched = await self._source.get_manifest(repository, reference)
        expected = reference if isinstance(reference, Digest) else fetched.claimed
        digest = Digest.of(fetched.content, expected.algorithm if expected else "sha256")
        if expected is not None and digest != expected:
            raise UpstreamError(Failure.INVALID, f"asked for {expected}, was sent {digest}")
        try:
            parsed = manifests.parse(fetched.content, fetched.content_type)
        except manifests.ManifestInvalid as error:
            raise UpstreamError(Failure.INVALID, f"not a manifest: {error}") from error
        manifest = StoredManifest(digest, fetched.content, parsed)
        self._keep_hot(manifest)
        try:
            await self._store.write_manifest(repository, manifest)
        except OSError as error:
            _log.warning("a manifest was not kept", digest=str(digest), error=error.strerror)
        return manifest


@asynccontextmanager
async def within(seconds: float) -> AsyncIterator[None]:
    """Bound what waits for others and then asks itself; raises :class:`UpstreamError` TIMEOUT."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise UpstreamError(Failure.TIMEOUT, f"no answer in {seconds:g} s") from None


def _believed(error: UpstreamError) -> RegistryError | None:
    if error.failure is Failure.NOT_FOUND:
        return ManifestUnknown(str(error))
    if error.failure is Failure.POLICY:
        return Denied(str(error))
    return None


def _answer(manifest: StoredManifest, served: Served) -> ManifestAnswer:
    return ManifestAnswer(manifest.digest, manifest.parsed.media_type, manifest.content, served)
