"""Content taken away with all that is said of it, and nothing else."""

from __future__ import annotations

import fcntl
import select
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from pullthrough.oci.digest import Digest
from pullthrough.oci.reference import Repository, Tag
from pullthrough.store.catalogue import Catalogue, LinkRow, TagRow
from pullthrough.store.filesystem import FileStore
from pullthrough.store.generation import Generation
from pullthrough.store.layout import Layout
from pullthrough.store.reconcile import reconcile
from pullthrough.store.trouble import BucketError
from pullthrough.tending import removal as module
from pullthrough.tending.removal import Removal, tending
from pullthrough.tending.uploads import Mirror
from tests.fakes.faults import eventually
from tests.store.conftest import files, layout
from tests.store.kit import CONTENT, DIGEST, NAME, OTHER, child, place
from tests.tending.kit import (
    Death,
    FakeBucket,
    dying,
    have,
    lay,
    links_on_disk,
    manifest,
    of,
    on_disk,
    tags_on_disk,
)

__all__ = ["files", "layout"]

CONFIG, LAYER, MORE = b"{}", b"a layer", b"another layer"
FIRST, SECOND = manifest(CONFIG, LAYER), manifest(CONFIG, MORE)
DEEP = Repository("a/b/c")

HOLDING = """
import sys
from pathlib import Path
from pullthrough.store.layout import Layout
from pullthrough.tending.removal import tending

with tending(Layout(Path(sys.argv[1]))):
    print("holding", flush=True)
    sys.stdin.readline()
print("done", flush=True)
"""


@pytest.fixture
def catalogue(layout: Layout) -> Iterator[Catalogue]:
    """Open the index."""
    with Catalogue(layout.index) as opened:
        yield opened


@pytest.fixture
def removal(layout: Layout, catalogue: Catalogue) -> Removal:
    """Remove from a disk alone."""
    return Removal(layout, catalogue, mirrored=False)


@pytest.fixture
def bucket() -> FakeBucket:
    """Make a bucket in memory."""
    return FakeBucket()


def known(catalogue: Catalogue) -> set[str]:
    return {row.digest for row in catalogue.rows()}


def test_all_that_is_said_of_it(layout: Layout, catalogue: Catalogue, removal: Removal) -> None:
    """Tags and links in every repository go with a manifest; other images keep theirs."""
    for repository, tag in ((NAME, "v1"), (NAME, "latest"), (DEEP, "v1")):
        have(layout, repository, tag, FIRST, CONFIG, LAYER)
    have(layout, NAME, "v2", SECOND, CONFIG, MORE)
    reconcile(layout, catalogue)
    first, layer = str(Digest.of(FIRST)), str(Digest.of(LAYER))
    assert removal.altogether([first, layer]) == [first, layer]
    rest = of(map(Digest.of, (SECOND, CONFIG, MORE)))
    assert on_disk(layout).keys() == known(catalogue) == links_on_disk(layout) == rest
    assert tags_on_disk(layout) == {("library/app", "v2"): str(Digest.of(SECOND))}
    assert catalogue.tags() == [TagRow(NAME.name, "v2", str(Digest.of(SECOND)))]
    assert {manifest for manifest, _ in catalogue.refers()} == {str(Digest.of(SECOND))}
    assert not layout.blob(Digest.of(FIRST)).parent.exists()
    # Its config is still linked in the other repository, which has no manifest any more.
    assert not (layout.repository(DEEP) / "_manifests").exists()


def test_repository_without_content_goes(
    layout: Layout, catalogue: Catalogue, removal: Removal
) -> None:
    """Of a repository that lost all, no directory stays, nor of those above it; others do."""
    gone = have(layout, DEEP, "v1", FIRST, CONFIG, LAYER)
    have(layout, Repository("a/b"), "v1", SECOND, MORE)
    reconcile(layout, catalogue)
    removal.altogether(of(gone))
    assert not layout.repository(DEEP).exists()
    assert (layout.repositories / "a" / "b" / "_manifests").is_dir()
    removal.altogether(of(map(Digest.of, (SECOND, MORE))))
    assert list(layout.repositories.iterdir()) == []


def test_what_is_read_stays(layout: Layout, catalogue: Catalogue, removal: Removal) -> None:
    """With its tags and links, and with what is known of it; once it is let go of it goes."""
    digests = have(layout, NAME, "v1", FIRST, CONFIG, LAYER)
    reconcile(layout, catalogue)
    with layout.blob(digests[0]).open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        assert set(removal.altogether(of(digests))) == of(digests[1:])
        assert removal.from_the_disk([str(digests[0])]) == []
        assert file.read() == FIRST
    assert on_disk(layout).keys() == known(catalogue) == {str(digests[0])}
    assert tags_on_disk(layout) == {(NAME.name, "v1"): str(digests[0])}
    assert removal.altogether([str(digests[0])]) == [str(digests[0])]
    assert (on_disk(layout), tags_on_disk(layout)) == ({}, {})


async def test_reader_of_the_store_holds_it(
    layout: Layout, catalogue: Catalogue, removal: Removal, files: FileStore
) -> None:
    """What the store has open is what is read; nobody opens what is being taken away."""
    lay(layout, CONTENT)
    reconcile(layout, catalogue)
    blob = await files.open_blob(DIGEST)
    assert blob is not None
    assert removal.altogether([str(DIGEST)]) == []
    blob.file.close()
    with layout.blob(DIGEST).open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert await files.open_blob(DIGEST) is None
    assert removal.altogether([str(DIGEST)]) == [str(DIGEST)]
    assert await files.open_blob(DIGEST) is None


def test_tag_that_moved_meanwhile(layout: Layout, catalogue: Catalogue, removal: Removal) -> None:
    """A tag that is something else by now stays, though the index said otherwise."""
    have(layout, NAME, "v1", FIRST, CONFIG, LAYER)
    reconcile(layout, catalogue)
    have(layout, NAME, "v1", SECOND, CONFIG, MORE)
    removal.altogether([str(Digest.of(FIRST))])
    assert tags_on_disk(layout) == {(NAME.name, "v1"): str(Digest.of(SECOND))}
    reconcile(layout, catalogue)
    assert catalogue.tags() == [TagRow(NAME.name, "v1", str(Digest.of(SECOND)))]


def test_what_is_not_there(catalogue: Catalogue, removal: Removal) -> None:
    """What is unknown, or has gone already, is no error."""
    assert removal.altogether([]) == removal.from_the_disk([]) == []
    assert removal.altogether([str(DIGEST)]) == [str(DIGEST)]
    assert removal.from_the_disk([str(DIGEST)]) == [str(DIGEST)]
    removal.tag(TagRow(NAME.name, "v1", str(DIGEST)))
    removal.link(LinkRow(str(DIGEST), "layers", NAME.name))
    assert known(catalogue) == set()


def test_tag_alone(layout: Layout, catalogue: Catalogue, removal: Removal) -> None:
    """A tag leaves without its manifest, with all that registry:2 remembers of it."""
    have(layout, NAME, "v1", FIRST, CONFIG)
    have(layout, NAME, "v2", FIRST, CONFIG)
    reconcile(layout, catalogue)
    removal.tag(TagRow(NAME.name, "v1", str(Digest.of(FIRST))))
    assert tags_on_disk(layout).keys() == {(NAME.name, "v2")}
    assert len(catalogue.tags()) == 1
    assert str(Digest.of(FIRST)) in on_disk(layout)
    assert not layout.tag_link(NAME, Tag("v1")).parents[1].exists()


def test_link_alone(layout: Layout, catalogue: Catalogue, removal: Removal) -> None:
    """One repository loses what another keeps."""
    lay(layout, LAYER)
    for repository in (NAME, OTHER):
        have(layout, repository, "v1", FIRST, CONFIG, LAYER)
    reconcile(layout, catalogue)
    layer = Digest.of(LAYER)
    removal.link(LinkRow(str(layer), "layers", OTHER.name))
    assert not layout.link(OTHER, "layers", layer).exists()
    assert layout.link(NAME, "layers", layer).exists()
    assert catalogue.links_of(str(layer)) == [LinkRow(str(layer), "layers", NAME.name)]
    assert str(layer) in on_disk(layout)


def test_from_the_disk(layout: Layout, catalogue: Catalogue, removal: Removal) -> None:
    """What the bucket has is still known when its file is gone, with its links."""
    digest = str(have(layout, NAME, "v1", FIRST, CONFIG, LAYER)[2])
    reconcile(layout, catalogue)
    catalogue.uploaded(Digest.parse(digest))
    assert removal.from_the_disk([digest]) == [digest]
    row = catalogue.row(Digest.parse(digest))
    assert row is not None
    assert (row.here, row.there, row.verified) == (False, True, False)
    assert digest in links_on_disk(layout) - on_disk(layout).keys()
    assert not layout.blob(Digest.parse(digest)).parent.exists()


def test_from_the_bucket_too(layout: Layout, catalogue: Catalogue, bucket: FakeBucket) -> None:
    """Nothing of it stays there: content, links, tags and what registry:2 remembers of them."""
    digests = have(layout, NAME, "v1", FIRST, CONFIG, LAYER)
    have(layout, OTHER, "v1", SECOND, CONFIG, MORE)
    reconcile(layout, catalogue)
    Mirror(layout, catalogue, bucket.as_bucket, lambda: False).upload()
    Removal(layout, catalogue, mirrored=True).altogether(of((digests[0], digests[2])))
    Mirror(layout, catalogue, bucket.as_bucket, lambda: False).bury()
    assert catalogue.buried() == []
    for digest in (digests[0], digests[2]):
        assert not [key for key in bucket.objects_here if digest.hex in key]
    assert not [key for key in bucket.objects_here if "library/app/_manifests" in key]
    assert layout.key(layout.tag_link(OTHER, Tag("v1"))) in bucket.objects_here


async def test_tag_that_comes_again(
    layout: Layout, catalogue: Catalogue, bucket: FakeBucket, files: FileStore
) -> None:
    """What came again before the bucket lost it is in the bucket at the end, whole."""
    have(layout, NAME, "v1", FIRST, CONFIG, LAYER)
    reconcile(layout, catalogue)
    mirror = Mirror(layout, catalogue, bucket.as_bucket, lambda: False)
    mirror.upload()
    before = dict(bucket.objects_here)
    Removal(layout, catalogue, mirrored=True).altogether(sorted(known(catalogue)))
    assert (bucket.objects_here, known(catalogue)) == (before, set())
    have(layout, NAME, "v1", FIRST, CONFIG, LAYER)
    reconcile(layout, catalogue)
    await files.write_tag(NAME, Tag("v1"), Digest.of(FIRST), 1.0)
    mirror.learn()  # what is to be deleted is not taken to be there
    assert not any(row.there for row in catalogue.rows())
    mirror.upload()
    assert (bucket.objects_here, catalogue.buried()) == (before, [])
    assert all(row.there for row in catalogue.rows())
    assert mirror.upload() == 0


def test_published_again_between(
    layout: Layout, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What came again right after it was taken away is known, with its names, and not buried."""
    digests = have(layout, NAME, "v1", FIRST, CONFIG, LAYER)
    reconcile(layout, catalogue)
    removal = Removal(layout, catalogue, mirrored=True)
    real = removal._forget

    def published(*given: Any) -> list[str]:
        have(layout, NAME, "v1", FIRST, CONFIG)
        return real(*given)

    monkeypatch.setattr(removal, "_forget", published)
    assert removal.altogether(map(str, digests)) == [str(digests[2])]
    assert known(catalogue) == of(digests[:2])
    assert len(catalogue.tags()) == 1
    assert {link.digest for link in catalogue.links("layers")} == {str(digests[1])}
    assert sorted(catalogue.buried()) == sorted(
        layout.key(path)
        for path in (layout.blob(digests[2]), layout.link(NAME, "layers", digests[2]))
    )


def test_other_file_under_the_name(
    layout: Layout, catalogue: Catalogue, removal: Removal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was published anew between the look and the lock is not taken away."""
    digest = lay(layout, LAYER)
    reconcile(layout, catalogue)
    real = module._locked

    def anew(descriptor: int) -> bool:
        layout.blob(digest).rename(layout.temporary / "old")
        lay(layout, LAYER)
        return real(descriptor)

    monkeypatch.setattr(module, "_locked", anew)
    assert removal.altogether([str(digest)]) == removal.from_the_disk([str(digest)]) == []
    assert on_disk(layout).keys() == known(catalogue) == {str(digest)}


def test_fetched_again_meanwhile(
    layout: Layout, catalogue: Catalogue, removal: Removal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What somebody fetches while others leave the disk is here, and known to be."""
    first, second = lay(layout, LAYER), lay(layout, MORE)
    reconcile(layout, catalogue)
    real = removal._unread

    def fetched(digest: str) -> AbstractContextManager[bool]:
        if digest == str(second):
            eventually(lambda: not layout.blob(first).parent.exists(), "the first has gone")
            lay(layout, LAYER)
        return real(digest)

    monkeypatch.setattr(removal, "_unread", fetched)
    assert removal.from_the_disk([str(first), str(second)]) == [str(first), str(second)]
    assert on_disk(layout).keys() == known(catalogue) == {str(first)}


def test_bucket_that_refuses(layout: Layout, catalogue: Catalogue, bucket: FakeBucket) -> None:
    """What it does not lose now it loses the next time; come again, it does not go up before."""
    digests = have(layout, NAME, "v1", FIRST, CONFIG, LAYER)
    reconcile(layout, catalogue)
    mirror = Mirror(layout, catalogue, bucket.as_bucket, lambda: False)
    mirror.upload()
    key = layout.key(layout.blob(digests[0]))
    bucket.refused = {key}
    assert Removal(layout, catalogue, mirrored=True).altogether(of(digests)) != []
    with pytest.raises(BucketError):
        mirror.bury()
    assert catalogue.buried() == list(bucket.objects_here) == [key]
    lay(layout, FIRST)
    reconcile(layout, catalogue)
    with pytest.raises(BucketError):
        mirror.upload()
    assert [row.there for row in catalogue.rows()] == [False]
    bucket.refused.clear()
    mirror.upload()
    assert (catalogue.buried(), bucket.objects_here) == ([], {key: FIRST})
    assert [row.there for row in catalogue.rows()] == [True]


@pytest.mark.parametrize("after", range(0, 60, 2))
def test_death_in_the_middle(
    layout: Layout, catalogue: Catalogue, bucket: FakeBucket, after: int
) -> None:
    """Wherever it ends, what is not whole any more is known of, and goes the next time."""
    digests = have(layout, NAME, "v1", FIRST, CONFIG, LAYER)
    have(layout, OTHER, "v2", FIRST, CONFIG, LAYER)
    reconcile(layout, catalogue)
    Mirror(layout, catalogue, bucket.as_bucket, lambda: False).upload()
    removal = Removal(layout, catalogue, mirrored=True)
    with dying(after) as dead:
        try:
            removal.altogether(str(digest) for digest in digests)
        except Death:
            assert dead()
    reconcile(layout, catalogue)
    for tag, digest in tags_on_disk(layout).items():
        assert digest in known(catalogue), tag
    mirror = Mirror(layout, catalogue, bucket.as_bucket, lambda: False)
    removal.altogether(sorted(known(catalogue)))
    assert (on_disk(layout), tags_on_disk(layout), catalogue.tags()) == ({}, {}, [])
    mirror.bury()
    mirror.learn()
    assert tags_on_disk(layout) == {}, "a tag came back without its manifest"


def test_others_are_told(layout: Layout, catalogue: Catalogue, removal: Removal) -> None:
    """All processes hear that something went, and nothing when nothing did."""
    digests = list(map(str, have(layout, NAME, "v1", FIRST, CONFIG, LAYER)))
    reconcile(layout, catalogue)
    generation = Generation(layout.generation)
    before = generation.number
    with tending(layout):
        removal.altogether([])
        removal.from_the_disk([])
    with layout.blob(Digest.parse(digests[0])).open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        removal.altogether(digests[:1])
        removal.from_the_disk(digests[:1])
    assert generation.number == before
    removal.from_the_disk(digests[1:2])
    assert generation.number == before + 1
    removal.link(LinkRow(digests[2], "layers", NAME.name))
    assert generation.number == before + 2
    removal.tag(TagRow(NAME.name, "v1", digests[0]))
    assert generation.number == before + 3
    removal.altogether(digests)
    assert generation.number == before + 4
    generation.close()


@pytest.mark.timeout(60)
def test_one_at_a_time(layout: Layout) -> None:
    """Two processes do not tend one store at once; a death lets the other on."""
    with child(HOLDING, str(layout.root)) as first, child(HOLDING, str(layout.root)) as second:
        lines = {first: "", second: ""}
        ready, _, _ = select.select([each._pipes()[1] for each in lines], [], [], 30)
        assert len(ready) == 1
        holder = first if ready[0] is first._pipes()[1] else second
        other = second if holder is first else first
        assert holder.says() == "holding"
        assert select.select([other._pipes()[1]], [], [], 0.2)[0] == []
        holder.kill()
        assert other.says() == "holding"
        other.go_on()
        assert other.says() == "done"


def test_directory_that_somebody_else_uses(
    layout: Layout, catalogue: Catalogue, removal: Removal
) -> None:
    """A file of another's beside the content is left alone, with its directory."""
    digest = lay(layout, CONTENT)
    strange: Path = layout.blob(digest).parent / "strange"
    place(strange, b"")
    reconcile(layout, catalogue)
    assert removal.altogether([str(digest)]) == [str(digest)]
    assert strange.exists()
    assert on_disk(layout) == {}
