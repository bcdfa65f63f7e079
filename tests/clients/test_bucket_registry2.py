"""To and fro between this cache and CNCF distribution (registry:2) by way of a bucket."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.clients.harness import images
from tests.clients.harness.cache import LOGIN
from tests.clients.harness.images import DOCKER, OCI, Image
from tests.clients.harness.link import Link
from tests.clients.harness.mirrored import brought, distribution, gateway, mirrored
from tests.clients.harness.registry import Upstream
from tests.clients.harness.skopeo import Skopeo
from tests.fakes.faults import eventually
from tests.fakes.mirrored import MirroredCache, TestBucket
from tests.servers import rgw

pytestmark = pytest.mark.clients

# The first is larger than a part, so that both servers write it in parts.
_LAYERS: Final = (6 * 1024 * images.KIB, 8 * images.KIB)
_IMAGES: Final = pytest.mark.parametrize(
    ("image", "root"),
    [
        pytest.param(images.make_image(OCI, layer_sizes=_LAYERS), "", id="oci"),
        pytest.param(images.make_image(DOCKER, layer_sizes=_LAYERS), "/", id="docker-in-slash"),
        pytest.param(images.make_index(OCI), "/region/one", id="oci-index-in-a-directory"),
    ],
)


@pytest.fixture(scope="session", name="gateway")
def _gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[rgw.Gateway]:
    with gateway(tmp_path_factory) as running:
        yield running


@pytest.fixture
def cache(tmp_path: Path, link: Link, gateway: rgw.Gateway, root: str) -> Iterator[MirroredCache]:
    """Give a cache, not started, on the directory ``root`` of a new bucket."""
    with mirrored(tmp_path, link.address, TestBucket(gateway), redirect=False, root=root) as made:
        yield made


@_IMAGES
def test_ours_serves_what_was_pushed_to_distribution(
    cache: MirroredCache, link: Link, repository: str, image: Image
) -> None:
    """With the upstream away from the start, a bucket that a plain registry filled is served."""
    with distribution(cache, proxy=False) as address:
        images.push(address, repository, "v1", image)

    link.shut()
    cache.start()
    _is_served(cache, repository, image)


@_IMAGES
def test_ours_serves_what_distribution_cached(
    cache: MirroredCache, link: Link, upstream: Upstream, repository: str, image: Image
) -> None:
    """One file starts both, and with the upstream away ours serves what the other put away."""
    upstream.push(repository, "v1", image)
    with distribution(cache, proxy=True) as address:
        assert Skopeo().pull(f"{address}/{repository}:v1", LOGIN) == image.image_id
        brought(cache, repository, "v1", image)  # behind its answer, too

    link.shut()
    cache.start()
    _is_served(cache, repository, image)


@_IMAGES
def test_a_plain_distribution_serves_what_ours_filled(
    cache: MirroredCache, upstream: Upstream, repository: str, image: Image
) -> None:
    """What was pulled through ours the other finds in the bucket, by its tag and its digest."""
    _fill(cache, upstream, repository, image)

    with distribution(cache, proxy=False) as address:
        _has_image(f"{address}/{repository}", image)


@_IMAGES
def test_a_caching_distribution_serves_what_ours_filled(
    cache: MirroredCache, link: Link, upstream: Upstream, repository: str, image: Image
) -> None:
    """One file starts both, and with the upstream away the other serves what ours put away."""
    _fill(cache, upstream, repository, image)

    with distribution(cache, proxy=True) as address:
        link.shut()  # not before: it asks the upstream at its start
        _has_image(f"{address}/{repository}", image)


def _fill(cache: MirroredCache, upstream: Upstream, repository: str, image: Image) -> None:
    """Pull the image through the cache, wait until the bucket has it, and stop the cache."""
    upstream.push(repository, "v1", image)
    cache.start()
    name = f"127.0.0.1:{cache.port}/{repository}:v1"
    assert Skopeo().pull(name, LOGIN) == image.image_id
    brought(cache, repository, "v1", image)
    cache.stop()


def _is_served(cache: MirroredCache, repository: str, image: Image) -> None:
    """Assert that the cache has the image from the bucket alone, once it has looked through it."""
    client = cache.client(login=(LOGIN.user, LOGIN.password))
    eventually(
        lambda: client.manifest(repository, "v1").status == 200,
        f"the bucket's tags\n{cache.log_text()[-3000:]}",
    )
    _has_image(f"127.0.0.1:{cache.port}/{repository}", image)


def _has_image(name: str, image: Image) -> None:
    assert Skopeo().tags(name, LOGIN) == ["v1"]
    assert Skopeo().pull(f"{name}:v1", LOGIN) == image.image_id
    assert Skopeo().pull(f"{name}@{image.digest}", LOGIN) == image.image_id
