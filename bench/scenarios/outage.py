"""A cached pull, by tag, with the upstream healthy, refusing or silent; the default freshness."""

from __future__ import annotations

import statistics
import time

from bench import load
from bench.content import MIB
from bench.figures import Figures
from bench.link import State
from bench.site import PROGRAMS, PULLTHROUGH, Site, site

WARM = 15
REPETITIONS = 4
# Spread over some seconds, so that one that waits for the upstream to be tried again is seen.
LATER = 12
PAUSE_SECONDS = 0.25
# A silent upstream holds docker-registry up for 15 s at each pull.
SLOW_REPETITIONS = 1
SLOW_LATER = 1


def run(figures: Figures) -> None:
    """Measure seconds a pull: warm, the first one after the upstream went, and later ones."""
    with site(MIB, linked=True) as place:
        for state in (State.REFUSING, State.SILENT):
            for repetition in range(REPETITIONS):
                for program in PROGRAMS:
                    slow = state is State.SILENT and program != PULLTHROUGH
                    if not slow:
                        _run(figures, place, program, state, LATER)
                    elif repetition < SLOW_REPETITIONS:
                        _run(figures, place, program, state, SLOW_LATER)


def _run(figures: Figures, place: Site, program: str, state: State, later: int) -> None:
    """Start the program anew, so that it begins each time without having seen an outage."""
    image = place.images[0]
    with place.running(program) as server:
        load.pull(server.port, image, place.login)
        place.wait_cached(program, image.config)
        place.wait_cached(program, image.layer)
        warm = [load.pull(server.port, image, place.login) for _ in range(WARM)]
        place.link.switch(state)
        try:
            first = load.pull(server.port, image, place.login)
            after = []
            for _ in range(later):
                time.sleep(PAUSE_SECONDS)  # the pulls are spread over some seconds of outage
                after.append(load.pull(server.port, image, place.login))
        finally:
            place.link.switch(State.OPEN)
    usual = statistics.median(warm)
    figures.add(f"warm: {program}", "s", usual)
    measured = {
        "first pull": first,
        "later pulls": statistics.median(after),
        "slowest later pull": max(after),
    }
    for name, seconds in measured.items():
        figures.add(f"{state.value}, {name}: {program}", "s", seconds)
        figures.add(f"{state.value}, {name}: {program} / warm", "x", seconds / usual)
