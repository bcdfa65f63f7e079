"""A registry as a source of content: what is asked, within which time, and what answers mean."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import orjson
from aiohttp import hdrs
from yarl import URL

from pullthrough import __version__
from pullthrough.oci import manifest
from pullthrough.oci.digest import Digest
from pullthrough.oci.errors import NameInvalid
from pullthrough.oci.reference import Repository, Tag
from pullthrough.singleflight import SingleFlight
from pullthrough.upstream.answers import (
    claimed,
    is_encoded,
    is_page,
    json_object,
    next_page,
    nonsense,
    refusal,
)
from pullthrough.upstream.auth import Auth
from pullthrough.upstream.base import (
    BlobBody,
    Credential,
    Failure,
    FetchedManifest,
    ManifestHead,
    UpstreamError,
)
from pullthrough.upstream.body import Body
from pullthrough.upstream.breaker import Breaker
from pullthrough.upstream.health import Health
from pullthrough.upstream.observe import Observer, Unobserved
from pullthrough.upstream.retry import PASSING, Sleep, retrying
from pullthrough.upstream.transport import Reply, Transport

T = TypeVar("T")

_PAGE_LIMIT = 8 * 1024 * 1024
_LIST_LIMIT = 64 * 1024 * 1024
_PAGES = 1000
_HEAD_PATIENCE = 1.0  # seconds: a tag check has a short deadline, and a cached answer behind it
_HEAD_PASSING: Final = PASSING - {Failure.REFUSED}  # nobody listens: that is an answer
_OK = HTTPStatus.OK
_ABSENT: Final = frozenset({HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED})


@dataclass(frozen=True, slots=True)
class Settings:
    """An upstream: where it is, how to log in, and how long to wait; times are in seconds.

    ``resolve`` maps host names to addresses. ``tokenhosts`` are other hosts than the upstream's
    that may be sent the credential for a token. ``connect`` bounds one try's connection,
    ``firstbyte`` the whole wait for an answer, ``stall`` a pause within a blob.
    """

    url: str
    credential: Credential | None = None
    resolve: Mapping[str, str] = field(default_factory=dict)
    cafile: Path | None = None
    skipverify: bool = False
    tokenhosts: frozenset[str] = frozenset()
    connect: float = 5.0
    firstbyte: float = 25.0
    stall: float = 15.0
    retries: int = 2
    user_agent: str = f"pullthrough/{__version__}"


class RegistryClient:
    """A :class:`pullthrough.upstream.base.Source`, open as a context; asks nothing before a call.

    ``breaker`` may be shared with other worker processes. Raises :class:`OSError` when
    ``cafile`` cannot be used.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        breaker: Breaker | None = None,
        observe: Observer | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._settings = settings
        self._url = URL(settings.url.rstrip("/")).with_user(None)
        self._observer: Observer = observe or Unobserved()
        self._clock = clock
        self._sleep = sleep
        self._transport = Transport(
            self._url,
            resolve=settings.resolve,
            cafile=settings.cafile,
            skipverify=settings.skipverify,
            connect=settings.connect,
            user_agent=settings.user_agent,
            received=self._observer.bytes_received,
        )
        self._health = Health(
            self._url,
            self._transport,
            breaker or Breaker(),
            limit=min(settings.connect + 2, 5.0),
            clock=clock,
            sleep=sleep,
        )
        self._flights: SingleFlight[tuple[Auth, str], str] = SingleFlight()
        self._auth = self._login(settings.credential)
        self._open = AsyncExitStack()

    async def __aenter__(self) -> Self:
        await self._open.enter_async_context(self._transport)
        self._open.push_async_callback(self._flights.close)
        await self._open.enter_async_context(self._health)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._open.aclose()

    def set_credential(self, credential: Credential | None) -> None:
        """Log in with ``credential`` from now on: old tokens are forgotten, any rest ends."""
        self._auth = self._login(credential)

    def _login(self, credential: Credential | None) -> Auth:
        return Auth(
            self._url,
            credential,
            self._transport,
            tokenhosts=self._settings.tokenhosts,
            limit=self._settings.firstbyte,
            clock=self._clock,
            observer=self._observer,
            flights=self._flights,
        )

    @property
    def up(self) -> bool:
        """False while the breaker counts the upstream as down."""
        return self._health.up

    def overdue(self) -> None:
        """Count the upstream as down until it answers, be it the call that was too slow."""
        self._health.overdue()

    async def head_manifest(self, repository: Repository, reference: Tag | Digest) -> ManifestHead:
        """Ask which digest ``reference`` has now.

        By GET where HEAD does not say, and where it says 404: without a body, that may be anybody.
        """

        async def attempt() -> ManifestHead:
            with await self._send("HEAD", repository, path, manifest.ACCEPT) as reply:
                digest = claimed(reply)
                if reply.status == _OK and digest is not None:
                    return ManifestHead(digest)
                if reply.status != _OK and reply.status not in _ABSENT:
                    raise await refusal(reply)
            fetched = await self._fetch_manifest(repository, path)
            return ManifestHead(Digest.of(fetched.content, algorithm))

        path = f"manifests/{reference}"
        algorithm = reference.algorithm if isinstance(reference, Digest) else "sha256"
        return await self._call(
            "head_manifest", attempt, retries=1, patience=_HEAD_PATIENCE, passing=_HEAD_PASSING
        )

    async def get_manifest(
        self, repository: Repository, reference: Tag | Digest
    ) -> FetchedManifest:
        """Fetch a manifest; of one that is too large, a byte more than the limit for all to see."""
        return await self._call(
            "get_manifest", lambda: self._fetch_manifest(repository, f"manifests/{reference}")
        )

    async def head_blob(self, repository: Repository, digest: Digest) -> int:
        """Return a blob's size in bytes.

        A 404 is believed, though a proxy project of Harbor's gives one for what GET would fetch.
        """

        async def attempt() -> int:
            with await self._send("HEAD", repository, f"blobs/{digest}") as reply:
                if reply.status == HTTPStatus.NOT_FOUND and not reply.elsewhere:
                    message = f"{reply.host} has no {digest} in {repository}"
                    raise UpstreamError(Failure.NOT_FOUND, message, status=reply.status)
                if reply.status != _OK:
                    raise await refusal(reply)
                if reply.length is None or is_page(reply, digest):
                    raise nonsense(reply, "a blob without a length, or a page in its place")
                return reply.length

        return await self._call("head_blob", attempt)

    @asynccontextmanager
    async def get_blob(
        self, repository: Repository, digest: Digest, *, start: int = 0, end: int | None = None
    ) -> AsyncIterator[BlobBody]:
        """Open a download from byte ``start`` up to, without, ``end``.

        What breaks in mid-body is not tried again here. A range that the blob does not have
        raises CUT with status 416. Leaving early closes the connection at once.
        """
        whole = not start and end is None
        asked = None if whole else f"bytes={start}-{'' if end is None else end - 1}"

        async def attempt() -> Reply:
            reply = await self._send("GET", repository, f"blobs/{digest}", asked=asked)
            if reply.status in {_OK, HTTPStatus.PARTIAL_CONTENT} and not is_page(reply, digest):
                return reply
            if reply.status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and not whole:
                return reply
            with reply:
                if reply.status == _OK:
                    raise nonsense(reply, "a page in a blob's place")
                raise await refusal(reply)

        with await self._call("get_blob", attempt) as reply:
            if reply.status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                message = f"{reply.host} has no such range"
                raise UpstreamError(Failure.CUT, message, status=reply.status)
            yield Body(reply, start, end, stall=self._settings.stall)

    async def tags(self, repository: Repository) -> tuple[str, ...]:
        """Return all the repository's tags, in the upstream's order; what is no tag is left out."""

        async def attempt() -> tuple[str, ...]:
            pages = await self._pages(repository, "tags/list", "application/json", "tags")
            names = (name for page in pages for name in page.entries)
            return tuple(dict.fromkeys(name for name in names if _is_tag(name)))

        return await self._call("tags", attempt)

    async def referrers(self, repository: Repository, digest: Digest) -> bytes | None:
        """Return the index of ``digest``'s referrers, its pages merged; None without such an API.

        Any 404 means that: the cache asks for the referrers' tag next, whose 404 has to prove
        itself.
        """

        async def attempt() -> bytes | None:
            pages = await self._pages(
                repository, f"referrers/{digest}", manifest.OCI_INDEX, "manifests", absent=_ABSENT
            )
            if not pages:
                return None
            if len(pages) == 1:
                return pages[0].content
            merged = [entry for page in pages for entry in page.entries]
            return orjson.dumps(json_object(pages[0].content) | {"manifests": merged})

        return await self._call("referrers", attempt)

    async def _send(
        self,
        method: str,
        repository: Repository,
        path: str | URL,
        accept: str = "*/*",
        *,
        asked: str | None = None,
    ) -> Reply:
        """Ask for ``path`` in ``repository``, logged in as the upstream wants it."""
        if isinstance(path, str):
            # Every part is valid by construction, so nothing needs quoting.
            path = URL(f"{self._url}/v2/{repository}/{path}", encoded=True)
        url, headers = path, {str(hdrs.ACCEPT): accept}
        if asked is not None:
            headers[hdrs.RANGE] = asked

        async def send(authorization: str | None) -> Reply:
            return await self._transport.send(
                method, url, headers=headers, authorization=authorization
            )

        reply = await self._auth.exchange(f"repository:{repository}:pull", send)
        if reply.status in {_OK, HTTPStatus.PARTIAL_CONTENT} and is_encoded(reply):
            reply.close()
            raise nonsense(reply, "content that was compressed on its way")
        return reply

    async def _fetch_manifest(self, repository: Repository, path: str) -> FetchedManifest:
        with await self._send("GET", repository, path, manifest.ACCEPT) as reply:
            if reply.status != _OK:
                raise await refusal(reply)
            if is_page(reply):
                raise nonsense(reply, "a page in a manifest's place")
            content = await reply.body(manifest.LIMIT + 1)
            content_type = reply.headers.get(hdrs.CONTENT_TYPE, "")
            return FetchedManifest(content, content_type, claimed(reply))

    async def _pages(
        self,
        repository: Repository,
        path: str,
        accept: str,
        key: str,
        *,
        absent: frozenset[HTTPStatus] = frozenset(),
    ) -> list[_Page]:
        """Return a list's pages, its entries under ``key``; none for an ``absent`` status."""
        pages: list[_Page] = []
        size = 0
        url: str | URL | None = path
        while url is not None:
            with await self._send("GET", repository, url, accept) as reply:
                if reply.status in absent and not pages and not reply.elsewhere:
                    return []
                if reply.status != _OK:
                    raise await refusal(reply)
                content = await reply.body(_PAGE_LIMIT + 1)
            size += len(content)
            if len(content) > _PAGE_LIMIT or size > _LIST_LIMIT or len(pages) == _PAGES:
                raise nonsense(reply, "a list without an end")
            pages.append(_Page(content, _entries(reply, content, key)))
            url = next_page(reply)
        return pages

    async def _call(
        self,
        operation: str,
        attempt: Callable[[], Awaitable[T]],
        *,
        retries: int = 2,
        patience: float | None = None,
        passing: frozenset[Failure] = PASSING,
    ) -> T:
        """Run ``attempt`` within ``firstbyte``, again where that helps, and say how it went."""
        limit = self._settings.firstbyte
        began = self._clock()
        outcome = "cancelled"
        try:
            try:
                async with asyncio.timeout(limit):
                    await self._health.require()
                    result = await retrying(
                        attempt,
                        tries=min(retries, self._settings.retries) + 1,
                        patience=patience or limit - (self._clock() - began),
                        sleep=self._sleep,
                        passing=passing,
                    )
            except TimeoutError:
                message = f"{self._url.host}: no answer in {limit:g} s"
                raise UpstreamError(Failure.TIMEOUT, message) from None
        except UpstreamError as error:
            outcome = error.failure.value
            self._health.failed(error)
            raise
        else:
            outcome = "ok"
            self._health.answered()
            return result
        finally:
            self._observer.request(operation, outcome, self._clock() - began)


@dataclass(frozen=True, slots=True)
class _Page:
    content: bytes
    entries: list[Any]


def _entries(reply: Reply, content: bytes, key: str) -> list[Any]:
    try:
        entries = json_object(content)[key]
    except (ValueError, KeyError):
        raise nonsense(reply, f"no list of {key}") from None
    if entries is None:  # how Go's registries write an empty list
        return []
    if not isinstance(entries, list):
        raise nonsense(reply, f"no list of {key}")
    return entries


def _is_tag(name: Any) -> bool:
    try:
        return isinstance(name, str) and bool(Tag.parse(name))
    except NameInvalid:
        return False
