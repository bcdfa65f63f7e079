"""A bucket of an S3 object store: boto3 signs and sends, and what it says is translated here.

Synchronous, for pools of threads; nothing here may be called on an event loop. Keys are relative to
the root in the bucket, such as ``docker/registry/v2/blobs/sha256/ab/<hex>/data``.
"""

from __future__ import annotations

import contextlib
import os
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Literal, cast
from urllib.parse import urlsplit

import boto3.session
import botocore.session
import urllib3
from botocore.config import Config
from urllib3.exceptions import InsecureRequestWarning

from pullthrough.store.trouble import FOREIGN, Absent, BucketError, Trouble, translated

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef

__all__ = ["Bucket", "BucketError", "Settings", "Trouble"]

_PAGE: Final = 1000
_BLOCK: Final = 1 << 20
_MOST_PARTS: Final = 10_000  # S3's own limit
_UPLOADS_UNDER: Final = "docker/registry/v2/blobs/"
_SYSTEM_CAS: Final = "/etc/ssl/certs/ca-certificates.crt"


@dataclass(frozen=True)
class Settings:
    """Where the bucket is, and how it is used; sizes in bytes, times in seconds.

    Without keys, region or endpoint boto3 looks for them as it always does: environment, profile,
    the machine's role. ``verify`` may be a file of certificates to trust instead of the usual ones.
    """

    bucket: str
    region: str | None = None
    endpoint: str | None = None
    access_key: str | None = field(default=None, repr=False)
    secret_key: str | None = field(default=None, repr=False)
    verify: bool | Path = True
    path_style: bool = False
    root: str = ""
    chunk: int = 10 << 20
    encrypt: bool = False
    key_id: str | None = None
    storage_class: str | None = None
    public_endpoint: str | None = None
    connect_timeout: float = 5.0
    read_timeout: float = 20.0
    attempts: int = 3
    connections: int = 32


class Bucket:
    """Reads and writes objects. Every method raises :class:`BucketError`; threads may share it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._bucket = settings.bucket
        self._root = settings.root.strip("/")
        self._running = set[str]()
        self._where = f"bucket {settings.bucket} at {_host(settings.endpoint)}"
        self._region = settings.region or ""
        if settings.verify is False:  # somebody has decided that; once is enough
            urllib3.disable_warnings(InsecureRequestWarning)
        with self._translated():
            core = botocore.session.get_session()
            session = boto3.session.Session(
                aws_access_key_id=settings.access_key,
                aws_secret_access_key=settings.secret_key,
                region_name=settings.region,
                botocore_session=core,
            )
            verify = _trusted(settings, core.get_config_variable("ca_bundle"))
            self._client = _client(settings, session, verify, settings.endpoint)
            self._region = self._client.meta.region_name
            self._public = self._client
            if settings.public_endpoint is not None:
                self._public = _client(settings, session, verify, settings.public_endpoint)

    @property
    def identity(self) -> str:
        """What tells this bucket, and the root in it, from any other."""
        return f"{self._where} /{self._root}"

    def size(self, key: str) -> int | None:
        """Return an object's size in bytes, None if it is not there."""
        try:
            with self._translated():
                head = self._client.head_object(Bucket=self._bucket, Key=self._name(key))
        except Absent:
            return None
        return head["ContentLength"]

    def get(self, key: str, limit: int) -> bytes | None:
        """Return an object's content, None if it is not there; above ``limit`` bytes it raises."""
        with self.open(key) as chunks:
            if chunks is None:
                return None
            content = b""
            for chunk in chunks:
                content += chunk
                if len(content) > limit:
                    raise self._other(f"{key} has more than {limit} bytes")
            return content

    @contextmanager
    def open(self, key: str) -> Iterator[Iterator[bytes] | None]:
        """Give an object's content in pieces, None if it is not there.

        The pieces raise :class:`BucketError` when they end too early.
        """
        try:
            with self._translated():
                answer = self._client.get_object(Bucket=self._bucket, Key=self._name(key))
        except Absent:
            yield None
            return
        with contextlib.closing(answer["Body"]) as body:
            yield self._pieces(body)

    def put(self, key: str, content: bytes) -> None:
        """Write a small object."""
        self._put(key, content)

    def upload(
        self, key: str, file: BinaryIO, size: int, *, stop: Callable[[], bool] = lambda: False
    ) -> bool:
        """Write a file of ``size`` bytes, in parts if it is larger than a chunk.

        False if ``stop`` said to end. Then, and after any failure, no half object stays, nor parts
        as far as the bucket still lets them be taken away: :meth:`sweep` finds the rest. Memory is
        bounded by a block; the file's position is neither used nor changed. Raises
        :class:`OSError` when the file cannot be read, or is shorter.
        """
        try:
            if size > self._settings.chunk:
                self._upload_parts(key, file, size, stop)
            elif size:
                whole = _Slice(file, 0, size, stop)
                with self._sending(whole):
                    self._put(key, cast("BinaryIO", whole))
            else:
                self._put(key, b"")
        except _Stopped:
            return False
        return True

    def delete(self, key: str) -> None:
        """Delete an object; one that is not there is fine."""
        # Singly: older MinIO refuses a list of them with a checksum of today's kind.
        with contextlib.suppress(Absent), self._translated():
            self._client.delete_object(Bucket=self._bucket, Key=self._name(key))

    def objects(self, prefix: str) -> Iterator[tuple[str, int]]:
        """Give key and size in bytes of all whose key begins with ``prefix``, in order of keys."""
        # Nothing here reads KeyCount, which old RGW leaves out (distribution#2553).
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self._bucket,
            Prefix=self._name(prefix),
            PaginationConfig={"PageSize": _PAGE},
        )
        for page in self._each(pages):
            for item in page.get("Contents", []):
                yield self._relative(item["Key"]), item["Size"]

    def sweep(self) -> int:
        """Abort uploads of blobs that nobody ends any more, and return how many.

        Those that this object has under way stay; those of other processes cannot be told apart.
        """
        pages = self._client.get_paginator("list_multipart_uploads").paginate(
            Bucket=self._bucket,
            Prefix=self._name(_UPLOADS_UNDER),
            PaginationConfig={"PageSize": _PAGE},
        )
        left = [
            (upload["Key"], upload["UploadId"])
            for page in self._each(pages)
            for upload in page.get("Uploads", [])
            if upload["Key"].endswith("/data")
        ]
        count = 0
        for name, upload_id in left:
            if upload_id not in self._running:
                self._abort(name, upload_id)
                count += 1
        return count

    def presign(
        self, method: Literal["GET", "HEAD"], key: str, seconds: int, *, public: bool = False
    ) -> str:
        """Return a URL that is good for one method and some time; ``public``: for the nodes."""
        client = self._public if public else self._client
        operation: Literal["get_object", "head_object"]
        operation = "get_object" if method == "GET" else "head_object"
        parameters = {"Bucket": self._bucket, "Key": self._name(key)}
        with self._translated():
            return client.generate_presigned_url(operation, Params=parameters, ExpiresIn=seconds)

    def diagnose(self) -> None:
        """Return if the bucket can be used; the error's message names why it cannot."""
        # A listing and not a HEAD: only a body says what is wrong.
        with self._translated():
            answer = self._client.list_objects_v2(Bucket=self._bucket, Prefix=self._root, MaxKeys=1)
        if not answer.get("Name"):
            raise self._other("what answers there is not an S3 service")

    # -- writing ---------------------------------------------------------------------------------

    def _put(self, key: str, body: bytes | BinaryIO) -> None:
        with self._translated():
            self._client.put_object(
                Bucket=self._bucket, Key=self._name(key), Body=body, **self._wishes()
            )

    def _upload_parts(self, key: str, file: BinaryIO, size: int, stop: Callable[[], bool]) -> None:
        name = self._name(key)
        with self._translated():
            upload_id = self._client.create_multipart_upload(
                Bucket=self._bucket, Key=name, **self._wishes()
            )["UploadId"]
        self._running.add(upload_id)
        try:
            self._fill(name, upload_id, file, size, stop)
        except BaseException:
            with contextlib.suppress(BucketError):
                self._abort(name, upload_id)
            raise
        finally:
            self._running.discard(upload_id)
        # RGW ignores conditions on the completion, so its size is what can be known of it.
        there = self.size(key)
        if there != size:
            self.delete(key)
            raise self._other(f"{key} came out with {there} bytes, not {size}")

    def _fill(
        self, name: str, upload_id: str, file: BinaryIO, size: int, stop: Callable[[], bool]
    ) -> None:
        step = max(self._settings.chunk, -(-size // _MOST_PARTS))
        parts: list[CompletedPartTypeDef] = []
        for number, start in enumerate(range(0, size, step), 1):
            part = _Slice(file, start, min(step, size - start), stop)
            with self._sending(part):
                answer = self._client.upload_part(
                    Bucket=self._bucket,
                    Key=name,
                    UploadId=upload_id,
                    PartNumber=number,
                    Body=cast("BinaryIO", part),
                )
            parts.append({"PartNumber": number, "ETag": answer["ETag"]})
        if stop():
            raise _Stopped
        with self._translated():
            self._client.complete_multipart_upload(
                Bucket=self._bucket,
                Key=name,
                UploadId=upload_id,
                MultipartUpload={"Parts": parts},
            )

    def _abort(self, name: str, upload_id: str) -> None:
        with contextlib.suppress(Absent), self._translated():
            self._client.abort_multipart_upload(Bucket=self._bucket, Key=name, UploadId=upload_id)

    def _wishes(self) -> dict[str, Any]:
        """Return what is said of an object when it is made."""
        wishes: dict[str, Any] = {}
        if self._settings.encrypt:
            wishes["ServerSideEncryption"] = "AES256"
            if self._settings.key_id:
                wishes["ServerSideEncryption"] = "aws:kms"
                wishes["SSEKMSKeyId"] = self._settings.key_id
        if self._settings.storage_class:
            wishes["StorageClass"] = self._settings.storage_class
        return wishes

    # -- reading ---------------------------------------------------------------------------------

    def _pieces(self, body: Any) -> Iterator[bytes]:
        while True:
            with self._translated():
                piece = body.read(_BLOCK)
            if not piece:
                return
            yield piece

    def _each(self, pages: Any) -> Iterator[Any]:
        each = iter(pages)
        while True:
            with self._translated():
                page = next(each, None)
            if page is None:
                return
            yield page

    def _name(self, key: str) -> str:
        return f"{self._root}/{key}" if self._root else key

    def _relative(self, name: str) -> str:
        return name.removeprefix(f"{self._root}/") if self._root else name

    # -- failures --------------------------------------------------------------------------------

    @contextmanager
    def _translated(self) -> Iterator[None]:
        # Never with its cause: what stands in a foreign error is not ours to vouch for.
        try:
            yield
        except FOREIGN as error:
            raise translated(error, self._where, self._region) from None
        except ValueError:  # an endpoint that is no URL to botocore
            raise self._other("the endpoint is not one that boto3 can use") from None

    @contextmanager
    def _sending(self, part: _Slice) -> Iterator[None]:
        """Raise what kept ``part`` from being read, which boto3 takes for the bucket's failure."""
        try:
            with self._translated():
                yield
        except BucketError:
            if part.failure is not None:
                raise part.failure from None
            raise

    def _other(self, why: str) -> BucketError:
        return BucketError(Trouble.OTHER, f"{self._where}: {why}")


class _Stopped(Exception):
    """The caller wants an upload to end."""


class _Slice:
    """A part of a file as a body: read by position, so that uploads need no memory of a part.

    Source of what it must have: botocore hashes it (tell, read, seek), measures it (len), sends it
    (read) and, to try again, rewinds it (seek).
    """

    def __init__(self, file: BinaryIO, start: int, size: int, stop: Callable[[], bool]) -> None:
        self._descriptor = file.fileno()
        self._start, self._size, self._stop = start, size, stop
        self._at = 0
        self.failure: Exception | None = None

    def __len__(self) -> int:
        return self._size

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = base + offset
        return self._at

    def read(self, count: int | None = -1) -> bytes:
        left = self._size - self._at
        wanted = left if count is None or count < 0 else min(count, left)
        try:
            block = self._read(wanted)
        except (OSError, _Stopped) as error:
            self.failure = error
            raise
        self._at += len(block)
        return block

    def _read(self, count: int) -> bytes:
        if self._stop():
            raise _Stopped
        block = os.pread(self._descriptor, count, self._start + self._at)
        if count and not block:
            raise OSError("the file is shorter than it was said to be")
        return block


def _client(
    settings: Settings, session: boto3.session.Session, verify: str | bool, endpoint: str | None
) -> S3Client:
    client = session.client(
        "s3",
        endpoint_url=endpoint,
        verify=verify,
        config=Config(
            signature_version="s3v4",
            connect_timeout=settings.connect_timeout,
            read_timeout=settings.read_timeout,
            retries={"mode": "standard", "total_max_attempts": settings.attempts},
            max_pool_connections=settings.connections,
            # The default's trailers are refused by older RGW and MinIO.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            s3={
                "addressing_style": "path" if settings.path_style else "auto",
                # TLS guards the content already; to hash it as well is half of the upload's CPU.
                "payload_signing_enabled": urlsplit(endpoint or "").scheme == "http",
            },
        ),
    )
    client.meta.events.register("before-call.s3", _stay_in_region)
    return client


def _stay_in_region(context: dict[str, Any], **_: object) -> None:
    """Keep boto3 from going to the bucket's region by itself.

    Its own requests would succeed then, while the URLs that it signs are refused.
    """
    if "s3_redirect" in context:
        context["s3_redirect"]["redirected"] = True


def _trusted(settings: Settings, named: str | None) -> str | bool:
    """Return which certificates to trust: those named, else the system's, else boto3's own."""
    if settings.verify is not True:
        return str(settings.verify) if settings.verify else False
    for path in (named, ssl.get_default_verify_paths().cafile, _SYSTEM_CAS):
        if path and Path(path).is_file():
            return path
    return True


def _host(endpoint: str | None) -> str:
    """Return an endpoint as it may be shown."""
    return urlsplit(endpoint).netloc.rpartition("@")[2] if endpoint else "AWS"
