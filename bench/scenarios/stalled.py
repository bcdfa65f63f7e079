"""Readers that begin a blob and then read nothing more: what they cost, and whom they slow down."""

from __future__ import annotations

import socket
import time
from contextlib import ExitStack

from bench import load
from bench.content import MIB
from bench.figures import Figures
from bench.site import PROGRAMS, Site, site

SIZE = 256 * MIB
READERS = 200
READ = 1 << 16
REPETITIONS = 2
SETTLE_SECONDS = 1.0
REQUESTS_PER_SECOND = 200
SECONDS = 5.0


def run(figures: Figures) -> None:
    """Measure memory before and during, and a manifest's latency meanwhile."""
    with site(SIZE) as place:
        for _ in range(REPETITIONS):
            for program in PROGRAMS:
                _run(figures, place, program)


def _run(figures: Figures, place: Site, program: str) -> None:
    image = place.images[0]
    with place.running(program) as server, ExitStack() as readers:
        load.check(server.port, image.by_tag, place.login, image.manifest)
        load.check(server.port, image.blob(image.layer), place.login, image.layer)
        place.wait_cached(program, image.layer)
        before = load.latencies(
            server.port, [image.by_digest], place.login, rate=REQUESTS_PER_SECOND, seconds=2
        )
        idle = server.memory()
        for _ in range(READERS):
            connection, come, _ = load.open_get(server.port, image.blob(image.layer), place.login)
            readers.enter_context(connection)
            if come < READ:
                connection.recv(READ - come, socket.MSG_WAITALL)
        time.sleep(SETTLE_SECONDS)  # servers go on filling what the kernel takes
        # Not while latency is measured: looking at a process's memory holds it up.
        memory = server.memory()
        measured = load.latencies(
            server.port, [image.by_digest], place.login, rate=REQUESTS_PER_SECOND, seconds=SECONDS
        )
        memory = max(memory, server.memory())
    figures.add(f"memory idle: {program}", "MiB", idle)
    figures.add(f"memory over idle: {program}", "MiB", memory - idle)
    for name, seconds in (("idle, manifest", before), ("manifest", measured)):
        for percent in (50, 98, 99):
            at = seconds[len(seconds) * percent // 100] * 1000
            figures.add(f"{name} p{percent}: {program}", "ms", at)
