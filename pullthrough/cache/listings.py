"""Lists: tags and referrers as the upstream gives them, or gave them last; and what is cached."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import orjson
import structlog

from pullthrough.cache.base import Listing, Outcome, Served
from pullthrough.cache.freshness import Plan, Verdict, absent, plan, settle
from pullthrough.cache.manifests import Freshness, within
from pullthrough.oci import referrers
from pullthrough.oci.digest import Digest
from pullthrough.oci.errors import NameUnknown
from pullthrough.oci.reference import Repository, referrers_tag
from pullthrough.singleflight import SingleFlight, unhurried
from pullthrough.store.base import ListingStore
from pullthrough.upstream.base import Failure, Source, UpstreamError

_log = structlog.get_logger()

_TAGS = "tags"


class Listings:
    """All lists of one worker."""

    def __init__(self, store: ListingStore, source: Source, freshness: Freshness) -> None:
        self._store, self._source, self._freshness = store, source, freshness
        self._asking: SingleFlight[tuple[Repository, str], bytes] = SingleFlight()

    async def close(self) -> None:
        """End what is under way."""
        await self._asking.close()

    async def tags(self, repository: Repository) -> tuple[tuple[str, ...], Served]:
        """Return a repository's tags, sorted; raises :class:`RegistryError`."""

        async def ask() -> bytes:
            # By bytes, as the spec wants it: tags are ASCII.
            return orjson.dumps(sorted(set(await self._source.tags(repository))))

        async def fall_back() -> bytes | None:
            cached = await self._store.cached_tags(repository)
            return orjson.dumps(cached) if cached else None

        listing = await self._list(repository, _TAGS, ask, fall_back)
        return tuple(orjson.loads(listing.body)), listing.served

    async def referrers(self, repository: Repository, digest: Digest) -> Listing:
        """Return the image index of what refers to ``digest``; raises :class:`RegistryError`."""

        async def ask() -> bytes:
            body = await self._source.referrers(repository, digest)
            if body is None:
                body = await self._by_tag(repository, digest)
            try:
                referrers.parse(body)
            except ValueError as error:
                raise UpstreamError(Failure.INVALID, "not a referrers list") from error
            return body

        async def fall_back() -> bytes | None:
            # An empty list would say that nothing is signed: better to say that nobody knows.
            return None

        return await self._list(repository, str(digest), ask, fall_back)

    async def repositories(self) -> tuple[str, ...]:
        """Return the repositories of which something is cached, sorted."""
        return await self._store.repositories()

    async def _by_tag(self, repository: Repository, digest: Digest) -> bytes:
        """Return what an upstream without the referrers API keeps under a tag instead."""
        try:
            fetched = await self._source.get_manifest(repository, referrers_tag(digest))
        except UpstreamError as error:
            if error.failure is Failure.NOT_FOUND:
                return referrers.EMPTY
            raise
        return fetched.content

    async def _list(
        self,
        repository: Repository,
        subject: str,
        ask: Callable[[], Awaitable[bytes]],
        fall_back: Callable[[], Awaitable[bytes | None]],
    ) -> Listing:
        """Answer by the same rules as for a tag (cache/freshness.py)."""
        seen = await self._store.read_listing(repository, subject)
        last = await fall_back() if seen is None else seen[0]
        age = None if last is None else self._freshness.clock() - (seen[1] if seen else 0.0)
        decision = plan(age=age, maxage=self._freshness.maxage, up=self._source.up)
        if last is not None and decision is Plan.HIT:
            return Listing(last, Served(Outcome.HIT))
        if last is not None and decision is Plan.STALE:
            return Listing(last, Served(Outcome.STALE, Failure.DOWN.value))

        async def ask_and_remember() -> bytes:
            async with within(self._freshness.patience):
                body = await ask()
            await self._store.write_listing(repository, subject, body)
            return body

        task, joined = self._asking.join((repository, subject), ask_and_remember)
        outcome = Outcome.COLLAPSED if joined else Outcome.MISS
        if last is not None:
            await asyncio.wait((task,), timeout=self._freshness.deadline)
            if not task.done():
                self._source.overdue()
                return Listing(last, Served(Outcome.STALE, "deadline"))
        try:
            return Listing(await unhurried(task), Served(outcome))
        except UpstreamError as error:
            verdict = None if last is None else settle(error.failure, up=True)
            if last is None or verdict in (Verdict.GONE, Verdict.REFUSED):
                raise absent(error, NameUnknown) from error
            return Listing(last, Served(Outcome.STALE, error.failure.value))
