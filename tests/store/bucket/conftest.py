"""A bucket on the gateway, as the store uses it, and boto3's own view of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from pullthrough.store.bucket import Bucket, Settings
from tests import rgw
from tests.rgw import bucket_name, gateway, own_rgw
from tests.servers.rgw import Gateway

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

__all__ = ["bucket_name", "gateway", "own_rgw"]


@pytest.fixture(autouse=True)
def _no_keys_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what this machine knows of AWS out of the tests, and the tests off its network."""
    for name in ("AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CA_BUNDLE", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")


@pytest.fixture
def settings(gateway: Gateway, bucket_name: str) -> Settings:
    """Name this test's bucket, over plain HTTP."""
    return Settings(
        bucket=bucket_name,
        endpoint=gateway.url,
        access_key=gateway.access_key,
        secret_key=gateway.secret_key,
        path_style=True,
        root="some/root",
        chunk=5 << 20,
        attempts=2,
    )


@pytest.fixture
def bucket(settings: Settings) -> Bucket:
    """Open this test's bucket."""
    return Bucket(settings)


@pytest.fixture
def s3(gateway: Gateway) -> Iterator[S3Client]:
    """Give boto3's own client."""
    made = rgw.client(gateway)
    yield made
    made.close()
