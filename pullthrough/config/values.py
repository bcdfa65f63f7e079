"""How each kind of value is read from its text.

Every function raises :class:`Invalid`, whose message quotes nothing.
"""

from __future__ import annotations

import ipaddress
import os
import re
import ssl
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, NamedTuple

from pullthrough.tending.pins import pattern

PASSWORD_LIMIT: Final = 64 * 1024
"""Bytes of a password's file."""
WORKERS_LIMIT: Final = 64

_UNITS = {
    "ns": Decimal("1e-9"),
    "us": Decimal("1e-6"),
    "µs": Decimal("1e-6"),
    "μs": Decimal("1e-6"),
    "ms": Decimal("1e-3"),
    "s": Decimal(1),
    "m": Decimal(60),
    "h": Decimal(3600),
}
_PART = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)")
_DURATION = re.compile(rf"(?:{_PART.pattern})+")
_NUMBER = re.compile(r"[+-]?[0-9.]+")
_WHOLE = re.compile(r"[+-]?[0-9]{1,18}")
_FLAGS = dict.fromkeys(("true", "yes", "on", "y"), True) | dict.fromkeys(
    ("false", "no", "off", "n"), False
)
_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,251}[A-Za-z0-9])?")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_AUTHORITY = re.compile(r"(?:\[(?P<ipv6>[^\[\]]*)\]|(?P<name>[^\[\]:]*))(?::(?P<port>[^\[\]:]*))?")
_PORT = re.compile(r"[0-9]{1,5}")
# What boto3 takes for one, before it asks anybody.
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")
_REGION = re.compile(r"(?![0-9]+$)[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
_PIN = re.compile(
    r"(?=[^:]{1,255}(?::|$))[a-z0-9._*?-]+(?:/[a-z0-9._*?-]+)*(?::[A-Za-z0-9._*?-]{1,128})?"
)
_PORT_LIMIT = 65535
_PREFIX_LIMIT = 512  # bytes; a key has 1024, and registry:2's path with a long name wants its part
_TEXT_LIMIT = 64
_DURATION_LIMIT = 2**63 / 1e9  # what Go's time.Duration holds, in seconds


class Invalid(ValueError):
    """A value that its key cannot take. The message is shown, and so holds nothing of the value."""


class Address(NamedTuple):
    """Where to listen; an empty ``host`` is every interface."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Address:
        """Return the address that ``:5000``, ``10.0.0.1:5000`` or ``[::1]:5000`` spells."""
        host, port = ("", _port(text[1:])) if text.startswith(":") else _authority(text)
        if port is None:
            raise Invalid("expected host:port, or :port for every interface")
        return cls(host, port)


def address(value: Any) -> Address:
    """Return an :class:`Address` from its text, or as it is."""
    if isinstance(value, Address):
        return value
    if not isinstance(value, str):
        raise Invalid("expected a single value")
    return Address.parse(value)


def duration(value: Any) -> Any:
    """Return seconds from Go's time.ParseDuration; what is not text is left to its type."""
    if not isinstance(value, str):
        return value
    negative = value.startswith("-")
    text = value.removeprefix("-").removeprefix("+")
    if text == "0":
        return 0.0
    if _NUMBER.fullmatch(text):
        raise Invalid("a bare number would be nanoseconds: write the unit, as in 30s or 500ms")
    if len(text) > _TEXT_LIMIT or not _DURATION.fullmatch(text):
        raise Invalid("not a duration like 1.5s, 300ms or 1h30m")
    if negative:
        raise Invalid("must not be negative")
    total = sum((Decimal(n) * _UNITS[unit] for n, unit in _PART.findall(text)), Decimal(0))
    if total >= _DURATION_LIMIT:
        raise Invalid("longer than 292 years")
    return float(total)


def whole(value: Any) -> Any:
    """Return a whole number from its decimal text; what is not text is left to its type."""
    if not isinstance(value, str):
        return value
    if not _WHOLE.fullmatch(value):
        raise Invalid("not a whole number")
    return int(value)


def workers(value: Any) -> Any:
    """Return a number of processes: ``auto`` is one for each processor that this one may use."""
    return available_workers() if value == "auto" else whole(value)


def available_workers() -> int:
    """Return how many processors this process may use, at most :data:`WORKERS_LIMIT`."""
    return min(len(os.sched_getaffinity(0)), WORKERS_LIMIT)


def flag(value: Any) -> Any:
    """Return a truth value from YAML 1.1's words for it; what is not text is left to its type."""
    if not isinstance(value, str):
        return value
    if (truth := _FLAGS.get(value.lower())) is None:
        raise Invalid("expected true or false")
    return truth


def lower(value: Any) -> Any:
    """Return text in small letters, as distribution takes a level."""
    return value.lower() if isinstance(value, str) else value


def upper(value: Any) -> Any:
    """Return text in capitals, as distribution takes a storage class."""
    return value.upper() if isinstance(value, str) else value


def hostname(text: str) -> str:
    """Return a host's name or IPv4 address, in small letters."""
    if not _HOST.fullmatch(text):
        raise Invalid("not a host name")
    return text.lower()


def authority(text: str) -> str:
    """Return ``host`` or ``host:port``, in small letters; IPv6 stands in brackets."""
    host, port = _authority(text)
    host = f"[{host}]" if ":" in host else host
    return host if port is None else f"{host}:{port}"


def _authority(text: str) -> tuple[str, int | None]:
    parts = _AUTHORITY.fullmatch(text)
    if not parts:
        raise Invalid("expected host or host:port")
    host = hostname(parts["name"]) if parts["ipv6"] is None else ip(parts["ipv6"])
    return host, None if parts["port"] is None else _port(parts["port"])


def _port(text: str) -> int:
    if not _PORT.fullmatch(text) or (port := int(text)) > _PORT_LIMIT:
        raise Invalid("expected a port from 0 to 65535")
    return port


def ip(text: str) -> str:
    """Return an IP address, as it is usually written."""
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise Invalid("not an IP address") from None


def origin(text: str) -> str:
    """Return a registry's ``scheme://host[:port]``."""
    return _origin(
        text,
        login="use proxy.username and proxy.password",
        path="must not have a path: the API is taken to be at /v2/",
    )


def endpoint(text: str) -> str:
    """Return an object storage's ``scheme://host[:port]``."""
    return _origin(
        text,
        login="use storage.s3.accesskey and storage.s3.secretkey",
        path="must not have a path",
    )


def region_endpoint(text: str) -> str:
    """Return an object storage's ``scheme://host[:port]``, or ``host[:port]`` where it is short."""
    return endpoint(text) if "://" in text else authority(text)


def _origin(text: str, *, login: str, path: str) -> str:
    scheme, _, rest = text.partition("://")
    if scheme.lower() not in {"http", "https"}:
        raise Invalid("must begin with http:// or https://")
    if "@" in rest:
        raise Invalid(f"must not hold a login: {login}")
    if "?" in rest or "#" in rest:
        raise Invalid("must not have a query or a fragment")
    host, _, below = rest.partition("/")
    if below:
        raise Invalid(path)
    return f"{scheme.lower()}://{authority(host)}"


def bucket(text: str) -> str:
    """Return a bucket's name."""
    if not _BUCKET.fullmatch(text):
        raise Invalid("not a bucket's name")
    return text


def region(text: str) -> str:
    """Return a region's name, which stands in host names and signatures."""
    if not _REGION.fullmatch(text):
        raise Invalid("not a region's name")
    return text


def prefix(text: str) -> str:
    """Return what stands before every key in a bucket, without slashes around it.

    ``""``, ``/`` and ``/a/b/`` mean to distribution what they mean here.
    """
    if _CONTROL.search(text) or {".", ".."}.intersection(text.split("/")):
        raise Invalid("a control character, or . or .. for a directory")
    if len(text.encode()) > _PREFIX_LIMIT:
        raise Invalid(f"longer than {_PREFIX_LIMIT} bytes")
    return text.strip("/")


def pin(text: str) -> str:
    """Return a pattern of images: a repository's, and after a colon a tag's if not all are meant.

    Only what a name or a tag is made of, and ``*``, ``**`` and ``?``.
    """
    if not _PIN.fullmatch(text):
        raise Invalid("not a pattern like prod/** or base/python:3.*")
    try:
        pattern(text)
    except ValueError:
        raise Invalid("a pattern that no image can match, like prod** for prod/**") from None
    return text


def url_path(text: str) -> str:
    """Return a path to serve something at."""
    if not re.fullmatch(r"/[A-Za-z0-9._~/-]*", text):
        raise Invalid("expected a path like /metrics")
    return text


def header_name(text: str) -> str:
    """Return the name of a header (RFC 9110, 5.1)."""
    if not _TOKEN.fullmatch(text):
        raise Invalid("not a header's name")
    return text


def header_value(text: str) -> str:
    """Return the value of a header, without what could end it (RFC 9110, 5.5)."""
    if _CONTROL.search(text):
        raise Invalid("a control character, which no header may hold")
    return text


def realm(text: str) -> str:
    """Return a login's realm, which stands in quotes in WWW-Authenticate."""
    if _CONTROL.search(text) or '"' in text or "\\" in text or not text.isascii():
        raise Invalid("only plain ASCII without quotes and backslashes")
    return text


def username(text: str) -> str:
    """Return a user's name as Basic can carry it (RFC 7617, 2)."""
    if ":" in text or _CONTROL.search(text):
        raise Invalid("a colon or a control character, which Basic cannot carry")
    return text


def readable_file(path: Path) -> Path:
    """Return the path of a file that can be read now."""
    try:
        with path.open("rb") as file:
            file.read(1)
    except OSError as error:
        raise Invalid(f"cannot be read: {error.strerror}") from None
    return path


def ca_file(path: Path) -> Path:
    """Return the path of a file with certificates in PEM."""
    readable_file(path)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=path)
    except (OSError, ValueError):  # SSLError is an OSError
        raise Invalid("holds no certificate in PEM") from None
    return path


def password_file(path: Path) -> Path:
    """Return the path of a file that holds a password now."""
    read_password(path)
    return path


def read_password(path: Path) -> str:
    """Return the password in a file, without its line's end."""
    try:
        with path.open("rb") as file:
            content = file.read(PASSWORD_LIMIT + 1)
    except OSError as error:
        raise Invalid(f"cannot be read: {error.strerror}") from None
    if len(content) > PASSWORD_LIMIT:
        raise Invalid(f"larger than {PASSWORD_LIMIT} bytes")
    try:
        password = content.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        raise Invalid("not UTF-8") from None
    if not password:
        raise Invalid("empty")
    return password
