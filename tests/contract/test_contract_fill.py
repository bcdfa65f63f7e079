"""The fill (section 5): fetched once, mended, verified, and never lost."""

from __future__ import annotations

import os
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import pytest

from tests.conftest import CacheStarter
from tests.contract.conftest import Region
from tests.fakes.client import Answer, Client
from tests.fakes.content import MIB, Image, noise
from tests.fakes.faults import Fault, Gate, eventually
from tests.fakes.registry import FakeRegistry
from tests.fakes.sending import Seen


def blob_path(image: Image) -> str:
    return f"/v2/{image.repository}/blobs/{image.layer}"


def upstream_gets(registry: FakeRegistry, image: Image) -> int:
    return len(registry.fetches(blob_path(image)))


def assert_whole(got: Answer, image: Image) -> None:
    assert (got.status, got.complete) == (200, True), got.status
    assert got.body == image.layer_content


@pytest.mark.parametrize("named", [True, False])
def test_sixteen_clients_of_two_workers_cost_one_copy(
    registry: FakeRegistry, start_cache: CacheStarter, named: bool
) -> None:
    """One cold blob, its size known or not, asked for 16 times at once: one GET, 1.00 copies."""
    image = registry.put_image("project/app", layers=(noise(4 * MIB),))
    client = start_cache({"http": {"workers": 2}}).client()
    if named:
        client.manifest("project/app", "v1")
    gate = Gate()
    registry.inject(Fault(path=blob_path(image), hold=gate, hold_at=MIB))
    pending = [client.begin(blob_path(image)) for _ in range(16)]
    for _ in range(8):
        assert client.get("/livez").status == 200  # both workers have seen the sixteen
    gate.wait_for()
    gate.open()
    answers = [each.answer() for each in pending]
    for got in answers:
        assert_whole(got, image)
    assert sum("collapsed" in got.cache_status for got in answers) >= 14
    assert upstream_gets(registry, image) == 1
    assert registry.bytes_sent(blob_path(image)) == 4 * MIB


def test_first_bytes_come_before_the_last(region: Region, repository: str) -> None:
    """A client reads what has come while the rest is still on the link."""
    image = region.registry.put_image(repository, layers=(noise(4 * MIB),))
    region.client.manifest(repository, "v1")
    gate = Gate()
    region.registry.inject(Fault(path=blob_path(image), hold=gate, hold_at=3 * MIB))
    with region.client.stream(blob_path(image)) as response:
        first = response.read(2 * MIB)
        gate.wait_for()
        gate.open()
        assert first + response.read() == image.layer_content


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("cut_after", [0, 1, MIB, 2 * MIB - 1])
def test_cut_is_mended(region: Region, repository: str, cut_after: int, named: bool) -> None:
    """A link cut in mid-blob goes on with a Range request; the client gets the whole, right."""
    image = region.registry.put_image(repository, layers=(noise(2 * MIB),))
    if named:
        region.client.manifest(repository, "v1")
    region.registry.inject(Fault(path=blob_path(image), cut_after=cut_after, times=1))
    assert_whole(region.client.blob(repository, image.layer), image)
    requests = region.registry.fetches(blob_path(image))
    assert len(requests) == 2
    # What came just before the reset may be lost on the way to the cache, nothing else.
    resumed = _first_byte(requests[1])
    assert cut_after - MIB <= resumed <= cut_after
    assert region.registry.bytes_sent(blob_path(image)) == 2 * MIB + cut_after - resumed


def _first_byte(seen: Seen) -> int:
    """Return where the range that was asked for begins."""
    wanted = seen.headers.get("Range", "bytes=0-")
    return int(wanted.removeprefix("bytes=").removesuffix("-"))


def test_many_cuts_are_mended(region: Region, repository: str) -> None:
    """As long as each try brings something, the fill goes on."""
    image = region.registry.put_image(repository, layers=(noise(4 * MIB),))
    region.client.manifest(repository, "v1")
    region.registry.inject(Fault(path=blob_path(image), cut_after=MIB // 2, times=7))
    assert_whole(region.client.blob(repository, image.layer), image)
    assert region.registry.bytes_sent(blob_path(image)) < 8 * MIB


def test_cut_is_mended_though_range_is_ignored(region: Region, repository: str) -> None:
    """An upstream that sends from the start again gives the client no byte twice."""
    image = region.registry.put_image(repository, layers=(noise(2 * MIB),))
    region.client.manifest(repository, "v1")
    region.registry.inject(Fault(path=blob_path(image), ignore_range=True))
    region.registry.inject(Fault(path=blob_path(image), cut_after=MIB, times=1))
    assert_whole(region.client.blob(repository, image.layer), image)
    assert upstream_gets(region.registry, image) == 2


@pytest.mark.parametrize("place", ["bytes 0-9/10", "bytes 5-2097151/2097152", "nonsense"])
def test_wrong_place_is_not_believed(region: Region, repository: str, place: str) -> None:
    """A 206 of another range than asked never puts wrong bytes into a whole answer."""
    image = region.registry.put_image(repository, layers=(noise(2 * MIB),))
    region.client.manifest(repository, "v1")
    region.registry.inject(Fault(path=blob_path(image), content_range=place, times=1))
    region.registry.inject(Fault(path=blob_path(image), cut_after=MIB, times=1))
    got = region.client.blob(repository, image.layer)
    assert not got.complete or got.body == image.layer_content
    assert_whole(region.client.blob(repository, image.layer), image)


@pytest.mark.parametrize("fault", [{"end_after": MIB}, {"end_after": MIB, "chunked": True}])
@pytest.mark.parametrize("named", [True, False])
def test_short_body_never_passes_for_the_whole(
    region: Region, repository: str, fault: dict[str, Any], named: bool
) -> None:
    """A body that ends cleanly too soon (harbor#23374) is never a complete answer, nor stored."""
    image = region.registry.put_image(repository, layers=(noise(2 * MIB),))
    if named:
        region.client.manifest(repository, "v1")
    with region.registry.inject(Fault(path=f".*{image.layer}", **fault)):
        got = region.client.blob(repository, image.layer)
        assert got.status != 200 or not got.complete or got.body == image.layer_content
        assert not region.cache.blob_file(image.layer).exists() or got.complete
    assert_whole(region.client.blob(repository, image.layer), image)


def test_short_body_of_a_known_size_is_mended(region: Region, repository: str) -> None:
    """Where the manifest says that more is to come, an early end is a break like any other."""
    image = region.registry.put_image(repository, layers=(noise(2 * MIB),))
    region.client.manifest(repository, "v1")
    short = Fault(path=blob_path(image), end_after=MIB, chunked=True, times=1)
    region.registry.inject(short)
    assert_whole(region.client.blob(repository, image.layer), image)
    assert [_first_byte(seen) for seen in region.registry.fetches(blob_path(image))] == [0, MIB]


def test_long_body_never_passes_for_the_whole(region: Region, repository: str) -> None:
    """A body that goes on beyond the manifest's size is not served as the blob."""
    image = region.registry.put_image(repository, layers=(noise(MIB),))
    region.client.manifest(repository, "v1")
    content = region.registry.repositories[repository].blobs
    content[image.layer] += b"more"
    got = region.client.blob(repository, image.layer)
    assert got.status != 200 or not got.complete or got.body == image.layer_content
    content[image.layer] = image.layer_content
    assert_whole(region.client.blob(repository, image.layer), image)


@pytest.mark.parametrize("corrupt_at", [0, MIB, 2 * MIB - 1])
@pytest.mark.parametrize("how", ["named", "unnamed", "chunked"])
def test_corrupt_blob_reaches_nobody_whole(
    region: Region, repository: str, corrupt_at: int, how: str
) -> None:
    """No client of wrong bytes gets a clean end, nothing is stored, healed it is served."""
    image = region.registry.put_image(repository, layers=(noise(2 * MIB),))
    if how == "named":
        region.client.manifest(repository, "v1")
    wrong = Fault(path=blob_path(image), corrupt_at=corrupt_at, chunked=how == "chunked")
    with region.registry.inject(wrong):
        pending = [region.client.begin(blob_path(image)) for _ in range(4)]
        for each in pending:
            got = each.answer()
            assert got.status != 200 or not got.complete
            assert len(got.body) < 2 * MIB
        assert not region.cache.blob_file(image.layer).exists()
    assert_whole(region.client.blob(repository, image.layer), image)
    region.cache.wait_stored(image.layer)


def test_corrupt_piece_of_a_mended_blob_is_found(region: Region, repository: str) -> None:
    """Wrong bytes in the part after a break are wrong, too."""
    image = region.registry.put_image(repository, layers=(noise(2 * MIB),))
    region.client.manifest(repository, "v1")
    wrong = region.registry.inject(Fault(path=blob_path(image), corrupt_at=2 * MIB - 9))
    region.registry.inject(Fault(path=blob_path(image), cut_after=MIB, times=1))
    got = region.client.blob(repository, image.layer)
    assert not got.complete
    wrong.heal()
    assert_whole(region.client.blob(repository, image.layer), image)


@pytest.mark.parametrize("size", [0, 1, 2, 65_536, 65_537])
def test_small_blobs_are_whole(region: Region, repository: str, size: int) -> None:
    """The piece that is held back until the digest is right may be all there is."""
    image = region.registry.put_image(repository, layers=(noise(size),))
    for _ in ("cold", "warm"):
        assert_whole(region.client.blob(repository, image.layer), image)


def test_upstream_without_a_length_is_served(region: Region, repository: str) -> None:
    """A chunked blob comes through whole, named by a manifest or not."""
    for named in (True, False):
        image = region.registry.put_image(repository, layers=(noise(MIB),))
        if named:
            region.client.manifest(repository, "v1")
        with region.registry.inject(Fault(path=blob_path(image), chunked=True)):
            assert_whole(region.client.blob(repository, image.layer), image)
        assert_whole(region.client.blob(repository, image.layer), image)


def test_many_readers_of_a_blob_without_a_length(region: Region, repository: str) -> None:
    """Readers of one growing file do not move each other's place in it."""
    image = region.registry.put_image(repository, layers=(noise(4 * MIB),))
    with region.registry.inject(Fault(path=blob_path(image), chunked=True)):
        pending = [region.client.begin(blob_path(image)) for _ in range(8)]
        for each in pending:
            assert_whole(each.answer(), image)


def test_fill_survives_the_client_that_asked(region: Region, repository: str) -> None:
    """A client that leaves in the middle stops nothing: the blob is soon here, fetched once."""
    image = region.registry.put_image(repository, layers=(noise(4 * MIB),))
    region.client.manifest(repository, "v1")
    gate = Gate()
    region.registry.inject(Fault(path=blob_path(image), hold=gate, hold_at=2 * MIB))
    with region.client.stream(blob_path(image)) as response:
        response.read(65_536)
        gate.wait_for()
    gate.open()
    region.cache.wait_stored(image.layer)
    assert_whole(region.client.blob(repository, image.layer), image)
    assert upstream_gets(region.registry, image) == 1


def test_slow_client_slows_nobody(region: Region, repository: str) -> None:
    """One who asks first and reads nothing does not keep the next from the whole."""
    image = region.registry.put_image(repository, layers=(noise(8 * MIB),))
    region.client.manifest(repository, "v1")
    with closing(socket.socket()) as stalled:
        stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stalled.connect(("127.0.0.1", region.cache.port))
        stalled.sendall(f"GET {blob_path(image)} HTTP/1.1\r\nHost: cache\r\n\r\n".encode())
        eventually(lambda: upstream_gets(region.registry, image), "the fill")
        for _ in ("joined", "warm"):
            assert_whole(region.client.blob(repository, image.layer), image)
    assert upstream_gets(region.registry, image) == 1


def test_blob_of_two_repositories_is_fetched_once(region: Region, repository: str) -> None:
    """One fill a digest: a layer that two images share is on the link once."""
    shared = noise(MIB)
    one = region.registry.put_image(f"{repository}/one", layers=(shared,))
    two = region.registry.put_image(f"{repository}/two", layers=(shared,))
    region.client.pull(one)
    region.client.pull(two)
    assert len(region.registry.fetches(f".*{one.layer}")) == 1


def test_kill_in_mid_fill_is_continued(registry: FakeRegistry, start_cache: CacheStarter) -> None:
    """After kill -9 what was published is there, and the partial goes on with a Range request."""
    published = registry.put_image("project/one", layers=(noise(MIB),))
    image = registry.put_image("project/app", layers=(noise(4 * MIB),))
    cache = start_cache({"http": {"workers": 2}})
    cache.client().pull(published)
    cache.client().manifest("project/app", "v1")
    gate = Gate()
    held = registry.inject(Fault(path=blob_path(image), hold=gate, hold_at=3 * MIB))
    with cache.client().stream(blob_path(image)) as response:
        assert response.read(2 * MIB) == image.layer_content[: 2 * MIB]
        cache.kill()
    held.heal()
    registry.forget()
    cache.start()
    cache.client().pull(image)
    (resumed,) = registry.fetches(blob_path(image))
    assert _first_byte(resumed) >= 2 * MIB
    registry.refuse()
    for each in (published, image):
        cache.client().pull(each)


def test_corrupt_partial_is_found_after_a_crash(
    registry: FakeRegistry, start_cache: CacheStarter
) -> None:
    """A partial whose bytes rotted while the cache was dead does not become a blob."""
    image = registry.put_image("project/app", layers=(noise(4 * MIB),))
    cache = start_cache()
    cache.client().manifest("project/app", "v1")
    held = registry.inject(Fault(path=blob_path(image), hold=Gate(), hold_at=3 * MIB))
    with cache.client().stream(blob_path(image)) as response:
        response.read(MIB)
        cache.kill()
    held.heal()
    large = [path for path in cache.store.rglob("*") if path.is_file()]
    (partial,) = [path for path in large if path.stat().st_size >= MIB]
    with partial.open("r+b") as file:
        file.write(b"rotten")
    cache.start()
    got = cache.client().blob("project/app", image.layer)
    assert not got.complete or got.body == image.layer_content
    eventually(lambda: _is_whole(cache.client(), image), "the blob, fetched anew")


def _is_whole(client: Client, image: Image) -> bool:
    got = client.blob(image.repository, image.layer)
    return got.complete and got.body == image.layer_content


def test_worker_that_dies_does_not_stop_the_others_clients(
    registry: FakeRegistry, start_cache: CacheStarter
) -> None:
    """A worker killed in mid-fill takes its own clients along, no one else's, and is replaced."""
    image = registry.put_image("project/app", layers=(noise(4 * MIB),))
    cache = start_cache({"http": {"workers": 2}})
    client = cache.client()
    client.manifest("project/app", "v1")
    gate = Gate()
    held = registry.inject(Fault(path=blob_path(image), hold=gate, hold_at=2 * MIB))
    workers = cache.workers()
    assert len(workers) == 2
    with ThreadPoolExecutor(12) as pool:
        reads = [pool.submit(_read, client, image) for _ in range(12)]
        gate.wait_for()
        os.kill(workers[-1], 9)
        held.heal()
        bodies = [read.result(40) for read in reads]
    assert all(body in {b"", image.layer_content} for body in bodies)
    assert image.layer_content in bodies
    eventually(lambda: len(cache.workers()) == len(workers), "a new worker")
    client.pull(image)


def _read(client: Client, image: Image) -> bytes:
    """Return the blob, or nothing where the connection broke."""
    try:
        got = client.blob(image.repository, image.layer)
    except OSError:
        return b""
    return got.body if got.complete else b""
