"""A cache with a real bucket behind it (section 1 of the object store)."""

from __future__ import annotations

import http.client
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.fakes.cache import layout
from tests.fakes.client import Client, together
from tests.fakes.content import MIB, Image, noise
from tests.fakes.faults import eventually
from tests.fakes.mirrored import V2, MirroredStarter, TestBucket, blob_key
from tests.fakes.registry import FakeRegistry
from tests.servers.rgw import Rgw

LAYERS = (noise(2 * MIB), noise(6 * MIB), noise(5))


def everything(image: Image) -> list[str]:
    return [*(manifest.digest for manifest in image.manifests), *image.blobs]


@pytest.fixture
def image(registry: FakeRegistry) -> Image:
    return registry.put_image("project/app", "v1", layers=LAYERS)


def fetch(url: str, method: str = "GET") -> tuple[int, bytes]:
    """Follow an address as a client does: without the cache's login."""
    parts = urlsplit(url)
    make: Callable[..., http.client.HTTPConnection] = http.client.HTTPConnection
    with closing(make(parts.hostname or "", parts.port, timeout=20)) as connection:
        connection.request(method, f"{parts.path}?{parts.query}")
        response = connection.getresponse()
        return response.status, response.read()


@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
def test_pulled_content_goes_up(
    start_mirrored: MirroredStarter, bucket: TestBucket, image: Image, *, tls: bool
) -> None:
    """All of an image comes into the bucket, in registry:2's layout, in parts where it is large."""
    cache = start_mirrored(bucket, tls=tls)
    cache.client().pull(image)
    cache.uploaded(*everything(image))
    for manifest in image.manifests:
        assert bucket.get(blob_key(manifest.digest)) == manifest.content
    for digest, content in image.blobs.items():
        assert bucket.get(blob_key(digest)) == content
    tag = f"{V2}/repositories/project/app/_manifests/tags/v1/current/link"
    eventually(lambda: tag in bucket.objects(), "the tag in the bucket")
    assert bucket.get(tag) == image.digest.encode()
    links = bucket.objects(f"{V2}/repositories/project/app/")
    assert sum("/_layers/" in key for key in links) == len(image.blobs)
    assert sum("/revisions/" in key for key in links) == len(image.manifests)
    assert bucket.uploads() == []


@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
def test_fill_from_the_bucket(
    start_mirrored: MirroredStarter,
    registry: FakeRegistry,
    bucket: TestBucket,
    image: Image,
    *,
    tls: bool,
) -> None:
    """What only the bucket has comes from there, and not over the link."""
    cache = start_mirrored(bucket, tls=tls)
    client = cache.client()
    client.pull(image)
    cache.uploaded(*everything(image))
    cache.forget_locally(image.layer)
    registry.refuse()
    answer = client.blob("project/app", image.layer)
    assert (answer.status, answer.body) == (200, image.layer_content)
    assert "hit; detail=bucket" in answer.cache_status
    cache.wait_stored(image.layer)
    assert "hit" in client.blob("project/app", image.layer).cache_status


def test_many_clients_read_the_bucket_once(
    start_mirrored: MirroredStarter, bucket: TestBucket, image: Image
) -> None:
    """However many ask, the bucket is read once."""
    cache = start_mirrored(bucket)
    cache.client().pull(image)
    cache.uploaded(*everything(image))
    cache.forget_locally(image.layer)
    answers = together(8, lambda _: cache.client().blob("project/app", image.layer))
    assert all(answer.body == image.layer_content for answer in answers)
    read = cache.metric("pullthrough_bucket_bytes_total")
    assert read == len(image.layer_content)


def test_redirect(start_mirrored: MirroredStarter, bucket: TestBucket, image: Image) -> None:
    """A large blob that only the bucket has is fetched from there; HEAD and small ones are not."""
    cache = start_mirrored(
        bucket, redirect=True, endpoint=bucket.gateway.url.replace("127.0.0.1", "localhost")
    )
    client = cache.client()
    client.pull(image)
    cache.uploaded(*everything(image))
    assert client.blob("project/app", image.layer).status == 200  # it is in the local tier
    for digest in image.blobs:
        cache.forget_locally(digest)
    answer = client.blob("project/app", image.layer)
    assert answer.status == 307
    assert "hit; detail=redirect" in answer.cache_status
    address = answer.header("Location")
    assert fetch(address) == (200, image.layer_content)
    head = client.head(f"/v2/project/app/blobs/{image.layer}")
    assert head.status == 200
    assert int(head.header("Content-Length")) == len(image.layer_content)
    config = image.config
    answer = client.blob("project/app", config)
    assert (answer.status, answer.body) == (200, image.blobs[config])


def test_no_redirect_to_the_host_that_was_asked(
    start_mirrored: MirroredStarter, bucket: TestBucket, image: Image
) -> None:
    """A client of the bucket's own host would send its login along: it is served from here."""
    cache = start_mirrored(bucket, redirect=True)
    client = cache.client()
    client.pull(image)
    cache.uploaded(*everything(image))
    cache.forget_locally(image.layer)
    answer = client.blob("project/app", image.layer)
    assert (answer.status, answer.body) == (200, image.layer_content)


def test_new_disk(
    start_mirrored: MirroredStarter, registry: FakeRegistry, bucket: TestBucket, image: Image
) -> None:
    """A cache that begins with the bucket alone serves all of it with the upstream down."""
    first = start_mirrored(bucket)
    first.client().pull(image)
    first.uploaded(*everything(image))
    tag = f"{V2}/repositories/project/app/_manifests/tags/v1/current/link"
    eventually(lambda: tag in bucket.objects(), "the tag in the bucket")
    first.stop()
    registry.refuse()
    second = start_mirrored(bucket)
    eventually(
        lambda: second.client().manifest("project/app", "v1").status == 200, "the bucket's tags"
    )
    second.client().pull(image)


def test_killed_before_the_upload(
    start_mirrored: MirroredStarter, own_rgw: Rgw, registry: FakeRegistry
) -> None:
    """What was not in the bucket when everything was killed is brought there after the restart."""
    image = registry.put_image("project/app", "v1", layers=LAYERS)
    bucket = TestBucket(own_rgw.gateway)
    own_rgw.pause()
    cache = start_mirrored(bucket)
    cache.client().pull(image)
    cache.kill()
    own_rgw.resume()
    cache.start()
    cache.uploaded(*everything(image))
    assert bucket.uploads() == []


@pytest.mark.parametrize("how", ["killed", "silent"])
def test_bucket_away(
    start_mirrored: MirroredStarter, own_rgw: Rgw, registry: FakeRegistry, how: str
) -> None:
    """Without the bucket pulls go on; what it missed comes when it is back."""
    image = registry.put_image("project/app", "v1", layers=LAYERS)
    bucket = TestBucket(own_rgw.gateway)
    cache = start_mirrored(bucket)
    eventually(lambda: cache.metric("pullthrough_bucket_up") == 1, "the bucket's word")
    if how == "killed":
        own_rgw.kill()
    else:
        own_rgw.pause()
    client = cache.client()
    client.pull(image)
    client.pull(image)
    eventually(lambda: cache.metric("pullthrough_bucket_up") == 0, "the alarm", seconds=60)
    ready = client.get("/readyz")
    assert ready.status == 200
    assert ready.json()["bucket"] == "failing"
    eventually(lambda: client.get("/readyz").json()["upload_pending_bytes"] > 0, "a queue")
    if how == "killed":
        own_rgw.restart()
    else:
        own_rgw.resume()
    cache.uploaded(*everything(image))
    assert bucket.uploads() == []


def test_rotten_in_the_bucket(
    start_mirrored: MirroredStarter, bucket: TestBucket, image: Image
) -> None:
    """Wrong bytes of the bucket's never look whole; the next pull has the right ones again."""
    cache = start_mirrored(bucket)
    client = cache.client()
    client.pull(image)
    cache.uploaded(*everything(image))
    rotten = bytearray(image.layer_content)
    rotten[1000] ^= 1
    bucket.put(blob_key(image.layer), bytes(rotten))
    cache.forget_locally(image.layer)
    answer = client.blob("project/app", image.layer)
    assert not answer.complete
    answer = client.blob("project/app", image.layer)
    assert (answer.complete, answer.body) == (True, image.layer_content)
    eventually(
        lambda: (
            bucket.objects().get(blob_key(image.layer)) is not None
            and bucket.get(blob_key(image.layer)) == image.layer_content
        ),
        "sound content in the bucket",
    )


def test_taken_out_of_the_bucket(
    start_mirrored: MirroredStarter, bucket: TestBucket, image: Image
) -> None:
    """What another took out of the bucket comes from the upstream, and goes up again."""
    cache = start_mirrored(bucket, redirect=True)
    client = cache.client()
    client.pull(image)
    cache.uploaded(*everything(image))
    cache.forget_locally(image.layer)
    bucket.client.delete_object(Bucket=bucket.name, Key=blob_key(image.layer))
    answer = client.blob("project/app", image.layer)
    assert (answer.status, answer.body) == (200, image.layer_content)
    cache.uploaded(image.layer)


def test_quota_of_the_local_tier(
    start_mirrored: MirroredStarter, registry: FakeRegistry, bucket: TestBucket
) -> None:
    """The disk stays within its bound; what left it is still served, without the upstream."""
    images = [
        registry.put_image("project/app", f"v{number}", layers=(noise(3 * MIB),))
        for number in range(4)
    ]
    cache = start_mirrored(bucket, {"cache": {"local": {"quota": "7MiB"}}})
    client = cache.client()
    for image in images:
        client.pull(image)
        cache.uploaded(image.layer)

    def on_disk() -> int:
        return sum(
            file.stat().st_size for file in (layout(cache.store) / "blobs").glob("*/*/*/data")
        )

    eventually(lambda: on_disk() <= 7 * MIB, "room on the disk")
    registry.refuse()
    for image in images:
        client.pull(image)


def test_quota_of_the_bucket(
    start_mirrored: MirroredStarter, registry: FakeRegistry, bucket: TestBucket
) -> None:
    """The bucket stays within its bound; what is used least recently goes, tags and all."""
    images = [
        registry.put_image(f"project/app{number}", "v1", layers=(noise(3 * MIB),))
        for number in range(4)
    ]
    cache = start_mirrored(bucket, {"cache": {"quota": "7MiB"}})
    client = cache.client()
    for image in images:
        client.pull(image)
        cache.uploaded(image.layer)

    def size() -> int:
        return sum(bucket.objects(f"{V2}/blobs/").values())

    eventually(lambda: size() <= 7 * MIB, "room in the bucket", seconds=30)
    eventually(
        lambda: not any("app0/_manifests/tags" in key for key in bucket.objects()),
        "a tag that left",
    )
    registry.refuse()
    client.pull(images[-1])
    assert client.manifest("project/app0", "v1").status >= 500


def test_tag_that_is_gone(
    start_mirrored: MirroredStarter, registry: FakeRegistry, bucket: TestBucket, image: Image
) -> None:
    """A tag that the upstream has no more leaves the bucket too, and a restart brings none back."""
    cache = start_mirrored(bucket)
    client = cache.client()
    client.pull(image)
    cache.uploaded(*everything(image))
    key = f"{V2}/repositories/project/app/_manifests/tags/v1/current/link"
    eventually(lambda: key in bucket.objects(), "the tag in the bucket")
    registry.untag("project/app", "v1")
    assert client.manifest("project/app", "v1").status == 404
    eventually(lambda: key not in bucket.objects(), "the tag's end in the bucket")


@pytest.mark.parametrize("at", [0, 5 * MIB], ids=["early", "late"])
def test_bucket_breaks_in_the_middle(
    start_mirrored: MirroredStarter,
    own_rgw: Rgw,
    registry: FakeRegistry,
    at: int,
) -> None:
    """A bucket that dies in mid-read is no client's affair: the upstream gives the rest."""
    content = noise(96 * MIB)
    image = registry.put_image("project/app", "v1", layers=(content,))
    bucket = TestBucket(own_rgw.gateway)
    cache = start_mirrored(bucket)
    client = cache.client()
    client.pull(image)
    cache.uploaded(image.layer)
    cache.forget_locally(image.layer)
    with client.stream(f"/v2/project/app/blobs/{image.layer}") as stream:
        stream.read(at + 1)
        own_rgw.kill()
        rest = stream.read()
    assert at + 1 + len(rest) == len(content)
    assert rest == content[at + 1 :]


def test_wrong_key(
    start_mirrored: MirroredStarter, registry: FakeRegistry, bucket: TestBucket, image: Image
) -> None:
    """A bucket that refuses the key costs no pull, and is said to fail."""
    cache = start_mirrored(bucket)
    cache.stop()
    cache.config["storage"]["s3"]["secretkey"] = "wrong"
    cache.start()
    client: Client = cache.client()
    client.pull(image)
    eventually(lambda: client.get("/readyz").json().get("bucket") == "failing", "the alarm")
    assert registry.fetches()


def test_starts_without_the_bucket(
    start_mirrored: MirroredStarter, own_rgw: Rgw, registry: FakeRegistry
) -> None:
    """A cache whose bucket is away from the start pulls, says so, and catches up later."""
    image = registry.put_image("project/app", "v1", layers=LAYERS)
    bucket = TestBucket(own_rgw.gateway)
    own_rgw.kill()
    cache = start_mirrored(bucket)
    client = cache.client()
    client.pull(image)
    eventually(lambda: client.get("/readyz").json().get("bucket") == "failing", "the alarm")
    registry.refuse()
    client.pull(image)
    own_rgw.restart()
    cache.uploaded(*everything(image))
    assert "the bucket fails" in cache.log_text()


def test_bucket_full(start_mirrored: MirroredStarter, own_rgw: Rgw, registry: FakeRegistry) -> None:
    """A bucket that takes no more costs no pull; what did not fit comes when there is room."""
    image = registry.put_image("project/app", "v1", layers=LAYERS)
    bucket = TestBucket(own_rgw.gateway)
    quota = ("--bucket", bucket.name, "--quota-scope", "bucket")
    own_rgw.gateway.admin("quota", "set", *quota, "--max-objects", "1")
    own_rgw.gateway.admin("quota", "enable", *quota)
    cache = start_mirrored(bucket)
    client = cache.client()
    client.pull(image)
    eventually(lambda: client.get("/readyz").json().get("bucket") == "failing", "the alarm")
    client.pull(image)
    assert cache.metric("pullthrough_upload_failures_total", "full") > 0
    own_rgw.gateway.admin("quota", "disable", *quota)
    cache.uploaded(*everything(image))
    assert bucket.uploads() == []


def test_names_deleted_from_the_bucket(
    start_mirrored: MirroredStarter, bucket: TestBucket, image: Image
) -> None:
    """Tags and links that another program deleted are brought there again after a restart."""
    cache = start_mirrored(bucket)
    cache.client().pull(image)
    cache.uploaded(*everything(image))
    names = f"{V2}/repositories/"
    eventually(lambda: any("/current/link" in key for key in bucket.objects(names)), "the tag")
    before = bucket.objects(names)
    for key in before:
        bucket.client.delete_object(Bucket=bucket.name, Key=key)
    cache.restart()
    eventually(lambda: bucket.objects(names) == before, "all names in the bucket")


@pytest.mark.parametrize("broken", ["certificates", "endpoint"])
def test_serves_with_a_bucket_that_cannot_be_used(
    start_mirrored: MirroredStarter, bucket: TestBucket, image: Image, tmp_path: Path, broken: str
) -> None:
    """Certificates that are none, or a host that boto3 refuses, cost the bucket and no pull."""
    cache = start_mirrored(bucket)
    cache.stop()
    if broken == "certificates":
        (tmp_path / "ca.pem").write_text("none")
        cache.environment["AWS_CA_BUNDLE"] = str(tmp_path / "ca.pem")
    else:
        cache.config["storage"]["s3"]["regionendpoint"] = "http://ceph_rgw:8000"
    cache.start()
    cache.client().pull(image)
    cache.client().pull(image)
    assert "going on without" in cache.log_text() or broken == "certificates"


def test_dead_bucket_with_nothing_to_do(
    start_mirrored: MirroredStarter, own_rgw: Rgw, registry: FakeRegistry
) -> None:
    """It is seen, and nobody is sent to it: content comes over the link instead."""
    image = registry.put_image("project/app", "v1", layers=LAYERS)
    bucket = TestBucket(own_rgw.gateway)
    endpoint = own_rgw.gateway.url.replace("127.0.0.1", "localhost")
    cache = start_mirrored(bucket, redirect=True, endpoint=endpoint)
    client = cache.client()
    client.pull(image)
    cache.uploaded(*everything(image))
    cache.forget_locally(image.layer)
    assert client.blob("project/app", image.layer).status == 307
    own_rgw.kill()
    eventually(lambda: client.get("/readyz").json()["bucket"] == "failing", "the alarm")
    answer = client.blob("project/app", image.layer)
    assert (answer.status, answer.body) == (200, image.layer_content)
    own_rgw.restart()
    eventually(lambda: client.get("/readyz").json()["bucket"] == "ok", "the end of the alarm")


def test_what_a_client_was_sent_for_stays(
    start_mirrored: MirroredStarter, registry: FakeRegistry, bucket: TestBucket
) -> None:
    """A download from the bucket has no lock to hold: its content is not evicted meanwhile."""
    old, *others = [
        registry.put_image(f"project/app{number}", "v1", layers=(noise(3 * MIB),))
        for number in range(4)
    ]
    endpoint = bucket.gateway.url.replace("127.0.0.1", "localhost")
    cache = start_mirrored(bucket, {"cache": {"quota": "7MiB"}}, redirect=True, endpoint=endpoint)
    client = cache.client()
    client.pull(old)
    cache.uploaded(old.layer)
    cache.forget_locally(old.layer)
    address = client.blob("project/app0", old.layer).header("Location")
    for image in others:
        client.pull(image)
        cache.uploaded(image.layer)
    eventually(lambda: sum(bucket.objects(f"{V2}/blobs/").values()) <= 7 * MIB, "room", seconds=30)
    assert fetch(address) == (200, old.layer_content)
