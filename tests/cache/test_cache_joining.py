"""Who joins when all the bytes are here, and only the links are still being written."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Final

import pytest

from pullthrough.oci.digest import Digest
from pullthrough.oci.reference import Repository
from tests.cache.scripted import NAME, OTHER, FakeSource, until
from tests.cache.worker import Reading, Worker

CONTENT = random.Random(5).randbytes(300_000)  # noqa: S311 - an example, not a secret
DIGEST = Digest.of(CONTENT)
LATE: Final = Repository("library/late")


@pytest.mark.parametrize("found", [False, True], ids=["fill", "verification"])
async def test_joined_while_links_are_written(
    worker: Worker, source: FakeSource, monkeypatch: pytest.MonkeyPatch, *, found: bool
) -> None:
    """One more repository at that moment spoils it for nobody, and costs nobody a link."""
    source.add(CONTENT)
    if found:
        worker.put(DIGEST, CONTENT)
    for repository in (NAME, OTHER, LATE):
        await worker.name(Digest.of(b"something else"), 14, repository)
    asked, linking, go_on = asyncio.Event(), asyncio.Event(), asyncio.Event()
    in_thread, link_blob = worker.store.in_thread, worker.store.link_blob

    async def once_both_asked(work: Callable[[], int]) -> int:
        await asked.wait()
        return await in_thread(work)

    async def slowly(repository: Repository, digest: Digest) -> None:
        linking.set()
        await go_on.wait()
        await link_blob(repository, digest)

    monkeypatch.setattr(worker.store, "in_thread", once_both_asked)
    monkeypatch.setattr(worker.store, "link_blob", slowly)
    opening = [asyncio.create_task(worker.open(name, DIGEST)) for name in (NAME, OTHER)]
    await until(
        lambda: any(
            growing.repositories == {NAME, OTHER} for growing in worker.blobs._growing.values()
        ),
        "both have asked",
    )
    asked.set()
    await linking.wait()
    late = await worker.open(LATE, DIGEST)
    go_on.set()
    for reader in (late, *await asyncio.gather(*opening)):
        assert await Reading(reader).whole() == CONTENT
    await until(lambda: not worker.blobs.filling, "it ended")
    assert len(source.asked) == (not found)
    for repository in (NAME, OTHER):
        assert worker.layout.link(repository, "layers", DIGEST).read_text() == str(DIGEST)
    # The late one has its link at its next use at the latest, as whoever finds the blob here has.
    (await worker.open(LATE, DIGEST)).close()
    assert worker.layout.link(LATE, "layers", DIGEST).read_text() == str(DIGEST)
