"""A cache with a bucket behind it, and the bucket as a test looks at it."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import boto3
from botocore.config import Config

from tests.fakes.cache import Cache, layout, merged, towards
from tests.fakes.faults import eventually
from tests.servers.rgw import Gateway

V2: Final = "docker/registry/v2"


class TestBucket:
    """A new bucket at a gateway, seen with boto3 alone."""

    __test__ = False

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.name = f"b{uuid.uuid4().hex[:16]}"
        self.client = boto3.client(
            "s3",
            endpoint_url=gateway.url,
            region_name="us-east-1",
            aws_access_key_id=gateway.access_key,
            aws_secret_access_key=gateway.secret_key,
            config=Config(
                s3={"addressing_style": "path"},
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )
        self.client.create_bucket(Bucket=self.name)

    def objects(self, prefix: str = "") -> dict[str, int]:
        """Return what is in it, with sizes in bytes."""
        pages = self.client.get_paginator("list_objects_v2").paginate(
            Bucket=self.name, Prefix=prefix
        )
        return {each["Key"]: each["Size"] for page in pages for each in page.get("Contents", [])}

    def get(self, key: str) -> bytes:
        content: bytes = self.client.get_object(Bucket=self.name, Key=key)["Body"].read()
        return content

    def find(self, key: str) -> bytes | None:
        try:
            return self.get(key)
        except self.client.exceptions.NoSuchKey:
            return None

    def put(self, key: str, content: bytes) -> None:
        self.client.put_object(Bucket=self.name, Key=key, Body=content)

    def uploads(self) -> list[str]:
        """Return the keys of uploads in parts that nobody has ended."""
        found = self.client.list_multipart_uploads(Bucket=self.name).get("Uploads", [])
        return [each["Key"] for each in found]


def blob_key(digest: str) -> str:
    """Return where a blob's content stands in a bucket."""
    algorithm, _, hexadecimal = digest.partition(":")
    return f"{V2}/blobs/{algorithm}/{hexadecimal[:2]}/{hexadecimal}/data"


class MirroredCache(Cache):
    """A cache whose store is ``bucket``; its local tier is what ``store`` is without one."""

    def __init__(
        self,
        directory: Path,
        upstream: str,
        bucket: TestBucket,
        config: Mapping[str, Any] | None = None,
        *,
        redirect: bool = False,
        endpoint: str | None = None,
        tls: bool = False,
    ) -> None:
        self._local = directory / "store"
        self.bucket = bucket
        gateway = bucket.gateway
        super().__init__(directory, towards(upstream))
        local = {"cache": {"local": {"rootdirectory": str(self._local)}}}
        self.config = merged(merged(self.config, local), config or {})
        self.config["storage"] = {
            "s3": {
                "region": "us-east-1",
                "regionendpoint": endpoint or (gateway.tls_url if tls else gateway.url),
                "accesskey": gateway.access_key,
                "secretkey": gateway.secret_key,
                "bucket": bucket.name,
                "forcepathstyle": True,
                "skipverify": tls,
                "chunksize": 5 << 20,
            },
            "redirect": {"disable": not redirect},
        }

    @property
    def store(self) -> Path:
        return self._local

    def uploaded(self, *digests: str) -> None:
        """Wait until the bucket has all of ``digests``, and nothing is left to bring there."""
        eventually(
            lambda: all(blob_key(digest) in self.bucket.objects() for digest in digests),
            f"content in the bucket\n{self.log_text()[-3000:]}",
            seconds=30,
        )
        eventually(lambda: self.metric("pullthrough_upload_pending_bytes") == 0, "an empty queue")

    def forget_locally(self, digest: str) -> None:
        """Take a blob out of the local tier behind its back, as a disk that was lost does."""
        algorithm, _, hexadecimal = digest.partition(":")
        (layout(self.store) / "blobs" / algorithm / hexadecimal[:2] / hexadecimal / "data").unlink()


MirroredStarter = Callable[..., MirroredCache]
