"""Content fetched again from the upstream, by the very parts that a worker has for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Final

from pullthrough import parts
from pullthrough.cache.base import Moved
from pullthrough.cache.blobs import Blobs
from pullthrough.cache.download import Persistence
from pullthrough.cache.manifests import Freshness, Manifests
from pullthrough.config import Config
from pullthrough.oci.digest import Digest
from pullthrough.oci.errors import RegistryError
from pullthrough.oci.reference import Repository
from pullthrough.store.catalogue import Catalogue
from pullthrough.store.filesystem import FileStore
from pullthrough.store.layout import Layout
from pullthrough.upstream.client import RegistryClient

_POLL: Final = 0.01
"""Seconds between looks whether a fill has come to its end."""


def fetch(
    config: Config,
    layout: Layout,
    catalogue: Catalogue,
    digests: Collection[str],
    progressed: Callable[[str], None],
) -> dict[str, str]:
    """Fetch ``digests``; return those that could not be had, with why. Raises ConfigError."""
    return asyncio.run(_fetch(config, layout, catalogue, digests, progressed))


@dataclass(frozen=True, slots=True)
class _Parts:
    store: FileStore
    manifests: Manifests
    blobs: Blobs


async def _fetch(
    config: Config,
    layout: Layout,
    catalogue: Catalogue,
    digests: Collection[str],
    progressed: Callable[[str], None],
) -> dict[str, str]:
    failed: dict[str, str] = {}
    async with _cache(config, layout) as cache:
        for text in digests:
            repository = catalogue.repository_of(text)
            if repository is None:
                failed[text] = "no repository is known to have it"
                continue
            is_manifest = any(link.kind == "revisions" for link in catalogue.links_of(text))
            try:
                await _one(cache, Repository(repository), Digest.parse(text), manifest=is_manifest)
            except RegistryError as error:
                failed[text] = error.message
            else:
                stored = await cache.store.open_blob(Digest.parse(text))
                if stored is None:
                    failed[text] = "it came, but could not be kept"
                else:
                    stored.file.close()
            progressed(text)
    return failed


@asynccontextmanager
async def _cache(config: Config, layout: Layout) -> AsyncIterator[_Parts]:
    async with AsyncExitStack() as stack:
        store = FileStore(layout, make_room=parts.making_room(config, layout))
        stack.push_async_callback(store.close)
        await store.open()
        source = await stack.enter_async_context(RegistryClient(parts.upstream(config.proxy)))
        patience = config.proxy.timeouts.firstbyte
        freshness = Freshness(0.0, config.proxy.freshness.deadline, time.time, patience)
        manifests = Manifests(store, store.locks, source, freshness)
        stack.push_async_callback(manifests.close)
        blobs = Blobs(store, source, Persistence(config.proxy.retries, patience=patience))
        stack.push_async_callback(blobs.close)
        yield _Parts(store, manifests, blobs)


async def _one(cache: _Parts, repository: Repository, digest: Digest, *, manifest: bool) -> None:
    """Fetch one thing to its end; raises :class:`RegistryError`."""
    if manifest:
        await cache.manifests.get(repository, digest)
        return
    reader = await cache.blobs.open(repository, digest)
    if isinstance(reader, Moved):  # not without a mirror
        raise TypeError("sent to a bucket that it was not given")
    try:
        async for _ in reader.pieces(0, None):
            pass
    finally:
        reader.close()
    # What has been read is not yet safe on the disk, and a fill tells nobody that it has ended.
    while cache.blobs.filling:  # noqa: ASYNC110 - it has no event
        await asyncio.sleep(_POLL)
