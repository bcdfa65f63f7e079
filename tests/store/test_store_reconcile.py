"""The index made to agree with the files: what is taken up, what is forgotten, what is let be."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pullthrough.oci.digest import Digest
from pullthrough.oci.reference import Repository, Tag
from pullthrough.store import reconcile as reconcile_module
from pullthrough.store.catalogue import Catalogue, LinkRow, TagRow
from pullthrough.store.filesystem import FileStore
from pullthrough.store.index import Named
from pullthrough.store.layout import Layout
from pullthrough.store.reconcile import reconcile
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
    place,
    publish,
    put,
    stored,
)

KILLED = """
import os, sys
from pathlib import Path
from pullthrough.store.catalogue import Catalogue
from pullthrough.store.layout import Layout
from pullthrough.store.reconcile import reconcile

step = sys.argv[2]
real = getattr(Catalogue, step)

def last(self, *given, **named):
    real(self, *given, **named)
    os.kill(os.getpid(), 9)

setattr(Catalogue, step, last)
layout = Layout(Path(sys.argv[1]))
with Catalogue(layout.index) as catalogue:
    reconcile(layout, catalogue)
"""


@pytest.fixture
def catalogue(layout: Layout) -> Iterator[Catalogue]:
    """Open the index as the keeper does."""
    with Catalogue(layout.index) as opened:
        yield opened


def everything(catalogue: Catalogue) -> tuple[object, ...]:
    """Return all that the index says of what is here, but for the time of its last use."""
    return (
        {(row.digest, row.size, row.verified, row.here, row.there) for row in catalogue.rows()},
        set(catalogue.all_named()),
        set(catalogue.links("revisions") + catalogue.links("layers")),
        catalogue.tags(),
    )


def during(monkeypatch: pytest.MonkeyPatch, name: str, what: Callable[[], None]) -> None:
    """Have ``what`` happen once reconciling has looked through something, by ``name``."""
    real = getattr(reconcile_module, name)

    def looked(layout: Layout) -> Iterator[object]:
        found = list(real(layout))
        what()
        yield from found

    monkeypatch.setattr(reconcile_module, name, looked)


def test_directory_of_registry_2(layout: Layout, catalogue: Catalogue) -> None:
    """All is taken up: content, links, tags, what each manifest names; manifests are hashed."""
    pulled = image(index=True)
    as_registry_2(layout, pulled)
    (inner,) = (each for each in pulled.manifests if each.digest != pulled.digest)
    reconcile(layout, catalogue)
    rows, names, links, tags = everything(catalogue)
    contents = {each.digest: (each.content, True) for each in pulled.manifests}
    contents |= {name: (content, False) for name, content in pulled.blobs.items()}
    assert rows == {
        (name, len(content), verified, True, False)
        for name, (content, verified) in contents.items()
    }
    assert links == {
        *(LinkRow(each.digest, "revisions", NAME.name) for each in pulled.manifests),
        *(LinkRow(name, "layers", NAME.name) for name in pulled.blobs),
    }
    assert tags == [TagRow(NAME.name, TAG.name, pulled.digest)]
    assert names == {
        (pulled.digest, inner.digest, len(inner.content), "linux/amd64", True),
        *((inner.digest, name, len(content), "", False) for name, content in pulled.blobs.items()),
    }


async def test_sizes_of_what_is_not_here(
    layout: Layout, catalogue: Catalogue, files: FileStore
) -> None:
    """Every size that a manifest here names is known, whether the content is here or not."""
    pulled = image(index=True)
    as_registry_2(layout, pulled)
    for name in pulled.blobs:
        layout.blob(Digest.parse(name)).unlink()
    reconcile(layout, catalogue)
    for name, content in pulled.blobs.items():
        assert await files.named_size(Digest.parse(name)) == len(content)


def test_damage_is_passed_over(layout: Layout, catalogue: Catalogue) -> None:
    """Manifests that are not what they should be name nothing, odd files and links are nothing."""
    rotten, good = image(), image()
    as_registry_2(layout, rotten)
    as_registry_2(layout, good)
    rotten_digest = Digest.parse(rotten.digest)
    place(layout.blob(rotten_digest), good.top.content)
    place(layout.blob(DIGEST), CONTENT)  # linked as a manifest, but none
    place(layout.link(NAME, "revisions", DIGEST), str(DIGEST).encode())
    place(layout.blob(SHA512).parent, b"a file in a directory's place")
    for odd in ("sha256/xy/xyz/data", "md5/aa/aaaa/data", "file", "sha256/file"):
        place(layout.blobs / odd, b"odd")
    place(layout.links(NAME, "revisions") / "sha256" / "short" / "link", b"")
    place(layout.links(OTHER, "layers"), b"a file in a directory's place")
    for number, text in enumerate((b"", b"no digest", b"\xff\xfe", b"x" * 1000)):
        place(layout.tag_link(NAME, Tag(f"odd{number}")), text)
    place(layout.tags(NAME) / "-no-tag" / "current" / "link", str(DIGEST).encode())
    place(layout.repositories / "UPPER" / "_manifests" / "tags" / "v" / "current" / "link", b"")
    reconcile(layout, catalogue)
    row = catalogue.row(rotten_digest)
    assert row is not None
    assert not row.verified
    assert {manifest for manifest, _ in catalogue.refers()} == {good.digest}
    assert catalogue.tags() == [TagRow(NAME.name, TAG.name, good.digest)]
    digests = {str(DIGEST), good.digest, rotten.digest, *good.blobs, *rotten.blobs}
    assert {each.digest for each in catalogue.rows()} == digests
    assert {link.repository for link in catalogue.links("revisions")} == {NAME.name}


async def test_what_is_known_stays(layout: Layout, catalogue: Catalogue, files: FileStore) -> None:
    """Run on an index that is right it changes nothing: verified stays verified, used stays."""
    pulled = image()
    await files.write_manifest(NAME, stored(pulled.top))
    await files.write_tag(NAME, TAG, Digest.parse(pulled.digest), 1000.5)
    await put(files, CONTENT, DIGEST)
    await files.link_blob(NAME, DIGEST)
    before, rows = everything(catalogue), catalogue.rows()
    reconcile(layout, catalogue)
    assert (everything(catalogue), catalogue.rows()) == (before, rows)
    tag = await files.read_tag(NAME, TAG)
    assert tag is not None
    assert tag.checked == 1000.5


async def test_lost_files_are_forgotten(
    layout: Layout, catalogue: Catalogue, files: FileStore
) -> None:
    """What somebody deleted is no longer here; where the bucket has it, that is still known."""
    for content in (b"gone", b"in the bucket", b"here"):
        await put(files, content, Digest.of(content))
    catalogue.uploaded(Digest.of(b"in the bucket"))
    for content in (b"gone", b"in the bucket"):
        layout.blob(Digest.of(content)).unlink()
    reconcile(layout, catalogue)
    assert {(row.digest, row.verified, row.here, row.there) for row in catalogue.rows()} == {
        (str(Digest.of(b"in the bucket")), False, False, True),
        (str(Digest.of(b"here")), True, True, False),
    }


async def test_tags_moved_behind_our_back(
    layout: Layout, catalogue: Catalogue, files: FileStore
) -> None:
    """What another program wrote or removed counts, and was checked by nobody."""
    for name in ("moved", "removed", "kept"):
        await files.write_tag(NAME, Tag(name), DIGEST, 1000.0)
    place(layout.tag_link(NAME, Tag("moved")), str(SHA512).encode())
    place(layout.tag_link(NAME, Tag("new")), str(SHA512).encode())
    layout.tag_link(NAME, Tag("removed")).unlink()
    for tag in catalogue.tags():
        catalogue.tagged_there(tag)
    reconcile(layout, catalogue)
    assert catalogue.tags() == [
        TagRow(NAME.name, "kept", str(DIGEST)),
        TagRow(NAME.name, "moved", str(SHA512)),
        TagRow(NAME.name, "new", str(SHA512)),
    ]
    for name, checked in (("kept", 1000.0), ("moved", 0.0), ("new", 0.0)):
        found = await files.read_tag(NAME, Tag(name))
        assert found is not None
        assert found.checked == checked


async def test_content_that_comes_meanwhile(
    layout: Layout, catalogue: Catalogue, files: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was lost and is fetched again while it runs is not forgotten."""
    await put(files, CONTENT, DIGEST)
    layout.blob(DIGEST).unlink()
    during(monkeypatch, "_files", lambda: place(layout.blob(DIGEST), CONTENT))
    reconcile(layout, catalogue)
    row = catalogue.row(DIGEST)
    assert row is not None
    assert (row.here, row.verified) == (True, True)


def test_tag_that_comes_meanwhile(
    layout: Layout, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is a tag whose link was away for a moment."""
    known = TagRow(NAME.name, TAG.name, str(DIGEST))
    catalogue.add_tags([known])
    during(monkeypatch, "_tags", lambda: place(layout.tag_link(NAME, TAG), str(DIGEST).encode()))
    reconcile(layout, catalogue)
    assert catalogue.tags() == [known]


async def test_unverified_stays_unverified(
    layout: Layout, catalogue: Catalogue, files: FileStore
) -> None:
    """A blob is not hashed for it: that is its first reader's, or the scrub's."""
    await publish(files, CONTENT, DIGEST)
    reconcile(layout, catalogue)
    row = catalogue.row(DIGEST)
    assert row is not None
    assert not row.verified


@pytest.mark.parametrize(
    "step",
    [
        "found",
        "add_links",
        "add_tags",
        pytest.param(
            "add_names",
        ),
        "set_verified",
    ],
)
def test_killed_half_way(layout: Layout, catalogue: Catalogue, tmp_path: Path, step: str) -> None:
    """Killed between any two steps and run again, it comes to the same."""
    pulled = [image(index=True), image()]
    for each in pulled:
        as_registry_2(layout, each)
    for name in ("a", "b/c"):
        place(layout.link(Repository(name), "revisions", DIGEST), str(DIGEST).encode())
    with child(KILLED, str(layout.root), step) as killed:
        assert killed.wait() == -9
    with Catalogue(tmp_path / "expected.sqlite") as fresh:
        reconcile(layout, fresh)
        assert everything(catalogue) != everything(fresh)
        reconcile(layout, catalogue)
        assert everything(catalogue) == everything(fresh)


def test_directories_that_are_not_there(tmp_path: Path) -> None:
    """A root that was emptied has nothing, and that is no error."""
    with Catalogue(tmp_path / "index.sqlite") as catalogue:
        catalogue.add_names(DIGEST, [Named(SHA512, 1)])
        catalogue.add_tags([TagRow(NAME.name, TAG.name, str(DIGEST))])
        reconcile(Layout(tmp_path / "root"), catalogue)
        assert (catalogue.rows(), catalogue.tags()) == ([], [])
