"""Many clients that want the same blob at the same time, over a slow link."""

from __future__ import annotations

from bench import load
from bench.content import MIB, Image
from bench.figures import Figures
from bench.servers import Server
from bench.site import PROGRAMS, Site, site

SIZE = 64 * MIB
LINK = 40_000_000  # bytes/s
CLIENTS = 16
DIRECT = "one direct copy"
# docker-registry needs half a minute for each.
REPETITIONS = 2


def run(figures: Figures) -> None:
    """Measure the bytes that cross the link, and the time against one client and no cache."""
    with (
        site(*[SIZE] * REPETITIONS, linked=True, rate=LINK) as place,
        place.running(PROGRAMS[0]) as first,
        place.running(PROGRAMS[1]) as second,
    ):
        servers = dict(zip(PROGRAMS, (first, second), strict=True))
        for image in place.images:
            direct = load.download(place.link.port, f"/static/{image.layer.hex}", {}, SIZE)
            figures.add(DIRECT, "s", direct.seconds)
            for program, server in servers.items():
                _pull(figures, place, program, server, image)
    for program in PROGRAMS:
        name = f"{CLIENTS} clients: {program}"
        figures.divide(f"{name} / {DIRECT}", name, DIRECT)


def _pull(figures: Figures, place: Site, program: str, server: Server, image: Image) -> None:
    load.check(server.port, image.by_tag, place.login, image.manifest)
    path = image.blob(image.layer)
    place.link.take_received()
    seconds, _ = load.together(CLIENTS, lambda: load.download(server.port, path, place.login, SIZE))
    place.wait_cached(program, image.layer)
    copies = place.link.take_received() / SIZE
    load.check(server.port, path, place.login, image.layer)
    figures.add(f"copies over the link: {program}", "copies", copies)
    figures.add(f"{CLIENTS} clients: {program}", "s", seconds)
