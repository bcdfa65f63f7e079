"""Memory while many blobs are filled and uploaded at once."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

from bench import load
from bench.bucket import bucket
from bench.content import MIB, Image
from bench.figures import Figures
from bench.site import site

SIZE = 64 * MIB
BLOBS = 64
EVERY_SECONDS = 0.25


def run(figures: Figures) -> None:
    """Measure what all processes hold, idle and at most until the last blob is in the bucket."""
    with (
        site(MIB, *[SIZE] * BLOBS) as place,
        bucket() as behind,
        place.running_as("cache", behind.settings(place.root("cache"))) as server,
    ):
        small, *images = place.images
        load.pull(server.port, small, place.login)
        behind.wait([small.manifest, small.config, small.layer])
        idle = server.memory()
        for image in images:
            load.check(server.port, image.by_tag, place.login, image.manifest)

        def fetch(image: Image) -> None:
            load.download(server.port, image.blob(image.layer), place.login, SIZE)

        def fill() -> float:
            started = time.perf_counter()
            with ThreadPoolExecutor(BLOBS) as clients:
                list(clients.map(fetch, images))
            filled = time.perf_counter() - started
            behind.wait(image.layer for image in images)
            return filled

        samples = []
        started = time.perf_counter()
        with ThreadPoolExecutor(1) as pool:
            filling = pool.submit(fill)
            while not filling.done():
                samples.append(server.memory())
                time.sleep(EVERY_SECONDS)  # a look every so often: memory has no event
            filled = filling.result()
        uploaded = time.perf_counter() - started
        samples.append(server.memory())
        load.check(server.port, images[0].blob(images[0].layer), place.login, images[0].layer)
    figures.add("idle", "MiB", idle)
    figures.add("over idle", "MiB", *(sample - idle for sample in samples))
    figures.add("all filled", "s", filled)
    figures.add("all uploaded", "s", uploaded)
