"""Real clients pull through a cache that has a bucket behind it, by way of the bucket or not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.clients.harness import images
from tests.clients.harness.cache import LOGIN
from tests.clients.harness.client import Client
from tests.clients.harness.containerd import Containerd, Cri
from tests.clients.harness.images import DOCKER, OCI, Form, Image
from tests.clients.harness.link import Link
from tests.clients.harness.mirrored import Answers, brought, gateway, mirrored
from tests.clients.harness.registry import Upstream
from tests.clients.harness.skopeo import Skopeo
from tests.fakes.mirrored import MirroredCache, TestBucket
from tests.servers import rgw

pytestmark = pytest.mark.clients

_MIB: Final = 1024 * images.KIB
# One that goes up in one piece, one in parts, and one that nobody is sent away for.
_LAYERS: Final = (2 * _MIB, 6 * _MIB, 8 * images.KIB)


@pytest.fixture(scope="session", name="gateway")
def _gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[rgw.Gateway]:
    with gateway(tmp_path_factory) as running:
        yield running


@pytest.fixture
def redirecting(tmp_path: Path, link: Link, gateway: rgw.Gateway) -> Iterator[MirroredCache]:
    """Give a cache that sends clients to the bucket."""
    with mirrored(tmp_path, link.address, TestBucket(gateway), redirect=True) as cache:
        cache.start()
        yield cache


@pytest.fixture
def filling(tmp_path: Path, link: Link, gateway: rgw.Gateway) -> Iterator[MirroredCache]:
    """Give a cache that fetches from the bucket what clients ask for."""
    with mirrored(tmp_path, link.address, TestBucket(gateway), redirect=False) as cache:
        cache.start()
        yield cache


def test_layers_through_the_redirect(
    redirecting: MirroredCache, link: Link, upstream: Upstream, client: Client, repository: str
) -> None:
    """What only the bucket has is fetched there, small things from here, with the upstream away."""
    name, image = _pulled_cold(redirecting, upstream, client, repository, OCI)
    _leave_to_the_bucket(redirecting, link, image)
    answers = Answers(redirecting)

    assert client.pull(name, LOGIN) == image.image_id

    large, small = _by_size(image)
    sent_away = {(digest, 307, "redirect") for digest in large}
    assert answers.of(image) == sent_away | {(digest, 200, "bucket") for digest in small}
    # Who was sent away cost this machine neither bytes nor room.
    assert redirecting.metric("pullthrough_bucket_bytes_total") == sum(small.values())
    assert not any(redirecting.blob_file(digest).exists() for digest in large)


def test_layers_from_the_bucket_by_way_of_here(
    filling: MirroredCache, link: Link, upstream: Upstream, client: Client, repository: str
) -> None:
    """With the redirect off the bucket is one more source, read once, with the upstream away."""
    name, image = _pulled_cold(filling, upstream, client, repository, DOCKER)
    _leave_to_the_bucket(filling, link, image)
    answers = Answers(filling)

    assert client.pull(name, LOGIN) == image.image_id

    assert answers.of(image) == {(digest, 200, "bucket") for digest in image.blobs}
    assert filling.metric("pullthrough_bucket_bytes_total") == sum(map(len, image.blobs.values()))
    for digest, content in image.blobs.items():
        assert filling.wait_stored(digest).read_bytes() == content
    answers = Answers(filling)
    assert client.pull(name, LOGIN) == image.image_id
    assert answers.of(image) == {(digest, 200, "") for digest in image.blobs}


def test_redirects_are_counted(
    redirecting: MirroredCache, link: Link, upstream: Upstream, repository: str
) -> None:
    """The operator sees how many clients were sent to the bucket."""
    name, image = _pulled_cold(redirecting, upstream, Skopeo(), repository, OCI)
    assert redirecting.metric("pullthrough_redirects_total") == 0
    _leave_to_the_bucket(redirecting, link, image)

    Skopeo().pull(name, LOGIN)

    assert redirecting.metric("pullthrough_redirects_total") == len(_by_size(image)[0])


def test_no_redirect_to_the_host_that_was_asked(
    tmp_path: Path, link: Link, upstream: Upstream, gateway: rgw.Gateway, repository: str
) -> None:
    """Newer clients would send their login along to the cache's own host: it is served here."""
    with mirrored(tmp_path, link.address, TestBucket(gateway), redirect=True) as cache:
        del cache.config["storage"]["redirect"]["endpoint"]
        cache.start()
        name, image = _pulled_cold(cache, upstream, Skopeo(), repository, OCI)
        _leave_to_the_bucket(cache, link, image)
        answers = Answers(cache)

        assert Skopeo().pull(name, LOGIN) == image.image_id

        assert answers.of(image) == {(digest, 200, "bucket") for digest in image.blobs}


@pytest.mark.root
def test_a_redirect_with_the_login_in_hosts_toml(
    redirecting: MirroredCache,
    link: Link,
    upstream: Upstream,
    containerd_daemon: Containerd,
    repository: str,
) -> None:
    """A node whose hosts.toml has the login as a header gets what it is sent to the bucket for."""
    node, name = Cri(containerd_daemon), f"harbor.example.com/{repository}:v1"
    _, image = _pulled_cold(redirecting, upstream, Skopeo(), repository, OCI)
    _leave_to_the_bucket(redirecting, link, image)
    containerd_daemon.use_mirror("harbor.example.com", _address(redirecting), login=LOGIN)
    answers = Answers(redirecting)

    assert node.pull_as_named(name, None) == image.image_id

    assert answers.of(image) >= {(digest, 307, "redirect") for digest in _by_size(image)[0]}


def _address(cache: MirroredCache) -> str:
    return f"127.0.0.1:{cache.port}"


def _pulled_cold(
    cache: MirroredCache, upstream: Upstream, client: Client, repository: str, form: Form
) -> tuple[str, Image]:
    """Pull a new image, each blob of which crosses the link once, and wait for it in the bucket."""
    image = images.make_image(form, layer_sizes=_LAYERS)
    upstream.push(repository, "v1", image)
    name = f"{_address(cache)}/{repository}:v1"
    answers = Answers(cache)
    assert client.pull(name, LOGIN) == image.image_id
    assert answers.of(image) == {(digest, 200, "") for digest in image.blobs}
    fetched = [
        request.path.rpartition("/")[2]
        for request in upstream.requests(repository)
        if request.method == "GET" and "/blobs/" in request.path
    ]
    assert sorted(fetched) == sorted(image.blobs)
    brought(cache, repository, "v1", image)
    return name, image


def _leave_to_the_bucket(cache: MirroredCache, link: Link, image: Image) -> None:
    """Take every blob out of the local tier, and the upstream away."""
    link.shut()
    # The index may learn a moment later than the bucket that it has them.
    cache.uploaded(*image.blobs)
    for digest in image.blobs:
        cache.forget_locally(digest)


def _by_size(image: Image) -> tuple[dict[str, int], dict[str, int]]:
    """Return the sizes of the blobs that clients are sent away for, and of the others."""
    sizes = {digest: len(content) for digest, content in image.blobs.items()}
    large = {digest: size for digest, size in sizes.items() if size > _MIB}
    return large, {digest: size for digest, size in sizes.items() if digest not in large}
