"""A cached pull while the bucket refuses connections or says nothing, beside one without any."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from bench import load
from bench.bucket import Bucket, bucket
from bench.content import MIB, Image
from bench.figures import Figures
from bench.servers import Server
from bench.site import Site, site

REPETITIONS = 4
# Spread over some seconds, so that one that waits for the bucket to be tried again is seen.
LATER = 15
PAUSE_SECONDS = 0.25
WITH, WITHOUT = "with a bucket", "without"


def run(figures: Figures) -> None:
    """Measure seconds a pull: the first one after the bucket went, and later ones."""
    with site(*[MIB] * (1 + 2 * REPETITIONS)) as place, bucket() as behind:
        faults: Mapping[str, tuple[Callable[[], None], Callable[[], None]]] = {
            "refused": (behind.rgw.kill, behind.rgw.restart),
            "silent": (behind.rgw.pause, behind.rgw.resume),
        }
        cached, *others = place.images
        for state, (fail, mend) in faults.items():
            for _ in range(REPETITIONS):
                with _warm(place, behind, cached) as servers:
                    fail()
                    try:
                        _measure(figures, place, servers, state, (cached, others.pop()))
                    finally:
                        mend()
    for state in faults:
        for which in ("first pull", "later pulls", "slowest later pull", "cold pull"):
            name = f"{state}, {which}"
            figures.divide(f"{name}: {WITH} / {WITHOUT}", f"{name}: {WITH}", f"{name}: {WITHOUT}")


@contextmanager
def _warm(place: Site, behind: Bucket, image: Image) -> Iterator[Mapping[str, Server]]:
    """Start both anew, so that they begin each time without having seen an outage."""
    with (
        place.running_as("with", behind.settings(place.root("with"))) as first,
        place.running_as("without", {}) as second,
    ):
        for name, server in (("with", first), ("without", second)):
            for _ in range(LATER):  # every worker is to be warm
                load.pull(server.port, image, place.login)
            place.wait_cached(name, image.config)
            place.wait_cached(name, image.layer)
        behind.wait([image.config, image.layer])
        yield {WITH: first, WITHOUT: second}


def _measure(
    figures: Figures,
    place: Site,
    servers: Mapping[str, Server],
    state: str,
    images: tuple[Image, Image],
) -> None:
    """Pull what is cached, and something new that cannot be uploaded now."""
    image, other = images
    for what, server in servers.items():
        seconds = load.pull(server.port, image, place.login)
        figures.add(f"{state}, first pull: {what}", "s", seconds)
    # The bucket is tried again and again for this while the rest is measured.
    for what, server in servers.items():
        seconds = load.pull(server.port, other, place.login)
        figures.add(f"{state}, cold pull: {what}", "s", seconds)
    later: Mapping[str, list[float]] = {what: [] for what in servers}
    for _ in range(LATER):
        time.sleep(PAUSE_SECONDS)  # the pulls are spread over some seconds of outage
        for what, server in servers.items():
            later[what].append(load.pull(server.port, image, place.login))
    for what, took in later.items():
        figures.add(f"{state}, later pulls: {what}", "s", statistics.median(took))
        figures.add(f"{state}, slowest later pull: {what}", "s", max(took))
