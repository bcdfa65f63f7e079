"""The store (section 6): registry:2's layout, both ways, and an index that can be lost."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import CacheStarter
from tests.fakes.cache import Cache, blob_file, layout
from tests.fakes.content import MIB, Image, make_image, noise
from tests.fakes.faults import Fault, Gate, eventually
from tests.fakes.registry import FakeRegistry


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def as_registry_2_would(store: Path, image: Image) -> None:
    """Write an image as distribution's filesystem driver does (registry/storage/paths.go)."""
    repository = layout(store) / "repositories" / image.repository
    contents = {manifest.digest: manifest.content for manifest in image.manifests}
    for digest, content in {**contents, **image.blobs}.items():
        write(blob_file(store, digest), content)
    for digest in image.blobs:
        link = repository / "_layers" / digest.replace(":", "/") / "link"
        write(link, digest.encode())
    for digest in contents:
        link = repository / "_manifests" / "revisions" / digest.replace(":", "/") / "link"
        write(link, digest.encode())
    tag = repository / "_manifests" / "tags" / image.tag
    write(tag / "current" / "link", image.digest.encode())
    write(tag / "index" / image.digest.replace(":", "/") / "link", image.digest.encode())
    write(store / "scheduler-state.json", b"{}")


IMAGES = (
    {"layers": (noise(300_000), noise(20)), "index": True},
    {"layers": (noise(5000),), "docker": True},
    {"layers": (noise(6000),), "docker": True, "index": True},
)


@pytest.fixture
def moved(
    registry: FakeRegistry, start_cache: CacheStarter, tmp_path: Path
) -> tuple[Cache, list[Image]]:
    """Start a cache, its upstream down, on a directory that registry:2 filled."""
    store = tmp_path / "registry"
    images = [
        make_image(f"project/app{number}", "v1", **how)  # type: ignore[arg-type]  # told apart by name
        for number, how in enumerate(IMAGES)
    ]
    for image in images:
        as_registry_2_would(store, image)
    registry.refuse()
    config = {"storage": {"filesystem": {"rootdirectory": str(store)}}}
    return start_cache(config), images


def test_directory_of_registry_2_is_served(moved: tuple[Cache, list[Image]]) -> None:
    """Tags, manifests, blobs and listings are there at once, with the upstream down."""
    cache, images = moved
    client = cache.client()
    for image in images:
        client.pull(image)
        got = client.manifest(image.repository, "v1")
        assert got.header("Content-Type") == image.top.media_type
        assert got.is_stale
        assert client.manifest(image.repository, image.digest).body == image.top.content
        head = client.blob(image.repository, image.layer, method="HEAD")
        assert (head.status, head.header("Content-Length")) == (200, str(len(image.layer_content)))
        part = client.blob(image.repository, image.layer, range_="bytes=5-9")
        assert (part.status, part.body) == (206, image.layer_content[5:10])
        tags = client.get(f"/v2/{image.repository}/tags/list")
        assert (tags.status, tags.json()["tags"]) == (200, ["v1"])
    names = [image.repository for image in images]
    assert client.get("/v2/_catalog").json()["repositories"] == names


@pytest.mark.parametrize("how", ["rotten", "short", "long", "empty"])
def test_rotten_file_of_registry_2_is_not_served(
    moved: tuple[Cache, list[Image]], registry: FakeRegistry, how: str
) -> None:
    """A file that is not what its name says is refused at first use, and fetched anew."""
    cache, images = moved
    image = images[0]
    for digest, content in ((image.layer, image.layer_content), (image.digest, image.top.content)):
        middle = len(content) // 2
        changed = {
            "rotten": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
            "short": content[:-1],
            "long": content + b"\n",
            "empty": b"",
        }[how]
        cache.blob_file(digest).write_bytes(changed)
    client = cache.client()
    for wanted in (None, "bytes=0-10", "bytes=-10"):
        got = client.blob(image.repository, image.layer, range_=wanted)
        assert got.status >= 500 or not got.complete
    client.manifest(image.repository, image.digest).assert_unavailable()
    client.manifest(image.repository, "v1").assert_unavailable()
    registry.put_image(image.repository)  # so that there is such a repository
    for manifest in image.manifests:
        registry.put_manifest(image.repository, manifest)
    registry.repositories[image.repository].blobs.update(image.blobs)
    registry.tag(image.repository, "v1", image.digest)
    registry.accept()
    eventually(lambda: client.manifest(image.repository, "v1").status == 200, "a pull", seconds=60)
    client.pull(image)
    eventually(lambda: has(cache.blob_file(image.layer), image.layer_content), "the right file")


def has(file: Path, content: bytes) -> bool:
    return file.exists() and file.read_bytes() == content


def test_what_we_write_is_registry_2s_layout(
    registry: FakeRegistry, start_cache: CacheStarter
) -> None:
    """Blobs, manifests, links and tags lie where registry:2 looks for them, with what it wants."""
    image = registry.put_image("project/deep/app", "v1", layers=(noise(5000),), index=True)
    cache = start_cache()
    cache.client().pull(image)
    newer = registry.put_image("project/deep/app", "v1", layers=(noise(5000),))
    cache.client().pull(newer)
    repository = layout(cache.store) / "repositories" / "project" / "deep" / "app"
    contents = {
        manifest.digest: manifest.content for manifest in (*image.manifests, *newer.manifests)
    }
    expected = {
        cache.blob_file(digest): content
        for digest, content in {**contents, **image.blobs, **newer.blobs}.items()
    }
    for digest in {**image.blobs, **newer.blobs}:
        link = repository / "_layers" / digest.replace(":", "/") / "link"
        expected[link] = digest.encode()
    for digest in contents:
        link = repository / "_manifests" / "revisions" / digest.replace(":", "/") / "link"
        expected[link] = digest.encode()
    tag = repository / "_manifests" / "tags" / "v1"
    expected[tag / "current" / "link"] = newer.digest.encode()
    for digest in (image.digest, newer.digest):
        expected[tag / "index" / digest.replace(":", "/") / "link"] = digest.encode()

    def missing() -> list[Path]:
        return [path for path, content in expected.items() if not has(path, content)]

    eventually(lambda: not missing(), f"all of {expected.keys()}")


def beside_the_layout(cache: Cache) -> list[Path]:
    """Return what the store keeps beside registry:2's directory: the index, and what is its own."""
    return [path for path in cache.store.iterdir() if path.name != "docker"]


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def garble(path: Path) -> None:
    for file in [path] if path.is_file() else path.rglob("*"):
        if file.is_file():
            file.write_bytes(b"garbage" * 2000)


@pytest.mark.parametrize("how", [remove, garble])
def test_lost_index_is_rebuilt(
    registry: FakeRegistry, start_cache: CacheStarter, how: Callable[[Path], None]
) -> None:
    """Without its index, or with a broken one, the cache serves all that it has, upstream down."""
    images = [
        registry.put_image("project/one", layers=(noise(5000),), index=True),
        registry.put_image("project/two", "v2", layers=(noise(5000),), docker=True),
    ]
    cache = start_cache()
    for image in images:
        cache.client().pull(image)
    cache.stop()
    registry.refuse()
    kept = beside_the_layout(cache)
    assert kept
    for path in kept:
        how(path)
    cache.start()
    for image in images:
        cache.client().pull(image)
        tags = cache.client().get(f"/v2/{image.repository}/tags/list")
        assert tags.json()["tags"] == [image.tag]
    listed = cache.client().get("/v2/_catalog").json()["repositories"]
    assert listed == ["project/one", "project/two"]


def unfinished(cache: Cache) -> list[Path]:
    """Return the files below the layout that are neither content nor links."""
    return [
        path
        for path in layout(cache.store).rglob("*")
        if path.is_file() and path.name not in {"data", "link"}
    ]


def stored_bytes(cache: Cache) -> int:
    return sum(
        path.stat().st_size
        for path in cache.store.rglob("*")
        if path.is_file() and path.stat().st_size >= MIB
    )


def test_leftovers_of_a_crash_are_swept(registry: FakeRegistry, start_cache: CacheStarter) -> None:
    """After crashes in mid-fill and the pull, the blob is there once and nothing else."""
    image = registry.put_image("project/app", layers=(noise(4 * MIB),))
    cache = start_cache()
    cache.client().manifest("project/app", "v1")
    held = registry.inject(Fault(path=f".*{image.layer}", hold=Gate(), hold_at=3 * MIB))
    for _ in range(2):
        path = f"/v2/project/app/blobs/{image.layer}"
        with cache.client().stream(path) as response:
            response.read(MIB)
            cache.kill()
        cache.start()
    held.heal()
    cache.client().pull(image)
    cache.restart()
    assert unfinished(cache) == []
    assert stored_bytes(cache) == 4 * MIB


def test_failed_fills_leave_nothing(registry: FakeRegistry, start_cache: CacheStarter) -> None:
    """A corrupt blob takes no room, neither then nor after a restart."""
    image = registry.put_image("project/app", layers=(noise(2 * MIB),))
    cache = start_cache()
    cache.client().manifest("project/app", "v1")
    registry.inject(Fault(path=f".*{image.layer}", corrupt_at=5))
    for _ in range(3):
        assert not cache.client().blob("project/app", image.layer).complete
    cache.restart()
    assert unfinished(cache) == []
    assert stored_bytes(cache) == 0


def test_tag_that_was_removed_is_no_longer_listed(
    registry: FakeRegistry, start_cache: CacheStarter
) -> None:
    """A tag whose 404 was believed does not come back in an outage after a restart."""
    registry.put_image("project/app", "kept")
    registry.put_image("project/app", "gone")
    cache = start_cache()
    for tag in ("kept", "gone"):
        assert cache.client().manifest("project/app", tag).status == 200
    registry.untag("project/app", "gone")
    assert cache.client().manifest("project/app", "gone").status == 404
    registry.refuse()
    cache.restart()
    assert cache.client().manifest("project/app", "kept").status == 200
    assert cache.client().manifest("project/app", "gone").status >= 400
