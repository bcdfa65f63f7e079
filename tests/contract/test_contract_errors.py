"""Errors (section 2): writes, what is no name, and paths that try to lead elsewhere."""

from __future__ import annotations

import json

import pytest

from tests.contract.conftest import Region
from tests.fakes.content import digest_of

DIGEST = digest_of(b"content")


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize(
    "path",
    [
        "project/app/blobs/uploads/",
        "project/app/blobs/uploads/12345?digest=" + DIGEST,
        f"project/app/blobs/{DIGEST}",
        f"project/app/manifests/{DIGEST}",
        "project/app/manifests/v1",
        "project/app/tags/list",
        "_catalog",
        "",
    ],
)
def test_every_write_is_unsupported(region: Region, method: str, path: str) -> None:
    """A push, a mount or a delete is 405 UNSUPPORTED, and the upstream never hears of it."""
    before = len(region.registry.seen)
    got = region.client.request(method, f"/v2/{path}", body=b"x" * 2000)
    got.assert_error(405, "UNSUPPORTED")
    assert got.request_id
    assert len(region.registry.seen) == before


@pytest.mark.parametrize(
    "name",
    ["UPPER/app", "project/App", "a..b", "-app", "app-", "project/_app", "a/b___c", "x" * 300],
)
def test_names_outside_the_grammar_are_invalid(region: Region, name: str) -> None:
    """A repository that cannot be is 400 NAME_INVALID, and goes nowhere."""
    before = len(region.registry.seen)
    for rest in ("manifests/v1", f"manifests/{DIGEST}", f"blobs/{DIGEST}", "tags/list"):
        region.client.get(f"/v2/{name}/{rest}").assert_error(400, "NAME_INVALID")
    assert len(region.registry.seen) == before


@pytest.mark.parametrize(
    "digest",
    [
        "sha256:abc",
        "sha256:" + "0" * 63,
        "sha256:" + "0" * 65,
        "sha256:" + "A" * 64,
        "sha256:" + "g" * 64,
        "sha512:" + "0" * 64,
        "md5:" + "0" * 32,
        "sha256:",
        ":" + "0" * 64,
    ],
)
def test_digests_outside_the_grammar_are_invalid(region: Region, digest: str) -> None:
    """A digest that cannot be verified is 400 DIGEST_INVALID, of a blob and of a manifest."""
    before = len(region.registry.seen)
    region.client.get(f"/v2/project/app/blobs/{digest}").assert_error(400, "DIGEST_INVALID")
    got = region.client.get(f"/v2/project/app/manifests/{digest}")
    got.assert_error(400, "DIGEST_INVALID", "NAME_INVALID")
    assert len(region.registry.seen) == before


@pytest.mark.parametrize("tag", [".hidden", "-x", "a" * 129, "v%201", "caf%C3%A9", "a%2fb", "a@b"])
def test_tags_outside_the_grammar_are_refused(region: Region, tag: str) -> None:
    """A tag that cannot be is an error of the spec's, and goes nowhere."""
    before = len(region.registry.seen)
    got = region.client.get(f"/v2/project/app/manifests/{tag}")
    got.assert_error({400, 404})
    assert len(region.registry.seen) == before


TRICKS = [
    "/v2/../../etc/passwd",
    "/v2/%2e%2e/%2e%2e/etc/passwd",
    "/v2/%2e%2e/%2e%2e/etc/passwd/manifests/v1",
    "/v2/project/../../../etc/manifests/v1",
    "/v2/project/%2e%2e/app/manifests/v1",
    "/v2/project%2f..%2f..%2fapp/manifests/v1",
    "/v2/project/app/manifests/..",
    "/v2/project/app/manifests/%2e%2e%2f%2e%2e",
    "/v2/project/app/manifests/..%5c..",
    "/v2//project//app//manifests//v1",
    "/v2/project/app/manifests/",
    "/v2/project/app/blobs/",
    "/v2/project/app/blobs/sha256:..%2f..%2fetc%2fpasswd",
    "/v2/project/app/tags",
    "/v2/project/app",
    "/v2/manifests/v1",
    "/v2//manifests/v1",
    f"/v2/project/app/blobs/{DIGEST}/",
    "/v2/project/app%00/manifests/v1",
    "/v2/project/app/manifests/v1%00",
    "/v2/project/app/manifests/v1%0d%0aX-Injected:%20yes",
    "/v2/%ff%fe/manifests/v1",
    "/v2/" + "a/" * 2000 + "manifests/v1",
    "/v2/" + "a" * 4000 + "/manifests/v1",
    f"/v2/project/app/blobs/sha256:{'0' * 4000}",
    "/v2/_catalog/x",
    "/v1/repositories",
    "/nowhere",
    "/..",
]


@pytest.mark.parametrize("path", TRICKS, ids=[trick[:50] for trick in TRICKS])
def test_tricky_paths_are_plain_errors(region: Region, path: str) -> None:
    """A path that leads nowhere is a 4xx in the spec's JSON: no file, no traceback, no request."""
    before = len(region.registry.seen)
    request = f"GET {path} HTTP/1.1\r\nHost: cache\r\nConnection: close\r\n\r\n"
    head, _, body = region.client.raw(request.encode()).partition(b"\r\n\r\n")
    status = int(head.split()[1])
    assert status in {400, 404, 414}, head
    assert json.loads(body)["errors"][0]["message"]
    assert b"\nX-Injected" not in head
    assert b"root:" not in body
    assert len(region.registry.seen) == before


@pytest.mark.parametrize(
    "request_",
    [
        b"GET /v2/project\x00app/manifests/v1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"GET /v2/" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"GET /v2/ HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 a TLS hello\r\n\r\n",
        b"nonsense\r\n\r\n",
    ],
    ids=["nul", "long line", "long header", "tls", "nonsense"],
)
def test_what_is_not_http_is_turned_away(region: Region, request_: bytes) -> None:
    """Bytes that are no request get a 400 or a closed connection, and the next client is served."""
    got = region.client.raw(request_)
    assert not got or got.split()[1][:1] == b"4"
    assert region.client.get("/v2/").status == 200


def test_error_messages_do_not_echo_without_bound(region: Region) -> None:
    """A 4,000 character name does not come back whole."""
    got = region.client.get(f"/v2/{'x' * 4000}/manifests/v1")
    assert len(got.body) < 2000
