"""The cache with a bucket behind it, as real clients use it: with a login, and a link that ends."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from tests.clients.harness.cache import LOGIN, write_htpasswd
from tests.clients.harness.images import Image
from tests.clients.harness.process import Server, need
from tests.clients.harness.registry import PASSWORD
from tests.conftest import assert_quiet
from tests.fakes.cache import merged
from tests.fakes.faults import eventually
from tests.fakes.mirrored import V2, MirroredCache, TestBucket, blob_key
from tests.rgw import need_rgw
from tests.servers import rgw

# Only to another host than the cache's are clients sent: newer ones would send their login along.
_SEEN_AS: Final = ("127.0.0.1", "localhost")


@contextlib.contextmanager
def gateway(factory: pytest.TempPathFactory) -> Iterator[rgw.Gateway]:
    """Join the gateway that all of the run's processes share."""
    need_rgw()
    with rgw.shared(factory.getbasetemp().parent / "rgw") as running:
        yield running


@contextlib.contextmanager
def mirrored(
    directory: Path, upstream: str, bucket: TestBucket, *, redirect: bool, root: str = ""
) -> Iterator[MirroredCache]:
    """Give a cache of ``upstream`` (host:port), not started; look at its log when it has ended.

    ``root`` is the ``rootdirectory`` in the bucket.
    """
    directory.mkdir(parents=True, exist_ok=True)
    config: dict[str, Any] = {
        "proxy": {"password": PASSWORD},
        "auth": {"htpasswd": {"realm": "registry", "path": str(write_htpasswd(directory))}},
    }
    cache = MirroredCache(directory, f"http://{upstream}", bucket, config, redirect=redirect)
    storage: dict[str, Any] = {"s3": {"rootdirectory": root}}
    if redirect:
        storage["redirect"] = {"endpoint": bucket.gateway.url.replace(*_SEEN_AS)}
    cache.config = merged(cache.config, {"storage": storage})
    try:
        yield cache
    finally:
        cache.close()
    assert_quiet(cache)
    for secret in (PASSWORD, LOGIN.password, bucket.gateway.secret_key, "X-Amz-Signature"):
        assert secret not in cache.log_text()


def contents(image: Image) -> dict[str, bytes]:
    """Return all that a client on this machine pulls of an image, manifests too, by digest."""
    manifests = {each.digest: each.manifest for each in (image, image.pulled)}
    return manifests | image.pulled.blobs


def brought(cache: MirroredCache, repository: str, tag: str, image: Image) -> None:
    """Wait until the bucket has what was pulled of ``image``, byte for byte, its tag and links."""
    root: str = cache.config["storage"]["s3"]["rootdirectory"]
    prefix = f"{root.strip('/')}/" if root.strip("/") else ""
    names = f"{prefix}{V2}/repositories/{repository}"
    found = {f"{prefix}{blob_key(digest)}" for digest in contents(image)}
    found |= {f"{names}/_layers/{_directory(digest)}/link" for digest in image.pulled.blobs}
    found |= {
        f"{names}/_manifests/revisions/{_directory(each.digest)}/link"
        for each in (image, image.pulled)
    }
    found.add(f"{names}/_manifests/tags/{tag}/current/link")
    eventually(
        lambda: found <= cache.bucket.objects().keys(),
        f"all of the image in the bucket\n{cache.log_text()[-3000:]}",
        seconds=30,
    )
    for digest, content in contents(image).items():
        assert cache.bucket.get(f"{prefix}{blob_key(digest)}") == content


def _directory(digest: str) -> str:
    return digest.replace(":", "/")


class Answers:
    """How the cache answers GETs of blobs, from now on."""

    def __init__(self, cache: MirroredCache) -> None:
        self._cache = cache
        self._before = len(cache.log_lines())

    def of(self, image: Image) -> set[tuple[str, int, str]]:
        """Return digest, status and detail of the answers, once each blob of ``image`` has one.

        Those that ask for a login are left out: some clients try without it.
        """

        def found() -> set[tuple[str, int, str]]:
            answers = {
                (line["path"].rpartition("/")[2], line["status"], line["detail"])
                for line in self._cache.log_lines()[self._before :]
                if line.get("route") == "blob" and line["method"] == "GET" and line["status"] != 401
            }
            return answers if {each[0] for each in answers} >= image.pulled.blobs.keys() else set()

        # A line is written when its answer is out: a client may be done a moment earlier.
        answers: set[tuple[str, int, str]] = eventually(found, "an access line for each blob")
        return answers


@contextlib.contextmanager
def distribution(cache: MirroredCache, *, proxy: bool) -> Iterator[str]:
    """Run docker-registry from the cache's own file, and give its address.

    Without ``proxy`` it is a plain registry, which takes pushes and wants no login.
    """
    config = merged(cache.config, {} if proxy else {"proxy": None, "auth": None})
    directory = cache.directory / "distribution"
    directory.mkdir(exist_ok=True)
    file = directory / "config.yml"
    file.write_text(yaml.safe_dump(config))
    server = Server([need("docker-registry"), "serve", str(file)], directory / "log")
    try:
        server.wait_for(lambda: _answers(cache), "docker-registry answers")
        yield f"127.0.0.1:{cache.port}"
    finally:
        server.stop()


def _answers(cache: MirroredCache) -> bool:
    try:
        return cache.client().get("/v2/").status in {200, 401}
    except OSError:
        return False
