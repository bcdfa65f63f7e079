"""Ranges of blobs (section 2): on a hit and on a miss, and never one upstream fetch a range."""

from __future__ import annotations

import email.parser
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.contract.conftest import Region
from tests.fakes.client import Answer, together
from tests.fakes.content import MIB, Image, digest_of, noise
from tests.fakes.faults import Fault, Gate

SIZE = 300_001


@pytest.fixture(params=["hit", "miss", "unknown"])
def image(region: Region, repository: str, request: pytest.FixtureRequest) -> Image:
    """Return an image whose layer is cached, is not, or is not and has no cached manifest."""
    image = region.registry.put_image(repository, layers=(noise(SIZE),))
    if request.param != "unknown":
        region.client.manifest(repository, "v1")
    if request.param == "hit":
        region.client.blob(repository, image.layer)
    return image


def ranged(region: Region, image: Image, spec: str) -> Answer:
    return region.client.blob(image.repository, image.layer, range_=spec)


@pytest.mark.parametrize(
    ("spec", "first", "last"),
    [
        ("bytes=0-0", 0, 0),
        ("bytes=0-1", 0, 1),
        ("bytes=100-199", 100, 199),
        ("bytes=0-", 0, SIZE - 1),
        ("bytes=200000-", 200_000, SIZE - 1),
        (f"bytes={SIZE - 1}-", SIZE - 1, SIZE - 1),
        ("bytes=-5", SIZE - 5, SIZE - 1),
        (f"bytes=-{SIZE + 5}", 0, SIZE - 1),
        (f"bytes=299000-{SIZE * 2}", 299_000, SIZE - 1),
    ],
)
def test_single_range(region: Region, image: Image, spec: str, first: int, last: int) -> None:
    """One range is 206 with exactly its bytes and its place in the whole."""
    got = ranged(region, image, spec)
    assert (got.status, got.complete) == (206, True)
    assert got.body == image.layer_content[first : last + 1]
    assert got.header("Content-Range") == f"bytes {first}-{last}/{SIZE}"
    assert got.header("Content-Length") == str(last + 1 - first)
    assert got.header("Docker-Content-Digest") == image.layer
    assert "Content-Encoding" not in got.headers


@pytest.mark.parametrize("spec", [f"bytes={SIZE}-", f"bytes={SIZE + 5}-{SIZE + 9}", "bytes=-0"])
def test_range_beyond_the_end_is_416(region: Region, image: Image, spec: str) -> None:
    """No byte of it there: 416, with the size, in the spec's JSON."""
    got = ranged(region, image, spec)
    got.assert_error(416, "RANGE_INVALID")
    assert got.header("Content-Range") == f"bytes */{SIZE}"


@pytest.mark.parametrize("spec", ["items=0-1", "bytes=5-2", "bytes=abc", "bytes", "bytes=1-2-3"])
def test_what_is_no_range_is_ignored_or_refused(region: Region, image: Image, spec: str) -> None:
    """A Range header of no known form gives the whole, or 400 or 416; never other bytes."""
    got = ranged(region, image, spec)
    assert got.status in {200, 400, 416}
    if got.status == 200:
        assert got.body == image.layer_content


@pytest.mark.parametrize(
    ("spec", "spans"),
    [
        ("bytes=0-9,100-109", [(0, 9), (100, 109)]),
        ("bytes=0-1, 70000-70009,-3", [(0, 1), (70_000, 70_009), (SIZE - 3, SIZE - 1)]),
        (f"bytes=5-6,{SIZE + 1}-,100000-200000", [(5, 6), (100_000, 200_000)]),
    ],
)
def test_several_ranges_are_multipart(
    region: Region, image: Image, spec: str, spans: list[tuple[int, int]]
) -> None:
    """Several ranges come as multipart/byteranges, as podman's partial pulls parse it."""
    got = ranged(region, image, spec)
    assert (got.status, got.complete) == (206, True)
    assert got.header("Content-Length") == str(len(got.body))
    head = f"Content-Type: {got.header('Content-Type')}\r\n\r\n".encode()
    parsed = email.parser.BytesParser().parsebytes(head + got.body)
    assert parsed.get_content_type() == "multipart/byteranges"
    found = []
    for part in parsed.get_payload():
        assert not isinstance(part, str)
        found.append((part["Content-Range"], part.get_payload(decode=True)))
    content = image.layer_content
    assert found == [
        (f"bytes {first}-{last}/{SIZE}", content[first : last + 1]) for first, last in spans
    ]


def test_several_ranges_of_which_one_is_there_are_answered(region: Region, image: Image) -> None:
    """A list of which one range is satisfiable gives that one, alone or as the only part."""
    got = ranged(region, image, f"bytes=3-5,{SIZE}-")
    assert got.status == 206
    assert image.layer_content[3:6] in got.body


def test_very_many_ranges_do_no_harm(region: Region, image: Image) -> None:
    """A thousand overlapping ranges are no way to make the cache send a thousand copies."""
    got = ranged(region, image, "bytes=" + ",".join(["0-"] * 1000))
    assert got.status in {200, 206, 400, 416}
    assert len(got.body) < 10 * SIZE


def test_head_with_a_range_has_no_body(region: Region, image: Image) -> None:
    """RFC 9110 defines Range for GET: HEAD says the whole, or the part, and sends nothing."""
    got = region.client.blob(image.repository, image.layer, range_="bytes=0-9", method="HEAD")
    assert (got.status, got.body) in {(200, b""), (206, b"")}
    assert got.header("Content-Length") == str(SIZE if got.status == 200 else 10)


def test_if_range_of_another_content_gives_the_whole(region: Region, image: Image) -> None:
    """RFC 9110 13.1.5: a range is for one who has the rest of the same content."""
    path = f"/v2/{image.repository}/blobs/{image.layer}"
    same = {"Range": "bytes=0-9", "If-Range": f'"{image.layer}"'}
    other = {"Range": "bytes=0-9", "If-Range": '"other"'}
    assert region.client.get(path, same).status == 206
    whole = region.client.get(path, other)
    assert (whole.status, whole.body) == (200, image.layer_content)


def test_small_range_far_ahead_does_not_wait_for_the_fill(region: Region, repository: str) -> None:
    """While the fill hangs at its start, a lazy puller's range near the end is answered."""
    image = region.registry.put_image(repository, layers=(noise(4 * MIB),))
    client = region.client
    client.manifest(repository, "v1")
    gate = Gate()
    region.registry.inject(Fault(path=f".*{image.layer}", hold=gate, hold_at=200_000, times=1))
    with ThreadPoolExecutor(1) as pool:
        whole = pool.submit(client.blob, repository, image.layer)
        gate.wait_for()
        far = client.blob(repository, image.layer, range_="bytes=4000000-4000099")
        tail = client.blob(repository, image.layer, range_="bytes=-50")
        both = client.blob(repository, image.layer, range_="bytes=10-19,4000000-4000009")
        assert not whole.done()
        assert (far.status, far.body) == (206, image.layer_content[4_000_000:4_000_100])
        assert (tail.status, tail.body) == (206, image.layer_content[-50:])
        assert both.status == 206
        assert image.layer_content[4_000_000:4_000_010] in both.body
        gate.open()
        got = whole.result(20)
    assert (got.complete, got.body) == (True, image.layer_content)


def test_far_range_of_an_upstream_that_ignores_ranges_is_right(
    region: Region, repository: str
) -> None:
    """Where a range is answered with the whole, the client gets the bytes that it asked for."""
    image = region.registry.put_image(repository, layers=(noise(4 * MIB),))
    client = region.client
    client.manifest(repository, "v1")
    gate = Gate()
    region.registry.inject(Fault(path=f".*{image.layer}", ignore_range=True))
    region.registry.inject(Fault(path=f".*{image.layer}", hold=gate, hold_at=200_000, times=1))
    path = f"/v2/{repository}/blobs/{image.layer}"
    whole = client.begin(path)
    gate.wait_for()
    far = client.begin(path, {"Range": "bytes=4000000-4000099"})
    assert client.get("/livez").status == 200
    gate.open()
    got = far.answer()
    assert (got.status, got.body) == (206, image.layer_content[4_000_000:4_000_100])
    assert whole.answer().body == image.layer_content


def test_range_of_what_is_not_there_is_unknown(region: Region, repository: str) -> None:
    """A range of a blob that the upstream has not is the blob's 404."""
    region.registry.put_image(repository)
    got = region.client.blob(repository, digest_of(b"absent"), range_="bytes=5-9")
    got.assert_error(404, "BLOB_UNKNOWN")


def test_range_behind_the_fill_is_served_from_it(region: Region, repository: str) -> None:
    """While the fill hangs in the middle, what has come is served without asking again."""
    image = region.registry.put_image(repository, layers=(noise(4 * MIB),))
    client = region.client
    client.manifest(repository, "v1")
    gate = Gate()
    region.registry.inject(Fault(path=f".*{image.layer}", hold=gate, hold_at=3 * MIB, times=1))
    with ThreadPoolExecutor(1) as pool:
        whole = pool.submit(client.blob, repository, image.layer)
        gate.wait_for()
        got = client.blob(repository, image.layer, range_="bytes=1000-1999")
        assert (got.status, got.body) == (206, image.layer_content[1000:2000])
        gate.open()
        assert whole.result(20).complete
    assert len(region.registry.fetches(f".*{image.layer}")) == 1


def test_parallel_chunks_are_one_fetch_not_many(region: Region, repository: str) -> None:
    """Containerd's parallel pull, open-ended ranges on many connections, costs about one copy."""
    image = region.registry.put_image(repository, layers=(noise(8 * MIB),))
    region.client.manifest(repository, "v1")
    chunk = MIB

    def fetch(number: int) -> bytes:
        path = f"/v2/{repository}/blobs/{image.layer}"
        with region.client.stream(path, {"Range": f"bytes={number * chunk}-"}) as response:
            assert response.status == 206
            return response.read(chunk)

    assert b"".join(together(8, fetch)) == image.layer_content
    assert len(region.registry.fetches(f".*{image.layer}")) < 4
    assert region.registry.bytes_sent(f".*{image.layer}") < 2 * len(image.layer_content)
