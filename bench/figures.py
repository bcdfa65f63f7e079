"""What was measured, and what it is measured against."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, Literal

from bench.site import PULLTHROUGH, REGISTRY


@dataclass(slots=True)
class Series:
    """Repeated measurements of one thing, in the order in which they were taken."""

    unit: str
    samples: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """The middle one, which a machine's hiccup does not move."""
        return statistics.median(self.samples)


@dataclass(frozen=True, slots=True)
class Figures:
    """A scenario's measurements by name."""

    series: dict[str, Series] = field(default_factory=dict)

    def add(self, name: str, unit: str, *values: float) -> None:
        """Add measurements of ``name``."""
        self.series.setdefault(name, Series(unit)).samples.extend(values)

    def divide(self, name: str, dividend: str, divisor: str) -> None:
        """Add ``name``, the ratios of two series, each pair taken one right after the other."""
        pairs = zip(self.series[dividend].samples, self.series[divisor].samples, strict=True)
        self.add(name, "x", *(above / below for above, below in pairs))

    def compare(self, names: Iterable[str], other: str = REGISTRY) -> None:
        """Add the ratio of pullthrough to ``other`` for each measurement of ``names``."""
        for name in names:
            ratio = f"{name}: {PULLTHROUGH} / {other}"
            self.divide(ratio, f"{name}: {PULLTHROUGH}", f"{name}: {other}")


@dataclass(frozen=True, slots=True)
class Target:
    """A bound on a figure.

    A speed is judged by its median. What is promised to every client or in every run is judged by
    its ``worst`` sample.
    """

    scenario: str
    figure: str
    bound: Literal["at least", "at most"]
    limit: float
    judged: Literal["median", "worst"] = "median"

    def measured(self, series: Series) -> float:
        """Return the value that counts."""
        if self.judged == "median":
            return series.median
        return min(series.samples) if self.bound == "at least" else max(series.samples)

    def met(self, series: Series) -> bool:
        """Whether what was measured keeps to the bound."""
        measured = self.measured(series)
        return measured >= self.limit if self.bound == "at least" else measured <= self.limit


_VERSUS_REGISTRY = f"{PULLTHROUGH} / {REGISTRY}"
# A pull takes a few milliseconds, and two series of the same pulls differ by this much.
_AS_FAST: Final = 1.25

TARGETS: Final = (
    Target("manifests", f"cost 10, by digest: {_VERSUS_REGISTRY}", "at least", 300),
    Target("manifests", f"cost 10, by tag: {_VERSUS_REGISTRY}", "at least", 300),
    Target("manifests", f"cost 10, by digest: {PULLTHROUGH}", "at least", 9000),
    Target("manifests", f"cost 10, by tag: {PULLTHROUGH}", "at least", 9000),
    Target("manifests", f"cost 5, by digest: {_VERSUS_REGISTRY}", "at least", 15),
    Target("manifests", f"cost 5, by tag: {_VERSUS_REGISTRY}", "at least", 15),
    Target("blob-warm", f"8 clients: {PULLTHROUGH} / nginx", "at least", 0.85),
    Target("blob-warm", f"8 clients: {_VERSUS_REGISTRY}", "at least", 1.2),
    Target("blob-cold", f"one client: {_VERSUS_REGISTRY}", "at least", 1.2),
    Target("blob-cold", f"first byte: {_VERSUS_REGISTRY}", "at most", 1.0),
    # 1.00 to two places: the link carries the answer's headers and the login too.
    Target("crowd", f"copies over the link: {PULLTHROUGH}", "at most", 1.005, "worst"),
    Target("crowd", f"16 clients: {PULLTHROUGH} / one direct copy", "at most", 1.2),
    Target("stalled", f"memory over idle: {PULLTHROUGH}", "at most", 60, "worst"),
    Target("stalled", f"manifest p98: {PULLTHROUGH}", "at most", 20, "worst"),
    Target("outage", f"refusing, first pull: {PULLTHROUGH} / warm", "at most", _AS_FAST),
    Target("outage", f"refusing, later pulls: {PULLTHROUGH} / warm", "at most", _AS_FAST),
    Target("outage", f"silent, first pull: {PULLTHROUGH}", "at most", 1.5 + 0.5, "worst"),
    Target("outage", f"silent, later pulls: {PULLTHROUGH} / warm", "at most", _AS_FAST),
    Target("bucket-cold", "pull: with a bucket / without", "at most", 1.1),
    Target("bucket-warm", "redirected / gateway asked directly", "at least", 0.95),
    Target(
        "bucket-warm",
        "on the local disk, redirect off / without a bucket",
        "at least",
        0.95,
    ),
    Target(
        "bucket-warm",
        "only in the bucket, redirect off / gateway asked directly",
        "at least",
        0.8,
    ),
    Target("bucket-away", "refused, first pull: with a bucket / without", "at most", _AS_FAST),
    Target("bucket-away", "refused, later pulls: with a bucket / without", "at most", _AS_FAST),
    Target("bucket-away", "silent, first pull: with a bucket / without", "at most", _AS_FAST),
    Target("bucket-away", "silent, later pulls: with a bucket / without", "at most", _AS_FAST),
    Target("bucket-memory", "over idle", "at most", 150, "worst"),
    Target("large-store", "start: large, first answer", "at most", 2, "worst"),
    Target("large-store", "hit: large / small, p99", "at most", _AS_FAST),
    Target("large-store", "ls", "at most", 2, "worst"),
    Target("large-store", "eviction of 10000", "at most", 10, "worst"),
)
