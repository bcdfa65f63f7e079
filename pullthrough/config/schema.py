"""Which keys there are: the model's, and distribution's that are not acted on, each with why."""

from __future__ import annotations

import dataclasses
import difflib
from enum import Enum
from typing import Any, Final, get_args, get_type_hints

from pullthrough.config.model import Config
from pullthrough.config.problem import Path, dotted


class Kind(Enum):
    """What stands at a key that is no section: one value, or names and values of the user's own."""

    VALUE = "value"
    OPEN = "open"


Keys = dict[str, "Keys | Kind"]

DRIVERS: Final = frozenset({"storage", "auth"})
"""Sections that name a driver: distribution takes any key of theirs for one, but for its own."""
BESIDE_DRIVER: Final[Path] = ("storage", "redirect")
"""The key of such a section that is acted on and is no driver."""


def _keys(section: type) -> Keys:
    hints = get_type_hints(section)
    return {field.name: _kind(hints[field.name]) for field in dataclasses.fields(section)}


def _kind(hint: Any) -> Keys | Kind:
    if getattr(hint, "__origin__", None) in {dict, tuple}:
        return Kind.OPEN
    for option in (hint, *get_args(hint)):
        if dataclasses.is_dataclass(option) and isinstance(option, type):
            return _keys(option)
    return Kind.VALUE


def _known() -> Keys:
    keys = _keys(Config) | {"version": Kind.VALUE}
    return keys | {"auth": {"htpasswd": keys["auth"]}}


KNOWN: Final = _known()
"""The keys that are acted on, as they stand in config.yml."""

_PUSH = "this cache takes no pushes"
_ENDPOINT = "write the endpoint itself in storage.s3.regionendpoint"
_COPY = "nothing is copied within the bucket"
_S3_LOG = "log.level is the bucket's too"
IGNORED: Final[dict[Path, str]] = {
    ("loglevel",): "deprecated; use log.level",
    ("log", "hooks"): "no mail is sent from here",
    ("log", "reportcaller"): "no caller stands in these logs",
    ("storage", "cache"): "the index is kept beside the files",
    ("storage", "delete"): "clients cannot delete",
    ("storage", "maintenance"): _PUSH,
    ("storage", "tag"): "tags are looked up one at a time",
    ("storage", "filesystem", "maxthreads"): "the disk is used as fast as clients ask",
    ("storage", "s3", "accelerate"): _ENDPOINT,
    ("storage", "s3", "loglevel"): _S3_LOG,
    ("storage", "s3", "logs3apirequests"): _S3_LOG,
    ("storage", "s3", "logs3apiresponseheaders"): _S3_LOG,
    ("storage", "s3", "multipartcopychunksize"): _COPY,
    ("storage", "s3", "multipartcopymaxconcurrency"): _COPY,
    ("storage", "s3", "multipartcopythresholdsize"): _COPY,
    ("storage", "s3", "objectacl"): "objects are private",
    ("storage", "s3", "sessiontoken"): "temporary keys come from the environment",
    ("storage", "s3", "usedualstack"): _ENDPOINT,
    ("storage", "s3", "usefipsendpoint"): _ENDPOINT,
    ("storage", "s3", "useragent"): "requests say what made them",
    ("storage", "s3", "v4auth"): "requests are always signed by version 4",
    ("middleware",): "there are no middlewares",
    ("reporting",): "there is no error reporting service",
    ("http", "host"): "no answer holds an absolute URL",
    ("http", "secret"): _PUSH,
    ("http", "relativeurls"): "URLs in answers are always relative",
    ("http", "http2"): "only HTTP/1.1 is spoken",
    ("http", "h2c"): "only HTTP/1.1 is spoken",
    ("notifications",): "no events are sent",
    ("redis",): "no redis is used",
    ("health", "file"): "only the storage is checked",
    ("health", "http"): "only the storage is checked",
    ("health", "tcp"): "only the storage is checked",
    ("catalog",): "the catalogue is paged as clients ask",
    ("compatibility",): "manifests are served as they came",
    ("validation",): _PUSH,
    ("policy",): _PUSH,
}
"""distribution's keys that change nothing here."""

_DRIVER = "this storage is not supported; use storage.filesystem or storage.s3"
_LOGIN = "this login is not supported; use auth.htpasswd"
REFUSED: Final[dict[Path, tuple[str, tuple[str, ...]]]] = {
    ("http", "net"): ("only tcp is supported", ("tcp",)),
    ("http", "prefix"): ("not supported: every path would differ", ("/",)),
    ("http", "tls"): ("TLS is not supported yet; put it behind a TLS proxy", ()),
    ("proxy", "exec"): ("not supported: the upstream would be asked without a credential", ()),
    ("auth", "token"): (_LOGIN, ()),
    ("auth", "silly"): (_LOGIN, ()),
    **{
        ("storage", driver): (_DRIVER, ())
        for driver in ("azure", "gcs", "inmemory", "oss", "s3aws", "swift")
    },
}
"""distribution's keys whose loss would matter, and the values that are harmless all the same."""


def _paths(keys: Keys, at: Path = ()) -> list[Path]:
    found = []
    for key, below in keys.items():
        found.append((*at, key))
        if isinstance(below, dict):
            found += _paths(below, (*at, key))
    return found


ACTED_ON: Final = tuple(_paths(KNOWN))
"""Every key and section of :data:`KNOWN`."""

_NAMES = {dotted(path): path for path in (*ACTED_ON, *IGNORED, *REFUSED)}


def recognised(path: Path) -> bool:
    """Whether ``path`` is a key, a name of the user's own under one, or distribution's for sure."""
    here: Keys | Kind = KNOWN
    for depth, key in enumerate(path):
        if here is Kind.OPEN or path[: depth + 1] in IGNORED or path[: depth + 1] in REFUSED:
            return True
        if not isinstance(here, dict):
            return False
        if key not in here:
            return depth == 1 and path[0] in DRIVERS
        here = here[key]
    return True


def nearest(path: Path) -> str | None:
    """Return the known key that ``path`` was meant to be: one beside it, else anywhere."""
    wanted = path[-1].lower()
    siblings = {known[-1]: name for name, known in _NAMES.items() if known[:-1] == path[:-1]}
    anywhere = {known[-1]: name for name, known in reversed(_NAMES.items())}
    for names, likeness in ((siblings, 0.65), (anywhere, 0.8)):
        for match in difflib.get_close_matches(wanted, names, 1, likeness):
            return names[match]
    return None
