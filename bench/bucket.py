"""A bucket at a real Ceph object gateway on this machine, which keeps everything in memory."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import boto3.session
from botocore.config import Config

from bench.content import Blob
from tests.servers.rgw import Rgw

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

NAME = "bench"
REGION = "us-east-1"
BLOBS = "docker/registry/v2/blobs/sha256/"
UPLOAD_LIMIT = 120.0
SIGNED_SECONDS = 3600
NEARER: Final = "localhost"
"""The gateway's host for clients: it is to differ from the one that they ask the cache by."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """A bucket, and the gateway, which a scenario may stop."""

    rgw: Rgw
    _client: S3Client

    def settings(self, local: Path, *, redirect: bool = False) -> Mapping[str, Any]:
        """Return the sections of a cache that has this bucket and its local tier at ``local``."""
        gateway = self.rgw.gateway
        return {
            "storage": {
                "s3": {
                    "bucket": NAME,
                    "region": REGION,
                    "regionendpoint": gateway.url,
                    "accesskey": gateway.access_key,
                    "secretkey": gateway.secret_key,
                },
                "redirect": {
                    "disable": not redirect,
                    "endpoint": f"http://{NEARER}:{gateway.port}",
                },
            },
            "cache": {"local": {"rootdirectory": str(local)}},
        }

    def address(self, blob: Blob) -> str:
        """Return the path by which anybody may fetch ``blob`` from the gateway."""
        url = self._client.generate_presigned_url(
            "get_object", Params={"Bucket": NAME, "Key": _key(blob)}, ExpiresIn=SIGNED_SECONDS
        )
        place = urlsplit(url)
        return f"{place.path}?{place.query}"

    def wait(self, blobs: Iterable[Blob]) -> None:
        """Wait until ``blobs`` are in the bucket; raises :class:`TimeoutError`."""
        wanted = {_key(blob) for blob in blobs}
        give_up = time.monotonic() + UPLOAD_LIMIT
        while missing := wanted - self._keys():
            if time.monotonic() > give_up:
                raise TimeoutError(f"{len(missing)} blobs not uploaded in {UPLOAD_LIMIT:.0f} s")
            time.sleep(0.2)  # a bounded poll: an upload that is done tells nobody

    def _keys(self) -> set[str]:
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=NAME, Prefix=BLOBS)
        return {item["Key"] for page in pages for item in page.get("Contents", [])}


def _key(blob: Blob) -> str:
    return f"{BLOBS}{blob.hex[:2]}/{blob.hex}/data"


@contextmanager
def bucket(capacity: int = 8 << 30) -> Iterator[Bucket]:
    """Run a gateway of ``capacity`` bytes with an empty bucket."""
    with Rgw(capacity) as rgw:
        gateway = rgw.gateway
        session = boto3.session.Session(gateway.access_key, gateway.secret_key)
        client: S3Client = session.client(
            "s3",
            endpoint_url=gateway.url,
            region_name=REGION,
            config=Config(signature_version="s3v4", s3={"addressing_style": "path"}),
        )
        with closing(client):
            client.create_bucket(Bucket=NAME)
            yield Bucket(rgw, client)
