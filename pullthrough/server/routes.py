"""From a request's target to a validated route (distribution-spec, "Endpoints")."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Final
from urllib.parse import parse_qsl, unquote

from pullthrough.oci.digest import Digest
from pullthrough.oci.errors import NameUnknown, RegistryError
from pullthrough.oci.reference import Repository, Tag, parse_reference

_PAGE_LIMIT: Final = 1_000_000
_REMEMBERED: Final = 8192
_REMEMBERED_LENGTH: Final = 512
_QUERY_FIELDS: Final = 16


class QueryInvalid(RegistryError):
    """A query parameter that means nothing. The spec has no code of its own for it."""

    code, status = "UNSUPPORTED", 400


@dataclass(frozen=True, slots=True)
class Ping:
    """``GET /v2/``: whether this is a registry, and whether it wants a login."""

    label: ClassVar[str] = "ping"


@dataclass(frozen=True, slots=True)
class ManifestRoute:
    """A manifest by tag or digest."""

    label: ClassVar[str] = "manifest"
    repository: Repository
    reference: Tag | Digest


@dataclass(frozen=True, slots=True)
class BlobRoute:
    """A blob."""

    label: ClassVar[str] = "blob"
    repository: Repository
    digest: Digest


@dataclass(frozen=True, slots=True)
class TagsRoute:
    """A repository's tags: at most ``n`` of those after ``last``."""

    label: ClassVar[str] = "tags"
    repository: Repository
    n: int | None
    last: str


@dataclass(frozen=True, slots=True)
class ReferrersRoute:
    """What refers to a digest; only of ``artifact_type``, unless that is empty."""

    label: ClassVar[str] = "referrers"
    repository: Repository
    digest: Digest
    artifact_type: str


@dataclass(frozen=True, slots=True)
class CatalogRoute:
    """The repositories of which something is cached."""

    label: ClassVar[str] = "catalog"
    n: int | None
    last: str


@dataclass(frozen=True, slots=True)
class Health:
    """``/livez`` and ``/readyz``: no login."""

    label: ClassVar[str] = "health"
    ready: bool


Route = Ping | ManifestRoute | BlobRoute | TagsRoute | ReferrersRoute | CatalogRoute | Health


def parse(target: str) -> Route:
    """Return what ``target`` (path and query) asks for; raises :class:`RegistryError`."""
    # What is long is rare, and would fill the memory of those that are not.
    return _remembered(target) if len(target) <= _REMEMBERED_LENGTH else _parse(target)


def origin_form(target: str) -> str:
    """Return path and query of a target that may be a whole URL (RFC 9112, section 3.2.2)."""
    if target.startswith("/"):
        return target
    return "/" + target.partition("://")[2].partition("/")[2]


def label_of(target: str) -> str:
    """Return the kind of endpoint that ``target`` names, for logs and metrics."""
    try:
        return parse(target).label
    except RegistryError:
        return "other"


def is_public(target: str) -> bool:
    """Whether ``target`` is answered without a login."""
    return target.partition("?")[0] in _HEALTH


_HEALTH: Final = {"/livez": Health(ready=False), "/readyz": Health(ready=True)}


def _parse(target: str) -> Route:  # noqa: PLR0911 - a table of endpoints
    raw, _, query = target.partition("?")
    if raw in _HEALTH:
        return _HEALTH[raw]
    path = unquote(raw, errors="replace") if "%" in raw else raw
    if path in ("/v2/", "/v2"):
        return Ping()
    if path == "/v2/_catalog":
        return CatalogRoute(*_page(query))
    name, kind, last = _split(path)
    if kind == "manifests":
        return ManifestRoute(Repository.parse(name), parse_reference(last))
    if kind == "blobs":
        return BlobRoute(Repository.parse(name), Digest.parse(last))
    if kind == "referrers":
        fields = _fields(query)
        return ReferrersRoute(
            Repository.parse(name), Digest.parse(last), fields.get("artifactType", "")
        )
    if kind == "tags" and last == "list":
        return TagsRoute(Repository.parse(name), *_page(query))
    raise NameUnknown("no such endpoint")


_remembered = lru_cache(_REMEMBERED)(_parse)


def _split(path: str) -> tuple[str, str, str]:
    if not path.startswith("/v2/"):
        raise NameUnknown("no such endpoint")
    rest, _, last = path.removeprefix("/v2/").rpartition("/")
    name, _, kind = rest.rpartition("/")
    return name, kind, last


def _fields(query: str) -> dict[str, str]:
    try:
        return dict(parse_qsl(query, max_num_fields=_QUERY_FIELDS))
    except ValueError as error:
        raise QueryInvalid("too many query parameters") from error


def _page(query: str) -> tuple[int | None, str]:
    fields = _fields(query)
    n = fields.get("n")
    if n is None:
        return None, fields.get("last", "")
    if not n.isascii() or not n.isdigit() or len(n) > len(str(_PAGE_LIMIT)):
        raise QueryInvalid("n is not a number of entries")
    return int(n), fields.get("last", "")
