"""The configuration as the rest of the program sees it: frozen, typed, valid, and nothing but data.

A field's name is its key in config.yml; durations are in seconds, sizes in bytes. ``auth`` holds
what stands under ``auth.htpasswd``, the only login there is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator, SecretStr
from pydantic.dataclasses import dataclass

from pullthrough.config import sizes, values
from pullthrough.config.sizes import Bound
from pullthrough.config.values import Address

Flag = Annotated[bool, BeforeValidator(values.flag)]
Listen = Annotated[Address, PlainValidator(values.address)]
Duration = Annotated[float, Field(ge=0), BeforeValidator(values.duration)]
Limit = Annotated[float, Field(gt=0), BeforeValidator(values.duration)]
Host = Annotated[str, AfterValidator(values.hostname)]
HeaderName = Annotated[str, AfterValidator(values.header_name)]
HeaderValue = Annotated[str, AfterValidator(values.header_value)]
Quota = Annotated[Bound, PlainValidator(sizes.bound)]
Endpoint = Annotated[str, AfterValidator(values.endpoint)]
Pin = Annotated[str, AfterValidator(values.pin)]

_MIB = 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class AccessLog:
    """One line a request."""

    disabled: Flag = False


@dataclass(frozen=True, kw_only=True)
class Log:
    """What is logged, and how; ``fields`` stand on every line."""

    level: Annotated[Literal["error", "warn", "info", "debug"], BeforeValidator(values.lower)] = (
        "info"
    )
    formatter: Literal["text", "json", "logstash"] = "text"
    fields: dict[str, str] = Field(default_factory=dict)
    accesslog: AccessLog = Field(default_factory=AccessLog)


@dataclass(frozen=True, kw_only=True)
class Filesystem:
    """The local disk."""

    rootdirectory: Path = Path("/var/lib/registry")


@dataclass(frozen=True, kw_only=True)
class S3:
    """A bucket. Without ``accesskey`` and ``secretkey`` boto3 looks for them where it always does.

    ``rootdirectory`` is the keys' prefix, without slashes around it; with ``storageclass`` NONE
    none is sent.
    """

    bucket: Annotated[str, AfterValidator(values.bucket)]
    region: Annotated[str, AfterValidator(values.region)] = "us-east-1"
    regionendpoint: Annotated[str, AfterValidator(values.region_endpoint)] | None = None
    accesskey: SecretStr | None = None
    secretkey: SecretStr | None = None
    secure: Flag = True
    skipverify: Flag = False
    forcepathstyle: Flag | None = None
    rootdirectory: Annotated[str, AfterValidator(values.prefix)] = ""
    chunksize: Annotated[
        int, Field(ge=5 * _MIB, le=5 * 1024 * _MIB), BeforeValidator(values.whole)
    ] = 10 * _MIB
    encrypt: Flag = False
    keyid: Annotated[str, AfterValidator(values.header_value)] | None = None
    storageclass: Annotated[
        Literal[
            "NONE",
            "STANDARD",
            "REDUCED_REDUNDANCY",
            "STANDARD_IA",
            "ONEZONE_IA",
            "INTELLIGENT_TIERING",
            "OUTPOSTS",
            "GLACIER_IR",
            "EXPRESS_ONEZONE",
        ],
        BeforeValidator(values.upper),
    ] = "STANDARD"

    @property
    def endpoint(self) -> str | None:
        """The URL of ``regionendpoint``, with the scheme of ``secure`` where it has none."""
        if self.regionendpoint is None or "://" in self.regionendpoint:
            return self.regionendpoint
        return f"{'https' if self.secure else 'http'}://{self.regionendpoint}"

    @property
    def path_style(self) -> bool:
        """Whether the bucket stands in the path: unsaid, as in 2.8, with a ``regionendpoint``."""
        if self.forcepathstyle is None:
            return self.regionendpoint is not None
        return self.forcepathstyle


@dataclass(frozen=True, kw_only=True)
class Redirect:
    """Whether clients are sent to the bucket; ``endpoint`` is where they see it."""

    disable: Flag = False
    endpoint: Endpoint | None = None


@dataclass(frozen=True, kw_only=True)
class Storage:
    """Where content is kept: in ``s3`` or in ``filesystem``, the other of which is None."""

    s3: S3 | None = None
    filesystem: Filesystem | None = None
    redirect: Redirect = Field(default_factory=Redirect)

    def __post_init__(self) -> None:
        if self.s3 is None and self.filesystem is None:
            object.__setattr__(self, "filesystem", Filesystem())


@dataclass(frozen=True, kw_only=True)
class Local:
    """The disk before a bucket."""

    rootdirectory: Path
    quota: Quota = 20 * 1024 * _MIB


@dataclass(frozen=True, kw_only=True)
class Scrub:
    """Re-reading what is kept, ``rate`` bytes a second; None is never."""

    rate: Annotated[int, PlainValidator(sizes.rate)] | None = None


@dataclass(frozen=True, kw_only=True)
class Cache:
    """The bounds of what is kept, and what is kept in any case.

    ``quota`` is the whole store's, disk or bucket; None is no bound, and a bucket's is in bytes.
    ``local`` is there exactly when there is a bucket. ``pin`` are patterns ``repository[:tag]``.
    """

    quota: Quota | None = None
    local: Local | None = None
    pin: tuple[Pin, ...] = ()
    scrub: Scrub = Field(default_factory=Scrub)


@dataclass(frozen=True, kw_only=True)
class Prometheus:
    """Where the metrics are; they are always served on the debug address."""

    enabled: Flag = True
    path: Annotated[str, AfterValidator(values.url_path)] = "/metrics"


@dataclass(frozen=True, kw_only=True)
class Debug:
    """The operator's own port; without ``addr`` there is none."""

    addr: Listen | None = None
    prometheus: Prometheus = Field(default_factory=Prometheus)


@dataclass(frozen=True, kw_only=True)
class Http:
    """The clients' port; ``headers`` stand on every answer."""

    addr: Listen = Address("", 5000)
    headers: dict[HeaderName, tuple[HeaderValue, ...]] = Field(default_factory=dict)
    draintimeout: Duration = 30.0
    debug: Debug = Field(default_factory=Debug)
    workers: Annotated[
        int, Field(ge=1, le=values.WORKERS_LIMIT), BeforeValidator(values.workers)
    ] = Field(default_factory=values.available_workers)


@dataclass(frozen=True, kw_only=True)
class StorageDriver:
    """The check of the disk: every ``interval``, unhealthy after ``threshold`` failures."""

    enabled: Flag = False
    interval: Limit = 10.0
    threshold: Annotated[int, Field(ge=0), BeforeValidator(values.whole)] = 3


@dataclass(frozen=True, kw_only=True)
class Health:
    """The checks."""

    storagedriver: StorageDriver = Field(default_factory=StorageDriver)


@dataclass(frozen=True, kw_only=True)
class Freshness:
    """How old a tag may be unasked, and how long a client waits for the upstream's word on it."""

    maxage: Duration = 0.0
    deadline: Limit = 1.5


@dataclass(frozen=True, kw_only=True)
class Timeouts:
    """The limits on the upstream; there is none on a whole transfer."""

    connect: Limit = 5.0
    firstbyte: Limit = 25.0
    stall: Limit = 15.0


@dataclass(frozen=True, kw_only=True)
class Proxy:
    """The upstream.

    ``resolve`` gives addresses to host names; ``tokenhosts`` may be given the credential as a token
    realm beside the upstream's own host; ``retries`` are tries in a row without a byte of progress.
    What was not used for ``ttl`` is dropped; 0 is never.
    """

    remoteurl: Annotated[str, AfterValidator(values.origin)]
    username: Annotated[str, AfterValidator(values.username)] | None = None
    password: SecretStr | None = None
    passwordfile: Annotated[Path, AfterValidator(values.password_file)] | None = None
    resolve: dict[Host, Annotated[str, AfterValidator(values.ip)]] = Field(default_factory=dict)
    cafile: Annotated[Path, AfterValidator(values.ca_file)] | None = None
    skipverify: Flag = False
    tokenhosts: tuple[Annotated[str, AfterValidator(values.authority)], ...] = ()
    freshness: Freshness = Field(default_factory=Freshness)
    timeouts: Timeouts = Field(default_factory=Timeouts)
    retries: Annotated[int, Field(ge=1), BeforeValidator(values.whole)] = 8
    ttl: Duration = 168 * 3600.0


@dataclass(frozen=True, kw_only=True)
class Htpasswd:
    """The clients' login."""

    realm: Annotated[str, AfterValidator(values.realm)]
    path: Annotated[Path, AfterValidator(values.readable_file)]


@dataclass(frozen=True, kw_only=True)
class Config:
    """All of it. Without ``auth`` the cache is open to everyone."""

    proxy: Proxy
    log: Log = Field(default_factory=Log)
    storage: Storage = Field(default_factory=Storage)
    cache: Cache = Field(default_factory=Cache)
    http: Http = Field(default_factory=Http)
    health: Health = Field(default_factory=Health)
    auth: Htpasswd | None = None


def local_root(config: Config) -> Path:
    """Return the directory of the store on the local disk, whether or not a bucket is behind it."""
    return (config.cache.local or config.storage.filesystem or Filesystem()).rootdirectory
