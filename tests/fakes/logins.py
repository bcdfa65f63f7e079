"""Harbor's ways to log in: the token service, and what it says to those who may not."""

from __future__ import annotations

import base64
import binascii
import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import Enum
from typing import Any


@dataclass(frozen=True)
class Reply:
    """An answer before any fault; ``offset`` is where in the content its body starts."""

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)
    offset: int = 0

    def with_headers(self, more: Mapping[str, str]) -> Reply:
        return replace(self, headers={**self.headers, **more})


def error(status: int, code: str, message: str) -> Reply:
    """Return an error in the API's JSON."""
    document = {"errors": [{"code": code, "message": message}]}
    body = json.dumps(document).encode()
    return Reply(status, body, {"Content-Type": "application/json; charset=utf-8"})


class Login(Enum):
    """What the registry wants to see."""

    NONE = "none"
    BASIC = "basic"
    BEARER = "bearer"


@dataclass
class Token:
    """A token that was given out; an anonymous one opens nothing."""

    scope: str
    anonymous: bool
    expires: float
    uses: int = 0


@dataclass
class LoginDesk:
    """Who may come in. The switches can be set at any time.

    ``glitches`` is how many first uses of each new token are refused (Harbor HA);
    ``refuse_tokens`` refuses all of them; ``realm`` is the token service's address where it is
    not this registry's own; ``token_lifetime`` is in seconds; ``token_fields`` are those of the
    token service's answer that are given.
    """

    login: Login
    scheme: str = "http"
    username: str = "robot$region"
    password: str = "upstream-secret"
    glitches: int = 0
    refuse_tokens: bool = False
    forbid: bool = False  # a right login without permission
    realm: str | None = None
    token_lifetime: float = 1800
    token_fields: tuple[str, ...] = ("token", "expires_in", "issued_at")
    tokens: dict[str, Token] = field(default_factory=dict, repr=False)

    def token(self, headers: Mapping[str, str], query: Mapping[str, str]) -> Reply:
        """Answer for the token service: with a scope, anyone gets a token, if an anonymous one."""
        known = self._is_right(headers.get("Authorization", ""))
        scope = query.get("scope", "")
        if not known and not scope:
            return error(401, "UNAUTHORIZED", "authentication required")
        text = secrets.token_urlsafe(24)
        expires = time.monotonic() + self.token_lifetime
        self.tokens[text] = Token(scope, not known, expires)
        document: dict[str, Any] = {
            "token": text,
            "access_token": text,
            "expires_in": int(self.token_lifetime),
            "issued_at": datetime.now(UTC).isoformat(),
        }
        given = {name: document[name] for name in self.token_fields}
        return Reply(200, json.dumps(given).encode(), {"Content-Type": "application/json"})

    def refusal(self, headers: Mapping[str, str], host: str, name: str | None) -> Reply | None:
        """Return the answer that keeps a request for repository ``name`` out, None to let it in."""
        if self.login is Login.NONE:
            return None
        given = headers.get("Authorization", "")
        scope = f"repository:{name}:pull" if name else ""
        if not self._is_right(given) and not (
            self.login is Login.BEARER and self._opens(given, scope)
        ):
            return self._challenge(host, scope)
        if self.forbid:
            denied = error(401, "UNAUTHORIZED", "unauthorized to access repository")
            return denied.with_headers({"WWW-Authenticate": 'Basic realm="harbor"'})
        return None

    def _challenge(self, host: str, scope: str) -> Reply:
        challenge = 'Basic realm="harbor"'
        if self.login is Login.BEARER:
            realm = self.realm or f"{self.scheme}://{host}/service/token"
            challenge = f'Bearer realm="{realm}",service="harbor-registry"'
            if scope:
                challenge += f',scope="{scope}"'
        refused = error(401, "UNAUTHORIZED", "unauthorized to access repository")
        return refused.with_headers({"WWW-Authenticate": challenge})

    def _is_right(self, authorization: str) -> bool:
        scheme, _, value = authorization.partition(" ")
        if scheme.lower() != "basic":
            return False
        try:
            given = base64.b64decode(value, validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            return False
        return given == f"{self.username}:{self.password}"

    def _opens(self, authorization: str, scope: str) -> bool:
        scheme, _, value = authorization.partition(" ")
        token = self.tokens.get(value)
        if scheme.lower() != "bearer" or token is None or self.refuse_tokens:
            return False
        token.uses += 1
        if token.anonymous or token.expires < time.monotonic() or token.uses <= self.glitches:
            return False
        return not scope or scope in token.scope.split(" ")
