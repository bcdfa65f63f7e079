"""The WWW-Authenticate header as registries send it (RFC 9110, 11.6.1; distribution's tokens)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from yarl import URL

_LIMIT = 8192
_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # noqa: S105 - the grammar's word for a name, no secret
_GAP = re.compile(r"[\s,]*")
_PARAMETER = re.compile(rf'({_TOKEN})[ \t]*=[ \t]*(?:"((?:[^"\\]|\\.)*)"|({_TOKEN})(?=[\s,]|$))')
_SCHEME = re.compile(rf"({_TOKEN})(?=[\s,]|$)")
_TOKEN68 = re.compile(r"[ \t]+[A-Za-z0-9._~+/-]+=*[ \t]*(?=,|$)")
_ESCAPE = re.compile(r"\\(.)")


@dataclass(frozen=True, slots=True)
class Challenge:
    """One scheme, lower-cased, with its parameters, their names lower-cased."""

    scheme: str
    parameters: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Bearer:
    """Fetch a token at ``realm`` for ``service``."""

    realm: URL
    service: str


@dataclass(frozen=True, slots=True)
class Basic:
    """Send the user and password with every request."""


def parse(headers: Iterable[str]) -> tuple[Challenge, ...]:
    """Return the challenges of all headers in their order, without what follows a mistake."""
    found: list[Challenge] = []
    for header in headers:
        _parse_one(header[:_LIMIT], found)
    return tuple(found)


def choose(headers: Iterable[str]) -> Bearer | Basic | None:
    """Return what a 401 asks for: a usable Bearer before Basic, None for neither."""
    challenges = parse(headers)
    for challenge in challenges:
        if challenge.scheme == "bearer" and (bearer := _bearer(challenge.parameters)):
            return bearer
    return Basic() if any(challenge.scheme == "basic" for challenge in challenges) else None


def _bearer(parameters: dict[str, str]) -> Bearer | None:
    try:
        realm = URL(parameters.get("realm", ""))
        usable = realm.scheme in {"http", "https"} and bool(realm.host) and realm.port is not None
    except ValueError:
        return None
    # A login inside the realm is not ours to send.
    return Bearer(realm.with_user(None), parameters.get("service", "")) if usable else None


def _parse_one(text: str, found: list[Challenge]) -> None:
    position = _after(_GAP.match(text))
    current: dict[str, str] | None = None
    while position < len(text):
        if current is not None and (parameter := _PARAMETER.match(text, position)):
            name, quoted, plain = parameter.groups()
            value = plain if quoted is None else _ESCAPE.sub(r"\1", quoted)
            current.setdefault(name.lower(), value)
            position = parameter.end()
        elif scheme := _SCHEME.match(text, position):
            current = {}
            found.append(Challenge(scheme[1].lower(), current))
            position = scheme.end()
            if blob := _TOKEN68.match(text, position):
                # "Negotiate abc=": one opaque word; but "Basic, Bearer …" has none.
                position = blob.end()
        else:
            return
        position = _after(_GAP.match(text, position))


def _after(match: re.Match[str] | None) -> int:
    return match.end() if match else 0
