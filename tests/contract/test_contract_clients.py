"""What clients get (section 2): manifests, blobs and their headers, cold and warm."""

from __future__ import annotations

import http.client
from typing import Any

import pytest

from tests.contract.conftest import Region
from tests.fakes.client import ACCEPT, Answer
from tests.fakes.content import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    MIB,
    OCI_INDEX,
    OCI_MANIFEST,
    Image,
    digest_of,
    noise,
)
from tests.fakes.faults import Fault, eventually


def assert_describes(got: Answer, digest: str, size: int) -> None:
    """Assert what every answer with content says of it."""
    assert got.header("Docker-Content-Digest") == digest
    assert got.header("ETag") == f'"{digest}"'
    assert got.header("Content-Length") == str(size)
    assert "Content-Encoding" not in got.headers
    assert got.header("Docker-Distribution-Api-Version") == "registry/2.0"
    assert "pullthrough" in got.cache_status
    assert got.request_id


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_base_says_that_this_is_a_registry(region: Region, method: str) -> None:
    """/v2/ is 200 without a login where none is configured."""
    got = region.client.request(method, "/v2/")
    assert got.status == 200
    assert got.header("Docker-Distribution-Api-Version") == "registry/2.0"
    assert got.request_id


KINDS: dict[str, dict[str, Any]] = {
    OCI_MANIFEST: {},
    OCI_INDEX: {"index": True},
    DOCKER_MANIFEST: {"docker": True},
    DOCKER_LIST: {"docker": True, "index": True},
}


@pytest.mark.parametrize("media_type", list(KINDS))
def test_manifest_by_tag_is_the_upstreams_bytes(
    region: Region, repository: str, media_type: str
) -> None:
    """Cold and warm, a manifest has its own bytes, its exact media type, its digest and length."""
    image = region.registry.put_image(repository, **KINDS[media_type])
    for _ in ("cold", "warm"):
        got = region.client.manifest(repository, "v1")
        assert (got.status, got.body) == (200, image.top.content)
        assert got.header("Content-Type") == media_type
        assert_describes(got, image.digest, len(image.top.content))


@pytest.mark.parametrize("by", ["tag", "digest"])
def test_head_of_a_cold_manifest_says_what_get_says(
    region: Region, repository: str, by: str
) -> None:
    """HEAD of a manifest that is not here has the length, type and digest that GET has."""
    image = region.registry.put_image(repository, index=True)
    reference = "v1" if by == "tag" else image.digest
    for _ in ("cold", "warm"):
        got = region.client.manifest(repository, reference, "HEAD")
        assert (got.status, got.body) == (200, b"")
        assert got.header("Content-Type") == OCI_INDEX
        assert_describes(got, image.digest, len(image.top.content))


@pytest.mark.parametrize("accept", ["", "*/*", OCI_MANIFEST, ACCEPT])
def test_a_manifest_is_served_whatever_is_accepted(
    region: Region, repository: str, accept: str
) -> None:
    """An Accept header, or none, does not change what a reference names."""
    image = region.registry.put_image(repository)
    headers = {"Accept": accept} if accept else {}
    got = region.client.get(f"/v2/{repository}/manifests/v1", headers)
    assert (got.status, got.body) == (200, image.top.content)


@pytest.mark.parametrize("how", [{}, {"index": True}, {"docker": True, "index": True}])
def test_whole_image_is_pulled_twice(region: Region, repository: str, how: dict[str, Any]) -> None:
    """Every manifest and blob of an image comes through, and the second pull asks for no bytes."""
    layers = (noise(300_000), noise(1), b"")
    image = region.registry.put_image(repository, layers=layers, **how)
    region.client.pull(image)
    before = region.registry.bytes_sent()
    region.client.pull(image)
    assert region.registry.bytes_sent() == before


def test_sha512_content_is_served(region: Region, repository: str) -> None:
    """An image all of whose digests are sha512 is pulled, cold and warm."""
    image = region.registry.put_image(
        repository, layers=(noise(100_000),), index=True, algorithm="sha512"
    )
    for manifest in image.manifests:
        for _ in ("cold", "warm"):
            got = region.client.manifest(repository, manifest.digest)
            assert (got.status, got.body) == (200, manifest.content)
            assert got.header("Docker-Content-Digest") == manifest.digest
    assert region.client.blob(repository, image.layer, method="HEAD").status == 200
    for digest, content in image.blobs.items():
        for _ in ("cold", "warm"):
            blob = region.client.blob(repository, digest)
            assert (blob.status, blob.complete, blob.body) == (200, True, content)
            assert_describes(blob, digest, len(content))


def hit_of(region: Region, image: Image) -> Answer | None:
    """Return the layer where it is served as a hit."""
    got = region.client.blob(image.repository, image.layer)
    return got if "pullthrough; hit" in got.cache_status else None


def test_blob_is_a_miss_then_a_hit(region: Region, repository: str) -> None:
    """The first GET of a blob is a miss that is stored, the second a hit; the bytes are right."""
    image = region.registry.put_image(repository, layers=(noise(MIB),))
    region.client.manifest(repository, "v1")
    cold = region.client.blob(repository, image.layer)
    region.cache.wait_stored(image.layer)
    warm = eventually(lambda: hit_of(region, image), "a hit")
    assert "fwd=miss" in cold.cache_status
    assert "stored" in cold.cache_status
    assert "fwd=" not in warm.cache_status
    for got in (cold, warm):
        assert (got.status, got.complete, got.body) == (200, True, image.layer_content)
        assert_describes(got, image.layer, MIB)
        assert got.header("Accept-Ranges") == "bytes"
    assert len(region.registry.fetches(f".*{image.layer}")) == 1


def test_manifest_by_digest_is_a_miss_then_a_hit(region: Region, repository: str) -> None:
    """The first GET of a manifest by digest is a miss, the second a hit."""
    image = region.registry.put_image(repository)
    assert "fwd=miss" in region.client.manifest(repository, image.digest).cache_status
    assert "pullthrough; hit" in region.client.manifest(repository, image.digest).cache_status


def test_blob_is_pulled_without_its_manifest(region: Region, repository: str) -> None:
    """A blob whose manifest was never asked for, so that its size is not known, is served."""
    content = noise(200_000)
    digest = region.registry.put_blob(repository, content)
    for _ in ("cold", "warm"):
        got = region.client.blob(repository, digest)
        assert (got.status, got.complete, got.body) == (200, True, content)


def test_head_of_a_cold_blob_is_answered_from_its_manifest(region: Region, repository: str) -> None:
    """HEAD of a blob that a cached manifest names costs the upstream nothing."""
    image = region.registry.put_image(repository, layers=(noise(5000),))
    region.client.manifest(repository, "v1")
    got = region.client.blob(repository, image.layer, method="HEAD")
    assert (got.status, got.body) == (200, b"")
    assert_describes(got, image.layer, 5000)
    assert region.registry.count(path=f".*{image.layer}") == 0


def test_head_of_an_unnamed_blob_asks_by_head(region: Region, repository: str) -> None:
    """HEAD of a blob that no cached manifest names is a HEAD upstream, never a GET."""
    content = noise(5000)
    digest = region.registry.put_blob(repository, content)
    got = region.client.blob(repository, digest, method="HEAD")
    assert (got.status, got.header("Content-Length")) == (200, "5000")
    assert got.header("Docker-Content-Digest") == digest
    assert region.registry.count("HEAD", f".*{digest}") >= 1
    assert region.registry.count("GET", f".*{digest}") == 0


def test_get_of_a_blob_needs_no_head_upstream(region: Region, repository: str) -> None:
    """A Harbor proxy project says 404 to HEAD of a blob that its GET would give (harbor#22609)."""
    image = region.registry.put_image(repository, layers=(noise(5000),))
    missing = Fault(path=f".*{image.layer}", methods=("HEAD",), status=404)
    with region.registry.inject(missing):
        assert region.client.blob(repository, image.layer).body == image.layer_content


@pytest.mark.parametrize("kind", ["tag", "digest", "blob"])
@pytest.mark.parametrize("form", ["{}", "W/{}", '"other", {}', "*"])
def test_if_none_match_of_what_one_has_is_304(
    region: Region, repository: str, kind: str, form: str
) -> None:
    """A client that names the ETag, alone or in a list, is spared the body."""
    image = region.registry.put_image(repository, layers=(b"layer" * 99,))
    region.client.pull(image)
    path, digest = {
        "tag": ("manifests/v1", image.digest),
        "digest": (f"manifests/{image.digest}", image.digest),
        "blob": (f"blobs/{image.layer}", image.layer),
    }[kind]
    condition = {"If-None-Match": form.format(f'"{digest}"')}
    for method in ("GET", "HEAD"):
        got = region.client.request(method, f"/v2/{repository}/{path}", condition)
        assert (got.status, got.body) == (304, b"")
        assert got.header("ETag") == f'"{digest}"'
    other = region.client.get(f"/v2/{repository}/{path}", {"If-None-Match": '"other"'})
    assert other.status == 200


def test_nothing_is_ever_compressed(region: Region, repository: str) -> None:
    """Containerd asks for zstd and gzip and would decode them: it gets the bytes as they are."""
    image = region.registry.put_image(repository, layers=(b"very compressible " * 9999,))
    asked = {"Accept-Encoding": "zstd;q=1.0, gzip;q=0.8, deflate;q=0.5"}
    for path, body in (
        (f"/v2/{repository}/manifests/v1", image.top.content),
        (f"/v2/{repository}/blobs/{image.layer}", image.layer_content),
        (f"/v2/{repository}/blobs/{image.layer}", image.layer_content),
        (f"/v2/{repository}/tags/list", None),
        (f"/v2/{repository}/blobs/{digest_of(b'absent')}", None),
    ):
        got = region.client.get(path, asked)
        assert "Content-Encoding" not in got.headers
        assert got.header("Content-Length") == str(len(got.body))
        assert body is None or got.body == body


def test_the_upstream_is_not_asked_for_compression(region: Region, repository: str) -> None:
    """A front that compresses on the way would change the length: identity is asked for."""
    image = region.registry.put_image(repository, layers=(noise(1000),))
    region.client.pull(image)
    for seen in region.registry.requests(path=f"/v2/{repository}/.*"):
        assert seen.headers.get("Accept-Encoding", "") in {"identity", ""}


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_what_the_upstream_has_not_is_unknown(region: Region, repository: str, method: str) -> None:
    """Harbor's NOT_FOUND becomes the spec's code for a blob, a manifest or a repository."""
    region.registry.put_image(repository)
    absent = digest_of(b"absent")
    for path, codes in (
        (f"{repository}/blobs/{absent}", ["BLOB_UNKNOWN"]),
        (f"{repository}/manifests/none", ["MANIFEST_UNKNOWN"]),
        (f"{repository}/manifests/{absent}", ["MANIFEST_UNKNOWN"]),
        ("project/none/manifests/v1", ["MANIFEST_UNKNOWN", "NAME_UNKNOWN"]),
        (f"project/none/blobs/{absent}", ["BLOB_UNKNOWN", "NAME_UNKNOWN"]),
    ):
        got = region.client.request(method, f"/v2/{path}")
        assert got.status == 404
        assert got.request_id
        if method == "GET":
            got.assert_error(404, *codes)


def test_a_404_is_not_remembered(region: Region, repository: str) -> None:
    """What was pushed after a 404 is there at the next pull."""
    region.registry.put_image(repository, "other")
    assert region.client.manifest(repository, "v1").status == 404
    image = region.registry.put_image(repository, layers=(noise(100),))
    region.client.pull(image)


def test_mirror_namespace_is_accepted(region: Region, repository: str) -> None:
    """Containerd as a mirror's client adds ns=, which changes nothing."""
    image = region.registry.put_image(repository)
    got = region.client.get(f"/v2/{repository}/manifests/v1?ns=docker.io")
    assert (got.status, got.body) == (200, image.top.content)


def test_requests_have_ids_of_their_own(region: Region) -> None:
    """Two answers have two request ids, good ones and errors alike."""
    paths = ["/v2/", "/v2/", "/v2/UPPER/manifests/v1", "/livez", "/nowhere"]
    found = [region.client.get(path).request_id for path in paths]
    assert all(found)
    assert len(set(found)) == len(found)


def test_cache_status_is_on_every_answer(region: Region, repository: str) -> None:
    """Errors and listings say what the cache did, too."""
    region.registry.put_image(repository)
    for path in (
        f"{repository}/manifests/v1",
        f"{repository}/manifests/none",
        f"{repository}/tags/list",
        f"{repository}/referrers/{digest_of(b'x')}",
        f"{repository}/blobs/{digest_of(b'absent')}",
    ):
        assert region.client.get(f"/v2/{path}").cache_status.startswith("pullthrough")


def test_one_connection_serves_many_requests(region: Region, repository: str) -> None:
    """A kept-alive connection pulls a whole image, errors, HEADs and a 304 in between."""
    image = region.registry.put_image(repository, layers=(noise(100_000),))
    connection = http.client.HTTPConnection("127.0.0.1", region.cache.port, timeout=20)
    try:
        connection.connect()
        first = connection.sock
        for method, path, status in (
            ("GET", f"/v2/{repository}/manifests/none", 404),
            ("HEAD", f"/v2/{repository}/manifests/v1", 200),
            ("GET", f"/v2/{repository}/manifests/v1", 200),
            ("GET", f"/v2/{repository}/blobs/{image.layer}", 200),
            ("GET", f"/v2/{repository}/blobs/{image.layer}", 200),
            ("HEAD", f"/v2/{repository}/blobs/{image.layer}", 200),
            ("DELETE", f"/v2/{repository}/manifests/v1", 405),
            ("GET", f"/v2/{repository}/tags/list", 200),
        ):
            connection.request(method, path)
            with connection.getresponse() as response:
                body = response.read()
                assert response.status == status, path
            if method == "GET" and "/blobs/" in path:
                assert body == image.layer_content
        assert connection.sock is first
    finally:
        connection.close()


def test_http_1_0_gets_the_same(region: Region, repository: str) -> None:
    """An old client, which knows no chunks, gets the bytes and then the connection's end."""
    image = region.registry.put_image(repository, layers=(noise(100_000),))
    for path, content in (
        (f"blobs/{image.layer}", image.layer_content),
        (f"manifests/{image.digest}", image.top.content),
    ):
        request = f"GET /v2/{repository}/{path} HTTP/1.0\r\nHost: cache\r\n\r\n"
        head, _, body = region.client.raw(request.encode()).partition(b"\r\n\r\n")
        assert head.split()[1] == b"200"
        assert body == content


def test_early_close_is_normal(region: Region, repository: str) -> None:
    """A client that reads a little and leaves gets no error made of it, warm or cold."""
    image = region.registry.put_image(repository, layers=(noise(4 * MIB),))
    path = f"/v2/{repository}/blobs/{image.layer}"
    for _ in ("cold", "warm", "warm"):
        with region.client.stream(path) as response:
            assert response.read(1000) == image.layer_content[:1000]
    region.cache.wait_stored(image.layer)
    assert region.client.blob(repository, image.layer).body == image.layer_content
    errors = [line for line in region.cache.log_lines() if line.get("level") == "error"]
    assert errors == []


def test_the_clients_own_login_does_not_travel(region: Region, repository: str) -> None:
    """What a client sends to log in at the cache is never sent on to the upstream."""
    image = region.registry.put_image(repository, layers=(noise(1000),))
    client = region.cache.client(login=("node", "client-secret"))
    client.pull(image)
    for seen in region.registry.requests():
        assert "bm9kZTpjbGllbnQtc2VjcmV0" not in seen.headers.get("Authorization", "")
