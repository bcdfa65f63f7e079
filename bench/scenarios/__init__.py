"""What is measured, by the names that the command takes, in the order in which all are run."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from bench.figures import Figures
from bench.scenarios import (
    blob_cold,
    blob_warm,
    bucket_away,
    bucket_cold,
    bucket_memory,
    bucket_warm,
    crowd,
    idle,
    large_store,
    manifests,
    outage,
    stalled,
)

SCENARIOS: Mapping[str, Callable[[Figures], None]] = {
    "idle": idle.run,
    "manifests": manifests.run,
    "blob-warm": blob_warm.run,
    "blob-cold": blob_cold.run,
    "crowd": crowd.run,
    "stalled": stalled.run,
    "outage": outage.run,
    "bucket-cold": bucket_cold.run,
    "bucket-warm": bucket_warm.run,
    "bucket-away": bucket_away.run,
    "bucket-memory": bucket_memory.run,
    "large-store": large_store.run,
}
