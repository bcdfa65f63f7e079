"""The index: shortcuts that can be lost, and whose failure is never a pull's."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import LogCapture

from pullthrough.oci.digest import Digest
from pullthrough.oci.reference import Tag
from pullthrough.store import index as index_module
from pullthrough.store.catalogue import Catalogue
from pullthrough.store.index import MIRROR_KNOWN, Index, Named, prepare
from tests.store.kit import DIGEST, NAME, OTHER, SHA512, TAG

MANIFEST = Digest.of(b"a manifest")
INNER = Digest.of(b"a manifest in an index")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "index.sqlite"


Open = Callable[[], Awaitable[Index]]


@pytest.fixture
async def opened(path: Path) -> AsyncIterator[Open]:
    """Open the index, as often as wanted, as each worker does."""
    made: list[Index] = []
    prepare(path)

    async def open_one() -> Index:
        made.append(Index(path))
        await made[-1].open()
        return made[-1]

    yield open_one
    for each in made:
        await each.close()


def rows(path: Path, sql: str) -> list[Any]:
    """Return what stands in the file."""
    connection = sqlite3.connect(path)
    try:
        return connection.execute(sql).fetchall()
    finally:
        connection.close()


async def fill(index: Index) -> None:
    """Put one of everything."""
    await index.add_blob(DIGEST, 10)
    await index.add_manifest(NAME, MANIFEST, 30, [Named(SHA512, 20)])
    await index.set_checked(NAME, TAG, DIGEST, 1000.5)
    await index.set_listing(NAME, "tags", b"[]")


async def assert_all_there(index: Index) -> None:
    assert await index.verified(DIGEST)
    assert await index.size_of(SHA512) == 20
    assert await index.checked(NAME, TAG, DIGEST) == 1000.5
    listing = await index.listing(NAME, "tags")
    assert listing is not None
    assert listing[0] == b"[]"


async def assert_nothing_known(index: Index) -> None:
    assert not await index.verified(DIGEST)
    assert await index.size_of(SHA512) is None
    assert await index.checked(NAME, TAG, DIGEST) == 0.0
    assert await index.listing(NAME, "tags") is None


async def test_prepared_again_it_is_the_same(path: Path) -> None:
    """What is known stays known over a start, whether it is in use or not."""
    prepare(path)
    index = Index(path)
    await index.open()
    await fill(index)
    prepare(path)
    await assert_all_there(index)
    await index.close()
    prepare(path)
    index = Index(path)
    await index.open()
    await assert_all_there(index)
    await index.close()


async def test_what_is_put_is_there_for_all(opened: Open) -> None:
    """Workers share it: what one puts the others know, and a later start too."""
    one, other = await opened(), await opened()
    await assert_nothing_known(one)
    await fill(one)
    await assert_all_there(other)
    await assert_all_there(await opened())


async def test_forgetting(opened: Open) -> None:
    """What is no longer here is no longer verified, and a removed tag no longer checked."""
    index = await opened()
    await fill(index)
    await index.set_checked(NAME, Tag("v2"), DIGEST, 1.0)
    await index.set_checked(OTHER, TAG, DIGEST, 2.0)
    await index.forget_blob(DIGEST)
    await index.forget_tag(NAME, TAG)
    assert not await index.verified(DIGEST)
    assert await index.checked(NAME, TAG, DIGEST) == 0.0
    assert await index.checked(NAME, Tag("v2"), DIGEST) == 1.0
    assert await index.checked(OTHER, TAG, DIGEST) == 2.0


async def test_check_is_of_a_digest(opened: Open) -> None:
    """A link that another program changed is not as fresh as the one that was checked."""
    index = await opened()
    await index.set_checked(NAME, TAG, DIGEST, 1000.0)
    assert await index.checked(NAME, TAG, SHA512) == 0.0


# -- content ---------------------------------------------------------------------------------------


async def test_manifest_is_content_that_names_others(opened: Open, path: Path) -> None:
    """It is here and verified; what it names is not, but is remembered with size and kind."""
    index = await opened()
    names = [Named(DIGEST, 10), Named(INNER, 20, "linux/amd64", is_manifest=True)]
    await index.add_manifest(NAME, MANIFEST, 30, names)
    assert await index.verified(MANIFEST)
    assert not await index.verified(DIGEST)
    with Catalogue(path) as catalogue:
        assert [row[:2] + row[3:] for row in catalogue.rows()] == [
            (str(MANIFEST), 30, True, True, False)
        ]
        assert set(catalogue.named(str(MANIFEST))) == set(names)
        assert catalogue.links_of(str(MANIFEST)) == [(str(MANIFEST), "revisions", NAME.name)]


async def test_manifest_links_the_layers_that_are_known(opened: Open, path: Path) -> None:
    """What is here of it becomes its repository's: layers, not the manifests in an index."""
    index = await opened()
    await index.add_blob(DIGEST, 10)
    await index.add_manifest(OTHER, INNER, 20, [])
    names = [Named(DIGEST, 10), Named(SHA512, 10), Named(INNER, 20, is_manifest=True)]
    await index.add_manifest(NAME, MANIFEST, 30, names)
    with Catalogue(path) as catalogue:
        assert catalogue.links("layers") == [(str(DIGEST), "layers", NAME.name)]


@pytest.mark.parametrize(
    ("sizes", "known"),
    [((None,), None), ((0,), 0), ((7, 7), 7), ((7, None), 7), ((7, 8), None), ((0, 8), None)],
)
async def test_size_is_what_manifests_agree_on(
    opened: Open, sizes: tuple[int | None, ...], known: int | None
) -> None:
    """Docker's schema 1 tells none, which is no error; of two that differ neither is believed."""
    index = await opened()
    for number, size in enumerate(sizes):
        digest = Digest.of(b"manifest %d" % number)
        await index.add_manifest(NAME, digest, 1, [Named(DIGEST, size)])
    assert await index.size_of(DIGEST) == known


async def test_link_is_remembered_once(opened: Open, path: Path) -> None:
    """However often it is said."""
    index = await opened()
    for repository in (NAME, OTHER, NAME):
        await index.add_link(repository, DIGEST, "layers")
    with Catalogue(path) as catalogue:
        assert sorted(catalogue.links_of(str(DIGEST))) == [
            (str(DIGEST), "layers", NAME.name),
            (str(DIGEST), "layers", OTHER.name),
        ]


# -- the bucket ------------------------------------------------------------------------------------


async def test_what_left_the_disk_may_be_in_the_bucket(opened: Open, path: Path) -> None:
    """Its size stays known for as long as it is somewhere; what is nowhere is forgotten."""
    index = await opened()
    await index.add_blob(DIGEST, 10)
    assert await index.there(DIGEST) is None
    with Catalogue(path) as catalogue:
        catalogue.uploaded(DIGEST)
    assert await index.there(DIGEST) == 10
    await index.forget_blob(DIGEST)
    assert not await index.verified(DIGEST)
    assert await index.there(DIGEST) == 10
    await index.not_there(DIGEST)
    assert await index.there(DIGEST) is None
    assert rows(path, "SELECT * FROM blob") == []


async def test_lost_from_the_bucket_only(opened: Open) -> None:
    """What the bucket has lost is still here."""
    index = await opened()
    await index.add_blob(DIGEST, 10)
    await index.not_there(DIGEST)
    assert await index.verified(DIGEST)


async def test_back_on_the_disk(opened: Open, path: Path) -> None:
    """What is fetched again is here and verified, and still known to be in the bucket."""
    index = await opened()
    with Catalogue(path) as catalogue:
        catalogue.found_there([(str(DIGEST), 10)])
    assert not await index.verified(DIGEST)
    await index.add_blob(DIGEST, 10)
    assert await index.verified(DIGEST)
    assert await index.there(DIGEST) == 10


@pytest.mark.parametrize(("digest", "there"), [(DIGEST, 1), (SHA512, 0)])
async def test_moved_tag_is_to_go_to_the_bucket_again(
    opened: Open, path: Path, digest: Digest, there: int
) -> None:
    """A check that finds a tag where it was costs the bucket nothing."""
    index = await opened()
    await index.set_checked(NAME, TAG, DIGEST, 1.0)
    with Catalogue(path) as catalogue:
        catalogue.tagged_there(catalogue.tags()[0])
    await index.set_checked(NAME, TAG, digest, 2.0)
    assert rows(path, "SELECT digest, checked, there FROM tag") == [(str(digest), 2.0, there)]


async def test_buried_until_it_is_wanted_again(opened: Open, path: Path) -> None:
    """A tag that comes back is not deleted from the bucket; the other that went is."""
    index = await opened()
    for key in ("a/link", "b/link", "b/link"):
        await index.bury(key)
    await index.set_checked(NAME, TAG, DIGEST, 1.0, "a/link")
    with Catalogue(path) as catalogue:
        assert catalogue.buried() == ["b/link"]


async def test_what_the_keeper_noted(opened: Open, path: Path) -> None:
    """Workers see what the keeper notes, as soon as it does."""
    index = await opened()
    assert await index.noted(MIRROR_KNOWN) is None
    with Catalogue(path) as catalogue:
        catalogue.know_mirror()
    assert await index.noted(MIRROR_KNOWN) is not None


# -- uses ------------------------------------------------------------------------------------------


async def test_uses_are_written_together(opened: Open, path: Path) -> None:
    """A use costs no write until the next flush; then the last one of each blob is there."""
    index = await opened()
    await index.add_blob(DIGEST, 10)
    [(added,)] = rows(path, "SELECT used FROM blob")
    index.touch(DIGEST)
    before = time.time()
    index.touch(DIGEST)
    index.touch(SHA512)
    assert rows(path, "SELECT used FROM blob") == [(added,)]
    await index.flush()
    [(used,)] = rows(path, "SELECT used FROM blob")
    assert before <= used <= time.time()


async def test_use_of_an_unknown_blob(opened: Open, path: Path) -> None:
    """What was not verified does not get into the index by being used."""
    index = await opened()
    index.touch(DIGEST)
    await index.flush()
    assert rows(path, "SELECT * FROM blob") == []


async def test_uses_are_written_once(opened: Open, path: Path) -> None:
    """A flush without a use since the last one writes nothing."""
    index = await opened()
    await index.add_blob(DIGEST, 10)
    index.touch(DIGEST)
    await index.flush()
    other = await opened()
    await other.add_blob(DIGEST, 11)
    [(used,)] = rows(path, "SELECT used FROM blob")
    await index.flush()
    assert rows(path, "SELECT used FROM blob") == [(used,)]


async def test_closing_flushes(path: Path) -> None:
    """The uses of the last seconds survive a stop."""
    index = Index(path)
    await index.open()
    await index.add_blob(DIGEST, 10)
    [(added,)] = rows(path, "SELECT used FROM blob")
    index.touch(DIGEST)
    await index.close()
    [(used,)] = rows(path, "SELECT used FROM blob")
    assert used > added


# -- failures --------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["gone", "garbage", "cut", "newer", "older", "another program's"])
async def test_lost_index_is_begun_anew(path: Path, how: str, log: LogCapture) -> None:
    """A file that is gone, damaged or another version's is replaced by a fresh one that works."""
    index = Index(path)
    await index.open()
    await fill(index)
    await index.close()
    match how:
        case "gone":
            path.unlink()
        case "garbage":
            path.write_bytes(b"not a database, " * 1000)
        case "cut":
            path.write_bytes(path.read_bytes()[:5000])
        case "newer":
            rows(path, "PRAGMA user_version=1000")
        case "older":
            rows(path, "PRAGMA user_version=1")
        case _:
            path.unlink()
            rows(path, "CREATE TABLE blob (something TEXT)")
            rows(path, "PRAGMA user_version=77")
    prepare(path)
    again = Index(path)
    await again.open()
    await assert_nothing_known(again)
    await fill(again)
    await assert_all_there(again)
    await again.close()
    warned = [entry for entry in log.entries if entry["log_level"] == "warning"]
    assert bool(warned) is (how != "gone")


async def assert_useless_and_harmless(index: Index) -> None:
    """Assert that nothing is known, and that nothing raises."""
    await fill(index)
    index.touch(DIGEST)
    await index.flush()
    await index.forget_blob(DIGEST)
    await index.forget_tag(NAME, TAG)
    await index.add_link(NAME, DIGEST, "layers")
    await index.not_there(DIGEST)
    await index.bury("key")
    assert await index.there(DIGEST) is None
    assert await index.noted(MIRROR_KNOWN) is None
    await assert_nothing_known(index)
    await index.close()


async def test_directory_that_cannot_be_written(log: LogCapture) -> None:
    """Without a place for it there is no index; whatever is asked is not known."""
    path = Path("/proc/index.sqlite")  # where nobody, root neither, can make a file
    prepare(path)
    assert [entry["event"] for entry in log.entries] == ["index unavailable"]
    index = Index(path)
    await index.open()
    await assert_useless_and_harmless(index)
    assert {entry["event"] for entry in log.entries} == {"index unavailable"}


async def test_connection_that_failed_at_first(tmp_path: Path, log: LogCapture) -> None:
    """A worker that started on a full or busy disk has its index once a flush finds it well."""
    path = tmp_path / "not yet" / "index.sqlite"
    index = Index(path)
    await index.open()
    await index.flush()
    await assert_nothing_known(index)
    path.parent.mkdir()
    prepare(path)
    index.touch(DIGEST)
    await index.flush()
    await fill(index)
    await assert_all_there(index)
    await index.close()
    assert [entry["event"] for entry in log.entries] == ["index unavailable"] * 2


async def test_directory_in_its_place(path: Path) -> None:
    """Something that cannot be removed where the index should be does not stop the start."""
    path.mkdir()
    (path / "file").touch()
    prepare(path)
    index = Index(path)
    await index.open()
    await assert_useless_and_harmless(index)
    assert (path / "file").exists()


async def test_index_not_yet_open(path: Path) -> None:
    """Asked before it is open, it knows nothing."""
    prepare(path)
    index = Index(path)
    await fill(index)
    await assert_nothing_known(index)
    await index.close()


async def test_disk_that_turned_read_only(opened: Open, log: LogCapture) -> None:
    """Writes are lost with a warning, reads go on."""
    index = await opened()
    await fill(index)
    assert index._connection is not None
    index._connection.execute("PRAGMA query_only=ON")
    await index.add_blob(SHA512, 1)
    await index.set_checked(NAME, TAG, DIGEST, 2000.0)
    await assert_all_there(index)
    assert not await index.verified(SHA512)
    assert {entry["event"] for entry in log.entries} == {"index failed"}


async def test_file_that_rots_while_open(opened: Open, path: Path, log: LogCapture) -> None:
    """Damage found in the middle of the work is not known, not an error."""
    index = await opened()
    names = [Named(Digest.of(str(n).encode()), n) for n in range(2000)]
    await index.add_manifest(NAME, MANIFEST, 1, names)
    assert index._connection is not None
    index._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    index._connection.execute("PRAGMA shrink_memory")
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (path.stat().st_size - 4096))
    known = [await index.size_of(Digest.of(str(n).encode())) for n in range(0, 2000, 100)]
    assert None in known
    assert "index failed" in {entry["event"] for entry in log.entries}


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_module, "_BUSY_MS", 50)


@pytest.mark.usefixtures("impatient")
async def test_locked_by_another_process(opened: Open, path: Path, log: LogCapture) -> None:
    """A write that another holds up for too long is given up; reads go on, and later writes."""
    index = await opened()
    await fill(index)
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    await index.add_blob(SHA512, 1)
    await assert_all_there(index)
    assert not await index.verified(SHA512)
    assert {entry["event"] for entry in log.entries} == {"index failed"}
    holder.execute("ROLLBACK")
    holder.close()
    await index.add_blob(SHA512, 1)
    assert await index.verified(SHA512)


@pytest.mark.usefixtures("impatient")
async def test_locked_at_the_start(path: Path, log: LogCapture) -> None:
    """A good index that is held by somebody is not thrown away."""
    index = Index(path)
    await index.open()
    await fill(index)
    await index.close()
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("PRAGMA locking_mode=EXCLUSIVE")
    holder.execute("BEGIN EXCLUSIVE")
    prepare(path)
    locked = Index(path)
    await locked.open()
    await assert_useless_and_harmless(locked)
    holder.execute("ROLLBACK")
    holder.close()
    assert {entry["event"] for entry in log.entries} == {"index unavailable"}
    prepare(path)
    again = Index(path)
    await again.open()
    await assert_all_there(again)
    await again.close()


async def test_failed_batch_is_no_half(opened: Open, path: Path) -> None:
    """Rows that go in together go in all or none, and the next batch is not hindered."""
    index = await opened()
    assert index._connection is not None
    index._connection.execute(
        "CREATE TRIGGER no_more BEFORE INSERT ON refers WHEN new.size = 2 "
        "BEGIN SELECT RAISE(ABORT, 'no more'); END"
    )
    await index.add_manifest(NAME, MANIFEST, 30, [Named(DIGEST, 1), Named(SHA512, 2)])
    for table in ("blob", "refers", "link"):
        assert rows(path, f"SELECT * FROM {table}") == []  # noqa: S608 - names of our own
    await index.add_manifest(NAME, MANIFEST, 30, [Named(DIGEST, 3)])
    assert await index.size_of(DIGEST) == 3


async def test_two_workers_write_at_once(opened: Open) -> None:
    """Nothing that one writes is lost for the other's writing."""
    one, other = await opened(), await opened()
    digests = [Digest.of(str(number).encode()) for number in range(60)]
    await asyncio.gather(
        *(worker.add_blob(d, 1) for n, d in enumerate(digests) for worker in ((one, other)[n % 2],))
    )
    assert all([await one.verified(digest) for digest in digests])
