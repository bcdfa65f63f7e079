"""A disk and a real bucket brought into step: what is learnt, uploaded, tried again and swept."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import BinaryIO

import pytest

from pullthrough.oci.digest import Digest
from pullthrough.oci.manifest import LIMIT
from pullthrough.oci.reference import Repository, Tag
from pullthrough.store.bucket import Bucket, BucketError, Settings, Trouble
from pullthrough.store.catalogue import Catalogue
from pullthrough.store.filesystem import prepare
from pullthrough.store.layout import Layout
from pullthrough.store.reconcile import reconcile
from pullthrough.tending import uploads
from pullthrough.tending.uploads import Mirror
from tests.fakes.content import MIB, noise
from tests.fakes.mirrored import V2, TestBucket, blob_key
from tests.store.kit import NAME, OTHER, place
from tests.tending.kit import (
    have,
    index,
    lay,
    links_on_disk,
    manifest,
    of,
    on_disk,
    tags_on_disk,
)

CONFIG, LAYER, MORE = b"{}", b"a layer", b"another layer"
LARGE = noise(12 * MIB)
FIRST, SECOND = manifest(CONFIG, LAYER), manifest(CONFIG, MORE)
BOTH = index(FIRST, SECOND)
NAMES = f"{V2}/repositories"


class Refusing(Bucket):
    """A bucket that takes nothing under some keys."""

    refused: frozenset[str] = frozenset()

    def _check(self, key: str) -> None:
        if key in self.refused:
            raise BucketError(Trouble.OTHER, "the bucket does not do this")

    def put(self, key: str, content: bytes) -> None:
        self._check(key)
        super().put(key, content)

    def delete(self, key: str) -> None:
        self._check(key)
        super().delete(key)

    def upload(
        self, key: str, file: BinaryIO, size: int, *, stop: Callable[[], bool] = lambda: False
    ) -> bool:
        self._check(key)
        return super().upload(key, file, size, stop=stop)


@pytest.fixture
def settings(bucket: TestBucket) -> Settings:
    """Name this test's bucket."""
    gateway = bucket.gateway
    return Settings(
        bucket=bucket.name,
        region="us-east-1",
        endpoint=gateway.url,
        access_key=gateway.access_key,
        secret_key=gateway.secret_key,
        path_style=True,
        chunk=5 * MIB,
        attempts=1,
    )


@pytest.fixture
def client(settings: Settings) -> Refusing:
    """Open it, as the keeper does."""
    return Refusing(settings)


@pytest.fixture
def layout(tmp_path: Path) -> Iterator[Layout]:
    """Prepare a store's directory."""
    prepared = prepare(tmp_path / "root")
    yield prepared.layout
    os.close(prepared.in_use)


@pytest.fixture
def catalogue(layout: Layout) -> Iterator[Catalogue]:
    """Open the index."""
    with Catalogue(layout.index) as opened:
        yield opened


@pytest.fixture
def mirror(layout: Layout, catalogue: Catalogue, client: Bucket) -> Mirror:
    """Make what keeps them in step."""
    return Mirror(layout, catalogue, client, lambda: False)


def fill(bucket: TestBucket, name: str, tag: str, top: bytes, *more: bytes) -> None:
    """Have in the bucket what registry:2 would have put there."""
    for content, kind in zip(
        (top, *more), ["_manifests/revisions", *["_layers"] * len(more)], strict=True
    ):
        digest = Digest.of(content)
        bucket.put(blob_key(str(digest)), content)
        bucket.put(f"{NAMES}/{name}/{kind}/sha256/{digest.hex}/link", str(digest).encode())
    top_digest = Digest.of(top)
    for place_ in ("current", f"index/sha256/{top_digest.hex}"):
        key = f"{NAMES}/{name}/_manifests/tags/{tag}/{place_}/link"
        bucket.put(key, str(top_digest).encode())


def there(catalogue: Catalogue) -> set[str]:
    return {row.digest for row in catalogue.rows() if row.there}


# -- learning --------------------------------------------------------------------------------------


def test_learns_what_registry_2_put_there(
    layout: Layout, catalogue: Catalogue, bucket: TestBucket, mirror: Mirror
) -> None:
    """Content is known; manifests, links and tags are here; what manifests name is known too."""
    fill(bucket, "library/app", "v1", FIRST, CONFIG, LAYER)
    fill(bucket, "a/b/c", "v2", SECOND, CONFIG, MORE)
    fill(bucket, "a/b/c", "both", BOTH)
    mirror.learn()
    everything = of(map(Digest.of, (FIRST, SECOND, BOTH, CONFIG, LAYER, MORE)))
    manifests = of(map(Digest.of, (FIRST, SECOND, BOTH)))
    links = catalogue.links("revisions") + catalogue.links("layers")
    assert there(catalogue) == {link.digest for link in links} == everything
    assert on_disk(layout).keys() == manifests
    assert manifests <= links_on_disk(layout)
    assert tags_on_disk(layout) == {
        ("library/app", "v1"): str(Digest.of(FIRST)),
        ("a/b/c", "v2"): str(Digest.of(SECOND)),
        ("a/b/c", "both"): str(Digest.of(BOTH)),
    }
    assert {above for above, _ in catalogue.refers()} == manifests
    assert {row.digest for row in catalogue.rows() if row.verified} == manifests
    before = bucket.objects()
    assert mirror.upload() == 0
    mirror.learn()
    assert bucket.objects() == before
    reconcile(layout, catalogue)
    assert there(catalogue) == everything


def test_odd_keys_are_passed_over(
    layout: Layout, catalogue: Catalogue, bucket: TestBucket, mirror: Mirror
) -> None:
    """What is nothing of a registry's, or damaged, is let be, and keeps nobody from the rest."""
    fill(bucket, "library/app", "v1", FIRST, CONFIG, LAYER)
    large = b" " * (LIMIT + 1)
    fill(bucket, "library/odd", "large", large)  # linked as a manifest, but none
    missing = Digest.of(b"missing")
    for key, content in {
        f"{V2}/blobs/sha256/ab/abcd/data": b"",
        f"{V2}/blobs/md5/ab/{'ab' * 16}/data": b"",
        f"{V2}/blobs/sha256/{Digest.of(MORE).hex}": MORE,
        f"{V2}/blobs/": b"",
        f"{V2}/odd": b"",
        "odd": b"",
        f"{NAMES}/library/app/_uploads/1234/startedat": b"2026",
        f"{NAMES}/library/app/_manifests/tags/-no-tag/current/link": str(missing).encode(),
        f"{NAMES}/UPPER/_manifests/tags/v1/current/link": str(missing).encode(),
        f"{NAMES}/UPPER/_layers/sha256/{missing.hex}/link": b"",
        f"{NAMES}/library/app/_layers/sha256/short/link": b"",
        f"{NAMES}/library/odd/_manifests/tags/nothing/current/link": b"no digest",
        f"{NAMES}/library/odd/_manifests/tags/bytes/current/link": b"\xff\xfe",
        f"{NAMES}/library/odd/_manifests/tags/long/current/link": b"x" * 10_000,
        f"{NAMES}/library/odd/_manifests/tags/gone/current/link": str(missing).encode(),
        f"{NAMES}/library/odd/_layers/sha256/{missing.hex}/link": str(missing).encode(),
    }.items():
        bucket.put(key, content)
    mirror.learn()
    assert there(catalogue) == of(map(Digest.of, (FIRST, CONFIG, LAYER, large)))
    assert on_disk(layout).keys() == {str(Digest.of(FIRST))}
    tags = {("library/app", "v1"): str(Digest.of(FIRST))}
    assert tags_on_disk(layout) == {**tags, ("library/odd", "large"): str(Digest.of(large))}
    assert {link.repository for link in catalogue.links("layers")} == {"library/app"}
    assert str(missing) not in links_on_disk(layout)


def test_what_is_here_is_newer(
    layout: Layout, catalogue: Catalogue, bucket: TestBucket, mirror: Mirror
) -> None:
    """A tag that the disk has is not overwritten; it goes up in its turn."""
    fill(bucket, NAME.name, "v1", FIRST, CONFIG, LAYER)
    have(layout, NAME, "v1", SECOND, CONFIG, MORE)
    reconcile(layout, catalogue)
    mirror.learn()
    assert tags_on_disk(layout) == {(NAME.name, "v1"): str(Digest.of(SECOND))}
    mirror.upload()
    key = layout.key(layout.tag_link(NAME, Tag("v1")))
    assert bucket.get(key) == str(Digest.of(SECOND)).encode()


def test_wrong_manifest_in_the_bucket(
    layout: Layout, catalogue: Catalogue, bucket: TestBucket, mirror: Mirror
) -> None:
    """It is not taken for what its key says."""
    fill(bucket, NAME.name, "v1", FIRST, CONFIG, LAYER)
    bucket.put(blob_key(str(Digest.of(FIRST))), SECOND)
    mirror.learn()
    assert on_disk(layout) == {}
    assert catalogue.refers() == []


def test_forgets_what_another_deleted(
    layout: Layout, catalogue: Catalogue, bucket: TestBucket, mirror: Mirror
) -> None:
    """What is in the bucket no more is not taken to be; what is here goes up again."""
    digests = have(layout, NAME, "v1", FIRST, CONFIG, LAYER)
    reconcile(layout, catalogue)
    assert mirror.upload() > 0
    assert there(catalogue) == of(digests)
    bucket.client.delete_object(Bucket=bucket.name, Key=blob_key(str(digests[2])))
    mirror.learn()
    assert there(catalogue) == of(digests[:2])
    assert mirror.upload() == 1
    assert bucket.get(blob_key(str(digests[2]))) == LAYER


def test_does_not_learn_what_is_to_go(
    layout: Layout, catalogue: Catalogue, bucket: TestBucket, mirror: Mirror
) -> None:
    """Neither content, links nor tags that are to be deleted come back from the bucket."""
    fill(bucket, NAME.name, "v1", FIRST, CONFIG, LAYER)
    fill(bucket, NAME.name, "v2", SECOND, CONFIG, MORE)
    tag, link = layout.tag_link(NAME, Tag("v1")), layout.link(NAME, "layers", Digest.of(MORE))
    catalogue.removed(
        keys=[
            layout.key(layout.blob(Digest.of(LAYER))),
            layout.key(link),
            f"{layout.key(tag.parent.parent)}/",
        ]
    )
    mirror.learn()
    assert there(catalogue) == of(map(Digest.of, (FIRST, SECOND, CONFIG, MORE)))
    assert tags_on_disk(layout).keys() == {(NAME.name, "v2")}
    assert {row.digest for row in catalogue.links("layers")} == {str(Digest.of(CONFIG))}
    mirror.bury()
    assert catalogue.buried() == []
    assert not [key for key in bucket.objects() if "/tags/v1/" in key]
    assert layout.key(link) not in bucket.objects()


def test_disk_that_takes_nothing(
    layout: Layout, catalogue: Catalogue, bucket: TestBucket, mirror: Mirror,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """What cannot be had here is passed over, the content is known; the next time it comes."""
    fill(bucket, NAME.name, "v1", FIRST, CONFIG, LAYER)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    with monkeypatch.context() as patch:
        patch.setattr(uploads, "write_whole", full)
        mirror.learn()
    assert there(catalogue) == of(map(Digest.of, (FIRST, CONFIG, LAYER)))
    assert (on_disk(layout), tags_on_disk(layout), catalogue.tags()) == ({}, {}, [])
    mirror.learn()
    assert tags_on_disk(layout).keys() == {(NAME.name, "v1")}


# -- uploading -------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["blob", "layer link", "revision link", "tag", "buried"])
def test_one_thing_is_refused(
    layout: Layout, catalogue: Catalogue, bucket: TestBucket, client: Refusing, what: str
) -> None:
    """All the others go, the failure is told, and the next time it goes too."""
    mirror = Mirror(layout, catalogue, client, lambda: False)
    digests = have(layout, NAME, "v1", FIRST, CONFIG, LAYER)
    have(layout, OTHER, "v2", SECOND, CONFIG, MORE)
    reconcile(layout, catalogue)
    bucket.put("old", b"")
    catalogue._connection.execute("INSERT INTO gone VALUES ('old')")
    paths = {
        "blob": layout.blob(digests[2]),
        "layer link": layout.link(NAME, "layers", digests[2]),
        "revision link": layout.link(NAME, "revisions", digests[0]),
        "tag": layout.tag_link(NAME, Tag("v1")),
        "buried": layout.root / "old",
    }
    client.refused = frozenset({layout.key(paths[what])})
    with pytest.raises(BucketError):
        mirror.upload()
    refused = bucket.objects()
    client.refused = frozenset()
    assert mirror.upload() > 0 or what == "buried"
    whole = bucket.objects()
    assert "old" not in whole
    lacking = {key for key in whole.keys() ^ refused.keys() if "/index/" not in key}
    expected = {layout.key(paths[what])}
    if what == "blob":  # its link waits for it
        expected.add(layout.key(paths["layer link"]))
    assert lacking == expected
    assert mirror.upload() == 0
    assert catalogue.usage().pending == 0


@pytest.mark.usefixtures("bucket")
def test_bucket_that_is_away(layout: Layout, catalogue: Catalogue, settings: Settings) -> None:
    """After the first failure nothing more is tried; all of it is still to go."""
    have(layout, NAME, "v1", FIRST, CONFIG, LAYER)
    reconcile(layout, catalogue)
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        mirror = Mirror(
            layout, catalogue, Bucket(replace(settings, endpoint=endpoint)), lambda: False
        )
        for work in (mirror.upload, mirror.learn):
            with pytest.raises(BucketError) as caught:
                work()
            assert caught.value.trouble is Trouble.AWAY
    assert len(catalogue.pending()) == 3
    assert there(catalogue) == set()


def test_upload_that_was_done_but_not_noted(
    layout: Layout, catalogue: Catalogue, bucket: TestBucket, mirror: Mirror
) -> None:
    """It is found done, and not sent twice; what has another size is sent again."""
    done, half = lay(layout, LAYER), lay(layout, LARGE)
    reconcile(layout, catalogue)
    bucket.put(blob_key(str(done)), b"A" + LAYER[1:])  # as long, so that it can be told apart
    bucket.put(blob_key(str(half)), LARGE[:1000])
    mirror.upload()
    assert bucket.get(blob_key(str(done))) == b"A" + LAYER[1:]
    assert bucket.get(blob_key(str(half))) == LARGE
    assert bucket.uploads() == []


def test_rotten_content_does_not_go_up(
    layout: Layout, catalogue: Catalogue, bucket: TestBucket, mirror: Mirror
) -> None:
    """What nobody has verified is hashed first; what is wrong is set aside and forgotten."""
    rotten, sound = Digest.of(LARGE), lay(layout, LAYER)
    place(layout.blob(rotten), LARGE[:-1] + b"!")
    reconcile(layout, catalogue)
    assert mirror.upload() == 1
    assert bucket.objects().keys() == {blob_key(str(sound))}
    assert on_disk(layout).keys() == {str(sound)}
    assert catalogue.row(rotten) is None


def test_content_that_went_meanwhile(
    layout: Layout, catalogue: Catalogue, bucket: TestBucket, mirror: Mirror
) -> None:
    """What is not here any more is no longer to go."""
    digest = lay(layout, LAYER)
    reconcile(layout, catalogue)
    layout.blob(digest).unlink()
    assert mirror.upload() == 0
    assert (catalogue.pending(), bucket.objects()) == ([], {})


def test_content_that_comes_again(
    layout: Layout, catalogue: Catalogue, bucket: TestBucket, mirror: Mirror,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """What was taken away under the upload is not sent, and what took its place stays known."""
    digest = lay(layout, LAYER)
    reconcile(layout, catalogue)
    real = fcntl.flock

    def replaced(file: BinaryIO, how: int) -> None:
        layout.blob(digest).unlink()
        lay(layout, LAYER)
        real(file, how)

    with monkeypatch.context() as patch:
        patch.setattr(uploads, "fcntl", SimpleNamespace(flock=replaced, LOCK_SH=fcntl.LOCK_SH))
        assert mirror.upload() == 0
    assert (bucket.objects(), len(catalogue.pending())) == ({}, 1)
    assert mirror.upload() == 1


def test_told_to_stop(
    layout: Layout, catalogue: Catalogue, bucket: TestBucket, client: Bucket
) -> None:
    """An upload in parts ends between two reads, leaves nothing half, and goes on later."""
    digest = lay(layout, LARGE)
    reconcile(layout, catalogue)
    catalogue.set_verified(digest, verified=True)
    reads = iter(range(100))
    stopping = Mirror(layout, catalogue, client, lambda: next(reads) > 8)
    assert stopping.upload() == 0
    assert next(reads) > 8
    assert (bucket.uploads(), bucket.objects()) == ([], {})
    assert [row.digest for row in catalogue.pending()] == [str(digest)]
    assert Mirror(layout, catalogue, client, lambda: False).upload() == 1
    assert bucket.get(blob_key(str(digest))) == LARGE


# -- sweeping --------------------------------------------------------------------------------------


def test_sweep(layout: Layout, catalogue: Catalogue, bucket: TestBucket, client: Bucket) -> None:
    """What a death left of uploads goes; another program's uploads and all objects stay."""
    digest = lay(layout, LARGE)
    reconcile(layout, catalogue)
    Mirror(layout, catalogue, client, lambda: False).upload()
    key = blob_key(str(Digest.of(b"cut")))
    for name in (key, blob_key(str(digest)), "somebody/elses"):
        begun = bucket.client.create_multipart_upload(Bucket=bucket.name, Key=name)
        bucket.client.upload_part(
            Bucket=bucket.name, Key=name, UploadId=begun["UploadId"], PartNumber=1, Body=b"x"
        )
    before = bucket.objects()
    assert client.sweep() == 2
    assert bucket.uploads() == ["somebody/elses"]
    assert bucket.objects() == before
    assert client.sweep() == 0


def test_names_under_a_root(
    layout: Layout, catalogue: Catalogue, bucket: TestBucket, settings: Settings
) -> None:
    """Two caches with a root each in one bucket know nothing of each other."""
    one = Bucket(replace(settings, root="one"))
    two = Bucket(replace(settings, root="/two/deep/"))
    digests = have(layout, Repository("deep/er"), "v1", FIRST, CONFIG, LAYER)
    reconcile(layout, catalogue)
    Mirror(layout, catalogue, one, lambda: False).upload()
    assert {key.partition("/")[0] for key in bucket.objects()} == {"one"}
    Mirror(layout, catalogue, two, lambda: False).learn()
    assert there(catalogue) == set()
    Mirror(layout, catalogue, one, lambda: False).learn()
    assert there(catalogue) == of(digests)
