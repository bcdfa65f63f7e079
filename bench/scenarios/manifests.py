"""Manifests by digest, and by tag while the tag counts as fresh, with a login that costs bcrypt."""

from __future__ import annotations

from collections.abc import Mapping

from bench import load
from bench.content import MIB
from bench.figures import Figures
from bench.servers import Server
from bench.site import PROGRAMS, Site, site

CONNECTIONS = 32
REPETITIONS = 3
SECONDS = {10: 5, 5: 3}  # by bcrypt's cost


def run(figures: Figures) -> None:
    """Measure requests/s at both costs."""
    for cost, seconds in SECONDS.items():
        with (
            site(MIB, cost=cost, freshness="{maxage: 1h}") as place,
            place.running(PROGRAMS[0]) as first,
            place.running(PROGRAMS[1]) as second,
        ):
            servers = dict(zip(PROGRAMS, (first, second), strict=True))
            _run(figures, place, servers, cost, seconds)


def _run(
    figures: Figures, place: Site, servers: Mapping[str, Server], cost: int, seconds: int
) -> None:
    image = place.images[0]

    def measure(server: Server, path: str) -> float:
        rate = load.requests_per_second(
            server.port, path, place.login, connections=CONNECTIONS, seconds=seconds
        )
        # Ends when the requests do that were left behind: they would count against the next one.
        load.check(server.port, path, place.login, image.manifest)
        return rate

    for kind, path in {"by digest": image.by_digest, "by tag": image.by_tag}.items():
        name = f"cost {cost}, {kind}"
        for server in servers.values():
            load.check(server.port, path, place.login, image.manifest)
            _warm_up(place, server, path)
        for _ in range(REPETITIONS):
            for program, server in servers.items():
                figures.add(f"{name}: {program}", "requests/s", measure(server, path))
        figures.compare([name])


def _warm_up(place: Site, server: Server, path: str) -> None:
    """Ask over as many connections, so that every worker process has."""
    load.together(
        CONNECTIONS,
        lambda: load.check(server.port, path, place.login, place.images[0].manifest),
    )
