"""The numbers at /metrics (section 7): of all workers, and of all that an operator asks about."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.conftest import CacheStarter
from tests.fakes.cache import Cache
from tests.fakes.content import MIB, noise
from tests.fakes.faults import Fault, Gate, eventually
from tests.fakes.registry import FakeRegistry


def test_metrics_of_two_workers_add_up(registry: FakeRegistry, start_cache: CacheStarter) -> None:
    """Whichever worker is asked, the counters are those of all, and never go back."""
    image = registry.put_image("project/app", layers=(noise(MIB),))
    cache = start_cache({"http": {"workers": 2}})
    client = cache.client()
    client.pull(image)
    requests = cache.metric("requests", "manifest", "'hit'")
    served = cache.metric("served", "bytes")
    for _ in range(30):
        assert client.manifest("project/app", image.digest).status == 200
        assert client.blob("project/app", image.layer).status == 200
    for _ in range(8):
        assert cache.metric("requests", "manifest", "'hit'") - requests >= 30
        assert cache.metric("served", "bytes") - served >= 30 * MIB
    victim = cache.workers()[-1]
    os.kill(victim, 9)
    eventually(lambda: len(set(cache.workers()) - {victim}) == 2, "a new worker")
    assert cache.metric("requests", "manifest", "'hit'") - requests >= 30


def test_metrics_tell_what_the_link_carried(
    registry: FakeRegistry, start_cache: CacheStarter
) -> None:
    """Bytes from upstream count once, bytes served each time; requests by status and outcome."""
    image = registry.put_image("project/app", layers=(noise(2 * MIB),))
    cache = start_cache()
    for _ in range(3):
        cache.client().pull(image)
    cache.client().manifest("project/app", "none")
    received = cache.metric("upstream", "bytes")
    assert 2 * MIB <= received < 2.1 * MIB
    assert cache.metric("served", "bytes") >= 6 * MIB
    assert cache.metric("requests", "404") == 1
    assert cache.metric("requests", "'hit'") >= 2
    assert cache.metric("requests", "'miss'") >= 2
    assert cache.metric("stale") == 0
    registry.refuse()
    assert cache.client().manifest("project/app", "v1").is_stale
    assert cache.metric("stale") > 0


def test_fills_in_flight_are_counted(registry: FakeRegistry, start_cache: CacheStarter) -> None:
    """While a fill hangs it is in the gauge, and gone from it at its end."""
    image = registry.put_image("project/app", layers=(noise(2 * MIB),))
    cache = start_cache()
    gauges = [family.name for family in cache.metric_families() if family.type == "gauge"]
    (fills,) = [name for name in gauges if "fill" in name]
    gate = Gate()
    registry.inject(Fault(path=f".*{image.layer}", hold=gate, hold_at=MIB))
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(cache.client().blob, "project/app", image.layer)
        gate.wait_for()
        assert cache.metric(fills) == 1
        gate.open()
        assert coming.result(20).complete
    eventually(lambda: cache.metric(fills) == 0, "no fill in flight")


def test_metrics_do_not_grow_with_names(registry: FakeRegistry, start_cache: CacheStarter) -> None:
    """Routes, not paths: a thousand names that clients make up are no thousand series."""
    cache = start_cache()
    registry.put_image("project/app")
    for number in range(50):
        cache.client().get(f"/v2/UPPER{number}/manifests/v1")
        cache.client().get(f"/nowhere/{number}")
        cache.client().request(f"VERB{number}", "/v2/")
    samples = [sample for family in cache.metric_families() for sample in family.samples]
    assert not any("UPPER" in str(sample.labels) or "VERB49" in str(sample) for sample in samples)
    assert len(samples) < 1000


@pytest.mark.parametrize("fault", [{"status": 401}, {"status": 500}, {"reset": True}], ids=str)
def test_tokens_that_were_not_given_are_counted(
    registry: FakeRegistry, start_cache: CacheStarter, fault: dict[str, Any]
) -> None:
    """A token service that refuses, breaks or hangs up is seen there, and not as clients' doing."""
    image = registry.put_image("project/app")
    cache = start_cache()
    client = cache.client()
    assert cache.metric("token", "fail") == 0
    with registry.inject(Fault(path="/service/token", **fault)):
        assert client.manifest("project/app", "v1").status >= 400
    failed = cache.metric("token", "fail")
    assert 1 <= failed <= registry.count(path="/service/token")
    eventually(lambda: client.manifest("project/app", "v1").status == 200, "a manifest")
    client.pull(image)
    assert cache.metric("token", "fail") == failed


def test_latency_of_the_upstream_is_told(registry: FakeRegistry, start_cache: CacheStarter) -> None:
    """In seconds: no less than it held its answer back, no more than the client waited."""
    image = registry.put_image("project/app")
    cache = start_cache()
    client = cache.client()
    assert cache.metric("upstream", "seconds") == 0
    gate = Gate()
    registry.inject(Fault(path=f".*/manifests/{image.digest}", hold=gate))
    began = time.monotonic()
    pending = client.begin(f"/v2/project/app/manifests/{image.digest}")
    gate.wait_for()
    held = time.monotonic()
    time.sleep(0.2)  # the latency that is to be told
    held = time.monotonic() - held
    gate.open()
    assert pending.answer().status == 200
    assert held <= upstream_seconds(cache) <= time.monotonic() - began
    calls, seconds = cache.metric("upstream", "seconds"), upstream_seconds(cache)
    assert calls >= 1
    assert client.manifest("project/app", image.digest).status == 200
    assert (cache.metric("upstream", "seconds"), upstream_seconds(cache)) == (calls, seconds)


def upstream_seconds(cache: Cache) -> float:
    """Return how long all calls to the upstream took together."""
    return sum(
        float(sample.value)
        for family in cache.metric_families()
        for sample in family.samples
        if "upstream" in sample.name and sample.name.endswith("seconds_sum")
    )
