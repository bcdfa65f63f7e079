"""A store of 100,000 blobs: its start, a hit beside a small store's, a listing, an eviction."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from http.client import HTTPConnection
from typing import Any

from bench import bulk, load
from bench.content import MIB, Image
from bench.figures import Figures
from bench.servers import HOST, Server, free_port
from bench.site import REPOSITORY, Site, site

LARGE, SMALL = "large", "small"
IMAGES: Mapping[str, int] = {LARGE: 10_000, SMALL: 100}
REPETITIONS = 5
WARM_UP_SECONDS = 1.5
REQUESTS_PER_SECOND = 200
SECONDS = 4.0
LISTINGS = 3
EVICTIONS = 2
# Down to 90 % of the quota, which the second time is that much smaller.
EVICTED_LEAST = 8500
EVICTED = 10_000
SETTLE_LIMIT = 180.0
LAYER = MIB
"""Bytes of the layer whose pull exceeds the quota."""


def run(figures: Figures) -> None:
    """Measure; the first start, which takes up what nobody knows of yet, is told apart."""
    with site(*[LAYER] * (1 + EVICTIONS)) as place:
        paths = {name: bulk.fill(place.root(name), images) for name, images in IMAGES.items()}
        for name in IMAGES:
            with _started(figures, place, f"first start: {name}", paths[name][0], {}) as server:
                load.pull(server.port, place.images[0], place.login)
        stored = _hits(figures, place, paths)
        _listings(figures, place)
        for exceeding in place.images[1:]:
            stored = _evict(figures, place, exceeding, stored)


@contextmanager
def _started(
    figures: Figures, place: Site, what: str, path: str, settings: Mapping[str, Any]
) -> Iterator[Server]:
    """Run the cache whose name ends ``what``, and wait until it has looked through its store."""
    with place.running_as(what.rpartition(" ")[2], settings) as server:
        started = time.perf_counter()
        _get(server.port, path, place.login)
        hit = time.perf_counter() - started
        _settled(server)
        looked = time.perf_counter() - started
        figures.add(f"{what}, first answer", "s", server.start_seconds)
        figures.add(f"{what}, first hit", "s", server.start_seconds + hit)
        figures.add(f"{what}, looked through", "s", server.start_seconds + looked)
        yield server


def _hits(figures: Figures, place: Site, paths: Mapping[str, Sequence[str]]) -> int:
    """Measure hits, of one store after the other; return the bytes that the large one keeps."""
    stored = 0
    count = int(REQUESTS_PER_SECOND * SECONDS)
    # As many different things of the large store as there are in the small one, spread over it.
    spread = paths[LARGE][:: IMAGES[LARGE] // IMAGES[SMALL]]
    asked = {LARGE: spread, SMALL: paths[SMALL]}
    for repetition in range(REPETITIONS):
        for name, known in asked.items():
            # Never both at once: what a store does unasked counts for its own hits alone.
            with _started(figures, place, f"start: {name}", known[0], {}) as server:
                ask = partial(
                    load.latencies, server.port, headers=place.login, rate=REQUESTS_PER_SECOND
                )
                ask(paths=known, seconds=WARM_UP_SECONDS)
                _add(figures, f"hit: {name}", ask(paths=known, seconds=SECONDS))
                if name == LARGE:  # beside that, things of it that nobody has asked for yet
                    new = paths[LARGE][repetition * count + 1 :][:count]
                    _add(figures, f"first hit: {name}", ask(paths=new, seconds=SECONDS))
                    stored = _settled(server)
    for percent in (50, 99):
        for what in (f"hit: {LARGE}", f"first hit: {LARGE}"):
            name, other = f"{what}, p{percent}", f"hit: {SMALL}, p{percent}"
            figures.divide(f"{what} / {SMALL}, p{percent}", name, other)
    return stored


def _add(figures: Figures, name: str, seconds: Sequence[float]) -> None:
    for percent in (50, 99):
        figures.add(f"{name}, p{percent}", "ms", _at(seconds, percent))


def _listings(figures: Figures, place: Site) -> None:
    config = place.configure(LARGE, {})
    command = (sys.executable, "-m", "pullthrough", "ls", "--config", str(config), "--json")
    for _ in range(LISTINGS):
        started = time.perf_counter()
        done = subprocess.run(
            command, check=True, capture_output=True, timeout=SETTLE_LIMIT, cwd=REPOSITORY
        )
        figures.add("ls", "s", time.perf_counter() - started)
        listed = len(json.loads(done.stdout)["images"])
        if listed < IMAGES[LARGE]:
            raise RuntimeError(f"ls: {listed} images, not {IMAGES[LARGE]}")


def _evict(figures: Figures, place: Site, exceeding: Image, stored: int) -> int:
    """Have one pull exceed the quota, and a tenth go for it; return the bytes that stay."""
    debug = free_port()
    settings = {
        "cache": {"quota": stored + LAYER // 2},
        "http": {"debug": {"addr": f"{HOST}:{debug}", "prometheus": {"enabled": True}}},
    }
    image = place.images[0]
    hits = [image.by_digest, image.blob(image.config)]
    with (
        _started(figures, place, f"start: {LARGE}", image.by_digest, settings) as server,
        ThreadPoolExecutor(1) as pool,
    ):
        ask = partial(load.latencies, server.port, hits, place.login, rate=REQUESTS_PER_SECOND)
        before = ask(seconds=SECONDS)
        pulling = pool.submit(ask, seconds=2 * SECONDS)
        _get(server.port, exceeding.by_tag, place.login)
        _get(server.port, exceeding.blob(exceeding.layer), place.login)
        started = time.perf_counter()
        evicted = _wait_evicted(debug)
        seconds = time.perf_counter() - started
        during = pulling.result()
        stored = _settled(server)
    figures.add("evicted", "blobs", evicted)
    # From the pull that exceeds the quota, so with the time until somebody looks.
    figures.add(f"eviction of {EVICTED}", "s", seconds * EVICTED / evicted)
    figures.add("hit before eviction, p99", "ms", _at(before, 99))
    figures.add("hit during eviction, p99", "ms", _at(during, 99))
    return stored


def _at(seconds: Sequence[float], percent: int) -> float:
    """Return a percentile of what is sorted, in milliseconds."""
    return seconds[len(seconds) * percent // 100] * 1000


def _wait_evicted(debug: int) -> float:
    give_up = time.monotonic() + SETTLE_LIMIT
    while True:
        lines = _get(debug, "/metrics", {}).decode().splitlines()
        evicted = sum(
            float(line.rpartition(" ")[2])
            for line in lines
            if line.startswith("pullthrough_evicted_total")
        )
        if evicted >= EVICTED_LEAST:
            return evicted
        if time.monotonic() > give_up:
            raise TimeoutError(f"{evicted:.0f} evicted in {SETTLE_LIMIT:.0f} s")
        time.sleep(0.1)  # a bounded poll: a program tells nobody what it evicts


def _settled(server: Server) -> int:
    """Wait until the store was looked through; return the bytes that it keeps."""
    give_up = time.monotonic() + SETTLE_LIMIT
    while True:
        state: dict[str, Any] = json.loads(_get(server.port, "/readyz", {}))
        if "stored_bytes" in state:
            return int(state["stored_bytes"])
        if time.monotonic() > give_up:
            raise TimeoutError(f"the store was not looked through in {SETTLE_LIMIT:.0f} s")
        time.sleep(0.05)  # a bounded poll: it is only told to who asks


def _get(port: int, path: str, headers: load.Headers) -> bytes:
    with closing(HTTPConnection(HOST, port, timeout=load.TIMEOUT)) as connection:
        connection.request("GET", path, headers=dict(headers))
        response = connection.getresponse()
        body = response.read()
    if response.status != 200:
        raise RuntimeError(f"GET {path}: {response.status}, {body[:200]!r}")
    return body
