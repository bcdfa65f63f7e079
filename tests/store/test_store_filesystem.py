"""The store on local disk: registry:2's files, the sweep at start, and damage of all kinds."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import shutil
import sqlite3
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import LogCapture

from pullthrough.oci.digest import Digest
from pullthrough.oci.manifest import LIMIT
from pullthrough.oci.reference import Repository, Tag
from pullthrough.store import filesystem
from pullthrough.store.catalogue import Catalogue
from pullthrough.store.filesystem import FileStore, prepare
from pullthrough.store.generation import Generation
from pullthrough.store.layout import Layout
from pullthrough.store.partial import Partial, Progress
from tests.store.kit import (
    CONTENT,
    DIGEST,
    NAME,
    OTHER,
    SHA512,
    TAG,
    as_registry_2,
    child,
    image,
    is_verified,
    place,
    publish,
    put,
    read,
    stored,
    write,
)

WEEK = 7 * 24 * 3600


def under(directory: Path) -> dict[str, bytes]:
    """Return every file and what it holds."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


# -- the start -------------------------------------------------------------------------------------


def sweep(root: Path) -> None:
    """Start a server on ``root``, and end it."""
    os.close(prepare(root).in_use)


def test_start_on_nothing(tmp_path: Path) -> None:
    """All directories are made, those above the root too."""
    prepared = prepare(tmp_path / "a" / "b")
    os.close(prepared.in_use)
    layout = prepared.layout
    for directory in (layout.blobs, layout.repositories, layout.partials, layout.temporary):
        assert directory.is_dir()
    assert layout.index.is_file()


def test_start_where_nothing_can_be_made(tmp_path: Path) -> None:
    """A root that cannot be one is an error of the system's, for the command to tell."""
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="Not a directory"):
        prepare(tmp_path / "file")


@pytest.fixture
def left(tmp_path: Path) -> Layout:
    """Return a directory that a server has left."""
    sweep(tmp_path)
    return Layout(tmp_path)


def test_temporary_files_are_swept(left: Layout) -> None:
    """A file that a crash left on its way to its name goes; what has a name stays."""
    place(left.blob(DIGEST), CONTENT)
    place(left.quarantine / "aside", b"damaged")
    (left.temporary / "tmpabc").write_bytes(b"half")
    sweep(left.root)
    assert list(left.temporary.iterdir()) == []
    assert left.blob(DIGEST).read_bytes() == CONTENT
    assert (left.quarantine / "aside").exists()


def test_partial_is_kept(left: Layout) -> None:
    """A fill that was broken off goes on from what is there."""
    partial = Partial.open(left, DIGEST)
    write(partial, CONTENT[:1000])
    partial.record(Progress(len(CONTENT), 1000))
    partial.close()
    sweep(left.root)
    partial = Partial.open(left, DIGEST)
    assert partial.data.read() == CONTENT[:1000]
    assert partial.progress() == Progress(len(CONTENT), 1000)
    partial.close()


def test_record_without_content_is_swept(left: Layout) -> None:
    """A progress file whose content has its name already would only take room."""
    partial = Partial.open(left, DIGEST)
    partial.close()
    left.partial(DIGEST).unlink()
    sweep(left.root)
    assert list(left.partials.iterdir()) == []


@pytest.mark.parametrize(("age", "kept"), [(WEEK - 60, True), (WEEK + 60, False)])
def test_abandoned_partial_is_swept(left: Layout, age: float, *, kept: bool) -> None:
    """What nobody went on with for a week is not worth its room."""
    Partial.open(left, DIGEST).close()
    when = time.time() - age
    for path in left.partials.iterdir():
        os.utime(path, (when, when))
    sweep(left.root)
    assert len(list(left.partials.iterdir())) == (2 if kept else 0)


def test_second_server_does_not_sweep_under_the_first(left: Layout, log: LogCapture) -> None:
    """While one server uses the directory another one may start there, and takes nothing away."""
    first = prepare(left.root).in_use
    (left.temporary / "on its way").write_bytes(b"half")
    second = prepare(left.root).in_use
    assert (left.temporary / "on its way").exists()
    assert any("not swept" in entry["event"] for entry in log.entries)
    os.close(first)
    # The one that came later is in use too.
    sweep(left.root)
    assert (left.temporary / "on its way").exists()
    os.close(second)
    sweep(left.root)
    assert not (left.temporary / "on its way").exists()


def test_killed_server_does_not_keep_the_directory(left: Layout) -> None:
    """After a kill -9 the next start sweeps: the mark goes with the process."""
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from pullthrough.store.filesystem import prepare\n"
        "kept = prepare(Path(sys.argv[1]))\nprint('in use', flush=True)\nsys.stdin.readline()\n"
    )
    with child(code, str(left.root)) as server:
        assert server.says() == "in use"
        (left.temporary / "on its way").write_bytes(b"half")
        sweep(left.root)
        assert (left.temporary / "on its way").exists()
        server.kill()
    sweep(left.root)
    assert not (left.temporary / "on its way").exists()


# -- registry:2's directory ------------------------------------------------------------------------


async def test_directory_of_registry_2_is_read(layout: Layout, files: FileStore) -> None:
    """All that registry:2 pulled is here: blobs, manifests, tags, names; nothing of it verified."""
    pulled = image(index=True)
    as_registry_2(layout, pulled)
    for name, content in pulled.blobs.items():
        assert await read(files, Digest.parse(name)) == content
        assert not await is_verified(files, Digest.parse(name))
    for manifest in pulled.manifests:
        assert await files.read_manifest(Digest.parse(manifest.digest)) == stored(manifest)
    tag = await files.read_tag(NAME, TAG)
    assert tag is not None
    assert (str(tag.digest), tag.checked) == (pulled.digest, 0.0)
    assert await files.cached_tags(NAME) == (TAG.name,)
    assert await files.repositories() == (NAME.name,)


async def test_what_is_written_is_what_registry_2_writes(
    layout: Layout, files: FileStore, tmp_path: Path
) -> None:
    """After a pull the directory is, file by file and byte by byte, the one of registry:2."""
    pulled = image(index=True)
    expected = Layout(tmp_path / "registry 2")
    as_registry_2(expected, pulled)
    for manifest in pulled.manifests:
        await files.write_manifest(NAME, stored(manifest))
    await files.write_tag(NAME, TAG, Digest.parse(pulled.digest), time.time())
    for name, content in pulled.blobs.items():
        await put(files, content, Digest.parse(name))
        await files.link_blob(NAME, Digest.parse(name))
    assert under(layout.v2) == under(expected.v2)


# -- links -----------------------------------------------------------------------------------------


async def test_manifest_links_the_layers_that_are_here(layout: Layout, files: FileStore) -> None:
    """What another repository brought is this one's too, as far as it is here."""
    pulled = image()
    layer, config = Digest.parse(pulled.layer), Digest.parse(pulled.config)
    await put(files, pulled.layer_content, layer)
    await files.write_manifest(NAME, stored(pulled.top))
    assert layout.link(NAME, "layers", layer).read_text() == pulled.layer
    assert not layout.link(NAME, "layers", config).exists()


async def test_blob_is_linked_in_a_known_repository(layout: Layout, files: FileStore) -> None:
    """The link is made where the repository is one that the upstream has, and nowhere else."""
    await put(files, CONTENT, DIGEST)
    await files.write_manifest(NAME, stored(image().top))
    await files.link_blob(NAME, DIGEST)
    await files.link_blob(OTHER, DIGEST)
    assert layout.link(NAME, "layers", DIGEST).read_text() == str(DIGEST)
    assert not layout.repository(OTHER).exists()


@pytest.mark.parametrize("what", ["blob", "manifest"])
async def test_link_once_the_repository_is_known(
    layout: Layout, files: FileStore, what: str
) -> None:
    """Asked for before its repository was known, content is linked when it is asked for again."""
    manifest = stored(image().top)
    await files.write_manifest(OTHER, manifest)
    link, kind = (
        (files.link_blob, "layers") if what == "blob" else (files.link_manifest, "revisions")
    )
    await link(NAME, manifest.digest)
    assert not layout.link(NAME, kind, manifest.digest).exists()
    await files.write_manifest(NAME, stored(image().top))
    await link(NAME, manifest.digest)
    assert layout.link(NAME, kind, manifest.digest).exists()


async def test_link_that_cannot_be_written(
    files: FileStore, monkeypatch: pytest.MonkeyPatch, log: LogCapture
) -> None:
    """A full disk costs the link, not the answer."""
    await files.write_manifest(NAME, stored(image().top))

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(filesystem, "write_whole", full)
    await files.link_blob(NAME, DIGEST)
    assert [entry["event"] for entry in log.entries] == ["link not written"]


@pytest.mark.parametrize(
    "content",
    [b"", b"not a digest", b"sha256:abc", b"\xff\xfe\x00", b"sha256:" + b"a" * 300],
)
async def test_tag_whose_link_says_nothing(
    layout: Layout, files: FileStore, content: bytes
) -> None:
    """A link that a crash or somebody's editor spoilt is no tag, and can be written over."""
    place(layout.tag_link(NAME, TAG), content)
    assert await files.read_tag(NAME, TAG) is None
    await files.write_tag(NAME, TAG, DIGEST, 1.0)
    tag = await files.read_tag(NAME, TAG)
    assert tag is not None
    assert tag.digest == DIGEST


async def test_tag_link_with_a_line_end(layout: Layout, files: FileStore) -> None:
    """A link that a person wrote is as good as registry:2's."""
    place(layout.tag_link(NAME, TAG), f"{DIGEST}\n".encode())
    tag = await files.read_tag(NAME, TAG)
    assert tag is not None
    assert tag.digest == DIGEST


async def test_tag_that_did_not_move_is_not_written(layout: Layout, files: FileStore) -> None:
    """A check that finds the tag where it was costs the disk's files nothing."""
    await files.write_tag(NAME, TAG, DIGEST, 1.0)
    before = layout.tag_link(NAME, TAG).stat()
    await files.write_tag(NAME, TAG, DIGEST, 2.0)
    after = layout.tag_link(NAME, TAG).stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


async def test_moved_tag_remembers_where_it_was(layout: Layout, files: FileStore) -> None:
    """registry:2 keeps every digest that a tag had; so does a removal."""
    await files.write_tag(NAME, TAG, DIGEST, 1.0)
    await files.write_tag(NAME, TAG, SHA512, 2.0)
    await files.remove_tag(NAME, TAG)
    assert layout.tag_index_link(NAME, TAG, DIGEST).read_text() == str(DIGEST)
    assert layout.tag_index_link(NAME, TAG, SHA512).read_text() == str(SHA512)
    assert not layout.tag_link(NAME, TAG).exists()


# -- the catalog -----------------------------------------------------------------------------------


async def test_catalog_is_what_has_manifests(layout: Layout, files: FileStore) -> None:
    """Names at any depth, one below another; no uploads, no layers alone, no odd directories."""
    for name in ("a", "a/b", "a/b/c/d", "z-z/y_y"):
        layout.link(Repository(name), "revisions", DIGEST).parent.mkdir(parents=True)
    layout.link(Repository("layers/only"), "layers", DIGEST).parent.mkdir(parents=True)
    for odd in (
        "UPPER/_manifests",
        "a/_uploads/b/_manifests",
        "sp ace/_manifests",
        "..x/_manifests",
    ):
        (layout.repositories / odd).mkdir(parents=True)
    place(layout.repositories / "file", b"")
    assert await files.repositories() == ("a", "a/b", "a/b/c/d", "z-z/y_y")


async def test_catalog_without_a_directory(layout: Layout, files: FileStore) -> None:
    """A root whose names were taken away has none."""
    shutil.rmtree(layout.repositories)
    assert await files.repositories() == ()


async def test_tag_without_a_link_is_not_listed(layout: Layout, files: FileStore) -> None:
    """A directory that a removed tag leaves, as here and in registry:2, is no tag."""
    await files.write_tag(NAME, TAG, DIGEST, 1.0)
    (layout.tags(NAME) / "gone" / "index").mkdir(parents=True)
    place(layout.tags(NAME) / "file", b"")
    assert await files.cached_tags(NAME) == (TAG.name,)


# -- damage ----------------------------------------------------------------------------------------


async def test_quarantine_keeps_the_damaged_file(
    layout: Layout, files: FileStore, log: LogCapture
) -> None:
    """What was wrong can be looked at; the log says so at level error."""
    await put(files, b"damaged", DIGEST)
    await files.quarantine(DIGEST)
    assert not layout.blob(DIGEST).exists()
    assert [path.read_bytes() for path in layout.quarantine.iterdir()] == [b"damaged"]
    assert [(entry["log_level"], entry["digest"]) for entry in log.entries] == [
        ("error", str(DIGEST))
    ]


async def test_quarantine_twice_keeps_one(layout: Layout, files: FileStore) -> None:
    """A disk that goes on spoiling a blob does not fill up with its copies."""
    for content in (b"damaged", b"damaged again"):
        await put(files, content, DIGEST)
        await files.quarantine(DIGEST)
    assert [path.read_bytes() for path in layout.quarantine.iterdir()] == [b"damaged again"]


async def test_quarantine_of_what_was_replaced(layout: Layout, files: FileStore) -> None:
    """Of two workers that saw the damage the second leaves alone what has come in its place."""
    await put(files, b"damaged", DIGEST)
    other = FileStore(layout)
    await other.open()
    seen = [await store.open_blob(DIGEST) for store in (files, other)]
    first, second = [blob.file for blob in seen if blob is not None]
    await files.quarantine(DIGEST, first)
    await put(files, CONTENT, DIGEST)
    await other.quarantine(DIGEST, second)
    assert await read(other, DIGEST) == CONTENT
    assert [path.read_bytes() for path in layout.quarantine.iterdir()] == [b"damaged"]
    for file in (first, second):
        file.close()
    await other.close()


@pytest.mark.parametrize("size", [LIMIT, LIMIT + 1])
async def test_manifest_is_read_up_to_its_limit(files: FileStore, size: int) -> None:
    """A file as large as a manifest may be is read, a larger one is a blob."""
    pulled = image().top.content
    content = pulled[:-1] + b" " * (size - len(pulled)) + b"}"
    digest = Digest.of(content)
    await put(files, content, digest)
    assert (await files.read_manifest(digest) is None) is (size > LIMIT)


async def test_file_where_a_directory_should_be(layout: Layout, files: FileStore) -> None:
    """Odd things in the tree are content that is not here."""
    place(layout.blob(DIGEST).parent, b"a file")
    place(layout.tags(NAME) / TAG.name, b"a file")
    assert await files.open_blob(DIGEST) is None
    assert await files.blob_size(DIGEST) is None
    assert await files.read_manifest(DIGEST) is None
    assert await files.read_tag(NAME, TAG) is None


async def test_healthy_while_the_directory_answers(layout: Layout, files: FileStore) -> None:
    """A disk that went away is seen, and seen again when it is back."""
    assert await files.healthy()
    aside = layout.root / "aside"
    layout.blobs.rename(aside)
    assert not await files.healthy()
    aside.rename(layout.blobs)
    assert await files.healthy()


# -- what is taken away ----------------------------------------------------------------------------


def may_take_away(path: Path) -> bool:
    """Whether who takes content away would find it unused."""
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


async def test_open_blob_is_not_taken_away(layout: Layout, files: FileStore) -> None:
    """For as long as somebody reads it, and no longer."""
    await put(files, CONTENT, DIGEST)
    assert may_take_away(layout.blob(DIGEST))
    blob = await files.open_blob(DIGEST)
    assert blob is not None
    assert not may_take_away(layout.blob(DIGEST))
    blob.file.close()
    assert may_take_away(layout.blob(DIGEST))


async def test_fill_that_is_read_is_not_taken_away(layout: Layout, files: FileStore) -> None:
    """Who read it while it grew reads on when it has its name."""
    reader = await files.open_partial(DIGEST)
    await put(files, CONTENT, DIGEST)
    assert not may_take_away(layout.blob(DIGEST))
    reader.close()
    assert may_take_away(layout.blob(DIGEST))


async def test_blob_that_is_being_taken_away(layout: Layout, files: FileStore) -> None:
    """It is no longer here, and nobody waits for that."""
    await put(files, CONTENT, DIGEST)
    with layout.blob(DIGEST).open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        async with asyncio.timeout(20):
            assert await files.open_blob(DIGEST) is None
    assert await read(files, DIGEST) == CONTENT


async def test_link_that_was_taken_away_is_written_again(layout: Layout, files: FileStore) -> None:
    """What a worker remembers to have linked is not believed once something was taken away."""
    keeper = Generation(layout.generation)
    await files.write_manifest(NAME, stored(image().top))
    link = layout.link(NAME, "layers", DIGEST)
    await files.link_blob(NAME, DIGEST)
    link.unlink()
    await files.link_blob(NAME, DIGEST)
    assert not link.exists(), "each link is looked for each time"
    keeper.advance()
    await files.link_blob(NAME, DIGEST)
    assert link.read_text() == str(DIGEST)
    keeper.close()


# -- a full disk -----------------------------------------------------------------------------------


class Room:
    """Makes room, or not; ``asked`` is for how many bytes."""

    def __init__(self) -> None:
        self.says = self.makes = True
        self.asked: list[int] = []
        self.full = True

    def __call__(self, size: int) -> bool:
        self.asked.append(size)
        self.full = not self.makes
        return self.says


@pytest.fixture(name="room")
def _room(monkeypatch: pytest.MonkeyPatch) -> Room:
    """Have a disk on which nothing can be written until there is room for it."""
    room, real = Room(), os.fdopen

    def full(descriptor: int, mode: str) -> Any:
        if "w" in mode and room.full:
            os.close(descriptor)
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, mode)

    monkeypatch.setattr(os, "fdopen", full)
    return room


@pytest.fixture(name="tight")
async def _tight(layout: Layout, room: Room) -> AsyncIterator[FileStore]:
    """Open a store on that disk."""
    store = FileStore(layout, make_room=room)
    await store.open()
    yield store
    await store.close()


async def test_room_is_made_for_a_manifest(tight: FileStore, room: Room) -> None:
    """What found no room is written once there is some, and room is made once."""
    manifest = stored(image().top)
    await tight.write_manifest(NAME, manifest)
    await tight.write_tag(NAME, TAG, manifest.digest, 1.0)
    await tight.link_blob(NAME, DIGEST)
    assert await tight.read_manifest(manifest.digest) == manifest
    assert await tight.cached_tags(NAME) == (TAG.name,)
    assert len(room.asked) == 1
    assert room.asked[0] > 0


@pytest.mark.parametrize("says", [False, True])
async def test_room_is_asked_for_once(
    layout: Layout, tight: FileStore, room: Room, *, says: bool
) -> None:
    """Where none could be made, or what was made is gone, the error is told, and no half left."""
    room.says, room.makes = says, False
    with pytest.raises(OSError, match="No space"):
        await tight.write_manifest(NAME, stored(image().top))
    assert len(room.asked) == 1
    assert list(layout.temporary.iterdir()) == []


async def test_other_errors_make_no_room(
    tight: FileStore, room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is broken is not emptied for it."""

    def broken(*_: Any, **__: Any) -> Any:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(filesystem, "write_whole", broken)
    with pytest.raises(OSError, match="Input/output"):
        await tight.write_manifest(NAME, stored(image().top))
    assert room.asked == []


# -- beside a bucket -------------------------------------------------------------------------------


@pytest.fixture(name="mirrored")
async def _mirrored(layout: Layout) -> AsyncIterator[FileStore]:
    """Open a store whose content is also kept in a bucket."""
    store = FileStore(layout, mirrored=True)
    await store.open()
    yield store
    await store.close()


async def test_size_of_what_is_in_the_bucket(
    layout: Layout, files: FileStore, mirrored: FileStore
) -> None:
    """It is known as if it were here; without a bucket nobody looks."""
    assert await mirrored.blob_size(DIGEST) is None
    with Catalogue(layout.index) as catalogue:
        catalogue.found_there([(str(DIGEST), 10)])
    assert await mirrored.mirrored(DIGEST) == 10
    assert await mirrored.blob_size(DIGEST) == 10
    assert await files.blob_size(DIGEST) is None
    await put(mirrored, CONTENT, DIGEST)
    assert await mirrored.blob_size(DIGEST) == len(CONTENT)


@pytest.mark.parametrize("rotten", [False, True])
async def test_not_in_the_bucket_after_all(
    layout: Layout, mirrored: FileStore, *, rotten: bool
) -> None:
    """It is forgotten; what is there but wrong is to be deleted there."""
    with Catalogue(layout.index) as catalogue:
        catalogue.found_there([(str(DIGEST), 10)])
        await mirrored.forget_mirrored(DIGEST, rotten=rotten)
        assert await mirrored.mirrored(DIGEST) is None
        key = f"docker/registry/v2/blobs/sha256/{DIGEST.hex[:2]}/{DIGEST.hex}/data"
        assert catalogue.buried() == ([key] if rotten else [])


async def test_whether_all_of_the_bucket_is_known(layout: Layout, mirrored: FileStore) -> None:
    """The keeper says so when it has looked through it."""
    assert not await mirrored.not_mirrored(DIGEST)
    with Catalogue(layout.index) as catalogue:
        catalogue.know_mirror()
    assert await mirrored.not_mirrored(DIGEST)


async def test_what_the_bucket_is_to_lose_is_known(mirrored: FileStore) -> None:
    """Rotten content is not looked for again while it waits to be deleted."""
    await mirrored.forget_mirrored(DIGEST)
    assert not await mirrored.not_mirrored(DIGEST)
    await mirrored.forget_mirrored(DIGEST, rotten=True)
    assert await mirrored.not_mirrored(DIGEST)


async def test_removed_tag_is_deleted_from_the_bucket(
    layout: Layout, files: FileStore, mirrored: FileStore
) -> None:
    """Unless it comes back before; where there is no bucket nothing waits to be deleted."""
    keys = []
    with Catalogue(layout.index) as catalogue:
        for store in (files, mirrored):
            await store.write_tag(NAME, TAG, DIGEST, 1.0)
            await store.remove_tag(NAME, TAG)
            keys.append(catalogue.buried())
            assert catalogue.tags() == []
        await mirrored.write_tag(NAME, TAG, DIGEST, 2.0)
        keys.append(catalogue.buried())
    tag = "docker/registry/v2/repositories/library/app/_manifests/tags/v1/current/link"
    assert keys == [[], [tag], []]


# -- the index beside the files --------------------------------------------------------------------


async def test_workers_share_what_is_verified(layout: Layout, files: FileStore) -> None:
    """What one worker hashed no other need hash."""
    other = FileStore(layout)
    await other.open()
    await publish(files, CONTENT, DIGEST)
    assert not await is_verified(other, DIGEST)
    await files.confirm(DIGEST, len(CONTENT))
    assert await is_verified(other, DIGEST)
    await other.close()


async def test_files_do_without_an_index(layout: Layout, log: LogCapture) -> None:
    """With no index at all everything is served; only what it knew is not known."""
    layout.index.unlink()
    layout.index.mkdir()
    (layout.index / "in the way").touch()
    prepared = prepare(layout.root)
    os.close(prepared.in_use)
    store = FileStore(layout)
    await store.open()
    manifest = stored(image().top)
    await put(store, CONTENT, DIGEST)
    await store.write_manifest(NAME, manifest)
    await store.write_tag(NAME, TAG, manifest.digest, 5.0)
    await store.write_listing(NAME, "tags", b"[]")
    assert await read(store, DIGEST) == CONTENT
    assert await is_verified(store, DIGEST)  # this process did it itself
    assert await store.read_manifest(manifest.digest) == manifest
    tag = await store.read_tag(NAME, TAG)
    assert tag is not None
    assert (tag.digest, tag.checked) == (manifest.digest, 0.0)
    assert await store.read_listing(NAME, "tags") is None
    await store.flush()
    await store.close()
    warned = [entry for entry in log.entries if "not swept" not in entry["event"]]
    assert {entry["log_level"] for entry in warned} == {"warning"}


async def test_workers_find_the_index_made(layout: Layout, log: LogCapture) -> None:
    """Workers that open a new one at the same time find it made: none waits, makes or mends it."""
    workers = [FileStore(layout) for _ in range(4)]
    await asyncio.gather(*(worker.open() for worker in workers))
    for number, worker in enumerate(workers):
        await worker.write_listing(NAME, f"from {number}", b"[]")
    for worker in workers:
        for number in range(len(workers)):
            assert await worker.read_listing(NAME, f"from {number}") is not None
    await asyncio.gather(*(worker.close() for worker in workers))
    assert log.entries == []


async def test_reading_counts_as_a_use(layout: Layout, files: FileStore) -> None:
    """Blobs and manifests that are read are the last to be thrown away."""
    manifest = stored(image().top)
    await files.write_manifest(NAME, manifest)
    await put(files, CONTENT, DIGEST)
    before = time.time()
    assert await read(files, DIGEST) == CONTENT
    await files.read_manifest(manifest.digest)
    await files.flush()
    connection = sqlite3.connect(layout.index)
    uses = dict(connection.execute("SELECT digest, used FROM blob"))
    connection.close()
    assert uses.keys() == {str(DIGEST), str(manifest.digest)}
    assert all(used >= before for used in uses.values())


async def test_secure_syncs_before_it_is_believed(
    layout: Layout, files: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A blob counts as verified only once its bytes and its name survive a power cut."""
    partial = await files.open_partial(DIGEST)
    write(partial, CONTENT)
    await files.publish(partial, DIGEST)

    def broken(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", broken)
        with pytest.raises(OSError, match="Input/output"):
            await files.secure(partial, DIGEST, len(CONTENT))
        assert not await is_verified(files, DIGEST)
    synced: list[str] = []
    real = os.fsync

    def noted(descriptor: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    await files.secure(partial, DIGEST, len(CONTENT))
    partial.close()
    assert synced == [str(layout.blob(DIGEST)), str(layout.blob(DIGEST).parent)]
    assert await is_verified(files, DIGEST)


async def test_write_that_fails_is_told(
    layout: Layout, files: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk is an error where content is to be kept, and no half of it is left."""

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    manifest = stored(image().top)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        await files.write_manifest(NAME, manifest)
    with pytest.raises(OSError, match="No space"):
        await files.write_tag(NAME, Tag("v2"), DIGEST, 1.0)
    monkeypatch.undo()
    assert await files.read_manifest(manifest.digest) is None
    assert await files.read_tag(NAME, Tag("v2")) is None
    assert list(layout.temporary.iterdir()) == []


async def test_many_at_once(files: FileStore) -> None:
    """A hundred readers and writers of one store do not disturb one another."""
    manifests = [stored(image().top) for _ in range(30)]

    async def one(number: int) -> bool:
        manifest = manifests[number % len(manifests)]
        await files.write_manifest(NAME, manifest)
        await files.write_tag(NAME, Tag(f"v{number}"), manifest.digest, 1.0)
        tag = await files.read_tag(NAME, Tag(f"v{number}"))
        return tag is not None and await files.read_manifest(tag.digest) == manifest

    assert all(await asyncio.gather(*map(one, range(100))))
    assert len(await files.cached_tags(NAME)) == 100
