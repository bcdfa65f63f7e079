"""A server tried once, by who wants to know before it matters: is it up, does it let us in."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Final

from aiohttp import hdrs
from yarl import URL

from pullthrough.singleflight import SingleFlight
from pullthrough.upstream.answers import is_api, nonsense, refusal
from pullthrough.upstream.auth import Auth
from pullthrough.upstream.base import Failure, UpstreamError
from pullthrough.upstream.client import Settings
from pullthrough.upstream.observe import Unobserved
from pullthrough.upstream.transport import ERROR_LIMIT, Reply, Transport

_NO_SCOPE: Final = ""
"""A token for no repository: with one, Harbor gives an anonymous token to a wrong password."""


async def log_in(settings: Settings) -> float:
    """Ask for ``/v2/``, with nothing and then with the login; return how far our clock is ahead.

    In seconds. Raises :class:`UpstreamError`, UNAUTHORIZED for a login that is refused, and
    :class:`OSError` when ``cafile`` cannot be used.
    """
    ahead = 0.0
    flights: SingleFlight[tuple[Auth, str], str] = SingleFlight()
    async with _transport(settings) as transport:
        auth = Auth(
            URL(settings.url), settings.credential, transport, tokenhosts=settings.tokenhosts,
            limit=settings.firstbyte, clock=time.monotonic, observer=Unobserved(), flights=flights,
        )  # fmt: skip

        async def send(authorization: str | None) -> Reply:
            nonlocal ahead
            url = URL(settings.url) / "v2" / ""
            reply = await transport.send("GET", url, authorization=authorization)
            ahead = _ahead(reply)
            return reply

        try:
            async with asyncio.timeout(settings.firstbyte):
                with await send(None) as reply:
                    if reply.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
                        raise await refusal(reply)
                    if not is_api(reply, await reply.body(ERROR_LIMIT)):
                        raise nonsense(reply, f"what no registry does, with status {reply.status}")
                    proof = reply.status == HTTPStatus.UNAUTHORIZED and settings.credential
                if proof:
                    with await auth.exchange(_NO_SCOPE, send) as reply:
                        if reply.status != HTTPStatus.OK:
                            raise await refusal(reply)
        except TimeoutError:
            raise UpstreamError(Failure.TIMEOUT, f"no answer in {settings.firstbyte:g} s") from None
        finally:
            await flights.close()
    return ahead


async def look(url: str, settings: Settings) -> float:
    """Ask for ``url``, whatever it answers; return how far our clock is ahead, in seconds.

    Raises :class:`UpstreamError`.
    """
    async with _transport(replace(settings, url=url)) as transport:
        try:
            async with asyncio.timeout(settings.firstbyte):
                with await transport.send("GET", URL(url)) as reply:
                    return _ahead(reply)
        except TimeoutError:
            raise UpstreamError(Failure.TIMEOUT, "no answer in time") from None


def _transport(settings: Settings) -> Transport:
    return Transport(
        URL(settings.url), resolve=settings.resolve, cafile=settings.cafile,
        skipverify=settings.skipverify, connect=settings.connect, user_agent=settings.user_agent,
        received=lambda _: None,
    )  # fmt: skip


def _ahead(reply: Reply) -> float:
    """Return how far our clock is ahead of an answer's Date, 0 where that does not say."""
    try:
        return time.time() - parsedate_to_datetime(reply.headers.get(hdrs.DATE, "")).timestamp()
    except ValueError:
        return 0.0
