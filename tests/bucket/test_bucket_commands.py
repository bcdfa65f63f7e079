"""The operator's commands where a bucket is behind the store."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.content import Image, noise
from tests.fakes.mirrored import MirroredCache, MirroredStarter, TestBucket, blob_key
from tests.fakes.registry import FakeRegistry
from tests.fakes.tool import Tool, pulled, pullthrough, rot, total
from tests.servers.rgw import Gateway


@pytest.fixture
def image(registry: FakeRegistry) -> Image:
    return registry.put_image("project/app", "v1", layers=(noise(300_000), noise(5000)))


def filled(start: MirroredStarter, bucket: TestBucket, *images: Image) -> MirroredCache:
    """Return a stopped cache whose images are here and in the bucket."""
    cache = start(bucket)
    pulled(cache, *images)
    for each in images:
        cache.uploaded(*each.blobs, *(manifest.digest for manifest in each.manifests))
    cache.stop()
    return cache


def test_ls_counts_what_the_bucket_has(
    start_mirrored: MirroredStarter, bucket: TestBucket, image: Image
) -> None:
    """What left the local tier is still here: the image stays complete, with all its bytes."""
    cache = filled(start_mirrored, bucket, image)
    cache.configure({"cache": {"local": {"quota": "100kB"}}})
    tool = Tool(cache)
    told = tool.json("gc")
    assert image.layer in {each["digest"] for each in told["gone"]}
    assert {each["from"] for each in told["gone"]} == {"disk"}
    assert told["local_quota"] == 100_000
    assert not cache.blob_file(image.layer).exists()
    assert blob_key(image.layer) in bucket.objects()
    app = tool.images()["project/app:v1"]
    assert app["complete"]
    assert app["size"] == total(image)


def test_gc_of_the_bucket(
    start_mirrored: MirroredStarter, bucket: TestBucket, registry: FakeRegistry, image: Image
) -> None:
    """The quota bounds the bucket: what goes is gone from both places."""
    new = registry.put_image("project/new", "v1", (noise(300_000),))
    cache = filled(start_mirrored, bucket, image, new)
    cache.configure({"cache": {"quota": "400kB"}})
    told = Tool(cache).json("gc")
    assert image.layer in {each["digest"] for each in told["gone"] if each["from"] == "store"}
    assert blob_key(image.layer) not in bucket.objects()
    assert blob_key(new.layer) in bucket.objects()
    assert not cache.blob_file(image.layer).exists()


def test_verify_reads_the_bucket(
    start_mirrored: MirroredStarter, bucket: TestBucket, image: Image
) -> None:
    """What is rotten only in the bucket is deleted there, and fetched again from the upstream."""
    cache = filled(start_mirrored, bucket, image)
    bucket.put(blob_key(image.layer), b"x" * len(image.layer_content))
    cache.forget_locally(image.layer)
    tool = Tool(cache)
    (rotten,) = tool.json("verify", code=1)["rotten"]
    assert rotten["digest"] == image.layer
    assert rotten["places"] == ["bucket"]
    assert blob_key(image.layer) not in bucket.objects()
    assert not tool.images()["project/app:v1"]["complete"]


def test_verify_repairs_what_the_bucket_lost(
    start_mirrored: MirroredStarter, bucket: TestBucket, image: Image
) -> None:
    """In one run with --repair, and the next server brings it up again."""
    cache = filled(start_mirrored, bucket, image)
    bucket.put(blob_key(image.layer), b"x" * len(image.layer_content))
    cache.forget_locally(image.layer)
    (rotten,) = Tool(cache).json("verify", "--repair")["rotten"]
    assert rotten["mended"]
    assert cache.blob_file(image.layer).read_bytes() == image.layer_content
    cache.start()
    cache.uploaded(image.layer)
    assert bucket.get(blob_key(image.layer)) == image.layer_content


def test_verify_knows_that_the_bucket_has_it(
    start_mirrored: MirroredStarter, bucket: TestBucket, registry: FakeRegistry, image: Image
) -> None:
    """What rots on the disk is whole in the bucket: nothing is lost, the upstream is not asked."""
    cache = filled(start_mirrored, bucket, image)
    rot(cache, image.layer)
    rot(cache, image.digest)
    registry.forget()
    told = Tool(cache).json("verify")["rotten"]
    assert {each["digest"] for each in told} == {image.layer, image.digest}
    assert all(each["mended"] for each in told)
    # Manifests are all on the disk, blobs need not be.
    assert cache.blob_file(image.digest).read_bytes() == image.top.content
    assert not cache.blob_file(image.layer).exists()
    assert registry.requests() == []
    assert Tool(cache).images()["project/app:v1"]["complete"]


def test_rm_from_the_bucket(
    start_mirrored: MirroredStarter, bucket: TestBucket, image: Image
) -> None:
    """Nothing of a removed image stays in the bucket."""
    cache = filled(start_mirrored, bucket, image)
    Tool(cache)("rm", "project/app")
    assert bucket.objects() == {}


def test_rm_while_the_bucket_is_away(
    start_mirrored: MirroredStarter, bucket: TestBucket, image: Image
) -> None:
    """It is gone from here at once, which is said; the bucket loses it when it is back."""
    cache = filled(start_mirrored, bucket, image)
    reconfigured(cache, regionendpoint="http://127.0.0.1:9")
    told = pullthrough("rm", "project/app", "--config", str(cache.directory / "config.yml"))
    assert told.returncode == 1
    assert told.stderr.endswith("will be deleted when the bucket is back\n")
    assert told.stderr.count("\n") == 1
    assert not cache.blob_file(image.layer).exists()
    assert blob_key(image.layer) in bucket.objects()
    reconfigured(cache, regionendpoint=bucket.gateway.url)
    Tool(cache).json("gc")
    assert bucket.objects() == {}


def test_reindex_learns_the_bucket(
    start_mirrored: MirroredStarter, bucket: TestBucket, image: Image
) -> None:
    """After the index was lost, what only the bucket has is known again."""
    cache = filled(start_mirrored, bucket, image)
    cache.forget_locally(image.layer)
    (cache.store / "pullthrough" / "index.sqlite").unlink()
    told = Tool(cache).json("reindex")
    count = len(image.blobs) + len(image.manifests)
    assert told["in_bucket"] == {"count": count, "bytes": total(image)}
    assert told["on_disk"]["count"] == count - 1
    assert Tool(cache).images()["project/app:v1"]["complete"]


def test_bucket_that_is_away(
    start_mirrored: MirroredStarter, bucket: TestBucket, image: Image
) -> None:
    """What needs the bucket says in one line that it is not there; ls does not need it."""
    cache = filled(start_mirrored, bucket, image)
    reconfigured(cache, regionendpoint="http://127.0.0.1:9")
    tool = Tool(cache)
    assert tool.images()["project/app:v1"]["complete"]
    assert "cannot be reached" in tool.complains("reindex")


# -- check --connect -------------------------------------------------------------------------------


def reconfigured(cache: MirroredCache, **s3: Any) -> None:
    cache.configure({"storage": {"s3": s3}})


def check(cache: MirroredCache) -> subprocess.CompletedProcess[str]:
    told = pullthrough("check", "--connect", str(cache.directory / "config.yml"))
    assert cache.bucket.gateway.secret_key not in told.stderr + told.stdout
    return told


@pytest.fixture
def unstarted(
    tmp_path: Path, registry: FakeRegistry, bucket: TestBucket
) -> Iterator[MirroredCache]:
    cache = MirroredCache(tmp_path / "cache", registry.url, bucket)
    cache.configure({})
    yield cache
    cache.close()


def test_check_of_a_good_bucket(unstarted: MirroredCache) -> None:
    """Both are good, and each has its line."""
    told = check(unstarted)
    assert (told.returncode, told.stderr) == (0, "")
    assert told.stdout.splitlines()[2:] == [f"bucket {unstarted.bucket.name}: good"]


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"bucket": "not-there"}, "there is no such bucket"),
        ({"accesskey": "NOBODY"}, "the access key is not known"),
        ({"secretkey": "wrong"}, "the secret key is wrong"),
        ({"regionendpoint": "http://127.0.0.1:9"}, "cannot be reached"),
    ],
)
def test_check_of_a_bad_bucket(
    unstarted: MirroredCache, change: dict[str, str], cause: str
) -> None:
    """The cause is named in one line; the upstream's line says that it is good."""
    reconfigured(unstarted, **change)
    told = check(unstarted)
    assert told.returncode == 1
    assert told.stderr.startswith(f"bucket {change.get('bucket', unstarted.bucket.name)}: ")
    assert cause in told.stderr
    assert told.stderr.count("\n") == 1
    assert "upstream" in told.stdout


@contextmanager
def an_hour_ago() -> Iterator[str]:
    """Give the address of a bucket whose clock is an hour behind, and that refuses us for it."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b"<Error><Code>RequestTimeTooSkewed</Code></Error>"
            self.send_response(403)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def date_time_string(self, timestamp: float | None = None) -> str:
            del timestamp
            return super().date_time_string(int(time.time()) - 3600)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_check_of_a_clock_that_is_off(unstarted: MirroredCache) -> None:
    """By how much is read off the bucket's own Date."""
    with an_hour_ago() as address:
        reconfigured(unstarted, regionendpoint=address)
        told = check(unstarted)
    assert told.returncode == 1
    assert f"bucket {unstarted.bucket.name}: the clock is off by 3600 s: ours is ahead\n" == (
        told.stderr.replace("3599", "3600").replace("3601", "3600")
    )


def test_check_of_a_bucket_over_tls(unstarted: MirroredCache, gateway: Gateway) -> None:
    """A certificate that nobody vouches for is the cause; skipverify takes it."""
    reconfigured(unstarted, regionendpoint=gateway.tls_url, skipverify=False)
    assert "its certificate is not trusted" in check(unstarted).stderr
    reconfigured(unstarted, skipverify=True)
    assert check(unstarted).returncode == 0
