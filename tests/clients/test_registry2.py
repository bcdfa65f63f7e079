"""To and fro between this cache and CNCF distribution (registry:2)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.clients.harness import images
from tests.clients.harness.cache import LOGIN, Cache
from tests.clients.harness.images import DOCKER, OCI, Image
from tests.clients.harness.link import Link
from tests.clients.harness.process import need, wait_until
from tests.clients.harness.registry import Upstream, start_plain
from tests.clients.harness.skopeo import Skopeo

pytestmark = pytest.mark.clients

_IMAGES = pytest.mark.parametrize(
    "image",
    [
        pytest.param(images.make_image(OCI), id="oci"),
        pytest.param(images.make_image(DOCKER), id="docker"),
        pytest.param(images.make_index(OCI), id="oci-index"),
    ],
)


@_IMAGES
def test_ours_serves_what_distribution_filled(
    stopped: Cache, link: Link, upstream: Upstream, repository: str, image: Image
) -> None:
    """One config.yml starts both, and with the upstream away ours serves what the other stored."""
    upstream.push(repository, "v1", image)
    name = f"{stopped.address}/{repository}:v1"
    stopped.start_distribution()
    Skopeo().pull(name, LOGIN)
    wait_until(lambda: _has(stopped.storage, image), "distribution has stored what it served")
    stopped.stop()

    link.shut()
    stopped.start()
    assert Skopeo().pull(name, LOGIN) == image.image_id


@_IMAGES
def test_distribution_serves_what_ours_filled(
    stopped: Cache, upstream: Upstream, repository: str, image: Image
) -> None:
    """A plain docker-registry on our directory serves what was pulled, by its tag."""
    upstream.push(repository, "v1", image)
    stopped.start()
    Skopeo().pull(f"{stopped.address}/{repository}:v1", LOGIN)
    stopped.stop()

    server, address = start_plain(need("docker-registry"), stopped.root, stopped.storage)
    try:
        assert Skopeo().pull(f"{address}/{repository}:v1", LOGIN) == image.image_id
    finally:
        server.stop()


def _has(storage: Path, image: Image) -> bool:
    """Whether every blob of the pulled image lies there, whole: it is renamed at the end."""
    blobs = storage / "docker/registry/v2/blobs/sha256"
    digests = [digest.removeprefix("sha256:") for digest in image.pulled.blobs]
    return all((blobs / digest[:2] / digest / "data").exists() for digest in digests)
