"""What every store does (store/base.py), whatever it keeps its content on."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path

import pytest

from pullthrough.oci.digest import Digest
from pullthrough.oci.manifest import LIMIT
from pullthrough.oci.reference import Repository, Tag
from pullthrough.store.base import Store
from pullthrough.store.partial import Progress
from tests.store.contract.conftest import Open
from tests.store.kit import (
    CONTENT,
    DIGEST,
    NAME,
    OTHER,
    SHA512,
    TAG,
    image,
    is_verified,
    publish,
    put,
    read,
    stored,
    write,
)


async def test_empty_store_has_nothing(store: Store) -> None:
    """Every question about what was never put here is answered with nothing, not with an error."""
    assert await store.open_blob(DIGEST) is None
    assert await store.blob_size(DIGEST) is None
    assert await store.named_size(DIGEST) is None
    assert await store.read_manifest(DIGEST) is None
    assert await store.read_tag(NAME, TAG) is None
    assert await store.read_listing(NAME, "tags") is None
    assert await store.cached_tags(NAME) == ()
    assert await store.repositories() == ()


# -- blobs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
@pytest.mark.parametrize("size", [0, 1, 1 << 20, (1 << 20) + 1])
async def test_blob_comes_back_as_it_was_put(store: Store, size: int, algorithm: str) -> None:
    """Published content is read back byte for byte, the empty one too."""
    content = b"x" * size
    digest = Digest.of(content, algorithm)
    await publish(store, content, digest)
    assert await read(store, digest) == content
    assert await store.blob_size(digest) == size


async def test_algorithms_are_kept_apart(store: Store) -> None:
    """Content under its sha256 is not here under its sha512."""
    await put(store, CONTENT, DIGEST)
    assert await store.open_blob(SHA512) is None
    assert await store.blob_size(SHA512) is None


async def test_published_is_not_yet_verified(store: Store) -> None:
    """Until it is secured, a power cut may tear it: it is to be hashed at its first use."""
    await publish(store, CONTENT, DIGEST)
    assert not await is_verified(store, DIGEST)


async def test_secured_is_verified(store: Store) -> None:
    """What was verified on its way in need not be hashed again."""
    partial = await store.open_partial(DIGEST)
    write(partial, CONTENT)
    await store.publish(partial, DIGEST)
    await store.secure(partial, DIGEST, len(CONTENT))
    partial.close()
    assert await is_verified(store, DIGEST)


async def test_confirmed_is_verified(store: Store) -> None:
    """What was hashed once is believed from then on."""
    await publish(store, CONTENT, DIGEST)
    await store.confirm(DIGEST, len(CONTENT))
    assert await is_verified(store, DIGEST)


async def test_quarantined_is_gone(store: Store) -> None:
    """What was set aside is not given out, and its place is free for the right content."""
    await put(store, b"damaged", DIGEST)
    await store.quarantine(DIGEST)
    assert await store.open_blob(DIGEST) is None
    assert await store.blob_size(DIGEST) is None
    await publish(store, CONTENT, DIGEST)
    assert await read(store, DIGEST) == CONTENT


async def test_quarantine_takes_the_trust_away(store: Store) -> None:
    """What comes after damaged content is to be verified anew."""
    await put(store, b"damaged", DIGEST)
    await store.quarantine(DIGEST)
    await publish(store, CONTENT, DIGEST)
    assert not await is_verified(store, DIGEST)


async def test_quarantine_of_nothing(store: Store) -> None:
    """Two who saw the damage at the same time both succeed."""
    await store.quarantine(DIGEST)
    assert await store.blob_size(DIGEST) is None


async def test_open_blob_outlives_its_name(store: Store) -> None:
    """Who reads goes on reading, also when the content is set aside meanwhile."""
    await put(store, CONTENT, DIGEST)
    blob = await store.open_blob(DIGEST)
    assert blob is not None
    await store.quarantine(DIGEST)
    with blob.file:
        assert blob.file.read() == CONTENT


async def test_linking_a_blob_of_an_unknown_repository(store: Store) -> None:
    """A name that a client made up does not become a repository."""
    await put(store, CONTENT, DIGEST)
    await store.link_blob(NAME, DIGEST)
    await store.link_manifest(NAME, DIGEST)
    assert await store.repositories() == ()


# -- partials --------------------------------------------------------------------------------------


async def test_partial_is_shared(store: Store) -> None:
    """Whoever opens an unfinished blob sees the same bytes, and one of them alone fills it."""
    one, other = await store.open_partial(DIGEST), await store.open_partial(DIGEST)
    write(one, b"so far")
    one.record(Progress(100, 6))
    assert other.progress() == Progress(100, 6)
    assert other.data.read() == b"so far"
    assert not other.acquire()
    one.close()
    assert other.acquire()
    other.close()


async def test_partial_is_not_a_blob(store: Store) -> None:
    """Unfinished content is nobody's answer."""
    partial = await store.open_partial(DIGEST)
    write(partial, CONTENT)
    partial.close()
    assert await store.open_blob(DIGEST) is None
    assert await store.blob_size(DIGEST) is None


async def test_partial_survives_a_restart(open_store: Open, tmp_path: Path) -> None:
    """A fill that was broken off goes on from what is there."""
    async with open_store(tmp_path) as store:
        partial = await store.open_partial(DIGEST)
        write(partial, CONTENT[:1000])
        partial.close()
    async with open_store(tmp_path) as store:
        partial = await store.open_partial(DIGEST)
        assert partial.acquire()
        hasher = DIGEST.hasher()
        assert partial.rehash(hasher) == 1000
        assert partial.append(1000, [CONTENT[1000:]], hasher) == len(CONTENT)
        assert hasher.hexdigest() == DIGEST.hex
        await store.publish(partial, DIGEST)
        partial.close()
        assert await read(store, DIGEST) == CONTENT


async def test_partial_begins_anew_after_publishing(store: Store) -> None:
    """Nothing of a published fill is taken for the next one's beginning."""
    await publish(store, CONTENT, DIGEST)
    partial = await store.open_partial(DIGEST)
    assert partial.progress() == Progress()
    assert partial.rehash(DIGEST.hasher()) == 0
    partial.close()


# -- manifests -------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", [False, True])
async def test_manifest_comes_back_as_it_was(store: Store, index: bool) -> None:
    """A manifest's bytes are kept, not its meaning: its digest is over them."""
    manifest = stored(image(index=index).top)
    await store.write_manifest(NAME, manifest)
    assert await store.read_manifest(manifest.digest) == manifest


async def test_manifest_is_a_blob_too(store: Store) -> None:
    """Clients may get a manifest by its digest from the blobs; it is verified already."""
    manifest = stored(image().top)
    await store.write_manifest(NAME, manifest)
    assert await read(store, manifest.digest) == manifest.content
    assert await is_verified(store, manifest.digest)


@pytest.mark.parametrize("index", [False, True])
async def test_manifest_tells_sizes(store: Store, index: bool) -> None:
    """What a cached manifest names has a known size, whether it is here or not."""
    top = stored(image(index=index).top)
    await store.write_manifest(NAME, top)
    named = (*top.parsed.blobs, *top.parsed.manifests)
    assert named
    for descriptor in named:
        assert await store.named_size(descriptor.digest) == descriptor.size
        assert await store.blob_size(descriptor.digest) is None


async def test_damaged_manifest_is_set_aside(store: Store) -> None:
    """Bytes that are not what the digest says are no manifest, and do not stay in the way."""
    manifest = stored(image().top)
    await put(store, manifest.content + b" ", manifest.digest)
    assert await store.read_manifest(manifest.digest) is None
    assert await store.blob_size(manifest.digest) is None
    await store.write_manifest(NAME, manifest)
    assert await store.read_manifest(manifest.digest) == manifest


@pytest.mark.parametrize("content", [b"not JSON", b"{}", b"[1]", b"", b" " * (LIMIT + 1)])
async def test_blob_that_is_no_manifest(store: Store, content: bytes) -> None:
    """A blob asked for as a manifest is not one, and stays where it is."""
    digest = Digest.of(content)
    await put(store, content, digest)
    assert await store.read_manifest(digest) is None
    assert await store.blob_size(digest) == len(content)


async def test_writing_a_manifest_twice(store: Store) -> None:
    """Two workers, or two repositories, that bring the same manifest agree."""
    manifest = stored(image().top)
    await asyncio.gather(
        store.write_manifest(NAME, manifest),
        store.write_manifest(NAME, manifest),
        store.write_manifest(OTHER, manifest),
    )
    assert await store.read_manifest(manifest.digest) == manifest
    assert await store.repositories() == (NAME.name, OTHER.name)


async def test_repositories_are_sorted(store: Store) -> None:
    """A repository may stand below another; the list is sorted by bytes, as the spec wants tags."""
    manifest = stored(image().top)
    names = ["b", "a/b/c", "a", "a/b", "a-b"]
    for name in names:
        await store.write_manifest(Repository(name), manifest)
    assert await store.repositories() == tuple(sorted(names))


# -- tags ------------------------------------------------------------------------------------------


async def test_tag_is_what_it_was_last_said_to_be(store: Store) -> None:
    """A tag that moved is its new digest, checked when that was said."""
    await store.write_tag(NAME, TAG, DIGEST, 1000.5)
    tag = await store.read_tag(NAME, TAG)
    assert tag is not None
    assert (tag.digest, tag.checked) == (DIGEST, 1000.5)
    await store.write_tag(NAME, TAG, SHA512, 2000.0)
    tag = await store.read_tag(NAME, TAG)
    assert tag is not None
    assert (tag.digest, tag.checked) == (SHA512, 2000.0)


async def test_tag_is_checked_again(store: Store) -> None:
    """A tag that did not move is as fresh as its last check."""
    for when in (1000.0, 2000.0):
        await store.write_tag(NAME, TAG, DIGEST, when)
    tag = await store.read_tag(NAME, TAG)
    assert tag is not None
    assert (tag.digest, tag.checked) == (DIGEST, 2000.0)


async def test_tags_are_of_their_repository(store: Store) -> None:
    """The same tag in another repository is another tag."""
    await store.write_tag(NAME, TAG, DIGEST, 1.0)
    assert await store.read_tag(OTHER, TAG) is None
    await store.write_tag(OTHER, TAG, SHA512, 2.0)
    tag = await store.read_tag(NAME, TAG)
    assert tag is not None
    assert tag.digest == DIGEST


async def test_removed_tag_is_gone(store: Store) -> None:
    """What the upstream no longer has is not listed, and its manifest stays by digest."""
    manifest = stored(image().top)
    await store.write_manifest(NAME, manifest)
    await store.write_tag(NAME, TAG, manifest.digest, 1.0)
    await store.remove_tag(NAME, TAG)
    assert await store.read_tag(NAME, TAG) is None
    assert await store.cached_tags(NAME) == ()
    assert await store.read_manifest(manifest.digest) == manifest


async def test_removing_twice(store: Store) -> None:
    """Two workers may hear of it at once; a tag never seen may be removed too."""
    await store.write_tag(NAME, TAG, DIGEST, 1.0)
    await asyncio.gather(store.remove_tag(NAME, TAG), store.remove_tag(NAME, TAG))
    await store.remove_tag(OTHER, TAG)
    assert await store.read_tag(NAME, TAG) is None


async def test_tag_comes_back(store: Store) -> None:
    """A tag that was removed and pushed again is what was said last."""
    await store.write_tag(NAME, TAG, DIGEST, 1.0)
    await store.remove_tag(NAME, TAG)
    await store.write_tag(NAME, TAG, DIGEST, 3.0)
    tag = await store.read_tag(NAME, TAG)
    assert tag is not None
    assert (tag.digest, tag.checked) == (DIGEST, 3.0)


async def test_cached_tags_are_sorted(store: Store) -> None:
    """Byte order: capitals first, then _, then small letters."""
    tags = ["v1", "V1", "_x", "10", "2", "latest"]
    for name in tags:
        await store.write_tag(NAME, Tag(name), DIGEST, 1.0)
    assert await store.cached_tags(NAME) == ("10", "2", "V1", "_x", "latest", "v1")
    assert await store.cached_tags(OTHER) == ()


# -- listings --------------------------------------------------------------------------------------


async def test_listing_is_as_last_seen(store: Store) -> None:
    """The last listing comes back, byte for byte, with the time it was seen at."""
    before = time.time()
    await store.write_listing(NAME, "tags", b"old")
    await store.write_listing(NAME, "tags", b"\x00new\xff")
    listing = await store.read_listing(NAME, "tags")
    assert listing is not None
    body, seen = listing
    assert body == b"\x00new\xff"
    assert before <= seen <= time.time()


async def test_listings_are_kept_apart(store: Store) -> None:
    """Each subject of each repository has its own."""
    await store.write_listing(NAME, "tags", b"tags")
    await store.write_listing(NAME, str(DIGEST), b"referrers")
    await store.write_listing(OTHER, "tags", b"other")
    found = [
        await store.read_listing(*key)
        for key in ((NAME, "tags"), (NAME, str(DIGEST)), (OTHER, "tags"))
    ]
    assert [listing and listing[0] for listing in found] == [b"tags", b"referrers", b"other"]


# -- all of it -------------------------------------------------------------------------------------


async def test_everything_survives_a_restart(open_store: Open, tmp_path: Path) -> None:
    """What was put is there after a restart, and what was verified is still believed."""
    manifest = stored(image().top)
    layer = manifest.parsed.blobs[-1]
    async with open_store(tmp_path) as store:
        await put(store, CONTENT, DIGEST)
        await store.write_manifest(NAME, manifest)
        await store.write_tag(NAME, TAG, manifest.digest, 1234.5)
        await store.write_listing(NAME, "tags", b"[]")
    async with open_store(tmp_path) as store:
        assert await read(store, DIGEST) == CONTENT
        assert await is_verified(store, DIGEST)
        assert await store.read_manifest(manifest.digest) == manifest
        tag = await store.read_tag(NAME, TAG)
        assert tag is not None
        assert (tag.digest, tag.checked) == (manifest.digest, 1234.5)
        listing = await store.read_listing(NAME, "tags")
        assert listing is not None
        assert listing[0] == b"[]"
        assert await store.named_size(layer.digest) == layer.size
        assert await store.cached_tags(NAME) == (TAG.name,)
        assert await store.repositories() == (NAME.name,)


async def test_disk_work_runs_beside_the_loop(store: Store) -> None:
    """Hashing and writing hold nobody else up; what they return and raise comes through."""
    assert await store.in_thread(threading.get_ident) != threading.get_ident()

    def fails() -> int:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        await store.in_thread(fails)


async def test_lock_is_free_again_after_use(store: Store) -> None:
    """Nobody was waited for, and what the holder raised changes nothing."""

    async def fail() -> None:
        async with store.locks.hold("name"):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    async with store.locks.hold("name") as waited, store.locks.hold("another") as waited_too:
        assert (waited, waited_too) == (False, False)
