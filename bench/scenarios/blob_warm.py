"""A cached blob to several clients at once, beside nginx with a static file."""

from __future__ import annotations

from bench import load
from bench.content import MIB
from bench.figures import Figures
from bench.site import PROGRAMS, site

SIZE = 256 * MIB
CLIENTS = 8
REPETITIONS = 9
# What each client fetches in one measurement, one after the other on connections of their own.
ROUNDS = 2


def run(figures: Figures) -> None:
    """Measure MB/s over all clients."""
    with (
        site(SIZE) as place,
        place.running(PROGRAMS[0]) as first,
        place.running(PROGRAMS[1]) as second,
    ):
        image = place.images[0]
        path = image.blob(image.layer)
        targets = {
            PROGRAMS[0]: (first.port, path),
            PROGRAMS[1]: (second.port, path),
            "nginx": (place.upstream.server.port, f"/static/{image.layer.hex}"),
        }
        for program, (port, _) in zip(PROGRAMS, targets.values(), strict=False):
            load.check(port, image.by_digest, place.login, image.manifest)
            load.check(port, path, place.login, image.layer)
            place.wait_cached(program, image.layer)
        for repetition in range(REPETITIONS + 1):
            for name, (port, target) in targets.items():

                def fetch(port: int = port, target: str = target) -> None:
                    for _ in range(ROUNDS):
                        load.download(port, target, place.login, SIZE)

                seconds, _ = load.together(CLIENTS, fetch)
                if repetition:  # the first warms up
                    rate = CLIENTS * ROUNDS * SIZE / seconds / 1e6
                    figures.add(f"{CLIENTS} clients: {name}", "MB/s", rate)
        for port, target in targets.values():
            load.check(port, target, place.login, image.layer)
    name = f"{CLIENTS} clients"
    figures.compare([name])
    figures.compare([name], "nginx")
