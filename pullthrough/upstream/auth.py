"""Logging in to a registry as it asks: Bearer tokens, Basic, nothing."""

from __future__ import annotations

import asyncio
import re
from base64 import b64encode
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final

import structlog
from aiohttp import hdrs
from cachetools import TLRUCache
from yarl import URL

from pullthrough.singleflight import SingleFlight
from pullthrough.upstream.answers import json_object, refusal
from pullthrough.upstream.base import Credential, Failure, UpstreamError
from pullthrough.upstream.challenge import Basic, Bearer, choose
from pullthrough.upstream.observe import Observer
from pullthrough.upstream.rest import Rest
from pullthrough.upstream.transport import ERROR_LIMIT, Reply, Transport

log = structlog.get_logger()

_REFUSED: Final = HTTPStatus.UNAUTHORIZED
_INCONCLUSIVE: Final = frozenset({403, *range(500, 600)})
_SCOPES = 4096
_WORD = re.compile(r"[!-~]{1,16384}")  # what may stand in a header, and no more than fits in one
_LIFETIME: Final = 60.0  # seconds, where the answer does not say (token spec)
_LONGEST_LIFETIME = 86400.0
_EARLY = 30.0  # seconds before its end, or a tenth of its life, that a token is renewed

Send = Callable[[str | None], Awaitable[Reply]]


@dataclass(frozen=True, slots=True)
class _Token:
    text: str = field(repr=False)
    until: float


class Auth:
    """The logins of one credential at one upstream. Another credential is another ``Auth``.

    ``flights`` are the token requests under way, of all logins that their owner has had; ``limit``
    bounds each, in seconds.
    """

    def __init__(
        self,
        upstream: URL,
        credential: Credential | None,
        transport: Transport,
        *,
        tokenhosts: frozenset[str],
        limit: float,
        clock: Callable[[], float],
        observer: Observer,
        flights: SingleFlight[tuple[Auth, str], str],
    ) -> None:
        self._upstream = upstream
        self._credential = credential
        self._basic = None if credential is None else _basic(credential)
        self._transport = transport
        self._tokenhosts = tokenhosts | {upstream.host or ""}
        self._limit = limit
        self._clock = clock
        self._observer = observer
        self._scheme: Bearer | Basic | None = None
        self._tokens: TLRUCache[str, _Token] = TLRUCache(
            _SCOPES, ttu=lambda _scope, token, _now: token.until, timer=clock
        )
        self._flights = flights
        self._rest = Rest(clock)

    async def exchange(self, scope: str, send: Send) -> Reply:
        """Return ``send``'s answer, sent with what the upstream asks for.

        A 401 gets at most: the login that it asks for, one new token (replicas of an HA registry do
        not always know each other's), then Basic. Raises :class:`UpstreamError`: UNAUTHORIZED when
        all that is refused, RESTED without asking.
        """
        if left := self._rest.left(scope):
            raise UpstreamError(
                Failure.RESTED,
                f"{self._upstream.host} refused the login too often",
                retry_after=left,
            )
        authorization = await self._known(scope)
        reply = await send(authorization)
        learnt = renewed = False
        tried = {authorization}
        while reply.status == _REFUSED and not reply.elsewhere:
            asked = choose(reply.headers.getall(hdrs.WWW_AUTHENTICATE, ()))
            with reply:
                error = await refusal(reply)
            news = asked != self._scheme or None in tried
            if isinstance(asked, Bearer) and news and not learnt:
                learnt = True
                self._learn(asked)
                authorization = await self._token(scope)
            elif asked and isinstance(self._scheme, Bearer) and not renewed:
                renewed = True
                self._forget(scope, authorization)
                authorization = await self._token(scope)
            elif asked and self._basic and self._basic not in tried:
                if self._scheme is None:
                    self._learn(asked)
                authorization = self._basic
            else:  # also without a challenge: so Harbor says that there is no such project
                await self._refused(scope)
                raise error
            tried.add(authorization)
            reply = await send(authorization)
        if authorization is not None and reply.status not in _INCONCLUSIVE:
            self._rest.accepted()
        return reply

    async def _known(self, scope: str) -> str | None:
        """Return what to send unasked: nothing until the scheme is known."""
        match self._scheme:
            case Bearer():
                return await self._token(scope)
            case Basic():
                return self._basic
            case None:
                return None

    def _learn(self, scheme: Bearer | Basic) -> None:
        if scheme == self._scheme:
            return
        self._scheme = scheme
        self._tokens.clear()
        if isinstance(scheme, Bearer) and self._basic and not self._may_login(scheme):
            log.warning(
                "the upstream's tokens come from a host that the credential is not sent to",
                upstream=self._upstream.host,
                host=scheme.realm.host,
            )

    def _may_login(self, scheme: Bearer) -> bool:
        """Whether our credential may go to this token service."""
        secure = scheme.realm.scheme == "https" or self._upstream.scheme == "http"
        return secure and scheme.realm.host in self._tokenhosts

    def _forget(self, scope: str, authorization: str | None) -> None:
        held = self._tokens.get(scope)
        if (
            held is not None and held.text == authorization
        ):  # else another call has renewed it already
            del self._tokens[scope]

    async def _token(self, scope: str) -> str:
        """Return the scope's token as a header's value; fetched once however many wait."""
        held = self._tokens.get(scope)
        if held is not None:
            return held.text
        return await self._flights.run((self, scope), lambda: self._renew(scope))

    async def _renew(self, scope: str) -> str:
        scheme = self._scheme
        if not isinstance(scheme, Bearer):
            raise TypeError("a token without a realm")
        try:
            token = await self._fetch(scheme, scope)
        except UpstreamError as error:
            self._observer.token_failure(error.failure.value)
            if error.failure in {Failure.UNAUTHORIZED, Failure.FORBIDDEN}:
                await self._refused(scope)
            raise
        self._tokens[scope] = token
        return token.text

    async def _fetch(self, scheme: Bearer, scope: str) -> _Token:
        """Fetch a token, for no scope to see whether the credential is good."""
        query = {"service": scheme.service} if scheme.service else {}
        if scope:
            query["scope"] = scope
        url = scheme.realm.extend_query(query)
        login = self._basic if self._may_login(scheme) else None
        try:
            async with asyncio.timeout(self._limit):
                with await self._transport.send("GET", url, authorization=login) as reply:
                    if reply.status != HTTPStatus.OK:
                        raise await refusal(reply)
                    return self._read(await reply.body(ERROR_LIMIT), reply.host)
        except TimeoutError:
            raise UpstreamError(Failure.TIMEOUT, f"{url.host}: no token in time") from None

    def _read(self, body: bytes, host: str) -> _Token:
        try:
            answer = json_object(body)
        except ValueError:
            answer = {}
        text = answer.get("token") or answer.get("access_token")
        if not isinstance(text, str) or not _WORD.fullmatch(text):
            raise UpstreamError(Failure.NOT_A_REGISTRY, f"{host}: a token answer without a token")
        lifetime = answer.get("expires_in")
        if not isinstance(lifetime, int | float) or lifetime <= 0:
            lifetime = _LIFETIME
        lifetime = min(float(lifetime), _LONGEST_LIFETIME)
        # From its arrival, not from issued_at: two clocks may differ by more than a token's life.
        return _Token(f"Bearer {text}", self._clock() + lifetime - min(lifetime / 10, _EARLY))

    async def _refused(self, scope: str) -> None:
        """Count a refusal; after a few in a row, see whose fault it is, and let that rest.

        A token service's refusal counts like any other: some refuse a good login for a scope that
        it may not have, so only an answer about the credential itself decides.
        """
        if not self._rest.refused():
            return
        if not await self._credential_is_bad():
            self._rest.rest_scope(scope)
            return
        seconds = self._rest.rest_credential()
        self._observer.credential_refused()
        log.error(
            "upstream refuses the credential: only cached content is served",
            upstream=self._upstream.host,
            username=self._credential.username if self._credential else None,
            next_try_in=seconds,
        )

    async def _credential_is_bad(self) -> bool:
        """Ask about the credential itself; False if it is good, or none, or nobody can say.

        A token for a scope proves nothing: Harbor gives an anonymous one to a wrong password.
        """
        if self._basic is None:
            return False
        try:
            if isinstance(self._scheme, Bearer):
                if self._may_login(self._scheme):
                    await self._fetch(self._scheme, "")
                return False
            url = self._upstream / "v2" / ""
            async with asyncio.timeout(self._limit):
                with await self._transport.send("GET", url, authorization=self._basic) as reply:
                    return reply.status == _REFUSED and not reply.elsewhere
        except UpstreamError as error:
            return error.failure in {Failure.UNAUTHORIZED, Failure.FORBIDDEN}
        except TimeoutError:
            return False


def _basic(credential: Credential) -> str:
    login = f"{credential.username}:{credential.password}".encode()
    return f"Basic {b64encode(login).decode()}"
