"""What an answer means: a registry's word, a failure that passes, or what no registry says."""

from __future__ import annotations

import re
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

import orjson
from aiohttp import hdrs
from yarl import URL

from pullthrough.oci.digest import Digest
from pullthrough.oci.errors import DigestInvalid
from pullthrough.upstream.base import Failure, UpstreamError
from pullthrough.upstream.retry import retry_after
from pullthrough.upstream.transport import ERROR_LIMIT, ElsewhereError, Reply

API_VERSION: Final = "Docker-Distribution-Api-Version"
_DIGEST: Final = "Docker-Content-Digest"
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)", re.IGNORECASE)
_LINK = re.compile(r"<([^<>]*)>((?:\s*;\s*[^;,<>]+)*)")
_NEXT = re.compile(r';\s*rel\s*=\s*"?next"?\s*(?:;|$)', re.IGNORECASE)
_REFUSALS: Final[dict[int, Failure]] = {
    HTTPStatus.UNAUTHORIZED: Failure.UNAUTHORIZED,
    HTTPStatus.FORBIDDEN: Failure.FORBIDDEN,
    HTTPStatus.NOT_FOUND: Failure.NOT_FOUND,
    HTTPStatus.PRECONDITION_FAILED: Failure.POLICY,
    HTTPStatus.TOO_MANY_REQUESTS: Failure.RATE_LIMITED,
}
_BELIEVED: Final = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.TOO_MANY_REQUESTS})
_WORDS = 300  # characters of the upstream's own message that are passed on


@dataclass(frozen=True, slots=True)
class Span:
    """A Content-Range: offsets in bytes, ``end`` exclusive, ``total`` None for ``*``."""

    start: int
    end: int
    total: int | None


async def refusal(reply: Reply) -> UpstreamError:
    """Return what an answer other than success means; reads at most ``ERROR_LIMIT`` bytes of it."""
    status, seconds = reply.status, retry_after(reply.headers.get(hdrs.RETRY_AFTER))
    if reply.elsewhere:
        # An object store's refusal, its 404 and 403 too, is not the registry's word on the content.
        message = f"{reply.host}, where the upstream redirected to, answers {status}"
        return ElsewhereError(Failure.SERVER_ERROR, message, status=status, retry_after=seconds)
    said = api_error(await reply.body(ERROR_LIMIT))
    message = f"{reply.host} answers {status} {said or ''}".rstrip()
    failure = _failure(status, said=said is not None, page=is_page(reply))
    return UpstreamError(failure, message, status=status, retry_after=seconds)


def _failure(status: int, *, said: bool, page: bool) -> Failure:
    """Return what ``status`` means when it came with the API's JSON, or with an HTML page."""
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return Failure.SERVER_ERROR
    # A front's own page about a login or a limit is as good as the registry's JSON; but not what
    # it says about content.
    believed = said or status in _BELIEVED or (status != HTTPStatus.NOT_FOUND and not page)
    return _REFUSALS.get(status, Failure.NOT_A_REGISTRY) if believed else Failure.NOT_A_REGISTRY


def nonsense(reply: Reply, what: str) -> UpstreamError:
    """Return the error for an answer that no registry gives."""
    message = f"{reply.host} sends {what}"
    return UpstreamError(Failure.NOT_A_REGISTRY, message, status=reply.status)


def api_error(body: bytes) -> str | None:
    """Return the first error of the API's JSON as "CODE: message", None if it is no such JSON."""
    try:
        errors = json_object(body).get("errors")
    except ValueError:
        return None
    if not isinstance(errors, list) or not errors:
        return None
    if not all(isinstance(error, dict) and isinstance(error.get("code"), str) for error in errors):
        return None
    text = f"{errors[0]['code']}: {errors[0].get('message', '')}"[:_WORDS]
    return "".join(letter if letter.isprintable() else " " for letter in text)


def is_page(reply: Reply, expected: Digest | None = None) -> bool:
    """Whether an answer is HTML: a portal's page, unless it says that it is ``expected``."""
    content_type = reply.headers.get(hdrs.CONTENT_TYPE, "").partition(";")[0].strip().lower()
    if content_type not in {"text/html", "application/xhtml+xml"}:
        return False
    return expected is None or claimed(reply) != expected


def is_encoded(reply: Reply) -> bool:
    """Whether the body was compressed on its way, though that was not allowed."""
    return reply.headers.get(hdrs.CONTENT_ENCODING, "identity").strip().lower() not in {
        "",
        "identity",
    }


def claimed(reply: Reply) -> Digest | None:
    """Return the Docker-Content-Digest, None where there is none that can be verified."""
    try:
        return Digest.parse(reply.headers.get(_DIGEST, "").strip())
    except DigestInvalid:
        return None


def span(reply: Reply) -> Span | None:
    """Return the Content-Range, None where it is missing or nonsense (RFC 9110, 14.4)."""
    match = _CONTENT_RANGE.fullmatch(reply.headers.get(hdrs.CONTENT_RANGE, "").strip())
    if match is None:
        return None
    first, last = int(match[1]), int(match[2])
    total = None if match[3] == "*" else int(match[3])
    if last < first or (total is not None and last >= total):
        return None
    return Span(first, last + 1, total)


def next_page(reply: Reply) -> URL | None:
    """Return the address of the next page, always on the upstream's own origin; None at the last.

    Behind a proxy that ends TLS, registries name their own host with the wrong scheme, so of a
    link to the same host only path and query count. A link to another host raises NOT_A_REGISTRY:
    without it, a list's beginning would pass for the whole.
    """
    here = reply.url
    for target, parameters in _LINK.findall(reply.headers.get(hdrs.LINK, "")[:8192]):
        if _NEXT.search(parameters):
            try:
                link = here.join(URL(target))
            except ValueError:
                break
            if reply.elsewhere or link.host != here.host:
                break
            return here.origin().join(link.relative())
    else:
        return None
    raise nonsense(reply, "a next page that is not its own")


def json_object(body: bytes) -> dict[str, Any]:
    """Return the JSON object in ``body``; raises :class:`ValueError` when it is none."""
    document = orjson.loads(body)
    if not isinstance(document, dict):
        raise ValueError("not a JSON object")  # noqa: TRY004 - one error for all that is none
    return document


def is_api(reply: Reply, body: bytes) -> bool:
    """Whether an answer to ``GET /v2/`` is a registry's: 200, or 401, in the API's shape."""
    refused = reply.status == HTTPStatus.UNAUTHORIZED
    if reply.elsewhere or not (refused or reply.status == HTTPStatus.OK):
        return False
    if API_VERSION in reply.headers or (refused and hdrs.WWW_AUTHENTICATE in reply.headers):
        return True
    try:
        json_object(body)
    except ValueError:
        return False
    return True
