"""The bounds applied to a disk, and to a disk before a bucket."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pullthrough.oci.digest import Digest
from pullthrough.oci.reference import Tag
from pullthrough.store.catalogue import Catalogue
from pullthrough.store.layout import Layout
from pullthrough.store.partial import Partial
from pullthrough.store.reconcile import reconcile
from pullthrough.store.trouble import BucketError
from pullthrough.tending import janitor as module
from pullthrough.tending.eviction import Reason
from pullthrough.tending.janitor import Bounds, Janitor, share_of_disk
from pullthrough.tending.leftovers import filling
from pullthrough.tending.pins import pattern
from pullthrough.tending.uploads import Mirror
from tests.cache.scripted import Clock
from tests.store.conftest import layout
from tests.store.kit import NAME, OTHER, place
from tests.tending.kit import (
    FakeBucket,
    have,
    lay,
    manifest,
    of,
    on_disk,
    tags_on_disk,
    use,
)

__all__ = ["layout"]

KIB = 1024
CONFIG = b"{}"
LAYERS = [bytes([65 + number]) * KIB for number in range(8)]
IMAGES = [manifest(CONFIG, *LAYERS[at : at + 2]) for at in (0, 2, 4, 6)]
LITTLE = len(CONFIG) + sum(map(len, IMAGES))


@pytest.fixture
def catalogue(layout: Layout) -> Iterator[Catalogue]:
    """Open the index."""
    with Catalogue(layout.index) as opened:
        yield opened


@pytest.fixture
def clock() -> Clock:
    """Give a clock that stands."""
    return Clock()


@pytest.fixture
def images(layout: Layout, catalogue: Catalogue, clock: Clock) -> list[tuple[Digest, ...]]:
    """Have four images of two layers of 1 KiB each, the first not used for longest."""
    made = [
        have(layout, NAME, f"v{number}", each, CONFIG, *LAYERS[2 * number : 2 * number + 2])
        for number, each in enumerate(IMAGES)
    ]
    reconcile(layout, catalogue)
    for number, each in enumerate(made):
        use(catalogue, clock() - 100 + number, *each)
    return made


class Setting:
    """A janitor whose bounds a test changes as it goes."""

    def __init__(
        self, layout: Layout, catalogue: Catalogue, clock: Clock, bucket: FakeBucket | None
    ) -> None:
        self.quota: int | None = None
        self.local: int | None = None
        self._parts = layout, catalogue
        self._mirrored = bucket is not None
        self._clock = clock

    def janitor(self, *pins: str, ttl: float = 0) -> Janitor:
        bounds = Bounds(lambda: self.quota, lambda: self.local, ttl, tuple(map(pattern, pins)))
        return Janitor(*self._parts, bounds, self._mirrored, self._clock)


@pytest.fixture
def setting(layout: Layout, catalogue: Catalogue, clock: Clock) -> Setting:
    """Bound a store on a disk."""
    return Setting(layout, catalogue, clock, None)


@pytest.fixture
def bucket() -> FakeBucket:
    """Make a bucket in memory."""
    return FakeBucket()


@pytest.fixture
def mirrored(layout: Layout, catalogue: Catalogue, clock: Clock, bucket: FakeBucket) -> Setting:
    """Bound a disk and the bucket behind it."""
    return Setting(layout, catalogue, clock, bucket)


PARTLY = (b"older", b"old", b"new", b"newer")


@contextmanager
def begun(layout: Layout, content: bytes, kib: int) -> Iterator[Partial]:
    """Have some KiB of a fill, open as a reader has it."""
    partial = Partial.open(layout, Digest.of(content))
    partial.data.write(b"x" * kib * KIB)
    yield partial
    partial.close()


def upload(layout: Layout, catalogue: Catalogue, bucket: FakeBucket) -> None:
    Mirror(layout, catalogue, bucket.as_bucket, lambda: False).upload()


# -- a disk alone ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("images")
def test_within_the_quota_nothing_goes(layout: Layout, setting: Setting) -> None:
    """Up to the quota, and without one, everything stays."""
    before = on_disk(layout)
    for setting.quota in (None, sum(before.values())):
        state, went = setting.janitor().tidy()
        assert (went, state.over) == ([], False)
    assert on_disk(layout) == before


def test_least_recently_used_image_goes(
    layout: Layout, catalogue: Catalogue, setting: Setting, images: list[tuple[Digest, ...]]
) -> None:
    """It goes whole, with tag and links, but for what others need; down to 90 % of the quota."""
    setting.quota = (sum(on_disk(layout).values()) - 2 * KIB) * 10 // 9
    state, went = setting.janitor().tidy()
    first, config, *layers = images[0]
    assert {victim.digest for victim in went} == of([first, *layers])
    assert {victim.reason for victim in went} == {Reason.ROOM}
    assert state.used == sum(on_disk(layout).values()) <= setting.quota * 0.9
    assert not of([first, *layers]) & on_disk(layout).keys()
    assert str(config) in on_disk(layout)
    assert ("library/app", "v0") not in tags_on_disk(layout)
    assert len(catalogue.tags()) == 3
    assert catalogue.links_of(str(first)) == []
    assert not layout.tag_link(NAME, Tag("v0")).parents[1].exists()


def test_use_of_a_manifest_keeps_its_layers(
    layout: Layout, catalogue: Catalogue, setting: Setting, clock: Clock,
    images: list[tuple[Digest, ...]],
) -> None:  # fmt: skip
    """What a manifest in use needs is in use, however long nobody asked for it itself."""
    use(catalogue, clock() - 1, images[0][0])
    setting.quota = sum(on_disk(layout).values()) - 1
    setting.janitor().tidy()
    assert of(images[0]) <= on_disk(layout).keys()
    assert str(images[1][0]) not in on_disk(layout)


def test_busy_content_stays_and_another_goes(
    layout: Layout, setting: Setting, images: list[tuple[Digest, ...]]
) -> None:
    """What is being read is not taken away; in its place goes what was used next."""
    busy = images[0][2]
    setting.quota = sum(on_disk(layout).values()) - 2 * KIB
    with layout.blob(busy).open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        state, went = setting.janitor().tidy()
        assert file.read() == LAYERS[0]
    assert str(busy) in on_disk(layout)
    assert str(busy) not in {victim.digest for victim in went}
    assert not state.over
    assert str(images[1][0]) not in on_disk(layout)
    setting.quota = 0
    setting.janitor().tidy()
    assert on_disk(layout) == {}


@pytest.mark.usefixtures("images")
def test_expired_content_goes(layout: Layout, setting: Setting, clock: Clock) -> None:
    """What was not used for the time to live goes, though there is room; 0 is for ever."""
    clock.now += 1000
    assert setting.janitor(ttl=0).tidy()[1] == []
    _, went = setting.janitor(ttl=1099).tidy()
    assert {victim.reason for victim in went} == {Reason.EXPIRED}
    assert sorted(tag for _, tag in tags_on_disk(layout)) == ["v2", "v3"]
    clock.now += 10
    setting.janitor(ttl=1099).tidy()
    assert on_disk(layout) == {}
    assert list(layout.repositories.iterdir()) == []


def test_pinned_images_stay(
    layout: Layout, setting: Setting, clock: Clock, images: list[tuple[Digest, ...]]
) -> None:
    """All that they need stays, whatever the bounds; that they exceed them is said."""
    setting.quota = KIB
    clock.now += 1e6
    state, went = setting.janitor("library/app:v0", ttl=1).tidy()
    assert on_disk(layout).keys() == of(images[0])
    assert state.overpinned
    assert state.over
    assert state.pinned == sum(on_disk(layout).values())
    assert not of(images[0]) & {victim.digest for victim in went}
    state, went = setting.janitor("library/app:v0", ttl=1).tidy()
    assert went == []
    state, _ = setting.janitor("library/oth*", ttl=1).tidy()
    assert (on_disk(layout), state.overpinned) == ({}, False)


def test_pin_without_a_tag_keeps_untagged_revisions(
    layout: Layout, setting: Setting, images: list[tuple[Digest, ...]]
) -> None:
    """A pattern of a repository alone pins all of its manifests, one with a tag part tags alone."""
    layout.tag_link(NAME, Tag("v0")).unlink()
    with Catalogue(layout.index) as catalogue:
        reconcile(layout, catalogue)
    setting.quota = 0
    setting.janitor("library/app").tidy()
    assert of(images[0]) <= on_disk(layout).keys()
    setting.janitor("library/app:*").tidy()
    assert str(images[0][0]) not in on_disk(layout)
    assert of(images[1]) <= on_disk(layout).keys()


def test_plan_takes_nothing(
    layout: Layout, setting: Setting, images: list[tuple[Digest, ...]]
) -> None:
    """A plan says what would go, in its order, and leaves everything as it is."""
    before = on_disk(layout)
    setting.quota = 0
    state, gone, aside = setting.janitor().plan()
    assert (state.used, state.over, aside) == (sum(before.values()), True, [])
    assert gone[0].digest == str(images[0][0])
    assert {victim.digest for victim in gone} == before.keys()
    assert on_disk(layout) == before
    assert setting.janitor().tidy()[1] == gone


@pytest.mark.usefixtures("images")
def test_fills_count(layout: Layout, setting: Setting) -> None:
    """What is on its way takes room too, and is never what goes, read or filled."""
    with begun(layout, b"coming", 2) as filled, begun(layout, b"too", 1) as read:
        assert filled.acquire()
        setting.quota = sum(on_disk(layout).values()) + KIB
        assert filling(layout) == 3 * KIB
        state, went = setting.janitor().tidy()
        assert went != []
        assert state.used <= setting.quota
        assert filled.named()
        assert read.named()
        assert read.acquire()


def test_abandoned_fills_go_first(layout: Layout, setting: Setting) -> None:
    """Before any content, the oldest first and no more than has to; one goes on anew then."""
    for content, age in ((b"new", 10), (b"old", 30), (b"older", 40), (b"newer", 5)):
        with begun(layout, content, 2):
            pass
        when = time.time() - age
        os.utime(layout.partial(Digest.of(content)), (when, when))
    before = on_disk(layout)
    setting.quota = sum(before.values()) + 5 * KIB
    state, went = setting.janitor().tidy()
    assert (went, on_disk(layout), state.over) == ([], before, False)
    left = {digest: layout.partial(Digest.of(digest)).exists() for digest in PARTLY}
    assert left == {b"older": False, b"old": False, b"new": True, b"newer": True}
    assert len(list(layout.partials.iterdir())) == 4
    with begun(layout, b"older", 1) as again:
        assert again.acquire()


@pytest.mark.usefixtures("images")
def test_set_aside_goes_before_content(layout: Layout, setting: Setting) -> None:
    """After abandoned fills, before what is sound; within the bounds it stays."""
    place(layout.quarantine / "old", b"x" * 4 * KIB)
    with begun(layout, b"old", 2):
        pass
    before = on_disk(layout)
    setting.quota = sum(before.values()) + 6 * KIB
    setting.janitor().tidy()
    assert filling(layout) == 6 * KIB
    setting.quota = (sum(before.values()) + 4 * KIB) * 10 // 9
    with begun(layout, b"old", 2):
        assert setting.janitor().tidy()[1] == []
        assert (filling(layout), on_disk(layout)) == (2 * KIB, before)
    place(layout.quarantine / "old", b"x" * 4 * KIB)
    setting.quota = sum(before.values()) * 10 // 9
    assert setting.janitor().tidy()[1] == []
    assert (filling(layout), on_disk(layout)) == (0, before)


def test_old_listings_are_forgotten(catalogue: Catalogue, setting: Setting, clock: Clock) -> None:
    """A list that nobody saw for the time to live goes; without one it stays."""
    sql = "INSERT INTO listing VALUES ('a', '', x'00', ?)"
    catalogue._connection.execute(sql, (clock() - 100,))
    count = "SELECT count(*) FROM listing"
    setting.janitor().tidy()
    assert catalogue._connection.execute(count).fetchone() == (1,)
    setting.janitor(ttl=50).tidy()
    assert catalogue._connection.execute(count).fetchone() == (0,)


# -- a full disk -----------------------------------------------------------------------------------


@pytest.fixture
def disk(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Have a disk of 16 KiB on which blobs are all that there is, in blocks of a byte."""
    given = SimpleNamespace(f_blocks=16 * KIB, f_frsize=1, other=0, inodes=0, inodes_left=0)

    def statvfs(_: Path) -> Any:
        free = given.f_blocks - given.other - sum(on_disk(layout).values())
        return SimpleNamespace(
            f_blocks=given.f_blocks, f_frsize=1, f_bavail=max(0, free), f_bfree=free,
            f_files=given.inodes, f_favail=given.inodes_left,
        )  # fmt: skip

    monkeypatch.setattr(module, "os", SimpleNamespace(statvfs=statvfs))
    return given


def test_makes_room(
    layout: Layout, setting: Setting, disk: Any, images: list[tuple[Digest, ...]]
) -> None:
    """A full disk loses what was used least recently until so much is free, and no more."""
    disk.other = 16 * KIB - sum(on_disk(layout).values())
    assert setting.janitor().free(2 * KIB)
    assert str(images[0][0]) not in on_disk(layout)
    assert of(images[2]) <= on_disk(layout).keys()
    assert sum(on_disk(layout).values()) + disk.other <= 14 * KIB


@pytest.mark.usefixtures("images")
def test_room_that_is_there(layout: Layout, setting: Setting, disk: Any) -> None:
    """Where another has made room meanwhile nothing more goes."""
    disk.other = 0
    before = on_disk(layout)
    assert setting.janitor().free(KIB)
    assert on_disk(layout) == before


@pytest.mark.usefixtures("images")
def test_no_room_to_make(layout: Layout, setting: Setting, disk: Any) -> None:
    """What would not fit in any case costs nothing; nor does what fits only without the pinned."""
    before = on_disk(layout)
    disk.other = 16 * KIB - sum(before.values())
    assert not setting.janitor().free(100 * KIB)
    assert not setting.janitor("library/*").free(KIB)
    assert on_disk(layout) == before


@pytest.mark.usefixtures("images")
def test_abandoned_fill_makes_room(layout: Layout, setting: Setting, disk: Any) -> None:
    """It goes before any content, and one that is under way does not."""
    before = on_disk(layout)
    disk.other = 16 * KIB - sum(before.values())
    with begun(layout, b"old", 4) as partial:
        assert setting.janitor().free(KIB)
        assert on_disk(layout).keys() < before.keys()
        assert partial.named()
        disk.other = 16 * KIB - sum(on_disk(layout).values())
    before = on_disk(layout)
    assert setting.janitor().free(KIB)
    assert (filling(layout), on_disk(layout)) == (0, before)


@pytest.mark.usefixtures("images")
def test_no_inodes_left(layout: Layout, setting: Setting, disk: Any) -> None:
    """However many bytes are free, files have to go; a disk that counts none is not full."""
    before = on_disk(layout)
    assert setting.janitor().free(KIB)
    assert on_disk(layout) == before
    disk.inodes = 100
    assert setting.janitor().free(KIB)
    assert on_disk(layout).keys() < before.keys()
    before = on_disk(layout)
    disk.inodes_left = 50
    assert setting.janitor().free(KIB)
    assert on_disk(layout) == before


@pytest.mark.usefixtures("images")
def test_room_that_cannot_be_had(layout: Layout, setting: Setting, disk: Any) -> None:
    """Where a write was refused though the disk has room, so much goes all the same."""
    disk.other = 0
    before = sum(on_disk(layout).values())
    assert setting.janitor().free(2 * KIB, refused=True)
    assert before - 5 * KIB < sum(on_disk(layout).values()) <= before - 2 * KIB


def test_room_before_a_bucket(
    layout: Layout, catalogue: Catalogue, mirrored: Setting, bucket: FakeBucket, disk: Any
) -> None:
    """What the bucket has leaves the disk alone, and is known to be there; it is asked nothing."""
    digests = have(layout, NAME, "v0", IMAGES[0], CONFIG, *LAYERS[:2])
    reconcile(layout, catalogue)
    upload(layout, catalogue, bucket)
    disk.other = 16 * KIB - sum(on_disk(layout).values())
    bucket.down = True
    assert mirrored.janitor().free(KIB)
    rows = [row for row in map(catalogue.row, digests) if row is not None]
    assert {row.there for row in rows} == {True}
    assert {row.here for row in rows} == {True, False}


# -- a disk before a bucket ------------------------------------------------------------------------


@pytest.mark.usefixtures("images")
def test_local_tier_keeps_its_bound(
    layout: Layout, catalogue: Catalogue, mirrored: Setting, bucket: FakeBucket
) -> None:
    """What the bucket has leaves the disk; manifests, tags and links stay on it."""
    upload(layout, catalogue, bucket)
    before = dict(bucket.objects_here)
    mirrored.local = 4 * KIB
    state, _ = mirrored.janitor().tidy()
    assert state.here <= mirrored.local
    assert len(tags_on_disk(layout)) == 4
    assert of(map(Digest.of, IMAGES)) <= on_disk(layout).keys()
    assert bucket.objects_here == before
    assert {row.digest for row in catalogue.rows() if row.there} == {
        row.digest for row in catalogue.rows()
    }


def test_uploaded_content_leaves_first(
    layout: Layout, catalogue: Catalogue, mirrored: Setting, bucket: FakeBucket,
    images: list[tuple[Digest, ...]],
) -> None:  # fmt: skip
    """What only the disk has stays, though older, while what the bucket has makes enough room."""
    old, new = images[0][2:], images[3][2:]
    bucket.refused = {layout.key(layout.blob(digest)) for digest in old}
    with pytest.raises(BucketError):
        upload(layout, catalogue, bucket)
    mirrored.local = sum(on_disk(layout).values()) - KIB
    mirrored.janitor().tidy()
    assert of(old) <= on_disk(layout).keys()
    assert of(new) <= on_disk(layout).keys()
    mirrored.local = LITTLE + KIB
    mirrored.janitor().tidy()
    assert not of(new) & on_disk(layout).keys()
    assert len(of(old) & on_disk(layout).keys()) <= 1


@pytest.mark.usefixtures("images")
def test_pinned_content_that_is_not_up_stays(
    layout: Layout, catalogue: Catalogue, mirrored: Setting, bucket: FakeBucket
) -> None:
    """Of pinned content the disk's copy goes only when the bucket has one."""
    mirrored.local = 0
    before = on_disk(layout)
    mirrored.janitor("library/app").tidy()
    assert on_disk(layout) == before
    upload(layout, catalogue, bucket)
    mirrored.janitor("library/app").tidy()
    assert on_disk(layout).keys() == of(map(Digest.of, IMAGES))
    assert len(catalogue.rows()) == len(before)


def test_bucket_keeps_its_bound(
    layout: Layout, catalogue: Catalogue, mirrored: Setting, bucket: FakeBucket,
    images: list[tuple[Digest, ...]],
) -> None:  # fmt: skip
    """What goes from the bucket goes from the disk, with links and tags in both."""
    upload(layout, catalogue, bucket)
    mirrored.quota = sum(on_disk(layout).values()) - KIB
    state, _ = mirrored.janitor().tidy()
    upload(layout, catalogue, bucket)
    first, _, *layers = images[0]
    blobs = {
        key: len(content)
        for key, content in bucket.objects_here.items()
        if key.startswith(layout.key(layout.blobs))
    }
    assert sum(blobs.values()) == state.used <= mirrored.quota
    for digest in (first, *layers):
        assert not [key for key in bucket.objects_here if digest.hex in key]
        assert str(digest) not in on_disk(layout)
    assert not [key for key in bucket.objects_here if "/tags/v0/" in key]
    assert layout.key(layout.tag_link(NAME, Tag("v1"))) in bucket.objects_here


def test_bound_of_the_bucket_while_some_is_not_up(
    layout: Layout, catalogue: Catalogue, mirrored: Setting, bucket: FakeBucket,
    images: list[tuple[Digest, ...]],
) -> None:  # fmt: skip
    """What is not in the bucket makes no room there: one round is enough all the same."""
    bucket.refused = {layout.key(layout.blob(digest)) for digest in images[0][2:]}
    with pytest.raises(BucketError):
        upload(layout, catalogue, bucket)
    bucket.refused.clear()
    mirrored.quota = mirrored.janitor().state().used - KIB
    state, _ = mirrored.janitor().tidy()
    assert state.used <= mirrored.quota
    assert not state.over


@pytest.mark.usefixtures("images")
def test_bucket_that_is_away(
    layout: Layout, catalogue: Catalogue, mirrored: Setting, bucket: FakeBucket, clock: Clock
) -> None:
    """Bounds are kept all the same, it is not even asked; it loses what went when it is back."""
    upload(layout, catalogue, bucket)
    bucket.down = True
    asked = len(bucket.asked)
    clock.now += 1000
    mirrored.local = LITTLE
    janitor = mirrored.janitor(ttl=1098)  # some is to go altogether, the rest from the disk
    janitor.tidy()
    assert janitor.state().here <= mirrored.local
    assert sorted(tag for _, tag in tags_on_disk(layout)) == ["v3"]
    assert len(bucket.asked) == asked
    bucket.down = False
    assert [key for key in bucket.objects_here if "/tags/v0/" in key]
    upload(layout, catalogue, bucket)
    assert not [key for key in bucket.objects_here if "/tags/v0/" in key]
    assert (catalogue.buried(), len(tags_on_disk(layout))) == ([], 1)


def test_other_repository_keeps_what_it_shares(
    layout: Layout, catalogue: Catalogue, setting: Setting, clock: Clock
) -> None:
    """Content that a used manifest of any repository names stays; only the rest goes."""
    old = have(layout, NAME, "v", IMAGES[0], CONFIG, *LAYERS[:2])
    new = have(layout, OTHER, "v", manifest(CONFIG, LAYERS[0]), CONFIG, LAYERS[0])
    reconcile(layout, catalogue)
    use(catalogue, clock() - 100, *old, *new)
    use(catalogue, clock() - 1, new[0])
    setting.quota = sum(on_disk(layout).values()) - 1
    setting.janitor().tidy()
    assert of(new) <= on_disk(layout).keys()
    assert str(old[0]) not in on_disk(layout)
    assert tags_on_disk(layout).keys() == {("library/other", "v")}


# -- how much that is ------------------------------------------------------------------------------


def test_share_of_disk(tmp_path: Path) -> None:
    """A share is of the whole disk, also of the one below a directory that is asked for."""
    disk = os.statvfs(tmp_path)
    whole = disk.f_blocks * disk.f_frsize
    assert share_of_disk(tmp_path, 100) == whole
    assert share_of_disk(tmp_path, 12.5) == whole // 8
    assert share_of_disk(tmp_path, 0) == 0
    with pytest.raises(FileNotFoundError):
        share_of_disk(tmp_path / "missing", 10)


def test_empty_store(setting: Setting, layout: Layout) -> None:
    """Nothing to keep and nothing to go is no error."""
    setting.quota = 0
    state, went = setting.janitor("a/b", ttl=1).tidy()
    assert (state.used, state.over, state.overpinned, went) == (0, False, False, [])
    lay(layout, b"not reconciled")
    assert setting.janitor().tidy()[1] == []
