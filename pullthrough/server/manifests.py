"""Manifests on the wire."""

from __future__ import annotations

from aiohttp import web

from pullthrough.cache.manifests import Manifests
from pullthrough.server.base import Exchange, matches
from pullthrough.server.routes import ManifestRoute


async def serve_manifest(
    exchange: Exchange, route: ManifestRoute, manifests: Manifests
) -> web.Response:
    """Answer GET and HEAD of a manifest; raises :class:`RegistryError`."""
    answer = await manifests.get(route.repository, route.reference)
    exchange.mark(answer.served)
    digest = str(answer.digest)
    exchange.headers["Docker-Content-Digest"] = digest
    exchange.headers["ETag"] = f'"{digest}"'
    if matches(exchange.request.headers.get("If-None-Match"), digest):
        return exchange.not_modified()
    return exchange.reply(answer.content, answer.media_type)
