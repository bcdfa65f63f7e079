"""Objects come and go on a real gateway, over HTTP and HTTPS."""

from __future__ import annotations

import http.client
import io
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import botocore
import pytest

from pullthrough.store import bucket as driver
from pullthrough.store.bucket import Bucket, BucketError, Settings, Trouble
from tests.servers.rgw import Gateway

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

# It is what "skipverify" means; the code under test keeps it out of logs, as far as pytest lets it.
pytestmark = pytest.mark.filterwarnings("ignore::urllib3.exceptions.InsecureRequestWarning")

MIB = 1 << 20
Parts = Callable[[], list[str]]
KEY = "docker/registry/v2/blobs/sha256/ab/abcd/data"


@pytest.fixture(params=["http", "https", "skipverify"])
def transport(request: pytest.FixtureRequest, settings: Settings, gateway: Gateway) -> Bucket:
    """Open the bucket by each way that it may be reached."""
    verify: bool | Path = gateway.certificate if request.param == "https" else False
    endpoint = gateway.url if request.param == "http" else gateway.tls_url
    return Bucket(replace(settings, endpoint=endpoint, verify=verify))


def content_of(path: Path, size: int) -> bytes:
    """Fill a file, and return what is in it."""
    content = os.urandom(size)
    path.write_bytes(content)
    return content


def test_round_trip(transport: Bucket) -> None:
    """What was put is found, read, measured, listed and deleted, whatever the transport."""
    transport.put(KEY, b"content")
    assert transport.size(KEY) == 7
    assert transport.get(KEY, 7) == b"content"
    assert list(transport.objects("docker/")) == [(KEY, 7)]
    with transport.open(KEY) as chunks:
        assert chunks is not None
        assert b"".join(chunks) == b"content"
    transport.delete(KEY)
    assert transport.size(KEY) is None


def test_absent(bucket: Bucket) -> None:
    """What is not there is None, and deleting it is fine."""
    assert bucket.size(KEY) is None
    assert bucket.get(KEY, 10) is None
    with bucket.open(KEY) as chunks:
        assert chunks is None
    bucket.delete(KEY)


def test_get_is_bounded(bucket: Bucket) -> None:
    """An object above the limit is an error, not memory."""
    bucket.put(KEY, b"12345678")
    with pytest.raises(BucketError, match="more than 7 bytes") as caught:
        bucket.get(KEY, 7)
    assert caught.value.trouble is Trouble.OTHER


@pytest.mark.parametrize("root", ["", "/", "/a/b/", "a/b"])
def test_root(settings: Settings, s3: S3Client, root: str) -> None:
    """Keys stand under the root without leading slashes, and come back without it."""
    bucket = Bucket(replace(settings, root=root))
    bucket.put(KEY, b"x")
    names = [item["Key"] for item in s3.list_objects_v2(Bucket=settings.bucket)["Contents"]]
    assert names == ["/".join(filter(None, [root.strip("/"), KEY]))]
    assert list(bucket.objects("")) == [(KEY, 1)]
    assert bucket.sweep() == 0


def test_listing_pages(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """A listing of several pages is complete and in order, and a prefix narrows it."""
    monkeypatch.setattr(driver, "_PAGE", 3)
    for number in range(8):
        bucket.put(f"a/{number}", b"x" * number)
    bucket.put("b/0", b"")
    assert list(bucket.objects("a/")) == [(f"a/{number}", number) for number in range(8)]
    assert len(list(bucket.objects(""))) == 9


def test_key_of_any_kind(bucket: Bucket) -> None:
    """Keys with characters that URLs and XML escape come back as they went."""
    key = "a b/+%2F&<ü>'\""
    bucket.put(key, b"x")
    assert list(bucket.objects("a b/")) == [(key, 1)]
    assert bucket.get(key, 1) == b"x"


@pytest.mark.parametrize("size", [0, 1, 5 * MIB, 5 * MIB + 1, 10 * MIB, 12 * MIB + 7])
def test_upload(
    transport: Bucket, settings: Settings, s3: S3Client, tmp_path: Path, size: int
) -> None:
    """A file goes up whole, in parts only above a chunk, wherever its position stands."""
    content = content_of(tmp_path / "file", size)
    with (tmp_path / "file").open("rb") as file:
        file.seek(size // 2)
        assert transport.upload(KEY, file, size)
        assert file.tell() == size // 2
    with transport.open(KEY) as chunks:
        assert chunks is not None
        assert b"".join(chunks) == content
    tag = s3.head_object(Bucket=settings.bucket, Key=f"some/root/{KEY}")["ETag"]
    assert ("-" in tag) == (size > 5 * MIB)


def test_memory_is_bounded(bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No part is in memory as a whole: it is read in blocks."""
    asked: list[int] = []
    read = os.pread

    def counted(descriptor: int, count: int, offset: int) -> bytes:
        asked.append(count)
        return read(descriptor, count, offset)

    monkeypatch.setattr(os, "pread", counted)
    content_of(tmp_path / "file", 12 * MIB)
    with (tmp_path / "file").open("rb") as file:
        bucket.upload(KEY, file, 12 * MIB)
    assert asked
    assert max(asked) <= MIB


@pytest.fixture(name="parts")
def _parts(s3: S3Client, settings: Settings) -> Parts:
    """Return the keys of unfinished uploads, whenever called."""

    def parts() -> list[str]:
        told = s3.list_multipart_uploads(Bucket=settings.bucket).get("Uploads", [])
        return [upload["Key"] for upload in told]

    return parts


def stop_after(calls: int) -> Callable[[], bool]:
    """Return what says to stop when it was asked so often."""
    left = iter(range(calls))
    return lambda: next(left, None) is None


@pytest.mark.parametrize("calls", [0, 3, 20])
@pytest.mark.parametrize("size", [4 * MIB, 12 * MIB])
def test_stopped_upload(
    bucket: Bucket, parts: Parts, tmp_path: Path, calls: int, size: int
) -> None:
    """An upload that is told to stop ends with nothing there, neither object nor parts."""
    content_of(tmp_path / "file", size)
    with (tmp_path / "file").open("rb") as file:
        done = bucket.upload(KEY, file, size, stop=stop_after(calls))
    assert done == (bucket.size(KEY) is not None)
    if calls < 20:
        assert not done
    assert parts() == []


@pytest.mark.parametrize(("size", "told"), [(MIB, 2 * MIB), (6 * MIB, 12 * MIB)])
def test_file_too_short(
    transport: Bucket, parts: Parts, tmp_path: Path, size: int, told: int
) -> None:
    """A file with less than was said is the file's failure, not the bucket's; nothing stays."""
    content_of(tmp_path / "file", size)
    with (tmp_path / "file").open("rb") as file, pytest.raises(OSError, match="shorter"):
        transport.upload(KEY, file, told)
    assert transport.size(KEY) is None
    assert parts() == []


def test_wrong_size_is_deleted(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A completed upload of another size than the file's is deleted, and an error."""
    size = 12 * MIB
    content_of(tmp_path / "file", size)
    measured = bucket.size
    monkeypatch.setattr(bucket, "size", lambda key: (measured(key) or 0) - 1)
    with (
        (tmp_path / "file").open("rb") as file,
        pytest.raises(BucketError, match=f"{size - 1} bytes, not {size}"),
    ):
        bucket.upload(KEY, file, size)
    assert measured(KEY) is None


def test_sweep(bucket: Bucket, settings: Settings, s3: S3Client, parts: Parts) -> None:
    """Left uploads of blobs are aborted, under our root alone; others and those under way stay."""
    blobs = [f"some/root/docker/registry/v2/blobs/sha256/ab/{n}/data" for n in range(3)]
    others = [KEY, "some/root/docker/registry/v2/repositories/r/_uploads/u/data", f"{blobs[0]}x"]
    ids = [
        s3.create_multipart_upload(Bucket=settings.bucket, Key=key)["UploadId"]
        for key in (*blobs, *others)
    ]
    bucket._running.add(ids[0])
    assert bucket.sweep() == 2
    assert sorted(parts()) == sorted([blobs[0], *others])


def test_sweep_pages(
    bucket: Bucket,
    settings: Settings,
    s3: S3Client,
    parts: Parts,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Leftovers of several pages are all found."""
    monkeypatch.setattr(driver, "_PAGE", 2)
    for number in range(7):
        key = f"some/root/docker/registry/v2/blobs/sha256/ab/{number}/data"
        s3.create_multipart_upload(Bucket=settings.bucket, Key=key)
    assert bucket.sweep() == 7
    assert parts() == []


def fetch(method: str, url: str) -> tuple[int, bytes]:
    """Ask for a URL as a node would, with nothing else."""
    at = urlsplit(url)
    connection = http.client.HTTPConnection(at.netloc, timeout=10)
    connection.request(method, f"{at.path}?{at.query}")
    answer = connection.getresponse()
    told = answer.status, answer.read()
    connection.close()
    return told


def test_presigned(bucket: Bucket) -> None:
    """A signed URL is good for its method and no other."""
    bucket.put(KEY, b"content")
    assert fetch("GET", bucket.presign("GET", KEY, 60)) == (200, b"content")
    assert fetch("HEAD", bucket.presign("HEAD", KEY, 60)) == (200, b"")
    assert fetch("HEAD", bucket.presign("GET", KEY, 60))[0] == 403


def test_presigned_for_nodes(settings: Settings, gateway: Gateway) -> None:
    """With an endpoint for nodes their URLs name it, and are good there; ours name ours."""
    public = f"http://localhost:{gateway.port}"
    bucket = Bucket(replace(settings, public_endpoint=public))
    bucket.put(KEY, b"content")
    url = bucket.presign("GET", KEY, 1200, public=True)
    assert url.startswith(f"{public}/{settings.bucket}/some/root/{KEY}?")
    assert "X-Amz-Expires=1200" in url
    assert fetch("GET", url) == (200, b"content")
    assert bucket.presign("GET", KEY, 60).startswith(gateway.url)


def test_keys_from_the_environment(
    settings: Settings, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without keys in the settings boto3's usual chain finds them."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", gateway.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", gateway.secret_key)
    Bucket(replace(settings, access_key=None, secret_key=None)).diagnose()


@pytest.mark.parametrize("named", ["right", "other", "missing", ""])
def test_ca_bundle_of_the_environment(
    settings: Settings,
    gateway: Gateway,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    named: str,
) -> None:
    """AWS_CA_BUNDLE is honoured where it helps, and breaks nothing where it does not."""
    other = Path(botocore.__file__).with_name("cacert.pem")
    bundles = {"right": gateway.certificate, "other": other, "missing": tmp_path / "none"}
    monkeypatch.setenv("AWS_CA_BUNDLE", str(bundles.get(named, "")))
    Bucket(settings).diagnose()
    over_tls = replace(settings, endpoint=gateway.tls_url)
    Bucket(replace(over_tls, verify=False)).diagnose()
    Bucket(replace(over_tls, verify=gateway.certificate)).diagnose()
    if named == "right":
        Bucket(over_tls).diagnose()
    else:
        with pytest.raises(BucketError, match="certificate is not trusted"):
            Bucket(over_tls).diagnose()


def test_upload_needs_a_descriptor(bucket: Bucket) -> None:
    """What is no real file is refused at once: it could not be read by position."""
    with pytest.raises(io.UnsupportedOperation):
        bucket.upload(KEY, io.BytesIO(b"x"), 1)
