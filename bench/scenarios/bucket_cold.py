"""The layers of an image that is not cached, three at a time, with and without a bucket behind."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue

from bench import load
from bench.bucket import Bucket, bucket
from bench.content import MIB, Image
from bench.figures import Figures
from bench.servers import Server
from bench.site import Site, site

SIZE = 32 * MIB
LAYERS = 8
AT_ONCE = 3  # as containerd and dockerd do
REPETITIONS = 9
WITH, WITHOUT = "with a bucket", "without"


def run(figures: Figures) -> None:
    """Measure the seconds of a pull; uploads go on meanwhile, and end before the next one."""
    with (
        # One image for each layer: the clients ask for them as for those of a single one.
        site(*[SIZE] * LAYERS * (REPETITIONS + 1)) as place,
        bucket() as behind,
        place.running_as("with", behind.settings(place.root("with"))) as first,
        place.running_as("without", {}) as second,
    ):
        servers = {WITH: ("with", first), WITHOUT: ("without", second)}
        for repetition in range(REPETITIONS + 1):
            images = place.images[repetition * LAYERS : (repetition + 1) * LAYERS]
            # Whoever is first finds the processor's caches cold: each is, every other time.
            for what, (name, server) in list(servers.items())[:: -1 if repetition % 2 else 1]:
                seconds = _pull(place, name, server, images, behind if what == WITH else None)
                if repetition:  # the first warms up
                    figures.add(f"pull: {what}", "s", seconds)
    figures.divide(f"pull: {WITH} / {WITHOUT}", f"pull: {WITH}", f"pull: {WITHOUT}")


def _pull(
    place: Site, name: str, server: Server, images: Sequence[Image], behind: Bucket | None
) -> float:
    for image in images:
        load.check(server.port, image.by_tag, place.login, image.manifest)
    if behind:
        behind.wait(image.manifest for image in images)
    waiting = SimpleQueue[Image]()
    for image in images:
        waiting.put(image)

    def fetch() -> None:
        with suppress(Empty):
            while True:
                image = waiting.get_nowait()
                load.download(server.port, image.blob(image.layer), place.login, SIZE)

    os.sync()  # nobody waits for what another wrote
    seconds, _ = load.together(AT_ONCE, fetch)
    for image in images:
        place.wait_cached(name, image.layer)
        load.check(server.port, image.blob(image.layer), place.login, image.layer)
    if behind:
        behind.wait(image.layer for image in images)
    for image in images:  # or each repetition would find less memory, and the last the slowest
        place.forget(name, image.layer)
    return seconds
