"""Lists on the wire: tags, referrers, the catalog."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import urlencode

import orjson
from aiohttp import web

from pullthrough.cache.base import Outcome, Served
from pullthrough.cache.listings import Listings
from pullthrough.oci import referrers
from pullthrough.oci.manifest import OCI_INDEX
from pullthrough.server.base import Exchange
from pullthrough.server.routes import CatalogRoute, ReferrersRoute, TagsRoute


async def serve_tags(exchange: Exchange, route: TagsRoute, listings: Listings) -> web.Response:
    """Answer tags/list; raises :class:`RegistryError`."""
    tags, served = await listings.tags(route.repository)
    exchange.mark(served)
    page = _page(exchange, f"/v2/{route.repository}/tags/list", tags, route.n, route.last)
    body = orjson.dumps({"name": route.repository.name, "tags": page})
    return exchange.reply(body, "application/json")


async def serve_catalog(
    exchange: Exchange, route: CatalogRoute, listings: Listings
) -> web.Response:
    """Answer with the repositories of which something is cached."""
    repositories = await listings.repositories()
    exchange.mark(Served(Outcome.HIT))
    page = _page(exchange, "/v2/_catalog", repositories, route.n, route.last)
    return exchange.reply(orjson.dumps({"repositories": page}), "application/json")


async def serve_referrers(
    exchange: Exchange, route: ReferrersRoute, listings: Listings
) -> web.Response:
    """Answer with an image index; raises :class:`RegistryError`."""
    listing = await listings.referrers(route.repository, route.digest)
    exchange.mark(listing.served)
    body = listing.body
    if route.artifact_type:
        body = referrers.filtered(body, route.artifact_type)
        exchange.headers["OCI-Filters-Applied"] = "artifactType"
    return exchange.reply(body, OCI_INDEX)


def _page(
    exchange: Exchange, path: str, entries: Sequence[str], n: int | None, last: str
) -> Sequence[str]:
    """Cut a page out (distribution-spec, "Listing Tags"): ``n=0`` gives nothing, and no Link."""
    rest = [entry for entry in entries if entry > last] if last else entries
    if n is None:
        return rest
    page = rest[:n]
    if page and len(page) < len(rest):
        query = urlencode({"n": n, "last": page[-1]})
        exchange.headers["Link"] = f'<{path}?{query}>; rel="next"'
    return page
