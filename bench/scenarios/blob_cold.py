"""A blob that is not cached, to one client, with the upstream beside it."""

from __future__ import annotations

import os

from bench import load
from bench.content import MIB
from bench.figures import Figures
from bench.site import BARE, PROGRAMS, REGISTRY, bare, site

SIZE = 256 * MIB
REPETITIONS = 7


def run(figures: Figures) -> None:
    """Measure MB/s and the time to the first byte; a new blob for each repetition."""
    with (
        site(*[SIZE] * (REPETITIONS + 1)) as place,
        place.running(PROGRAMS[0]) as first,
        place.running(PROGRAMS[1]) as second,
        bare(place, place.upstream.server.port) as limit,
    ):
        servers = dict(zip((*PROGRAMS, BARE), (first, second, limit), strict=True))
        for repetition, image in enumerate(place.images):
            # Whoever is first finds the processor's caches cold: each is, every other time.
            turns = list(servers.items())[:: -1 if repetition % 2 else 1]
            for program, server in turns:
                if program != BARE:
                    load.check(server.port, image.by_tag, place.login, image.manifest)
                os.sync()  # nobody waits for what another wrote
                done = load.download(server.port, image.blob(image.layer), place.login, SIZE)
                if repetition:  # the first warms up
                    figures.add(f"one client: {program}", "MB/s", SIZE / done.seconds / 1e6)
                    figures.add(f"first byte: {program}", "ms", done.first_byte * 1000)
                if program != BARE:  # which keeps nothing
                    place.wait_cached(program, image.layer)
                    load.check(server.port, image.blob(image.layer), place.login, image.layer)
                    # Or each repetition would find less memory, and the last the slowest.
                    place.forget(program, image.layer)
    figures.compare(["one client", "first byte"])
    figures.divide(
        f"one client: {BARE} / {REGISTRY}", f"one client: {BARE}", f"one client: {REGISTRY}"
    )
    figures.compare(["one client"], BARE)
