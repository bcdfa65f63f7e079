"""Start time, memory after a first pull, and how much each program logs."""

from __future__ import annotations

from bench import load
from bench.content import MIB
from bench.figures import Figures
from bench.site import PROGRAMS, site

REPETITIONS = 5
REQUESTS = 50


def run(figures: Figures) -> None:
    """Measure; the lines logged show that neither gains by keeping quiet."""
    with site(MIB) as place:
        image = place.images[0]
        for _ in range(REPETITIONS):
            for program in PROGRAMS:
                with place.running(program) as server:
                    figures.add(f"start: {program}", "ms", server.start_seconds * 1000)
                    load.pull(server.port, image, place.login)
                    figures.add(f"idle memory: {program}", "MiB", server.memory())
        for program in PROGRAMS:
            log = place.log(program)
            with place.running(program) as server:
                load.check(server.port, image.by_digest, place.login, image.manifest)
                before = log.read_bytes().count(b"\n")
                for _ in range(REQUESTS):
                    load.check(server.port, image.by_digest, place.login, image.manifest)
            lines = log.read_bytes().count(b"\n") - before
            figures.add(f"lines logged per request: {program}", "", lines / REQUESTS)
