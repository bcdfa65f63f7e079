"""The configuration as the rest of the program sees it: frozen, typed, valid, and nothing but data.

A field's name is its key in config.yml; durations are in seconds. ``storage`` and ``auth`` hold
what stands under ``storage.filesystem`` and ``auth.htpasswd``, the only drivers there are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator, SecretStr
from pydantic.dataclasses import dataclass

from pullthrough.config import values
from pullthrough.config.values import Address

Flag = Annotated[bool, BeforeValidator(values.flag)]
Listen = Annotated[Address, PlainValidator(values.address)]
Duration = Annotated[float, Field(ge=0), BeforeValidator(values.duration)]
Limit = Annotated[float, Field(gt=0), BeforeValidator(values.duration)]
Host = Annotated[str, AfterValidator(values.hostname)]
HeaderName = Annotated[str, AfterValidator(values.header_name)]
HeaderValue = Annotated[str, AfterValidator(values.header_value)]


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
class Storage:
    """The local disk."""

    rootdirectory: Path = Path("/var/lib/registry")


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
    http: Http = Field(default_factory=Http)
    health: Health = Field(default_factory=Health)
    auth: Htpasswd | None = None
