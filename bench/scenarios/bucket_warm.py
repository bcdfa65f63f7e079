"""A cached blob, in the bucket and on the local disk, beside the gateway asked directly.

The least that a program in Python can do to fill from the gateway (bare.py) is measured too.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack

from bench import load
from bench.bucket import bucket
from bench.content import MIB
from bench.figures import Figures
from bench.site import BARE, bare, site

SIZE = 256 * MIB
REPETITIONS = 11
# How often a measurement fetches what is on the local disk, which is so much faster.
ROUNDS = 4
DIRECT = "gateway asked directly"
REDIRECTED = "redirected"
FILLED = "only in the bucket, redirect off"
LOCAL = "on the local disk, redirect off"
WITHOUT = "without a bucket"


def run(figures: Figures) -> None:
    """Measure MB/s to one client."""
    with (
        site(SIZE) as place,
        bucket() as behind,
        place.running_as("redirect", behind.settings(place.root("redirect"), redirect=True)) as one,
        place.running_as("fill", behind.settings(place.root("fill"))) as two,
        place.running_as("without", {}) as three,
        ExitStack() as stack,
    ):
        image = place.images[0]
        path, gateway = image.blob(image.layer), behind.rgw.gateway
        for name, server in (("redirect", one), ("fill", two), ("without", three)):
            load.check(server.port, image.by_tag, place.login, image.manifest)
            load.check(server.port, path, place.login, image.layer)
            place.wait_cached(name, image.layer)
        behind.wait([image.layer])
        load.check(gateway.port, behind.address(image.layer), {}, image.layer)
        place.forget("redirect", image.layer)
        limit = stack.enter_context(bare(place, gateway.port, behind.address(image.layer)))

        def download(port: int) -> float:
            return load.download(port, path, place.login, SIZE).seconds

        def direct() -> float:
            return load.download(gateway.port, behind.address(image.layer), {}, SIZE).seconds

        def filled() -> float:
            place.forget("fill", image.layer)
            seconds = download(two.port)
            place.wait_cached("fill", image.layer)
            return seconds

        def local(port: int) -> float:
            return sum(download(port) for _ in range(ROUNDS)) / ROUNDS

        measurements: Mapping[str, Callable[[], float]] = {
            REDIRECTED: lambda: load.redirected(one.port, path, place.login, SIZE),
            DIRECT: direct,
            FILLED: filled,
            BARE: lambda: download(limit.port),
            LOCAL: lambda: local(two.port),
            WITHOUT: lambda: local(three.port),
        }
        for repetition in range(REPETITIONS + 1):
            # Whoever is first finds the processor's caches cold: each is, every other time.
            for name, measure in list(measurements.items())[:: -1 if repetition % 2 else 1]:
                os.sync()  # nobody waits for what another wrote
                seconds = measure()
                if repetition:  # the first warms up
                    figures.add(name, "MB/s", SIZE / seconds / 1e6)
        load.check(two.port, path, place.login, image.layer)
    for name in (REDIRECTED, FILLED, BARE):
        figures.divide(f"{name} / {DIRECT}", name, DIRECT)
    figures.divide(f"{LOCAL} / {WITHOUT}", LOCAL, WITHOUT)
