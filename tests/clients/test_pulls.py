"""Real clients pull through the cache from a registry with Harbor's kind of login."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.clients.harness import images
from tests.clients.harness.cache import LOGIN, Cache
from tests.clients.harness.client import Client, ClientFailed, Login
from tests.clients.harness.containerd import Containerd, Cri
from tests.clients.harness.images import DOCKER, OCI, Image
from tests.clients.harness.link import Link
from tests.clients.harness.registry import Upstream
from tests.clients.harness.skopeo import Skopeo

pytestmark = pytest.mark.clients


@pytest.mark.parametrize(
    "image",
    [
        pytest.param(images.make_image(OCI), id="oci"),
        pytest.param(images.make_index(DOCKER), id="docker-list"),
    ],
)
def test_a_cold_pull_crosses_the_link_once(
    cache: Cache, upstream: Upstream, client: Client, repository: str, image: Image
) -> None:
    """A client with a login gets the image, and every blob of it comes from the upstream once."""
    upstream.push(repository, "v1", image)

    assert client.pull(f"{cache.address}/{repository}:v1", LOGIN) == image.image_id

    assert _blobs_fetched(upstream, repository) == dict.fromkeys(image.pulled.blobs, 1)


def test_many_clients_at_once_cost_one_copy(
    cache: Cache, link: Link, upstream: Upstream, repository: str
) -> None:
    """Eight clients that ask for one cold image together get it, and the link carries it once."""
    layer = 4096 * images.KIB
    image = images.make_image(layer_sizes=(layer,))
    upstream.push(repository, "v1", image)
    name, clients = f"{cache.address}/{repository}:v1", [Skopeo() for _ in range(8)]

    with ThreadPoolExecutor(len(clients)) as threads:
        pulled = list(threads.map(lambda client: client.pull(name, LOGIN), clients))

    assert pulled == [image.image_id] * len(clients)
    assert _blobs_fetched(upstream, repository) == dict.fromkeys(image.blobs, 1)
    assert link.received < 1.05 * layer


def test_a_second_pull_costs_a_tag_check(
    cache: Cache, upstream: Upstream, client: Client, repository: str
) -> None:
    """A node that has nothing pulls what another pulled before: upstream sees HEADs of the tag."""
    image = images.make_image()
    upstream.push(repository, "v1", image)
    name = f"{cache.address}/{repository}:v1"
    client.pull(name, LOGIN)
    before = len(upstream.requests(repository))

    assert client.pull(name, LOGIN) == image.image_id

    asked = upstream.requests(repository)[before:]
    assert asked
    assert {(request.method, request.path) for request in asked} == {
        ("HEAD", f"/v2/{repository}/manifests/v1")
    }


def test_a_pull_by_digest_asks_nobody(
    cache: Cache, upstream: Upstream, client: Client, repository: str
) -> None:
    """What a digest names never changes: once it is here, the upstream is not even asked."""
    image = images.make_index()
    upstream.push(repository, "v1", image)
    client.pull(f"{cache.address}/{repository}:v1", LOGIN)
    before = upstream.requests(repository)

    assert client.pull(f"{cache.address}/{repository}@{image.digest}", LOGIN) == image.image_id

    assert upstream.requests(repository) == before


def test_a_moved_tag_is_seen_at_the_next_pull(
    cache: Cache, upstream: Upstream, client: Client, repository: str
) -> None:
    """With maxage 0 the pull after a push gets what was pushed."""
    name = f"{cache.address}/{repository}:v1"
    for form in (OCI, DOCKER):
        image = images.make_image(form)
        upstream.push(repository, "v1", image)
        assert client.pull(name, LOGIN) == image.image_id


def test_an_outage_and_a_restart_in_it(
    cache: Cache, link: Link, upstream: Upstream, client: Client, repository: str
) -> None:
    """With the upstream refusing, what was pulled is served, and still after the cache restarts."""
    image = images.make_index()
    upstream.push(repository, "v1", image)
    name = f"{cache.address}/{repository}:v1"
    client.pull(name, LOGIN)

    link.shut()
    assert client.pull(name, LOGIN) == image.image_id
    cache.stop()
    cache.start()
    assert client.pull(name, LOGIN) == image.image_id


def test_a_link_cut_in_mid_layer_does_not_reach_the_client(
    cache: Cache, link: Link, upstream: Upstream, client: Client, repository: str
) -> None:
    """The cache goes on from where the upstream broke off; podman and skopeo would give up."""
    layer, cut = 3072 * images.KIB, 2048 * images.KIB
    image = images.make_image(layer_sizes=(layer, 8 * images.KIB))
    upstream.push(repository, "v1", image)
    link.cut_after(cut)

    assert client.pull(f"{cache.address}/{repository}:v1", LOGIN) == image.image_id

    assert link.cuts == 1
    # A second copy of the layer would show: what was there before the cut was kept.
    assert link.received < layer + cut


def test_a_wrong_password_gets_nothing(
    cache: Cache, link: Link, upstream: Upstream, client: Client, repository: str
) -> None:
    """Without the right login nothing is served, and the upstream is not even asked."""
    upstream.push(repository, "v1", images.make_image())

    with pytest.raises(ClientFailed, match=r"(?i)unauthori[sz]ed|authentication required|401"):
        client.pull(f"{cache.address}/{repository}:v1", Login(LOGIN.user, "wrong"))

    assert link.received == 0


@pytest.mark.root
def test_a_mirror_by_hosts_toml(
    cache: Cache, upstream: Upstream, containerd_daemon: Containerd, repository: str
) -> None:
    """A node whose hosts.toml sends a registry's images here (with ``?ns=``) gets them."""
    image = images.make_index()
    upstream.push(repository, "v1", image)
    containerd_daemon.use_mirror("harbor.example.com", cache.address)

    pulled = Cri(containerd_daemon).pull_as_named(f"harbor.example.com/{repository}:v1", LOGIN)

    assert pulled == image.image_id


def test_tags_are_listed_in_an_outage(
    cache: Cache, link: Link, upstream: Upstream, repository: str
) -> None:
    """What skopeo saw of a repository's tags it sees again when the upstream is away."""
    upstream.push(repository, "v1", images.make_image())
    name = f"{cache.address}/{repository}"
    assert Skopeo().tags(name, LOGIN) == ["v1"]

    link.shut()
    assert Skopeo().tags(name, LOGIN) == ["v1"]


def test_a_push_is_refused(cache: Cache, upstream: Upstream, repository: str) -> None:
    """A client that pushes is told so in words, and nothing of it reaches the upstream."""
    upstream.push(repository, "v1", images.make_image())
    name = f"{cache.address}/{repository}"

    with pytest.raises(ClientFailed, match="unsupported"):
        Skopeo().push(f"{name}:v1", f"{name}:v2", LOGIN)

    assert {request.method for request in upstream.requests(repository)} <= {"HEAD", "GET"}


def _blobs_fetched(upstream: Upstream, repository: str) -> Counter[str]:
    """Count the upstream's answers with a blob in them, by digest."""
    return Counter(
        request.path.rpartition("/")[2]
        for request in upstream.requests(repository)
        if request.method == "GET" and "/blobs/" in request.path
    )
