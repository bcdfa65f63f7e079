"""What each answer means, for GET and HEAD alike."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from pullthrough.oci import manifest
from pullthrough.oci.digest import Digest
from pullthrough.oci.reference import Repository, Tag
from pullthrough.upstream.base import Failure, UpstreamError
from pullthrough.upstream.client import RegistryClient
from tests.fakes.content import Image
from tests.fakes.faults import PORTAL, Fault, portal
from tests.fakes.registry import FakeRegistry
from tests.upstream.kit import NAME, TAG, Bench, Connect, listed, serving

API_ERROR = json.dumps(
    {"errors": [{"code": "NOT_FOUND", "message": "artifact not found"}]}
).encode()
NOBODY = Digest.parse("sha256:" + "0" * 64)


async def _get_blob(client: RegistryClient, digest: Digest) -> None:
    async with client.get_blob(NAME, digest) as body:
        while await body.read():
            pass


CALLS: dict[str, Callable[[RegistryClient], Awaitable[object]]] = {
    "head_manifest": lambda client: client.head_manifest(NAME, TAG),
    "get_manifest": lambda client: client.get_manifest(NAME, TAG),
    "head_blob": lambda client: client.head_blob(NAME, NOBODY),
    "get_blob": lambda client: _get_blob(client, NOBODY),
    "tags": lambda client: client.tags(NAME),
    "referrers": lambda client: client.referrers(NAME, NOBODY),
}
every_call = pytest.mark.parametrize("call", CALLS)


async def failure_of(client: RegistryClient, call: str) -> UpstreamError:
    with pytest.raises(UpstreamError) as raised:
        await CALLS[call](client)
    return raised.value


def answered(
    status: int,
    body: bytes = b"",
    *,
    path: str = f"/v2/{NAME}/.*",
    content_type: str = "application/json",
    **how: Any,
) -> Fault:
    """Answer so whatever content is asked for; the token service goes on."""
    return Fault(path=path, status=status, body=body, headers={"Content-Type": content_type}, **how)


@every_call
@pytest.mark.parametrize(
    "row",
    [
        (403, API_ERROR, "application/json", Failure.FORBIDDEN),
        (403, b"denied", "text/plain", Failure.FORBIDDEN),
        (403, PORTAL, "text/html", Failure.NOT_A_REGISTRY),
        (412, API_ERROR, "application/json", Failure.POLICY),
        (412, PORTAL, "text/html", Failure.NOT_A_REGISTRY),
        (429, b"", "text/plain", Failure.RATE_LIMITED),
        (429, PORTAL, "text/html", Failure.RATE_LIMITED),
        (400, API_ERROR, "application/json", Failure.NOT_A_REGISTRY),
        (418, b"", "text/plain", Failure.NOT_A_REGISTRY),
        (204, b"", "text/plain", Failure.NOT_A_REGISTRY),
        (301, b"", "text/plain", Failure.NOT_A_REGISTRY),
        (500, b"", "text/plain", Failure.SERVER_ERROR),
        (502, PORTAL, "text/html", Failure.SERVER_ERROR),
        (503, API_ERROR, "application/json", Failure.SERVER_ERROR),
        (507, b"", "text/plain", Failure.SERVER_ERROR),
    ],
)
async def test_statuses(
    registry: FakeRegistry,
    client: RegistryClient,
    call: str,
    row: tuple[int, bytes, str, Failure],
) -> None:
    """A refusal keeps its meaning and its status, whatever was asked for."""
    status, body, content_type, expected = row
    registry.inject(answered(status, body, content_type=content_type))
    error = await failure_of(client, call)
    assert (error.failure, error.status) == (expected, status)


@pytest.mark.parametrize("call", ["head_manifest", "get_manifest", "get_blob", "tags"])
@pytest.mark.parametrize(
    "row",
    [
        (API_ERROR, "application/json", Failure.NOT_FOUND),
        (API_ERROR, "text/plain", Failure.NOT_FOUND),
        (b"", "text/plain", Failure.NOT_A_REGISTRY),
        (b"404 page not found", "text/plain", Failure.NOT_A_REGISTRY),
        (PORTAL, "text/html", Failure.NOT_A_REGISTRY),
        (b'{"message": "Not Found"}', "application/json", Failure.NOT_A_REGISTRY),
        (b'{"errors": []}', "application/json", Failure.NOT_A_REGISTRY),
        (b'{"errors": "none"}', "application/json", Failure.NOT_A_REGISTRY),
        (b'{"errors": [{"code": 404}]}', "application/json", Failure.NOT_A_REGISTRY),
        (b'["errors"]', "application/json", Failure.NOT_A_REGISTRY),
        (b'{"errors": [' + b" " * 100_000 + b"]}", "application/json", Failure.NOT_A_REGISTRY),
    ],
)
async def test_a_404_must_prove_itself(
    registry: FakeRegistry,
    client: RegistryClient,
    call: str,
    row: tuple[bytes, str, Failure],
) -> None:
    """Only the API's JSON makes a 404 a registry's; a HEAD's, with no body, is asked by GET."""
    body, content_type, expected = row
    registry.inject(answered(404, body, content_type=content_type))
    assert (await failure_of(client, call)).failure is expected


async def test_missing_blobs_are_missing_by_head(
    registry: FakeRegistry, client: RegistryClient
) -> None:
    """HEAD of a blob is believed when it says 404, with no GET after it."""
    registry.put_image(str(NAME))
    assert (await failure_of(client, "head_blob")).failure is Failure.NOT_FOUND
    assert registry.count("GET", "/v2/.*/blobs/.*") == 0


async def test_the_upstreams_words_reach_the_error(
    registry: FakeRegistry, client: RegistryClient
) -> None:
    """The first error's code and message are told, made printable and short."""
    message = "too many\nvulnerabilities " + "x" * 1000
    body = json.dumps({"errors": [{"code": "PROJECTPOLICYVIOLATION", "message": message}]})
    registry.inject(answered(412, body.encode()))
    text = str(await failure_of(client, "get_manifest"))
    assert "PROJECTPOLICYVIOLATION: too many vulnerabilities xx" in text
    assert len(text) < 400


@pytest.mark.parametrize("status", [200, 302, 403, 404, 511])
@every_call
async def test_a_portal_is_no_registry(
    registry: FakeRegistry, client: RegistryClient, call: str, status: int
) -> None:
    """A captive portal's answers, to the token request too, are never taken for the registry's."""
    registry.inject(portal(status))
    if call == "referrers" and status == 404:
        assert await client.referrers(NAME, NOBODY) is None
        return
    if call == "head_blob" and status == 404:
        assert (await failure_of(client, call)).failure is Failure.NOT_FOUND
        return
    error = await failure_of(client, call)
    expected = {302: Failure.REFUSED, 511: Failure.SERVER_ERROR}
    assert error.failure is expected.get(status, Failure.NOT_A_REGISTRY)


@every_call
async def test_compressed_content_is_refused(
    registry: FakeRegistry, client: RegistryClient, call: str
) -> None:
    """Nothing compressed is asked for, and nothing that was compressed on its way is taken."""
    fault = answered(200, b"{}")
    fault.headers = {"Content-Encoding": "gzip"}
    registry.inject(fault)
    assert (await failure_of(client, call)).failure is Failure.NOT_A_REGISTRY
    assert {seen.headers["Accept-Encoding"] for seen in registry.seen} == {"identity"}


@pytest.mark.usefixtures("image")
@pytest.mark.parametrize("call", ["get_manifest", "tags", "referrers"])
async def test_broken_bodies_are_tried_again(
    registry: FakeRegistry, client: RegistryClient, bench: Bench, call: str
) -> None:
    """A short answer that breaks off is asked for again, and raises CUT when that does not help."""
    fault = registry.inject(Fault(path=f"/v2/{NAME}/.*", cut_after=5, times=1))
    await CALLS[call](client)
    assert fault.hits == 1
    assert len(bench.slept) == 1
    registry.inject(Fault(path=f"/v2/{NAME}/.*", cut_after=5))
    assert (await failure_of(client, call)).failure is Failure.CUT


class TestHeadManifest:
    """Which digest a tag has."""

    async def test_it_is_one_head(
        self, registry: FakeRegistry, client: RegistryClient, image: Image
    ) -> None:
        """The header of a HEAD is enough."""
        head = await client.head_manifest(NAME, TAG)
        assert str(head.digest) == image.digest
        assert registry.count("GET", "/v2/.*manifests.*") == 0

    @pytest.mark.parametrize("claim", ["", "sha256:nonsense", "md5:" + "0" * 32])
    async def test_without_a_digest_the_content_is_asked(
        self, registry: FakeRegistry, client: RegistryClient, image: Image, claim: str
    ) -> None:
        """Where the header is missing or cannot be verified, the digest is computed from a GET."""
        fault = answered(200, image.top.content, content_type=manifest.OCI_MANIFEST)
        fault.headers = {**fault.headers, "Docker-Content-Digest": claim}
        registry.inject(fault)
        assert str((await client.head_manifest(NAME, TAG)).digest) == image.digest

    async def test_by_head_refused(
        self, registry: FakeRegistry, client: RegistryClient, image: Image
    ) -> None:
        """A registry that knows no HEAD is asked by GET."""
        fault = answered(405)
        fault.methods = ("HEAD",)
        registry.inject(fault)
        assert str((await client.head_manifest(NAME, TAG)).digest) == image.digest

    async def test_a_false_404_is_found_out(
        self, registry: FakeRegistry, client: RegistryClient, image: Image
    ) -> None:
        """When HEAD says 404 and GET has it, it is there."""
        fault = answered(404)
        fault.methods = ("HEAD",)
        registry.inject(fault)
        assert str((await client.head_manifest(NAME, TAG)).digest) == image.digest

    async def test_it_is_tried_twice_at_most(
        self, registry: FakeRegistry, client: RegistryClient
    ) -> None:
        """A tag check has a short deadline, so it is not tried three times."""
        registry.inject(answered(503))
        assert (await failure_of(client, "head_manifest")).failure is Failure.SERVER_ERROR
        assert registry.count("HEAD", "/v2/library/.*") == 2


class TestGetManifest:
    """The bytes of a manifest."""

    async def test_it_comes_as_it_is(
        self, registry: FakeRegistry, client: RegistryClient, image: Image, bench: Bench
    ) -> None:
        """Content, Content-Type and the claimed digest are handed on, nothing is interpreted."""
        fetched = await client.get_manifest(NAME, TAG)
        assert fetched.content == image.top.content
        assert fetched.content_type == image.top.media_type
        assert str(fetched.claimed) == image.digest
        asked = registry.requests("GET", "/v2/.*manifests/v1")[-1]
        assert asked.headers["Accept"] == manifest.ACCEPT
        assert bench.observer.received > len(fetched.content)
        assert bench.observer.requests == {("get_manifest", "ok"): 1}

    async def test_a_false_claim_is_left_to_the_cache(
        self, registry: FakeRegistry, client: RegistryClient
    ) -> None:
        """The claimed digest is not checked here, and may be missing."""
        fault = answered(200, b"{}")
        registry.inject(fault)
        assert (await client.get_manifest(NAME, TAG)).claimed is None
        fault.headers = {"Docker-Content-Digest": str(NOBODY)}
        assert (await client.get_manifest(NAME, TAG)).claimed == NOBODY

    async def test_it_is_bounded(self, registry: FakeRegistry, client: RegistryClient) -> None:
        """Of a manifest without an end one byte more than the limit is read."""
        registry.inject(answered(200, b" " * (manifest.LIMIT * 2)))
        fetched = await client.get_manifest(NAME, TAG)
        assert len(fetched.content) == manifest.LIMIT + 1


class TestTags:
    """A repository's tags."""

    async def test_all_pages(self, registry: FakeRegistry, client: RegistryClient) -> None:
        """The links are followed to the end."""
        registry.page_size = 3
        for number in range(10):
            registry.put_image(str(NAME), f"v{number}")
        assert await client.tags(NAME) == tuple(f"v{number}" for number in range(10))
        assert registry.count("GET", ".*/tags/list") == 4 + 1

    async def test_what_is_no_tag_is_left_out(
        self, registry: FakeRegistry, client: RegistryClient
    ) -> None:
        """Names outside the grammar never reach the cache, doubles neither."""
        tags = ["ok", "../up", "", None, 7, "v1/x", "ok", "t" * 129, "ä", "_x"]
        registry.inject(answered(200, json.dumps({"tags": tags}).encode()))
        assert await client.tags(NAME) == ("ok", "_x")

    async def test_null_is_none(self, registry: FakeRegistry, client: RegistryClient) -> None:
        """An empty repository's ``null`` is an empty list."""
        registry.inject(answered(200, b'{"name": "x", "tags": null}'))
        assert await client.tags(NAME) == ()

    @pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"tags": {}}', b"<html>"])
    async def test_no_list_is_no_answer(
        self, registry: FakeRegistry, client: RegistryClient, body: bytes
    ) -> None:
        """A 200 that is not the API's list is no registry's."""
        registry.inject(answered(200, body))
        assert (await failure_of(client, "tags")).failure is Failure.NOT_A_REGISTRY

    @pytest.mark.parametrize(
        "link",
        [
            "<http://elsewhere.example.com/v2/library/app/tags/list?last=a>; rel=next",
            "<//elsewhere.example.com/v2/library/app/tags/list?last=a>; rel=next",
            "<http://[/>; rel=next",
        ],
    )
    async def test_a_link_to_another_host_is_not_followed(
        self, registry: FakeRegistry, client: RegistryClient, link: str
    ) -> None:
        """Nor is the list's beginning taken for the whole."""
        fault = answered(200, b'{"tags": ["a"]}')
        fault.headers = {"Link": link}
        registry.inject(fault)
        assert (await failure_of(client, "tags")).failure is Failure.NOT_A_REGISTRY

    @pytest.mark.parametrize("link", ['<{}?last=a>; rel="next"', "<{}?n=1&last=a>;x=y ; REL=next"])
    async def test_a_link_keeps_to_the_origin(
        self, registry: FakeRegistry, client: RegistryClient, link: str
    ) -> None:
        """A link that names the host with the wrong scheme or port is followed at the right one."""
        registry.put_image(str(NAME), "b")
        target = f"https://127.0.0.1/v2/{NAME}/tags/list"
        fault = answered(200, b'{"tags": ["a"]}')
        fault.headers = {"Link": f"</first>; rel=first, {link.format(target)}"}
        fault.times = 1
        registry.inject(fault)
        assert await client.tags(NAME) == ("a", "b")

    async def test_a_list_without_an_end(
        self, registry: FakeRegistry, client: RegistryClient
    ) -> None:
        """A list that goes round in circles is given up after a bounded number of pages."""
        fault = answered(200, b'{"tags": ["a"]}')
        fault.headers = {"Link": f'</v2/{NAME}/tags/list>; rel="next"'}
        registry.inject(fault)
        assert (await failure_of(client, "tags")).failure is Failure.NOT_A_REGISTRY
        assert registry.count("GET", ".*/tags/list") == 1001


class TestReferrers:
    """Who refers to a manifest."""

    async def test_the_index_as_it_came(
        self, registry: FakeRegistry, client: RegistryClient, image: Image
    ) -> None:
        """One page is handed on as bytes."""
        referrer = registry.put_referrer(str(NAME), image.top, "application/vnd.example")
        content = await client.referrers(NAME, Digest.parse(image.digest))
        assert content is not None
        assert [entry["digest"] for entry in json.loads(content)["manifests"]] == [referrer.digest]
        asked = registry.requests("GET", ".*/referrers/.*")[-1]
        assert asked.headers["Accept"] == manifest.OCI_INDEX

    async def test_pages_are_merged(self, connect: Connect) -> None:
        """Several pages become one index."""
        entries = [{"digest": f"sha256:{number:064}"} for number in range(3)]
        pages = ({"schemaVersion": 2, "manifests": [entry]} for entry in entries)
        async with serving(listed(*pages)) as url:
            client = await connect(url=url)
            content = await client.referrers(NAME, NOBODY)
        assert json.loads(content or b"") == {"schemaVersion": 2, "manifests": entries}

    async def test_no_api(
        self, registry: FakeRegistry, client: RegistryClient, image: Image
    ) -> None:
        """Where there is no referrers API, there is no index."""
        registry.referrers_api = False
        assert await client.referrers(NAME, Digest.parse(image.digest)) is None

    async def test_a_page_that_is_gone_is_no_missing_api(
        self, registry: FakeRegistry, client: RegistryClient
    ) -> None:
        """A 404 after the first page does not pass for an upstream without the API."""
        fault = answered(200, b'{"manifests": []}', times=1)
        fault.headers = {"Link": '</v2/>; rel="next"'}
        registry.inject(answered(404, API_ERROR, path="/v2/"))
        registry.inject(fault)
        assert (await failure_of(client, "referrers")).failure is Failure.NOT_FOUND


async def test_a_path_before_the_api(registry: FakeRegistry, connect: Connect) -> None:
    """An upstream below a path of its host is asked below that path, for the next page too."""
    registry.inject(Fault(path="/far/away/v2/a/tags/list", status=200, body=b'{"tags": ["x"]}'))
    client = await connect(url=f"{registry.url}/far/away/")
    assert await client.tags(Repository("a")) == ("x",)
    with pytest.raises(UpstreamError):
        await client.head_manifest(Repository("a"), Tag("t"))
    assert {seen.path.startswith("/far/away/v2/a/") for seen in registry.seen} == {True}
