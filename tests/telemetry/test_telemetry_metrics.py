"""Metrics of several processes, added up; a dead one's gauges leave, its counters stay."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.fakes.cache import ROOT
from tests.store.kit import Child, child

# The directory must be known before prometheus_client is imported, so each test's is a process'.
WORKER = """
import os, sys
os.environ["PROMETHEUS_MULTIPROC_DIR"] = sys.argv[1]
from pullthrough.telemetry import metrics

requests, upstream = metrics.Requests(), metrics.UpstreamMetrics()
requests.count("blob", "GET", 200, "hit", 1000, 0.3)
requests.count("blob", "GET", 200, "hit", 500, 0.002)
requests.count("blob", "HEAD", 200, "hit", 0, 0.002)
requests.count("manifest", "GET", 404, "", 50, 0.2)
upstream.request("get_blob", "ok", 2.0)
upstream.bytes_received(700)
upstream.token_failure("refused")
upstream.credential_refused()
refresh = metrics.watch(lambda: sys.argv[2] == "up", lambda: int(sys.argv[3]))
refresh()
print("counted", flush=True)
sys.stdin.readline()
"""
EXPOSE = """
import os, sys
os.environ["PROMETHEUS_MULTIPROC_DIR"] = sys.argv[1]
from pullthrough.telemetry import metrics
for pid in sys.argv[2:]:
    metrics.forget_process(int(pid))
body, content_type = metrics.exposition()
print(content_type)
sys.stdout.buffer.write(body)
"""

Start = Callable[..., Child]
Sample = tuple[str, frozenset[tuple[str, str]]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a worker that counted a few requests."""
    with ExitStack() as stack:

        def start_one(state: str = "up", fills: int = 0) -> Child:
            worker = stack.enter_context(child(WORKER, str(tmp_path), state, str(fills)))
            assert worker.says() == "counted"
            return worker

        yield start_one


def expose(directory: Path, *dead: int) -> dict[Sample, float]:
    """Return every sample, after the supervisor forgot the processes in ``dead``."""
    told = subprocess.run(
        [sys.executable, "-c", EXPOSE, str(directory), *map(str, dead)],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ).stdout
    content_type, _, body = told.partition("\n")
    assert content_type.startswith("text/plain")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(body)
        for sample in family.samples
    }


def at(samples: dict[Sample, float], name: str, **labels: Any) -> float:
    return samples[f"pullthrough_{name}", frozenset(labels.items())]


def test_two_processes_add_up(tmp_path: Path, start: Start) -> None:
    """Whichever worker is asked, counters and histograms are those of all."""
    start(), start()
    samples = expose(tmp_path)
    hit = {"route": "blob", "status": "200", "cache": "hit"}
    assert at(samples, "requests_total", method="GET", **hit) == 4
    assert at(samples, "requests_total", method="HEAD", **hit) == 2
    assert (
        at(samples, "requests_total", route="manifest", method="GET", status="404", cache="") == 2
    )
    assert at(samples, "served_bytes_total", route="blob") == 3000
    assert at(samples, "served_bytes_total", route="manifest") == 100
    assert at(samples, "request_seconds_count", route="blob") == 6
    assert at(samples, "request_seconds_bucket", route="blob", le="0.005") == 4
    assert at(samples, "request_seconds_bucket", route="blob", le="0.5") == 6
    assert at(samples, "upstream_requests_total", operation="get_blob", outcome="ok") == 2
    assert at(samples, "upstream_seconds_sum", operation="get_blob") == 4.0
    assert at(samples, "upstream_bytes_total") == 1400
    assert at(samples, "token_failures_total", reason="refused") == 2
    assert at(samples, "credential_refused_total") == 2


@pytest.mark.parametrize(
    ("states", "up"), [(("up", "down"), 1), (("down", "down"), 0), (("up", "up"), 1)]
)
def test_gauges_of_two_processes(
    tmp_path: Path, start: Start, states: tuple[str, str], up: int
) -> None:
    """Fills add up over the workers, the upstream's state does not: 1 is up, whoever says it."""
    for fills, state in enumerate(states, 2):
        start(state, fills)
    samples = expose(tmp_path)
    assert at(samples, "fills_in_flight") == 5
    assert at(samples, "upstream_up") == up


def test_dead_process_leaves_the_gauges(tmp_path: Path, start: Start) -> None:
    """A killed worker's fills are no longer in flight; what it counted did happen."""
    live, dead = start("down", 1), start("up", 7)
    dead.kill()
    samples = expose(tmp_path, dead.pid)
    assert at(samples, "fills_in_flight") == 1
    assert at(samples, "upstream_up") == 0
    assert at(samples, "upstream_bytes_total") == 1400
    assert at(samples, "requests_total", route="blob", method="GET", status="200", cache="hit") == 4
    live.kill()
    samples = expose(tmp_path, dead.pid, live.pid)
    assert at(samples, "fills_in_flight") == 0
    assert at(samples, "upstream_bytes_total") == 1400


def test_counters_never_go_back(tmp_path: Path, start: Start) -> None:
    """A worker that takes a dead one's place counts on from the sum."""
    first = start()
    first.kill()
    before = at(expose(tmp_path, first.pid), "upstream_bytes_total")
    start()
    assert at(expose(tmp_path, first.pid), "upstream_bytes_total") == before + 700
