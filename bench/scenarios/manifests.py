"""Manifests by digest, and by tag while the tag counts as fresh, with a login that costs bcrypt."""

from __future__ import annotations

from bench import load
from bench.content import MIB
from bench.figures import Figures
from bench.site import PROGRAMS, site

CONNECTIONS = 32
REPETITIONS = 3
# At cost 10 docker-registry does some 30 requests/s: a short run would count whole rounds of 32.
SECONDS = {10: 5, 5: 3}


def run(figures: Figures) -> None:
    """Measure requests/s at both costs."""
    for cost, seconds in SECONDS.items():
        _run(figures, cost, seconds)


def _run(figures: Figures, cost: int, seconds: int) -> None:
    with (
        site(MIB, cost=cost, freshness="{maxage: 1h}") as place,
        place.running(PROGRAMS[0]) as first,
        place.running(PROGRAMS[1]) as second,
    ):
        image = place.images[0]
        servers = dict(zip(PROGRAMS, (first, second), strict=True))
        paths = {"by digest": image.by_digest, "by tag": image.by_tag}
        for server in servers.values():
            for path in paths.values():
                load.check(server.port, path, place.login, image.manifest)
                load.requests_per_second(
                    server.port, path, place.login, connections=CONNECTIONS, seconds=1
                )
        for kind, path in paths.items():
            for _ in range(REPETITIONS):
                for program, server in servers.items():
                    rate = load.requests_per_second(
                        server.port, path, place.login, connections=CONNECTIONS, seconds=seconds
                    )
                    figures.add(f"cost {cost}, {kind}: {program}", "requests/s", rate)
        for server in servers.values():
            load.check(server.port, image.by_tag, place.login, image.manifest)
        figures.compare(f"cost {cost}, {kind}" for kind in paths)
