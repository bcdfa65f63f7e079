"""Fixtures around a real object gateway, to be imported into the conftest of who needs them."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import boto3.session
import pytest
from botocore.config import Config

from tests.servers.rgw import Gateway, Rgw, missing, shared

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


def need_rgw() -> None:
    """End the test where Ceph is not installed: a failure in CI, elsewhere a skip."""
    lacking = missing()
    if lacking:
        reason = f"not installed: {', '.join(lacking)}; `make packages` does it on Debian"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)


def client(gateway: Gateway) -> S3Client:
    """Return boto3's own client of a gateway, to look past the code under test."""
    session = boto3.session.Session(gateway.access_key, gateway.secret_key)
    made: Any = session.client(
        "s3",
        endpoint_url=gateway.url,
        region_name="us-east-1",
        config=Config(
            signature_version="s3v4",
            s3={"addressing_style": "path"},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )
    s3: S3Client = made
    return s3


@pytest.fixture(scope="session")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """Give the gateway that all tests of this run share; it is not to be stopped."""
    need_rgw()
    meeting = tmp_path_factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):  # each has a directory of its own in the run's
        meeting = meeting.parent
    with shared(meeting / "rgw") as running:
        yield running


@pytest.fixture
def own_rgw() -> Iterator[Rgw]:
    """Start a gateway of this test's own, which it may stop, pause and kill."""
    need_rgw()
    with Rgw() as running:
        yield running


@pytest.fixture
def bucket_name(gateway: Gateway) -> str:
    """Make an empty bucket of this test's own."""
    return make_bucket(gateway)


def make_bucket(gateway: Gateway) -> str:
    """Make an empty bucket, and return its name."""
    name = f"test-{uuid.uuid4().hex}"
    s3 = client(gateway)
    s3.create_bucket(Bucket=name)
    s3.close()
    return name
