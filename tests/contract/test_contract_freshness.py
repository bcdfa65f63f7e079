"""Freshness (section 4): when the upstream is asked, and when it is not."""

from __future__ import annotations

import pytest

from tests.conftest import CacheStarter
from tests.contract.conftest import Region
from tests.fakes.content import Manifest, noise
from tests.fakes.faults import Fault, Gate
from tests.fakes.registry import FakeRegistry


def test_by_digest_is_asked_once(region: Region, repository: str) -> None:
    """A manifest or blob by digest that is here costs the upstream nothing, ever again."""
    image = region.registry.put_image(repository, layers=(noise(5000),), index=True)
    region.client.pull(image)
    before = len(region.registry.seen)
    for _ in range(3):
        for manifest in image.manifests:
            assert region.client.manifest(repository, manifest.digest).body == manifest.content
        for digest, content in image.blobs.items():
            assert region.client.blob(repository, digest).body == content
    assert len(region.registry.seen) == before


def test_second_pull_is_one_tag_check(region: Region, repository: str) -> None:
    """The second pull of an image costs exactly one HEAD of its tag."""
    image = region.registry.put_image(repository, layers=(noise(5000),), index=True)
    region.client.pull(image)
    before = len(region.registry.seen)
    region.client.pull(image)
    (check,) = region.registry.seen[before:]
    assert (check.method, check.path) == ("HEAD", f"/v2/{repository}/manifests/v1")


def test_pulling_the_manifest_is_enough_to_have_its_tag(region: Region, repository: str) -> None:
    """What came by tag is there by digest, without asking."""
    image = region.registry.put_image(repository)
    region.client.manifest(repository, "v1")
    before = len(region.registry.seen)
    assert region.client.manifest(repository, image.digest).body == image.top.content
    assert len(region.registry.seen) == before


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_moved_tag_is_seen_at_the_next_pull(region: Region, repository: str, method: str) -> None:
    """With maxage 0 a tag that was moved upstream is moved here."""
    for _ in range(3):
        image = region.registry.put_image(repository)
        got = region.client.manifest(repository, "v1", method)
        assert got.header("Docker-Content-Digest") == image.digest
        assert got.header("Content-Length") == str(len(image.top.content))


def test_tag_moved_back_costs_a_check_only(region: Region, repository: str) -> None:
    """A tag moved to a manifest that is here already needs no GET."""
    first = region.registry.put_image(repository)
    region.client.manifest(repository, "v1")
    region.registry.put_image(repository)
    region.client.manifest(repository, "v1")
    region.registry.tag(repository, "v1", first.digest)
    gets = region.registry.count("GET", f"/v2/{repository}/.*")
    assert region.client.manifest(repository, "v1").body == first.top.content
    assert region.registry.count("GET", f"/v2/{repository}/.*") == gets


def test_removed_tag_is_gone(region: Region, repository: str) -> None:
    """The registry's own 404 is believed for the tag; its manifest by digest is still here."""
    image = region.registry.put_image(repository)
    region.client.manifest(repository, "v1")
    region.registry.untag(repository, "v1")
    region.client.manifest(repository, "v1").assert_error(404, "MANIFEST_UNKNOWN")
    assert region.client.manifest(repository, "v1", "HEAD").status == 404
    assert region.client.manifest(repository, image.digest).body == image.top.content


def test_checks_are_collapsed(registry: FakeRegistry, start_cache: CacheStarter) -> None:
    """Sixteen who ask for one tag at once make one HEAD, and all get its answer."""
    registry.put_image("project/app")
    client = start_cache(freshness={"maxage": "0s", "deadline": "20s"}).client()
    path = "/v2/project/app/manifests/v1"
    client.get(path)
    moved = registry.put_image("project/app")
    gate = Gate()
    registry.inject(Fault(path=path, methods=("HEAD",), hold=gate))
    before = registry.count("HEAD", path)
    pending = [client.begin(path) for _ in range(16)]
    assert client.get("/livez").status == 200  # accepted after the sixteen
    gate.wait_for()
    gate.open()
    answers = [each.answer() for each in pending]
    assert {got.body for got in answers} == {moved.top.content}
    assert not any(got.is_stale for got in answers)
    assert registry.count("HEAD", path) == before + 1


def test_cold_manifest_is_fetched_once(region: Region, repository: str) -> None:
    """Eight who ask for one cold tag at once cost one GET of its manifest."""
    image = region.registry.put_image(repository)
    gate = Gate()
    path = f"/v2/{repository}/manifests/v1"
    region.registry.inject(Fault(path=f"/v2/{repository}/.*", methods=("GET",), hold=gate))
    pending = [region.client.begin(path) for _ in range(8)]
    gate.wait_for()
    gate.open()
    assert {each.answer().body for each in pending} == {image.top.content}
    assert len(region.registry.fetches(f"/v2/{repository}/.*")) == 1


def test_within_maxage_nobody_is_asked(registry: FakeRegistry, start_cache: CacheStarter) -> None:
    """A tag younger than maxage is served as it is, a moved one too, and as a hit."""
    image = registry.put_image("project/app")
    client = start_cache(freshness={"maxage": "1h"}).client()
    client.pull(image)
    registry.put_image("project/app")
    before = len(registry.seen)
    got = client.manifest("project/app", "v1")
    assert (got.body, got.is_stale) == (image.top.content, False)
    assert "hit" in got.cache_status
    assert len(registry.seen) == before


def test_largest_manifest_is_served(region: Region, repository: str) -> None:
    """Four MiB to the byte are a manifest still."""
    image = region.registry.put_image(repository)
    content = image.top.content + b" " * ((4 << 20) - len(image.top.content))
    large = Manifest(content, image.top.media_type)
    region.registry.put_manifest(repository, large, "large")
    got = region.client.manifest(repository, "large")
    assert (got.status, got.complete, got.body == content) == (200, True, True)


def test_manifest_without_a_digest_header_is_served(region: Region, repository: str) -> None:
    """An upstream that leaves out Docker-Content-Digest costs a GET; the digest is worked out."""
    image = region.registry.put_image(repository)
    path = f"/v2/{repository}/manifests/v1"
    headers = {"Content-Type": image.top.media_type}
    with region.registry.inject(
        Fault(path=path, status=200, headers=headers, body=image.top.content)
    ):
        for _ in ("cold", "warm"):
            got = region.client.manifest(repository, "v1")
            assert (got.status, got.body) == (200, image.top.content)
            assert got.header("Docker-Content-Digest") == image.digest
            assert not got.is_stale
