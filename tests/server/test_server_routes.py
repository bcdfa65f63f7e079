"""From a target to a route, or to the spec's error; no target does anything else."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pullthrough.oci.digest import Digest
from pullthrough.oci.errors import RegistryError
from pullthrough.oci.reference import Repository, Tag
from pullthrough.server import routes
from pullthrough.server.routes import (
    BlobRoute,
    CatalogRoute,
    Health,
    ManifestRoute,
    Ping,
    ReferrersRoute,
    Route,
    TagsRoute,
    is_public,
    origin_form,
    parse,
)

DIGEST = Digest.of(b"content")
SHA512 = Digest.of(b"content", "sha512")
APP = Repository("project/app")


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("/v2/", Ping()),
        ("/v2", Ping()),
        ("/v2/?ns=docker.io", Ping()),
        ("/livez", Health(ready=False)),
        ("/readyz", Health(ready=True)),
        ("/readyz?verbose", Health(ready=True)),
        ("/v2/project/app/manifests/v1", ManifestRoute(APP, Tag("v1"))),
        ("/v2/project/app/manifests/v1?ns=docker.io", ManifestRoute(APP, Tag("v1"))),
        (f"/v2/project/app/manifests/{DIGEST}", ManifestRoute(APP, DIGEST)),
        (f"/v2/project/app/manifests/{SHA512}", ManifestRoute(APP, SHA512)),
        (
            "/v2/a/manifests/sha256-" + "0" * 64 + ".sig",
            ManifestRoute(Repository("a"), Tag("sha256-" + "0" * 64 + ".sig")),
        ),
        (f"/v2/project/app/blobs/{DIGEST}", BlobRoute(APP, DIGEST)),
        (f"/v2/a/b/c/d/e/blobs/{SHA512}", BlobRoute(Repository("a/b/c/d/e"), SHA512)),
        ("/v2/project/app/tags/list", TagsRoute(APP, None, "")),
        ("/v2/project/app/tags/list?n=0", TagsRoute(APP, 0, "")),
        ("/v2/project/app/tags/list?n=10&last=v1", TagsRoute(APP, 10, "v1")),
        ("/v2/project/app/tags/list?last=v%2B1", TagsRoute(APP, None, "v+1")),
        ("/v2/project/app/tags/list?n=1000000", TagsRoute(APP, 1_000_000, "")),
        (f"/v2/project/app/referrers/{DIGEST}", ReferrersRoute(APP, DIGEST, "")),
        (
            f"/v2/project/app/referrers/{DIGEST}?artifactType=application%2Fx%2Bjson",
            ReferrersRoute(APP, DIGEST, "application/x+json"),
        ),
        ("/v2/_catalog", CatalogRoute(None, "")),
        ("/v2/_catalog?n=5&last=a/b", CatalogRoute(5, "a/b")),
        # names that look like endpoints
        (
            "/v2/manifests/manifests/manifests",
            ManifestRoute(Repository("manifests"), Tag("manifests")),
        ),
        (f"/v2/blobs/blobs/{DIGEST}", BlobRoute(Repository("blobs"), DIGEST)),
        ("/v2/tags/list/tags/list", TagsRoute(Repository("tags/list"), None, "")),
        ("/v2/v2/manifests/v2", ManifestRoute(Repository("v2"), Tag("v2"))),
        # percent-encoding, of what need not be and of what some clients do
        (f"/v2/project/app/blobs/{quote(str(DIGEST), safe='')}", BlobRoute(APP, DIGEST)),
        ("/v2/project%2Fapp/manifests/v1", ManifestRoute(APP, Tag("v1"))),
        ("/v2/%70roject/app/m%61nifests/v%31", ManifestRoute(APP, Tag("v1"))),
    ],
)
def test_targets_of_the_api(target: str, expected: Route) -> None:
    """Each endpoint of the spec is parsed to its values, also with a query that is not ours."""
    assert parse(target) == expected
    assert parse(target) == expected  # the second time it is remembered


@pytest.mark.parametrize(
    ("target", "code", "status"),
    [
        ("", "NAME_UNKNOWN", 404),
        ("/", "NAME_UNKNOWN", 404),
        ("*", "NAME_UNKNOWN", 404),
        ("/v1/", "NAME_UNKNOWN", 404),
        ("/v2/a", "NAME_UNKNOWN", 404),
        ("/v2/a/tags", "NAME_UNKNOWN", 404),
        ("/v2/a/tags/lists", "NAME_UNKNOWN", 404),
        ("/v2/a/uploads/x", "NAME_UNKNOWN", 404),
        ("/v2/a/blobs/uploads/", "NAME_UNKNOWN", 404),
        ("/v2/_catalog/", "NAME_UNKNOWN", 404),
        ("//v2/", "NAME_UNKNOWN", 404),
        ("/V2/", "NAME_UNKNOWN", 404),
        ("/metrics", "NAME_UNKNOWN", 404),
        ("/livez/", "NAME_UNKNOWN", 404),
        ("/v2//manifests/v1", "NAME_INVALID", 400),
        ("/v2/UPPER/manifests/v1", "NAME_INVALID", 400),
        ("/v2/a//b/manifests/v1", "NAME_INVALID", 400),
        ("/v2/a_/manifests/v1", "NAME_INVALID", 400),
        ("/v2/" + "a" * 256 + "/manifests/v1", "NAME_INVALID", 400),
        ("/v2/a/manifests/", "NAME_INVALID", 400),
        ("/v2/a/manifests/-v1", "NAME_INVALID", 400),
        ("/v2/a/manifests/" + "v" * 129, "NAME_INVALID", 400),
        ("/v2/a/manifests/v1%0A", "NAME_INVALID", 400),
        ("/v2/a%0A/manifests/v1", "NAME_INVALID", 400),
        ("/v2/a/manifests/v%FF1", "NAME_INVALID", 400),
        ("/v2/a/manifests/v%00", "NAME_INVALID", 400),
        ("/v2/a/manifests/v%", "NAME_INVALID", 400),
        ("/v2/a/manifests/sha256:abc", "DIGEST_INVALID", 400),
        ("/v2/a/manifests/md5:" + "0" * 32, "DIGEST_INVALID", 400),
        ("/v2/a/blobs/v1", "DIGEST_INVALID", 400),
        ("/v2/a/blobs/", "DIGEST_INVALID", 400),
        (f"/v2/a/blobs/{str(DIGEST).upper()}", "DIGEST_INVALID", 400),
        (f"/v2/a/blobs/{DIGEST}%0A", "DIGEST_INVALID", 400),
        ("/v2/a/referrers/latest", "DIGEST_INVALID", 400),
        ("/v2/a/tags/list?n=-1", "UNSUPPORTED", 400),
        ("/v2/a/tags/list?n=x", "UNSUPPORTED", 400),
        ("/v2/a/tags/list?n=1e3", "UNSUPPORTED", 400),
        ("/v2/a/tags/list?n=%D9%A3", "UNSUPPORTED", 400),
        ("/v2/a/tags/list?n=" + "1" * 5000, "UNSUPPORTED", 400),
        ("/v2/_catalog?" + "&".join(f"a{i}=1" for i in range(100)), "UNSUPPORTED", 400),
    ],
)
def test_targets_that_are_refused(target: str, code: str, status: int) -> None:
    """Everything else is the spec's error, with its status."""
    with pytest.raises(RegistryError) as raised:
        parse(target)
    assert (raised.value.code, raised.value.status) == (code, status)


@pytest.mark.parametrize(
    "target",
    [
        "/v2/../manifests/v1",
        "/v2/a/../../manifests/v1",
        "/v2/../../etc/manifests/passwd",
        "/v2/%2e%2e/manifests/v1",
        "/v2/a%2F..%2F..%2Fb/manifests/v1",
        "/v2/a%252F..%252Fb/manifests/v1",
        "/v2/a/manifests/..",
        "/v2/a/manifests/%2e%2e",
        "/v2/a/manifests/..%2F..%2Fetc%2Fpasswd",
        "/v2/a/manifests/.hidden",
        "/v2/a/blobs/..",
        "/v2/a/blobs/sha256:../../../../etc/passwd",
        "/v2/a/blobs/sha256:" + "%2e%2e%2f" * 20,
        "/v2/a\\..\\b/manifests/v1",
        "/v2/_layers/manifests/v1",
        "/v2/a/_manifests/manifests/v1",
        "/v2/.../manifests/v1",
        "/livez/../v2/",
        "/livez%2F..%2Fv2/",
    ],
)
def test_no_way_out_of_the_tree(target: str) -> None:
    """Dots, slashes in disguise and the store's own directory names are no part of a name."""
    with pytest.raises(RegistryError):
        parse(target)


def test_encoded_twice_is_not_decoded_twice() -> None:
    """What is decoded once and still has a percent sign is no name."""
    with pytest.raises(RegistryError):
        parse("/v2/project%252Fapp/manifests/v1")


@pytest.mark.parametrize(
    ("target", "public"),
    [
        ("/livez", True),
        ("/readyz?x=1", True),
        ("/v2/", False),
        ("/", False),
        ("/livez/", False),
        ("/livez/../v2/", False),
        ("/%6Civez", False),
        ("/v2/?/livez", False),
        ("//livez", False),
    ],
)
def test_only_health_is_public(target: str, *, public: bool) -> None:
    """What is answered without a login is those two, spelt in no other way."""
    assert is_public(target) is public


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("/v2/", "/v2/"),
        ("/v2/a/tags/list?last=x://y/z", "/v2/a/tags/list?last=x://y/z"),
        ("//cache/livez", "//cache/livez"),
        ("http://cache/v2/a?n=1", "/v2/a?n=1"),
        ("https://node:pw@[::1]:5000/livez", "/livez"),
        ("http://cache", "/"),
        ("http://cache/", "/"),
        ("http://cache//v2/", "//v2/"),
        ("http://cache/v2/?u=http://other/livez", "/v2/?u=http://other/livez"),
        ("*", "/"),
        ("cache:443", "/"),
        ("", "/"),
    ],
)
def test_origin_form(target: str, expected: str) -> None:
    """Of a whole URL path and query are left, and nothing of a login in it (RFC 9112, 3.2.2)."""
    assert origin_form(target) == expected


@pytest.mark.parametrize("size", [400, 5_000, 500_000])
def test_long_targets_are_not_remembered(size: int) -> None:
    """A name or a query of any length is answered, and takes no memory when it is long."""
    before = routes._remembered.cache_info().currsize
    with pytest.raises(RegistryError):
        parse(f"/v2/{'a/' * size}manifests/v1")
    assert parse(f"/v2/?{'q' * max(size, 600)}") == Ping()
    assert routes._remembered.cache_info().currsize == before


def test_remembered_targets_are_bounded() -> None:
    """Names that clients make up push one another out."""
    limit = routes._remembered.cache_info().maxsize
    assert limit is not None
    for number in range(limit + 100):
        parse(f"/v2/project/app{number}/manifests/v1")
    assert routes._remembered.cache_info().currsize <= limit


PIECES = st.sampled_from(
    [
        "/", "/v2/", "v2", "manifests", "blobs", "tags", "list", "referrers", "_catalog", "a", "A",
        "..", ".", "%2e", "%2F", "%", "%zz", "%00", "%ff", "?", "n=", "last=", "&", "=", "1", ":",
        "sha256:", str(DIGEST), "\udcff", "é", "\n", "livez", "+", "\\", "#",
    ]
)  # fmt: skip


@given(st.lists(PIECES, max_size=12).map("".join) | st.text(max_size=80))
def test_no_target_breaks_it(target: str) -> None:
    """Any text is a route or a registry's error; a route's values are what the grammar allows."""
    for each in (target, "/v2/" + target):
        is_public(each)
        try:
            route = parse(each)
        except RegistryError:
            continue
        if isinstance(route, ManifestRoute | BlobRoute | TagsRoute | ReferrersRoute):
            assert Repository.parse(route.repository.name) == route.repository
            assert ".." not in route.repository.name
