"""What every handler is given and gives: the headers that all answers share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

import orjson
from aiohttp import web
from multidict import CIMultiDict

from pullthrough.cache.base import Outcome, Served
from pullthrough.oci.errors import RegistryError, TooManyRequests, Unauthorized

_CACHE_STATUS: Final = {
    Outcome.HIT: "hit",
    Outcome.REVALIDATED: "hit; detail=revalidated",
    Outcome.MISS: "fwd=miss; stored",
    Outcome.COLLAPSED: "fwd=miss; collapsed",
    Outcome.BYPASS: "fwd=miss",
    Outcome.STALE: "fwd=stale",
}

_STALE_WARNING: Final = '110 - "Response is Stale"'


@lru_cache
def cache_status(served: Served) -> str:
    """Return the Cache-Status header's value."""
    value = f"pullthrough; {_CACHE_STATUS[served.outcome]}"
    return f"{value}; detail={served.detail}" if served.detail else value


@dataclass(slots=True)
class Exchange:
    """One request, as its handler and the access log see it."""

    request: web.BaseRequest
    headers: CIMultiDict[str]
    """The answer's, begun with what every answer carries."""
    served: Served | None = None
    user: str = ""
    bytes_sent: int = 0
    response: web.StreamResponse | None = field(default=None)

    @property
    def is_head(self) -> bool:
        """Whether only the headers are wanted."""
        return self.request.method == "HEAD"

    def mark(self, served: Served) -> None:
        """Say how the answer was come by (RFC 9211; Warning 110 of RFC 7234 for older readers)."""
        self.served = served
        self.headers["Cache-Status"] = cache_status(served)
        if served.outcome is Outcome.STALE:
            self.headers["Warning"] = _STALE_WARNING

    def reply(self, body: bytes, content_type: str, status: int = 200) -> web.Response:
        """Return a small answer; for HEAD its length without its bytes."""
        self.headers["Content-Type"] = content_type
        if self.is_head:
            self.headers["Content-Length"] = str(len(body))
            return web.Response(status=status, headers=self.headers)
        self.bytes_sent = len(body)
        return web.Response(status=status, body=body, headers=self.headers)

    def not_modified(self) -> web.Response:
        """Return the answer to a client that has it already."""
        return web.Response(status=304, headers=self.headers)

    def error(self, error: RegistryError, realm: str) -> web.Response:
        """Return an error in the registry's own format (distribution-spec, "Error Codes")."""
        if isinstance(error, Unauthorized):
            self.headers["WWW-Authenticate"] = f'Basic realm="{realm}"'
        if isinstance(error, TooManyRequests) or error.retry_after is not None:
            self.headers["Retry-After"] = str(max(1, round(error.retry_after or 1)))
        if "Cache-Status" not in self.headers:
            self.headers["Cache-Status"] = (
                f"pullthrough; fwd=miss; detail={error.code.lower()}"
                if error.status >= 500 or error.status in (404, 429)  # noqa: PLR2004 - HTTP's own numbers
                else f"pullthrough; fwd=bypass; detail={error.code.lower()}"
            )
        entry = {"code": error.code, "message": error.message, "detail": error.detail or None}
        return self.reply(orjson.dumps({"errors": [entry]}), "application/json", error.status)


def matches(header: str | None, etag: str) -> bool:
    """Whether If-None-Match names ``etag``, with quotes or, as docker has sent it, without."""
    if not header:
        return False
    if header.strip() == "*":
        return True
    return any(tag.strip().removeprefix("W/").strip('"') == etag for tag in header.split(","))


def flat(headers: Mapping[str, Sequence[str]]) -> list[tuple[str, str]]:
    """Return configured headers as pairs."""
    return [(name, value) for name, values in headers.items() for value in values]
