"""Outage (section 4): what each answer of the upstream means, and its silence."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.conftest import CacheStarter
from tests.contract.conftest import Region
from tests.fakes.cache import IMPATIENT
from tests.fakes.client import Client, together
from tests.fakes.content import Image, Manifest, digest_of, encode, noise
from tests.fakes.faults import Fault, Gate, answer, eventually, portal
from tests.fakes.registry import FakeRegistry, referrers_index

LIMITS = IMPATIENT


# What an upstream's answer means for a tag that is here

MISSING = b'{"errors":[{"code":"NOT_FOUND","message":"none"}]}'
DENIED = b'{"errors":[{"code":"UNAUTHORIZED","message":"unauthorized"}]}'

OUTAGES: dict[str, Callable[[str], Fault]] = {
    "silent": lambda path: Fault(path=path, silent=True),
    "reset": lambda path: Fault(path=path, reset=True),
    "500": lambda path: answer(500, b"oops", path=path, content_type="text/plain"),
    "502": lambda path: answer(502, b"<html>", path=path, content_type="text/html"),
    "503": lambda path: answer(503, path=path),
    "504": lambda path: answer(504, path=path),
    "429": lambda path: answer(429, path=path),
    "401": lambda path: answer(401, DENIED, path=path),
    "403": lambda path: answer(403, DENIED, path=path),
    "a portal's page": lambda path: portal(200, path=path),
    "a portal's redirect": lambda path: portal(302, path=path),
    "a portal's 404": lambda path: portal(404, path=path),
    "a portal's 403": lambda path: portal(403, path=path),
    "a 404 that is plain text": lambda path: answer(
        404, b"404 page not found\n", path=path, content_type="text/plain"
    ),
    "an empty 404": lambda path: Fault(path=path, status=404),
    "an empty 200": lambda path: Fault(path=path, status=200),
    "another service's JSON": lambda path: answer(200, b'{"hello": "world"}', path=path),
    "400": lambda path: answer(400, b"Bad Request", path=path, content_type="text/plain"),
}


def is_fresh(client: Client, image: Image) -> bool:
    got = client.manifest(image.repository, image.tag)
    return got.status == 200 and not got.is_stale


@pytest.fixture
def healthy(region: Region) -> Image:
    """Return an image of which the cache has just heard upstream: the breaker is closed."""
    canary = region.registry.put_image("project/canary")
    eventually(lambda: is_fresh(region.client, canary), "a closed breaker", seconds=60)
    return canary


@pytest.mark.usefixtures("healthy")
@pytest.mark.parametrize("outage", list(OUTAGES))
def test_cached_tag_outlives(region: Region, repository: str, outage: str) -> None:
    """What is no registry's answer makes a cached tag stale, and is told, and is over when over."""
    image = region.registry.put_image(repository, layers=(noise(100),))
    region.client.pull(image)
    path = f"/v2/{repository}/manifests/.*"
    before = region.registry.count(path=path)
    with region.registry.inject(OUTAGES[outage](path)):
        for method in ("HEAD", "GET"):
            got = region.client.manifest(repository, "v1", method)
            assert got.status == 200
            assert got.body == (image.top.content if method == "GET" else b"")
            assert got.header("Docker-Content-Digest") == image.digest
            assert got.is_stale, got.headers.items()
        assert region.registry.count(path=path) > before
        assert region.client.blob(repository, image.layer).body == image.layer_content
    eventually(lambda: is_fresh(region.client, image), "freshness again", seconds=60)


def test_cached_tag_outlives_a_refusing_upstream(
    registry: FakeRegistry, start_cache: CacheStarter
) -> None:
    """With nobody listening, everything that was pulled is served, tags as stale."""
    images = [registry.put_image("project/app", f"v{n}", layers=(noise(999),)) for n in range(4)]
    cache = start_cache()
    for image in images:
        cache.client().pull(image)
    registry.refuse()
    for image in images * 2:
        assert cache.client().manifest("project/app", image.tag).is_stale
        cache.client().pull(image)
    registry.accept()
    eventually(lambda: is_fresh(cache.client(), images[0]), "freshness again", seconds=60)


@pytest.mark.usefixtures("healthy")
def test_late_answer_is_stale_now_and_known_later(region: Region, repository: str) -> None:
    """Past the deadline the cached tag is served, while the check goes on behind to its end."""
    old = region.registry.put_image(repository)
    region.client.manifest(repository, "v1")
    new = region.registry.put_image(repository)
    gate = Gate()
    late = Fault(path=f"/v2/{repository}/manifests/v1", methods=("HEAD",), hold=gate, times=1)
    region.registry.inject(late)
    before = len(region.registry.requests("HEAD", late.path))
    got = region.client.manifest(repository, "v1")
    assert (got.body, got.is_stale) == (old.top.content, True)
    gate.open()
    check = region.registry.requests("HEAD", late.path)[before]
    eventually(lambda: check.finished, "the end of the check")
    eventually(
        lambda: region.client.manifest(repository, "v1").body == new.top.content,
        "the moved tag",
        seconds=60,
    )


def test_silence_is_paid_for_once(registry: FakeRegistry, start_cache: CacheStarter) -> None:
    """After the first has waited, pulls of other tags come without asking a silent upstream."""
    images = [registry.put_image("project/app", f"v{number}") for number in range(30)]
    client = start_cache(**IMPATIENT).client(timeout=10)
    for image in images:
        client.pull(image)
    registry.inject(Fault(path="/v2/.*", silent=True))
    registry.forget()
    for image in images:
        assert client.manifest("project/app", image.tag).is_stale
    assert registry.count() <= 5


@pytest.mark.parametrize("status", [401, 403])
def test_refusal_is_loud(registry: FakeRegistry, start_cache: CacheStarter, status: int) -> None:
    """An expired robot does not stop the region, but the log and the metrics say it."""
    image = registry.put_image("project/app")
    cache = start_cache()
    cache.client().pull(image)
    assert cache.metric("stale") == 0
    registry.inject(answer(status, DENIED, path="/v2/.*"))
    got = cache.client().manifest("project/app", "v1")
    assert (got.status, got.is_stale) == (200, True)
    levels = ("warning", "error", "critical")
    loud = [str(line) for line in cache.log_lines() if line.get("level") in levels]
    told = {401: ("401", "unauthorized"), 403: ("403", "forbidden")}[status]
    assert any(word in line.lower() for line in loud for word in told), loud
    assert cache.metric("stale") > 0


# Nothing cached


@pytest.mark.usefixtures("healthy")
@pytest.mark.parametrize("outage", [name for name in OUTAGES if name not in {"429", "401", "403"}])
def test_cold_pull_fails_by_the_spec(region: Region, repository: str, outage: str) -> None:
    """With nothing cached, manifest and blob are UNAVAILABLE, soon; nothing of it is kept."""
    image = region.registry.put_image(repository, layers=(noise(2000),))
    with region.registry.inject(OUTAGES[outage](f"/v2/{repository}/.*")):
        region.client.manifest(repository, "v1").assert_unavailable()
        blob = region.client.blob(repository, image.layer)
        if blob.status == 200:
            assert not blob.complete  # it might have been the blob, until its digest was known
        else:
            blob.assert_unavailable()
    eventually(lambda: is_fresh(region.client, image), "a pull", seconds=60)
    region.client.pull(image)


def test_cold_and_silent_with_the_defaults_is_within_containerds_patience(
    registry: FakeRegistry, start_cache: CacheStarter
) -> None:
    """With the default limits an answer has come within 30 s, for a manifest and for a blob."""
    image = registry.put_image("project/app")
    registry.inject(Fault(silent=True))
    cache = start_cache(freshness=None, timeouts=None)
    client = cache.client(timeout=30)  # what containerd waits for headers
    paths = [
        "manifests/v1",
        f"manifests/{image.digest}",
        f"blobs/{image.layer}",
        "tags/list",
        f"referrers/{image.digest}",
    ]
    answers = together(5, lambda number: client.get(f"/v2/project/app/{paths[number]}"))
    for got in answers:
        got.assert_unavailable()


WRONG: dict[str, Callable[[Manifest], tuple[bytes, str]]] = {
    "not JSON": lambda top: (b"not json", top.media_type),
    "an array": lambda top: (b"[]", top.media_type),
    "no manifest": lambda top: (b"{}", top.media_type),
    "another type": lambda top: (top.content, "application/vnd.oci.image.index.v1+json"),
    "HTML's type": lambda top: (top.content, "text/html"),
    "4 MiB and more": lambda top: (top.content + b" " * (4 << 20), top.media_type),
    "another manifest": lambda top: (top.content + b"\n", top.media_type),
}


@pytest.mark.usefixtures("healthy")
@pytest.mark.parametrize("wrong", list(WRONG))
@pytest.mark.parametrize("by", ["tag", "digest"])
def test_wrong_manifest_is_refused(region: Region, repository: str, wrong: str, by: str) -> None:
    """A manifest that is not what it says, by type, size or digest, is neither served nor kept."""
    image = region.registry.put_image(repository, layers=(noise(2000),))
    reference = "v1" if by == "tag" else image.digest
    body, content_type = WRONG[wrong](image.top)
    fault = Fault(
        path=f"/v2/{repository}/manifests/.*",
        methods=("GET",),
        status=200,
        headers={"Docker-Content-Digest": image.digest},
        body=body,
        content_type=content_type,
    )
    with region.registry.inject(fault):
        region.client.manifest(repository, reference).assert_unavailable()
    eventually(lambda: is_fresh(region.client, image), "a pull", seconds=60)
    region.client.pull(image)


# Listings, and a restart


def test_listings_outlive_the_upstream(registry: FakeRegistry, start_cache: CacheStarter) -> None:
    """Tags and referrers answer from what was seen last, and say that it is stale."""
    image = registry.put_image("project/app")
    registry.put_referrer("project/app", image.top, "application/signature")
    client = start_cache().client()
    client.pull(image)
    paths = ["/v2/project/app/tags/list", f"/v2/project/app/referrers/{image.digest}"]
    before = [client.get(path).json() for path in paths]
    assert before[0]["tags"] == ["v1"]
    assert len(before[1]["manifests"]) == 1
    registry.refuse()
    for path, seen in zip(paths, before, strict=True):
        got = client.get(path)
        assert (got.status, got.json(), got.is_stale) == (200, seen, True)
    client.get("/v2/project/never/tags/list").assert_unavailable()


def test_fallback_referrers_outlive_the_upstream(
    registry: FakeRegistry, start_cache: CacheStarter
) -> None:
    """Referrers that came by the tag are served from it in an outage, too."""
    image = registry.put_image("project/app")
    registry.put_referrer("project/app", image.top, "application/signature")
    registry.referrers_api = False
    index = referrers_index(registry.repositories["project/app"], image.digest)
    registry.put_manifest("project/app", index, image.digest.replace(":", "-"))
    client = start_cache().client()
    path = f"/v2/project/app/referrers/{image.digest}"
    assert len(client.get(path).json()["manifests"]) == 1
    registry.refuse()
    got = client.get(path)
    assert (got.status, len(got.json()["manifests"])) == (200, 1)


def test_restart_without_an_upstream_serves_everything(
    registry: FakeRegistry, start_cache: CacheStarter
) -> None:
    """After a restart with the upstream down, images, tags and the catalog are all there."""
    images = [
        registry.put_image("project/one", layers=(noise(300_000), noise(10)), index=True),
        registry.put_image("project/two", "latest", layers=(noise(1000),), docker=True),
        registry.put_image("project/three", "v3", layers=(noise(10),), algorithm="sha512"),
    ]
    cache = start_cache()
    client = cache.client()
    for image in images:
        client.pull(image)
        client.get(f"/v2/{image.repository}/tags/list")
    registry.refuse()
    cache.restart()
    for image in images:
        client.pull(image)
        assert client.manifest(image.repository, image.tag).is_stale
        assert client.manifest(image.repository, image.tag, "HEAD").status == 200
        assert client.manifest(image.repository, image.digest).body == image.top.content
        assert client.blob(image.repository, image.layer, range_="bytes=1-3").status == 206
        tags = client.get(f"/v2/{image.repository}/tags/list")
        assert (tags.status, tags.json()["tags"]) == (200, [image.tag])
    listed = client.get("/v2/_catalog").json()["repositories"]
    assert listed == ["project/one", "project/three", "project/two"]
    absent = digest_of(encode("absent"))
    client.blob("project/one", absent).assert_unavailable()
