"""Listings (section 2): tags, referrers and the catalog of what is cached."""

from __future__ import annotations

import json
import re
from urllib.parse import urlencode

import pytest

from tests.contract.conftest import Region
from tests.fakes.client import Answer
from tests.fakes.content import OCI_INDEX, Image, digest_of, noise
from tests.fakes.registry import referrers_index

TAGS = ["1.0", "1.0-rc", "B", "_x", "a", "b", "latest", "sha256-abc.sig", "v1", "v10", "v2"]


@pytest.fixture
def tagged(region: Region, repository: str) -> str:
    """Return a repository of eleven tags, whose upstream lists four on a page."""
    image = region.registry.put_image(repository, TAGS[0])
    for tag in TAGS[1:]:
        region.registry.tag(repository, tag, image.digest)
    region.registry.page_size = 4
    return repository


def tags(region: Region, repository: str, **query: object) -> Answer:
    suffix = f"?{urlencode(query)}" if query else ""
    return region.client.get(f"/v2/{repository}/tags/list{suffix}")


def test_all_tags_are_listed_in_byte_order(region: Region, tagged: str) -> None:
    """The whole list comes at once, though the upstream gives it page by page."""
    got = tags(region, tagged)
    assert got.status == 200
    assert got.header("Content-Type").startswith("application/json")
    assert got.json() == {"name": tagged, "tags": sorted(TAGS)}
    assert "Link" not in got.headers


@pytest.mark.parametrize("last", ["", "a", "aa", "b", "zzz"])
def test_last_is_exclusive_and_usable_alone(region: Region, tagged: str, last: str) -> None:
    """The list begins after ``last``, whether there is such a tag or not."""
    assert tags(region, tagged, last=last).json()["tags"] == [tag for tag in TAGS if tag > last]


@pytest.mark.parametrize("n", [1, 3, 4, 11, 12, 5000])
def test_pages_are_linked_to_the_last(region: Region, tagged: str, n: int) -> None:
    """Following Link from page to page gives every tag once, ``n`` at most at a time."""
    path, found = f"/v2/{tagged}/tags/list?n={n}", []
    for _ in range(len(TAGS) + 1):
        got = region.client.get(path)
        assert got.status == 200
        page = got.json()["tags"]
        assert len(page) <= n
        found += page
        link = got.header("Link")
        if not link:
            break
        following = re.fullmatch(r'<([^>]+)>;\s*rel="?next"?', link)
        assert following, link
        path = re.sub(r"^https?://[^/]+", "", following.group(1))
    assert found == TAGS


def test_no_tags_are_asked_for(region: Region, tagged: str) -> None:
    """n=0 gives an empty list and no Link."""
    got = tags(region, tagged, n=0)
    assert (got.status, got.json()["tags"]) == (200, [])
    assert "Link" not in got.headers


@pytest.mark.parametrize("n", ["-1", "abc", "1e9", "9" * 40, ""])
def test_a_number_that_is_none_does_no_harm(region: Region, tagged: str, n: str) -> None:
    """An n of another form is refused in the spec's JSON, or ignored."""
    got = tags(region, tagged, n=n)
    if got.status != 200:
        got.assert_error(400)


def test_tags_of_no_repository_are_unknown(region: Region, tagged: str) -> None:
    """The upstream's 404 is NAME_UNKNOWN here."""
    assert tagged
    tags(region, "project/none").assert_error(404, "NAME_UNKNOWN")


# Referrers


@pytest.fixture(params=["api", "tag"])
def referred(region: Region, repository: str, request: pytest.FixtureRequest) -> Image:
    """Return an image with two signatures and a bill of materials, listed by the API or by tag."""
    image = region.registry.put_image(repository)
    for kind in ("application/signature", "application/signature", "application/sbom"):
        region.registry.put_referrer(repository, image.top, kind)
    region.registry.referrers_api = request.param == "api"
    if request.param == "tag":
        index = referrers_index(region.registry.repositories[repository], image.digest)
        fallback = image.digest.replace(":", "-")
        region.registry.put_manifest(repository, index, fallback)
    return image


def referrers(region: Region, image: Image, artifact_type: str = "") -> Answer:
    query = f"?{urlencode({'artifactType': artifact_type})}" if artifact_type else ""
    return region.client.get(f"/v2/{image.repository}/referrers/{image.digest}{query}")


def test_referrers_are_an_index(region: Region, referred: Image) -> None:
    """All referrers come as an OCI index, from the API or from the tag that stands in for it."""
    got = referrers(region, referred)
    assert (got.status, got.header("Content-Type")) == (200, OCI_INDEX)
    document = got.json()
    assert (document["schemaVersion"], document["mediaType"]) == (2, OCI_INDEX)
    assert len(document["manifests"]) == 3
    for descriptor in document["manifests"]:
        manifest = region.client.manifest(referred.repository, descriptor["digest"])
        assert manifest.status == 200
        assert json.loads(manifest.body)["subject"]["digest"] == referred.digest


def test_referrers_are_filtered(region: Region, referred: Image) -> None:
    """ArtifactType leaves the others out, and the answer says that it was applied."""
    got = referrers(region, referred, "application/signature")
    assert "artifactType" in got.header("OCI-Filters-Applied")
    kinds = [descriptor["artifactType"] for descriptor in got.json()["manifests"]]
    assert kinds == ["application/signature"] * 2
    assert referrers(region, referred, "application/none").json()["manifests"] == []
    assert "OCI-Filters-Applied" not in referrers(region, referred).headers


@pytest.mark.parametrize("api", [True, False])
def test_nothing_refers_to_it(region: Region, repository: str, api: bool) -> None:
    """No referrers are an empty index, with 200, where the upstream has the API and where not."""
    image = region.registry.put_image(repository)
    region.registry.referrers_api = api
    got = referrers(region, image)
    assert (got.status, got.header("Content-Type")) == (200, OCI_INDEX)
    assert got.json()["manifests"] == []


@pytest.mark.parametrize("digest", ["sha256:abc", "latest", "md5:" + "0" * 32])
def test_referrers_of_no_digest_are_refused(region: Region, repository: str, digest: str) -> None:
    """A bad digest is 400 (distribution-spec, "Listing Referrers")."""
    got = region.client.get(f"/v2/{repository}/referrers/{digest}")
    got.assert_error(400, "DIGEST_INVALID")


# Catalog


def test_catalog_has_what_was_pulled(region: Region, repository: str) -> None:
    """The catalog lists cached repositories, in pages, and asks nobody."""
    pulled = [f"{repository}/{name}" for name in ("a", "b", "c")]
    for name in (*pulled, f"{repository}/never"):
        region.registry.put_image(name, layers=(noise(10),))
    for name in pulled:
        region.client.manifest(name, "v1")
    before = len(region.registry.seen)
    got = region.client.get("/v2/_catalog?n=10000")
    listed = got.json()["repositories"]
    assert got.status == 200
    assert listed == sorted(listed)
    assert [name for name in listed if name.startswith(repository)] == pulled
    query = urlencode({"n": 2, "last": pulled[0]})
    page = region.client.get(f"/v2/_catalog?{query}")
    assert page.json()["repositories"] == pulled[1:]
    assert len(region.registry.seen) == before


def test_catalog_pages_are_linked(region: Region, repository: str) -> None:
    """A page that is not the last has a Link to the next."""
    for name in ("a", "b"):
        region.registry.put_image(f"{repository}/{name}")
        region.client.manifest(f"{repository}/{name}", "v1")
    link = region.client.get("/v2/_catalog?n=1").header("Link")
    assert 'rel="next"' in link
    assert "/v2/_catalog?" in link


def test_referrers_of_an_unknown_subject_are_empty(region: Region, repository: str) -> None:
    """The spec wants 200 and an empty index for a digest that is nowhere."""
    region.registry.put_image(repository)
    region.registry.referrers_api = True
    absent = digest_of(b"absent")
    got = region.client.get(f"/v2/{repository}/referrers/{absent}")
    assert (got.status, got.json()["manifests"]) == (200, [])
