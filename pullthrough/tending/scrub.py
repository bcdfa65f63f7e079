"""Content read again: bits rot on disks, and nobody else would notice before an outage."""

from __future__ import annotations

import threading
import time
from typing import BinaryIO, Final

import structlog

from pullthrough.oci.digest import Digest
from pullthrough.store.catalogue import Catalogue
from pullthrough.store.layout import Layout
from pullthrough.store.quarantine import set_aside
from pullthrough.telemetry import metrics

_log = structlog.get_logger()

_BLOCK: Final = 1 << 20
_PLACE: Final = "scrubbed"
"""A note: the digest that was read last, so that a restart goes on from there."""


def scrub(layout: Layout, catalogue: Catalogue, rate: int, stop: threading.Event) -> list[str]:
    """Read all that is on the disk, ``rate`` bytes a second; set aside and return what is rotten.

    Raises OSError and sqlite3.Error.
    """
    rotten = []
    last = catalogue.noted(_PLACE) or ""
    for row in sorted(row for row in catalogue.rows() if row.here and row.digest > last):
        digest = Digest.parse(row.digest)
        try:
            with layout.blob(digest).open("rb", buffering=0) as file:
                if _read(file, digest, rate, stop):
                    catalogue.set_verified(digest, verified=True)
                elif not stop.is_set() and set_aside(layout, digest, file):
                    _log.error("cached content has rotted, set aside", digest=row.digest)
                    metrics.ROTTEN.inc()
                    if not layout.blob(digest).exists():  # it may have been fetched again by now
                        catalogue.not_here([row.digest])
                    rotten.append(row.digest)
        except FileNotFoundError:
            continue
        except OSError as error:
            # Not even readable: out of the way with it, or the scrub would end here each time.
            _log.error("cached content is not readable", digest=row.digest, why=error.strerror)
            metrics.ROTTEN.inc()
            if set_aside(layout, digest):
                catalogue.not_here([row.digest])
            rotten.append(row.digest)
        if stop.is_set():
            return rotten
        catalogue.note(_PLACE, row.digest)
    catalogue.note(_PLACE, "")
    return rotten


def _read(file: BinaryIO, digest: Digest, rate: int, stop: threading.Event) -> bool:
    hasher = digest.hasher()
    while block := file.read(_BLOCK):
        started = time.monotonic()
        hasher.update(block)
        if stop.wait(max(0.0, len(block) / rate - (time.monotonic() - started))):
            return False
    return hasher.hexdigest() == digest.hex
