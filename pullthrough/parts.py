"""What the configuration says, as the parts that workers, keeper and commands are made of."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import structlog
from yarl import URL

from pullthrough import __version__
from pullthrough.config import S3, Bound, Config, Proxy, Share, local_root, read_credential
from pullthrough.oci.digest import Digest
from pullthrough.store.catalogue import Catalogue
from pullthrough.store.layout import Layout
from pullthrough.tending.janitor import Bounds, Janitor, share_of_disk
from pullthrough.tending.pins import pattern
from pullthrough.upstream.base import Credential
from pullthrough.upstream.bucket import Sign
from pullthrough.upstream.client import Settings

if TYPE_CHECKING:
    from pullthrough.store.bucket import Bucket

_log = structlog.get_logger()

USER_AGENT = f"pullthrough/{__version__}"


def upstream(proxy: Proxy) -> Settings:
    """Return how the upstream is asked; raises ConfigError when its password cannot be read."""
    return Settings(
        url=proxy.remoteurl,
        credential=credential(proxy),
        resolve=proxy.resolve,
        cafile=proxy.cafile,
        skipverify=proxy.skipverify,
        tokenhosts=frozenset(proxy.tokenhosts),
        connect=proxy.timeouts.connect,
        firstbyte=proxy.timeouts.firstbyte,
        stall=proxy.timeouts.stall,
        retries=proxy.retries,
    )


def credential(proxy: Proxy) -> Credential | None:
    """Return the upstream's login; raises ConfigError when its password cannot be read."""
    login = read_credential(proxy)
    return None if login is None else Credential(*login)


def usable_bucket(config: Config) -> Bucket | None:
    """Return what :func:`bucket` does; where that fails, say so, and go on without."""
    if config.storage.s3 is None:
        return None
    from pullthrough.store.trouble import BucketError

    try:
        return bucket(config)
    except BucketError as error:
        _log.error("the bucket cannot be used, going on without", why=str(error))
        return None


def bucket(config: Config) -> Bucket | None:
    """Return the bucket's client, if there is to be one; its own connections, so one a process.

    Asks nobody. Raises BucketError where it cannot be made.
    """
    s3 = config.storage.s3
    if s3 is None:
        return None
    # boto3 takes a while to import and many MiB: only where there is a bucket.
    from pullthrough.store import bucket as driver

    return driver.Bucket(
        driver.Settings(
            bucket=s3.bucket,
            region=s3.region,
            endpoint=s3.endpoint,
            access_key=None if s3.accesskey is None else s3.accesskey.get_secret_value(),
            secret_key=None if s3.secretkey is None else s3.secretkey.get_secret_value(),
            verify=not s3.skipverify,
            path_style=s3.path_style,
            root=s3.rootdirectory,
            chunk=s3.chunksize,
            encrypt=s3.encrypt,
            key_id=s3.keyid,
            storage_class=None if s3.storageclass == "NONE" else s3.storageclass,
            public_endpoint=config.storage.redirect.endpoint,
            attempts=1,  # who asks tries again, and knows when
        )
    )


def bucket_host(s3: S3, endpoint: str | None) -> str:
    """Return the host of the bucket's addresses at ``endpoint``, or at AWS."""
    host = URL(endpoint or f"https://s3.{s3.region}.amazonaws.com").host or ""
    return (host if s3.path_style else f"{s3.bucket}.{host}").lower()


def bucket_cas() -> Path | None:
    """Return the certificates that boto3 would trust for the environment's sake."""
    named = os.environ.get("AWS_CA_BUNDLE", "")
    return Path(named) if named and Path(named).is_file() else None


def signing(client: Bucket, layout: Layout, seconds: int) -> Sign:
    """Return what signs addresses of blobs for so many seconds."""

    def sign(method: Literal["GET", "HEAD"], digest: Digest, public: bool) -> str:
        return client.presign(method, layout.key(layout.blob(digest)), seconds, public=public)

    return sign


def bounds(config: Config) -> Bounds:
    """Return what may be kept."""
    root = local_root(config)
    cache = config.cache
    return Bounds(
        quota=_bytes(cache.quota, root),
        local=_bytes(None if cache.local is None else cache.local.quota, root),
        ttl=config.proxy.ttl,
        pins=tuple(pattern(text) for text in cache.pin),
    )


def _bytes(bound: Bound | None, root: Path) -> Callable[[], int | None]:
    if isinstance(bound, Share):
        percent = bound.percent
        return lambda: share_of_disk(root, percent)
    return lambda: bound


def making_room(config: Config, layout: Layout) -> Callable[[int], bool]:
    """Return what frees bytes on a full disk, whichever thread it is called in."""
    limits, mirrored = bounds(config), config.storage.s3 is not None

    def make_room(size: int) -> bool:
        try:
            with Catalogue(layout.index) as catalogue:
                return Janitor(layout, catalogue, limits, mirrored, time.time).free(size)
        except (OSError, sqlite3.Error) as error:
            _log.warning("no room could be made", why=str(error))
            return False

    return make_room
