"""The index as the keeper sees it: sums, queues, and changes that a worker's may cross."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pullthrough.oci.digest import Digest
from pullthrough.store.catalogue import Catalogue, Found, LinkRow, TagRow, Usage
from pullthrough.store.index import Index, Named, prepare
from tests.store.kit import DIGEST, NAME, OTHER, SHA512, TAG

INNER = Digest.of(b"a manifest in an index")
TOP = Digest.of(b"an index")
TAG_ROW = TagRow(NAME.name, TAG.name, str(DIGEST))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "index.sqlite"


@pytest.fixture
def catalogue(path: Path) -> Iterator[Catalogue]:
    """Open one on an empty index."""
    prepare(path)
    with Catalogue(path) as opened:
        yield opened


def found(digest: Digest, size: int, changed: float = 0.0) -> Found:
    return Found(str(digest), size, changed)


def test_usage_counts_each_place(catalogue: Catalogue) -> None:
    """What is in both counts in both; what waits is what is here only."""
    assert catalogue.usage() == Usage(0, 0, 0)
    catalogue.found([found(DIGEST, 10), found(SHA512, 200)])
    catalogue.found_there([(str(SHA512), 200), (str(TOP), 3000)])
    assert catalogue.usage() == Usage(here=210, there=3200, pending=10)
    assert [row.digest for row in catalogue.pending()] == [str(DIGEST)]
    catalogue.uploaded(DIGEST)
    assert catalogue.usage() == Usage(here=210, there=3210, pending=0)
    assert catalogue.pending() == []


def test_found_is_used_lately_in_the_order_of_its_age(catalogue: Catalogue) -> None:
    """Nothing expires only because the index was lost, and the oldest still goes first."""
    now = time.time()
    year = 365 * 24 * 3600
    ages = {DIGEST: 3 * year, SHA512: year, TOP: 60, INNER: -60}  # a clock that went back
    catalogue.found(found(digest, 1, now - age) for digest, age in ages.items())
    used = {row.digest: row.used for row in catalogue.rows()}
    ordered = sorted(ages, key=lambda digest: used[str(digest)])
    assert ordered[:3] == [DIGEST, SHA512, TOP]
    assert min(used.values()) > now - 168 * 3600
    assert max(used.values()) <= time.time()


async def test_found_does_not_take_away_what_is_known(catalogue: Catalogue, path: Path) -> None:
    """What a worker has verified meanwhile stays verified, and as lately used as it was."""
    index = Index(path)
    await index.open()
    await index.add_blob(DIGEST, 10)
    await index.close()
    before = catalogue.row(DIGEST)
    catalogue.found([found(DIGEST, 10)])
    assert catalogue.row(DIGEST) == before
    catalogue.found_there([(str(DIGEST), 99)])
    assert before is not None
    assert catalogue.row(DIGEST) == before._replace(there=True)


def test_gone_from_one_place(catalogue: Catalogue) -> None:
    """What is no longer here is no longer verified; what is nowhere has no row."""
    catalogue.found([found(DIGEST, 10), found(SHA512, 10)])
    catalogue.set_verified(DIGEST, verified=True)
    catalogue.uploaded(DIGEST)
    catalogue.not_here([str(DIGEST), str(SHA512)])
    (row,) = catalogue.rows()
    assert (row.digest, row.verified, row.here, row.there) == (str(DIGEST), False, False, True)
    catalogue.not_there([str(DIGEST)])
    assert catalogue.rows() == []
    catalogue.not_here([])


def test_removed_altogether(catalogue: Catalogue) -> None:
    """With it goes all that is said of it, and nothing that is said of others."""
    for digest in (TOP, INNER):
        catalogue.found([found(digest, 10)])
        catalogue.add_names(digest, [Named(DIGEST, 1)])
        catalogue.add_links([LinkRow(str(digest), "revisions", NAME.name)])
    catalogue.add_tags([TAG_ROW._replace(digest=str(TOP)), TagRow(NAME.name, "v2", str(INNER))])
    catalogue.removed([str(TOP)])
    assert [row.digest for row in catalogue.rows()] == [str(INNER)]
    assert catalogue.refers() == [(str(INNER), str(DIGEST))]
    assert catalogue.links("revisions") == [LinkRow(str(INNER), "revisions", NAME.name)]
    assert catalogue.tags() == [TagRow(NAME.name, "v2", str(INNER))]
    assert catalogue.tags_of(str(TOP)) == []


def test_repository_of_what_is_named(catalogue: Catalogue) -> None:
    """A layer's is found by the manifest in an index that a repository has."""
    catalogue.add_names(TOP, [Named(INNER, 1, is_manifest=True)])
    catalogue.add_names(INNER, [Named(DIGEST, 1)])
    assert catalogue.repository_of(str(DIGEST)) is None
    catalogue.add_links([LinkRow(str(TOP), "revisions", OTHER.name)])
    for digest in (TOP, INNER, DIGEST):
        assert catalogue.repository_of(str(digest)) == OTHER.name
    assert catalogue.repository_of(str(SHA512)) is None


def test_repository_of_manifests_that_name_one_another(catalogue: Catalogue) -> None:
    """No upstream can make such a ring, but a wrong index must not hang the keeper."""
    catalogue.add_names(TOP, [Named(INNER, 1)])
    catalogue.add_names(INNER, [Named(TOP, 1)])
    assert catalogue.repository_of(str(TOP)) is None


def test_unread_are_manifests_that_are_here(catalogue: Catalogue) -> None:
    """Linked as one, on the disk, and not known what it names: once each."""
    catalogue.found([found(TOP, 1), found(INNER, 1), found(DIGEST, 1)])
    catalogue.found_there([(str(SHA512), 1)])
    for repository in (NAME, OTHER):
        for digest in (TOP, INNER, SHA512):
            catalogue.add_links([LinkRow(str(digest), "revisions", repository.name)])
    catalogue.add_links([LinkRow(str(DIGEST), "layers", NAME.name)])
    catalogue.add_names(INNER, [Named(DIGEST, 1)])
    assert catalogue.unread() == [TOP]


def test_names_go_to_the_bucket_after_what_they_name(catalogue: Catalogue) -> None:
    """A link or a tag waits until its content is there, and goes once."""
    link = LinkRow(str(DIGEST), "revisions", NAME.name)
    catalogue.found([found(DIGEST, 1)])
    catalogue.add_links([link])
    catalogue.add_tags([TAG_ROW])
    assert (catalogue.pending_links(), catalogue.pending_tags()) == ([], [])
    catalogue.uploaded(DIGEST)
    assert (catalogue.pending_links(), catalogue.pending_tags()) == ([link], [TAG_ROW])
    catalogue.linked_there(link)
    catalogue.tagged_there(TAG_ROW)
    assert (catalogue.pending_links(), catalogue.pending_tags()) == ([], [])


def test_tag_that_moved_while_it_went(catalogue: Catalogue) -> None:
    """What is in the bucket is what it was: it still is to go as it is now."""
    catalogue.found([found(DIGEST, 1), found(SHA512, 1)])
    for digest in (DIGEST, SHA512):
        catalogue.uploaded(digest)
    catalogue.add_tags([TAG_ROW])
    moved = TAG_ROW._replace(digest=str(SHA512))
    catalogue.add_tags([moved])
    catalogue.tagged_there(TAG_ROW)
    assert catalogue.pending_tags() == [moved]
    catalogue.remove_tags([TAG_ROW])
    assert catalogue.tags() == [moved]


def test_what_is_found_in_the_bucket_need_not_go_there(catalogue: Catalogue) -> None:
    """Links and tags that were read from it are there."""
    catalogue.found_there([(str(DIGEST), 1)])
    catalogue.add_links([LinkRow(str(DIGEST), "revisions", NAME.name)], there=True)
    catalogue.add_tags([TAG_ROW], there=True)
    assert (catalogue.pending_links(), catalogue.pending_tags()) == ([], [])


async def test_tag_found_as_it_is_keeps_its_check(catalogue: Catalogue, path: Path) -> None:
    """What is found again is as fresh as it was; what is found changed is not."""
    index = Index(path)
    await index.open()
    await index.set_checked(NAME, TAG, DIGEST, 1000.0)
    catalogue.add_tags([TAG_ROW])
    assert await index.checked(NAME, TAG, DIGEST) == 1000.0
    catalogue.add_tags([TAG_ROW._replace(digest=str(SHA512))])
    assert await index.checked(NAME, TAG, SHA512) == 0.0
    await index.close()


async def test_old_listings_are_forgotten(catalogue: Catalogue, path: Path) -> None:
    """Those that were last seen before a time, and no others."""
    index = Index(path)
    await index.open()
    await index.set_listing(NAME, "old", b"[]")
    between = time.time()
    await index.set_listing(NAME, "new", b"[]")
    catalogue.forget_listings(between)
    assert await index.listing(NAME, "old") is None
    assert await index.listing(NAME, "new") is not None
    await index.close()


def test_notes(catalogue: Catalogue) -> None:
    """The last word counts."""
    assert catalogue.noted("name") is None
    catalogue.note("name", "one")
    catalogue.note("name", "two")
    assert catalogue.noted("name") == "two"


async def test_buried_until_deleted(catalogue: Catalogue, path: Path) -> None:
    """What a worker wants deleted the keeper finds, until it says that it is done."""
    index = Index(path)
    await index.open()
    await index.bury("a")
    await index.bury("b")
    await index.close()
    assert sorted(catalogue.buried()) == ["a", "b"]
    catalogue.unbury("a", None)
    assert catalogue.buried() == ["b"]
    catalogue.found([Found(str(DIGEST), 10, 0.0)])
    catalogue.uploaded(DIGEST)
    catalogue.unbury("b", DIGEST)
    assert catalogue.buried() == []
    assert [row.there for row in catalogue.rows()] == [False]


def test_many_are_written_in_turns(catalogue: Catalogue) -> None:
    """However many there are, no change holds the workers' writes up for longer than a batch."""
    batches: list[int] = []

    def traced(statement: str) -> None:
        if statement.startswith("BEGIN"):
            batches.append(0)
        elif "INSERT" in statement:
            batches[-1] += 1

    catalogue._connection.set_trace_callback(traced)
    catalogue.found(found(Digest.of(b"%d" % number), 1) for number in range(1201))
    catalogue._connection.set_trace_callback(None)
    assert batches == [500, 500, 201]
    assert catalogue.usage().here == 1201


def test_errors_are_told(catalogue: Catalogue) -> None:
    """Unlike a worker's shortcuts: who tends the store is to know, and tries again."""
    catalogue._connection.execute("PRAGMA query_only=ON")
    with pytest.raises(sqlite3.Error):
        catalogue.found([found(DIGEST, 1)])
    with pytest.raises(sqlite3.Error):
        catalogue.note("name", "value")
