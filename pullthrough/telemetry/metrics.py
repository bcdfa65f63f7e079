"""Prometheus metrics, added up over worker processes.

prometheus_client keeps each process's numbers in files under PROMETHEUS_MULTIPROC_DIR, which must
be set before it is first imported: the supervisor does so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

_SECONDS: Final = (0.001, 0.005, 0.025, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 300)

_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

REQUESTS: Final = Counter(
    "pullthrough_requests_total", "Requests answered.", ("route", "method", "status", "cache")
)
SECONDS: Final = Histogram(
    "pullthrough_request_seconds", "From a request to its last byte.", ("route",), buckets=_SECONDS
)
BYTES_SERVED: Final = Counter(
    "pullthrough_served_bytes_total", "Bytes sent to clients.", ("route",)
)
STALE: Final = Counter(
    "pullthrough_stale_total", "Answers served stale, by what the upstream did.", ("detail",)
)
UPSTREAM_REQUESTS: Final = Counter(
    "pullthrough_upstream_requests_total", "Calls to the upstream.", ("operation", "outcome")
)
UPSTREAM_SECONDS: Final = Histogram(
    "pullthrough_upstream_seconds", "Duration of calls to the upstream.", ("operation",),
    buckets=_SECONDS,
)  # fmt: skip
UPSTREAM_BYTES: Final = Counter(
    "pullthrough_upstream_bytes_total", "Bytes of bodies received from the upstream."
)
UPSTREAM_UP: Final = Gauge(
    "pullthrough_upstream_up", "1 while the upstream answers.", multiprocess_mode="livemax"
)
TOKEN_FAILURES: Final = Counter(
    "pullthrough_token_failures_total", "Tokens asked for and not given.", ("reason",)
)
CREDENTIAL_REFUSED: Final = Counter(
    "pullthrough_credential_refused_total", "Times that the upstream credential was put to rest."
)
FILLS: Final = Gauge(
    "pullthrough_fills_in_flight", "Blobs on their way.", multiprocess_mode="livesum"
)

STORE_BYTES: Final = Gauge(
    "pullthrough_store_bytes", "What is kept: in the store that the quota bounds, on the disk.",
    ("place",), multiprocess_mode="livemax",
)  # fmt: skip
STORE_QUOTA: Final = Gauge(
    "pullthrough_store_quota_bytes", "What may be kept; 0 is no bound.", ("place",),
    multiprocess_mode="livemax",
)  # fmt: skip
PINNED_BYTES: Final = Gauge(
    "pullthrough_pinned_bytes", "What never goes.", multiprocess_mode="livemax"
)
EVICTED: Final = Counter("pullthrough_evicted_total", "Things taken away.", ("reason",))
EVICTED_BYTES: Final = Counter("pullthrough_evicted_bytes_total", "Bytes taken away.", ("reason",))
ROTTEN: Final = Counter("pullthrough_rotten_total", "Cached content found damaged.")
BUCKET_UP: Final = Gauge(
    "pullthrough_bucket_up", "1 while the bucket takes what it should.", multiprocess_mode="livemax"
)
BUCKET_BYTES: Final = Counter("pullthrough_bucket_bytes_total", "Bytes read from the bucket.")
REDIRECTS: Final = Counter("pullthrough_redirects_total", "Clients sent to the bucket.")
UPLOADED: Final = Counter("pullthrough_uploaded_total", "Things brought into the bucket.")
UPLOAD_FAILURES: Final = Counter(
    "pullthrough_upload_failures_total", "Times that the bucket failed.", ("reason",)
)
UPLOAD_PENDING: Final = Gauge(
    "pullthrough_upload_pending_bytes", "Bytes that are not in the bucket yet.",
    multiprocess_mode="livemax",
)  # fmt: skip


class Requests:
    """Counts finished requests; a label's child is looked up once."""

    def __init__(self) -> None:
        self._children: dict[tuple[str, str, int, str], Counter] = {}
        self._seconds: dict[str, Histogram] = {}
        self._bytes: dict[str, Counter] = {}

    def count(  # noqa: PLR0917 - a row of values, once a request
        self, route: str, method: str, status: int, cache: str, sent: int, seconds: float
    ) -> None:
        """Count one request; ``cache`` is its outcome, empty where there was none."""
        if method not in _METHODS:
            method = "other"  # a client may make up as many as it likes
        key = (route, method, status, cache)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = REQUESTS.labels(route, method, str(status), cache)
        child.inc()
        histogram = self._seconds.get(route)
        if histogram is None:
            histogram = self._seconds[route] = SECONDS.labels(route)
            self._bytes[route] = BYTES_SERVED.labels(route)
        histogram.observe(seconds)
        if sent:
            self._bytes[route].inc(sent)


class UpstreamMetrics:
    """Implements :class:`pullthrough.upstream.observe.Observer`."""

    def request(self, operation: str, outcome: str, seconds: float) -> None:
        """One call of a source ended."""
        UPSTREAM_REQUESTS.labels(operation, outcome).inc()
        UPSTREAM_SECONDS.labels(operation).observe(seconds)

    def bytes_received(self, count: int) -> None:
        """``count`` bytes of answers' bodies came from the upstream."""
        UPSTREAM_BYTES.inc(count)

    def token_failure(self, reason: str) -> None:
        """Count a token that was asked for and not given."""
        TOKEN_FAILURES.labels(reason).inc()

    def credential_refused(self) -> None:
        """Count a rest of the credential."""
        CREDENTIAL_REFUSED.inc()


def watch(upstream_up: Callable[[], bool], filling: Callable[[], int]) -> Callable[[], None]:
    """Return what refreshes this process's gauges."""

    def refresh() -> None:
        UPSTREAM_UP.set(1 if upstream_up() else 0)
        FILLS.set(filling())

    return refresh


def exposition() -> tuple[bytes, str]:
    """Return all processes' numbers added up, and the content type."""
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]  # prometheus_client leaves it untyped
    return generate_latest(registry), CONTENT_TYPE_LATEST


def forget_process(pid: int) -> None:
    """Take a dead worker's gauges out of the sum; its counters stay."""
    mark_process_dead(pid)  # type: ignore[no-untyped-call]  # prometheus_client leaves it untyped
