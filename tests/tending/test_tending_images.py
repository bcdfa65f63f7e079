"""What is an image, and what of it is here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pullthrough.oci.digest import Digest
from pullthrough.oci.reference import Repository, Tag
from pullthrough.store.catalogue import Catalogue
from pullthrough.store.filesystem import prepare
from pullthrough.store.layout import Layout
from pullthrough.store.reconcile import reconcile
from pullthrough.tending.images import Image, Inventory
from tests.fakes.content import OCI_INDEX, OCI_MANIFEST, Manifest, make_image, make_referrer


class Store:
    """A directory with content, as another program leaves it."""

    def __init__(self, root: Path) -> None:
        self.layout: Layout = prepare(root).layout
        self.catalogue = Catalogue(self.layout.index)

    def put(self, content: bytes) -> str:
        digest = Digest.of(content)
        path = self.layout.blob(digest)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return str(digest)

    def link(self, repository: str, manifest: Manifest, tag: str | None = None) -> None:
        """Put a manifest, and let a repository have it."""
        digest, name = Digest.parse(self.put(manifest.content)), Repository.parse(repository)
        links = [self.layout.link(name, "revisions", digest)]
        if tag:
            links.append(self.layout.tag_link(name, Tag.parse(tag)))
        for link in links:
            link.parent.mkdir(parents=True, exist_ok=True)
            link.write_text(str(digest))

    def inventory(self) -> Inventory:
        reconcile(self.layout, self.catalogue)
        return Inventory(self.layout, self.catalogue)

    def images(self) -> dict[str, Image]:
        return {str(image.name): image for image in self.inventory().images()}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path / "store")
    with made.catalogue:
        yield made


def index_of(*children: tuple[Manifest, dict[str, Any]]) -> Manifest:
    listed = [child.descriptor(**more) for child, more in children]
    document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": listed}
    return Manifest(json.dumps(document).encode(), OCI_INDEX)


def platform(os: str, architecture: str) -> dict[str, Any]:
    return {"platform": {"os": os, "architecture": architecture}}


def test_index_counts_its_platforms(store: Store) -> None:
    """One of two platforms here is half an image; the attestation that is not here is nobody's."""
    amd, arm, attestation = (make_image("a", tag, (tag.encode(),)) for tag in ("x", "y", "z"))
    index = index_of(
        (amd.top, platform("linux", "amd64")),
        (arm.top, platform("linux", "arm64")),
        (attestation.top, platform("unknown", "unknown")),
    )
    store.link("project/app", index, "v1")
    store.link("project/app", amd.top)
    for content in amd.blobs.values():
        store.put(content)
    (image,) = store.images().values()
    assert not image.complete
    assert [(each.name, each.complete) for each in image.platforms] == [
        ("linux/amd64", True),
        ("linux/arm64", False),
    ]
    here = len(amd.top.content) + sum(map(len, amd.blobs.values()))
    assert image.platforms[0].size == here
    assert image.size == here + len(index.content)
    store.link("project/app", arm.top)
    for content in arm.blobs.values():
        store.put(content)
    assert store.images()["project/app:v1"].complete


def test_index_of_indexes(store: Store) -> None:
    """What a named index names counts too."""
    image = make_image("a", "v1", (b"layer",))
    inner = index_of((image.top, platform("linux", "amd64")))
    store.link("project/app", index_of((inner, {})), "v1")
    store.link("project/app", inner)
    store.link("project/app", image.top)
    assert not store.images()["project/app:v1"].complete
    for content in image.blobs.values():
        store.put(content)
    assert store.images()["project/app:v1"].complete


def test_one_layer_missing(store: Store) -> None:
    """A single image has the platform of its config, and needs each of its layers whole."""
    image = make_image("a", "v1", (b"one", b"two"))
    store.link("project/app", image.top, "v1")
    assert store.images()["project/app:v1"].platform == ""
    store.put(image.blobs[image.config])
    store.put(b"one")
    assert store.images()["project/app:v1"].platform == "linux/amd64"
    assert not store.images()["project/app:v1"].complete
    path = store.layout.blob(Digest.of(b"two"))
    path.parent.mkdir(parents=True)
    path.write_bytes(b"tw")
    assert not store.images()["project/app:v1"].complete
    path.write_bytes(b"two")
    store.catalogue.removed([str(Digest.of(b"two"))])  # else its size is the one it had
    assert store.images()["project/app:v1"].complete


def test_referrer_is_no_image(store: Store) -> None:
    """A signature by digest is listed as what it is, with no platform."""
    image = make_image("a", "v1", (b"layer",))
    referrer = make_referrer(image.top, "application/vnd.example.signature")
    store.link("project/app", referrer)
    store.put(b"{}")
    (found,) = store.images().values()
    assert str(found.name) == f"project/app@{referrer.digest}"
    assert found.complete
    assert (found.platform, found.artifact) == ("", "application/vnd.example.signature")


def test_names(store: Store) -> None:
    """Two tags are two names; a part of an index has none; the same elsewhere has its own."""
    image = make_image("a", "v1", (b"layer",), index=True)
    index, child = image.manifests
    store.link("project/app", index, "v1")
    store.link("project/app", index, "latest")
    store.link("project/app", child)
    store.link("project/other", child)
    assert [str(name) for name in store.inventory().names] == [
        "project/app:latest",
        "project/app:v1",
        f"project/other@{child.digest}",
    ]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"layers": 7}', b"\xff" * 100])
def test_manifest_that_is_none(store: Store, content: bytes) -> None:
    """What is linked as a manifest and is none is listed, and never complete."""
    store.link("project/app", Manifest(content, OCI_MANIFEST), "v1")
    (image,) = store.images().values()
    assert not image.complete
    assert image.size == len(content)


@pytest.mark.parametrize("config", [b"", b"[]", b'{"os": 7}', b'{"os": "linux"', b"null"])
def test_config_that_is_none(store: Store, config: bytes) -> None:
    """A config that says no platform leaves it open; the image is complete all the same."""
    layer = b"layer"
    document = json.loads(make_image("a", "v1", (layer,)).top.content)
    document["config"] |= {"digest": str(Digest.of(config)), "size": len(config)}
    store.link("project/app", Manifest(json.dumps(document).encode(), OCI_MANIFEST), "v1")
    store.put(config)
    store.put(layer)
    (image,) = store.images().values()
    assert image.complete
    assert image.platform == ""


def test_last_use_is_that_of_what_names_it(store: Store) -> None:
    """A manifest is used when the index that names it is."""
    image = make_image("a", "v1", (b"layer",), index=True)
    index, child = image.manifests
    store.link("project/app", index, "v1")
    store.link("project/other", child)
    store.inventory()
    store.catalogue._connection.execute("UPDATE blob SET used=1000")
    sql = "UPDATE blob SET used=2000 WHERE digest=?"
    store.catalogue._connection.execute(sql, (index.digest,))
    assert {image.used for image in store.images().values()} == {2000.0}


def test_needing(store: Store) -> None:
    """A shared layer is needed by both images, through whatever names it."""
    shared = b"shared"
    one = make_image("a", "v1", (shared, b"one"), index=True)
    two = make_image("a", "v2", (shared,))
    for manifest, tag in ((one.top, "v1"), (one.manifests[1], None), (two.top, "v2")):
        store.link("project/app", manifest, tag)
    needing = store.inventory().needing([str(Digest.of(shared)), str(Digest.of(b"one"))])
    assert [str(name) for name in needing[str(Digest.of(shared))]] == [
        "project/app:v1",
        "project/app:v2",
    ]
    assert [str(name) for name in needing[str(Digest.of(b"one"))]] == ["project/app:v1"]


def test_leaving_takes_what_only_it_needs(store: Store) -> None:
    """Content goes with the last name that needs it, links with the last of their repository."""
    shared = b"shared"
    one = make_image("a", "v1", (shared, b"one"))
    two = make_image("a", "v2", (shared, b"two"))
    store.link("project/app", one.top, "v1")
    store.link("project/app", two.top, "v2")
    store.link("project/other", two.top, "v2")
    for content in (*one.blobs.values(), *two.blobs.values()):
        store.put(content)
    inventory = store.inventory()
    first = inventory.leaving(inventory.named("project/app", tag="v1"))
    assert set(first.digests) == {one.digest, one.config, str(Digest.of(b"one"))}
    assert first.digests[0] == one.digest
    assert [tag.tag for tag in first.tags] == ["v1"]
    assert first.links == []
    both = inventory.leaving(inventory.named("project/app"), {"project/app"})
    assert set(both.digests) == set(first.digests)
    assert [(link.repository, link.digest) for link in both.links] == [("project/app", two.digest)]
    everywhere = inventory.leaving(inventory.names)
    assert set(everywhere.digests) == {one.digest, two.digest, *one.blobs, *two.blobs}
    assert everywhere.links == []
