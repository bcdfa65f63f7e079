"""One upstream and one of each daemon for all the tests of a worker process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.harness.cache import Cache
from tests.clients.harness.client import Client
from tests.clients.harness.containerd import Containerd, Cri, Ctr, containerd
from tests.clients.harness.dockerd import Docker, dockerd
from tests.clients.harness.link import Link
from tests.clients.harness.podman import Buildah, Podman
from tests.clients.harness.process import bound_socket
from tests.clients.harness.registry import Upstream, upstream
from tests.clients.harness.skopeo import Skopeo


@pytest.fixture(scope="session", name="upstream")
def _upstream() -> Iterator[Upstream]:
    with upstream() as running:
        yield running


@pytest.fixture(scope="session")
def docker_daemon() -> Iterator[Docker]:
    with dockerd() as running:
        yield running


@pytest.fixture(scope="session")
def containerd_daemon() -> Iterator[Containerd]:
    with containerd() as running:
        yield running


@pytest.fixture
def link(upstream: Upstream) -> Iterator[Link]:
    """Give this test its own way from its cache to the upstream."""
    with upstream.link() as link:
        yield link


@pytest.fixture
def stopped(tmp_path: Path, link: Link) -> Iterator[Cache]:
    """Give an empty cache before the upstream that the test starts, and stop it after."""
    with bound_socket() as port:
        cache = Cache(tmp_path, f"127.0.0.1:{port.getsockname()[1]}", link.address)
        yield cache
        cache.stop()


@pytest.fixture
def cache(stopped: Cache) -> Cache:
    """Give an empty cache before the upstream, started."""
    stopped.start()
    return stopped


_root = pytest.mark.root


@pytest.fixture(
    params=[
        "skopeo",
        pytest.param("podman", marks=_root),
        pytest.param("buildah", marks=_root),
        pytest.param("docker", marks=_root),
        pytest.param("ctr", marks=_root),
        pytest.param("cri", marks=_root),
    ]
)
def client(request: pytest.FixtureRequest) -> Client:
    """Give each real client in turn."""
    match request.param:
        case "skopeo":
            return Skopeo()
        case "podman":
            return Podman()
        case "buildah":
            return Buildah()
        case "docker":
            docker: Docker = request.getfixturevalue("docker_daemon")
            return docker
        case "ctr":
            return Ctr(request.getfixturevalue("containerd_daemon"))
        case _:
            return Cri(request.getfixturevalue("containerd_daemon"))


@pytest.fixture
def repository(request: pytest.FixtureRequest) -> str:
    """Name a repository of this test's own, so that it can be told apart in the upstream's log."""
    name = "".join(c if c.isalnum() else "-" for c in request.node.name.lower()).strip("-")
    return f"field/{name}"
