"""What is kept stays within its bounds (section 2 of the object store), on local disk."""

from __future__ import annotations

import pytest

from tests.conftest import CacheStarter
from tests.contract.test_contract_full_disk import fill_up, small_disk
from tests.fakes.cache import Cache, layout
from tests.fakes.content import MIB, Image, noise
from tests.fakes.faults import eventually
from tests.fakes.registry import FakeRegistry

__all__ = ["small_disk"]


def on_disk(cache: Cache) -> int:
    """Return the bytes of content."""
    files = (layout(cache.store) / "blobs").glob("*/*/*/data")
    return sum(file.stat().st_size for file in files)


def put(registry: FakeRegistry, count: int, repository: str = "project/app") -> list[Image]:
    return [
        registry.put_image(f"{repository}{number}", layers=(noise(MIB),)) for number in range(count)
    ]


def wait_within(cache: Cache, quota: int) -> None:
    eventually(lambda: on_disk(cache) <= quota, f"room\n{cache.log_text()[-2000:]}")


def test_quota(registry: FakeRegistry, start_cache: CacheStarter) -> None:
    """What was used least recently leaves with its tags; the rest stays, and is served."""
    images = put(registry, 5)
    cache = start_cache({"cache": {"quota": "3500KiB"}})
    client = cache.client()
    for image in images[:3]:
        client.pull(image)
    cache.restart()  # last uses are written by then
    client.pull(images[0])
    cache.restart()
    for image in images[3:]:
        client.pull(image)
    wait_within(cache, 3500 << 10)
    registry.refuse()
    client.pull(images[0])
    client.pull(images[4])
    assert client.manifest("project/app1", "v1").status >= 500
    assert "project/app1" not in client.get("/v2/_catalog").json()["repositories"]
    assert not (layout(cache.store) / "repositories/project/app1").exists()
    assert cache.metric("pullthrough_evicted_total", "room") > 0


def test_pulled_again_after_it_left(registry: FakeRegistry, start_cache: CacheStarter) -> None:
    """What left comes again at the next pull, links and all, in a worker that remembers it."""
    images = put(registry, 4)
    cache = start_cache({"cache": {"quota": "2500KiB"}})
    client = cache.client()
    for image in images:
        client.pull(image)
    wait_within(cache, 2500 << 10)
    client.pull(images[0])
    link = layout(cache.store) / "repositories/project/app0/_layers"
    eventually(lambda: len(list(link.glob("*/*/link"))) == len(images[0].blobs), "its links")
    wait_within(cache, 2500 << 10)


def test_use_of_a_manifest_is_one_of_its_layers(
    registry: FakeRegistry, start_cache: CacheStarter
) -> None:
    """Nodes that have the layers ask only for the manifest: that keeps the layers too."""
    images = put(registry, 4)
    cache = start_cache({"cache": {"quota": "3500KiB"}})
    client = cache.client()
    for image in images[:3]:
        client.pull(image)
    cache.restart()
    assert client.manifest("project/app0", "v1").status == 200
    cache.restart()
    client.pull(images[3])
    wait_within(cache, 3500 << 10)
    registry.refuse()
    client.pull(images[0])


def test_pins(registry: FakeRegistry, start_cache: CacheStarter) -> None:
    """What pinned images need stays, however old; pins that exceed the quota are told."""
    pinned = put(registry, 2, "prod/app")
    others = put(registry, 3)
    cache = start_cache({"cache": {"quota": "2500KiB", "pin": ["prod/**"]}})
    client = cache.client()
    for image in (*pinned, *others):
        client.pull(image)
    wait_within(cache, 2500 << 10)
    assert client.get("/readyz").json()["pinned"] == "ok"
    registry.refuse()
    for image in pinned:
        client.pull(image)
    registry.accept()
    cache.stop()
    cache.configure({"cache": {"quota": "1MiB"}})
    cache.start()
    eventually(
        lambda: client.get("/readyz").json().get("pinned") == "exceeds the quota", "the alarm"
    )
    registry.refuse()
    for image in pinned:
        client.pull(image)
    assert client.get("/readyz").status == 200


def test_ttl(registry: FakeRegistry, start_cache: CacheStarter) -> None:
    """What was not used for so long goes, what was used within it stays."""
    (image,) = put(registry, 1)
    used = registry.put_image("project/used", layers=(noise(1000),))
    cache = start_cache(ttl="25s")  # uses are written every 10 s
    client = cache.client()
    client.pull(image)

    def gone() -> bool:
        client.pull(used)
        return not cache.blob_file(image.layer).exists()

    eventually(gone, "the end of what nobody used", seconds=80)
    eventually(lambda: cache.metric("pullthrough_evicted_total", "expired") > 0, "the count")
    assert registry.count(path=f".*/blobs/{used.layer}") == 1


@pytest.mark.parametrize("ttl", ["0", "168h"])
def test_nothing_expires_early(registry: FakeRegistry, start_cache: CacheStarter, ttl: str) -> None:
    """Without a time to live, or well within it, content of a lost index stays too."""
    (image,) = put(registry, 1)
    cache = start_cache(ttl=ttl)
    cache.client().pull(image)
    cache.stop()
    for file in (cache.store / "pullthrough").glob("index.sqlite*"):
        file.unlink()
    cache.start()
    eventually(lambda: cache.metric("pullthrough_store_bytes", "'store'") > MIB, "the index")
    registry.refuse()
    cache.client().pull(image)


@pytest.mark.root
def test_full_disk_makes_room(
    registry: FakeRegistry, start_cache: CacheStarter, small_disk: object
) -> None:
    """A disk that is full, without a quota: what is older goes, and the new is kept."""
    images = put(registry, 4)
    cache = start_cache({"storage": {"filesystem": {"rootdirectory": str(small_disk)}}})
    client = cache.client()
    for image in images:
        client.pull(image)
        cache.wait_stored(image.layer)
    registry.refuse()
    client.pull(images[-1])


@pytest.mark.root
def test_disk_filled_by_another(
    registry: FakeRegistry, start_cache: CacheStarter, small_disk: object
) -> None:
    """What another program left no room for is pulled all the same, never an error."""
    images = put(registry, 3)
    cache = start_cache({"storage": {"filesystem": {"rootdirectory": str(small_disk)}}})
    client = cache.client()
    client.pull(images[0])
    fill_up(cache.store)
    for image in images[1:]:
        client.pull(image)
        client.pull(image)


def test_only_what_is_missing_is_fetched(registry: FakeRegistry, start_cache: CacheStarter) -> None:
    """An image of which a layer is gone is pulled at the cost of that layer."""
    image = registry.put_image("project/app", layers=(noise(1000), noise(2000), noise(3000)))
    cache = start_cache()
    client = cache.client()
    client.pull(image)
    for digest in image.blobs:
        cache.wait_stored(digest)
    cache.blob_file(image.layers[1]).unlink()
    registry.forget()
    client.pull(image)
    (fetched,) = registry.fetches(".*/blobs/.*")
    assert fetched.path.endswith(image.layers[1])
    cache.wait_stored(image.layers[1])
