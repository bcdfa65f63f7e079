"""What can go wrong on the way to a registry, as values that a test switches on and off."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Self


def eventually(condition: Callable[[], Any], what: str, *, seconds: float = 15) -> Any:
    """Return ``condition()`` once it is true; fail with ``what`` when that takes too long."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what}")
        time.sleep(0.01)  # a bounded poll: files and other processes tell nobody
    return value


class Gate:
    """A place in an answer where requests wait until the test opens it."""

    def __init__(self) -> None:
        self._opened = threading.Event()
        self.arrived = 0

    @property
    def is_open(self) -> bool:
        return self._opened.is_set()

    def open(self) -> None:
        self._opened.set()

    def wait_for(self, count: int = 1) -> None:
        """Wait until ``count`` requests have come here."""
        eventually(lambda: self.arrived >= count, f"{count} requests at the gate")


PORTAL: Final = b"<!DOCTYPE html><html><title>Sign in</title><body>Accept the terms</body></html>"
"""The page of a captive portal, which answers for every host and path."""


@dataclass(kw_only=True)
class Fault:
    """A way to answer wrongly; the parts that are given apply together.

    Counted in bytes of the answer's body: ``hold_at``, ``cut_after``, ``end_after``. ``corrupt_at``
    is an offset in the content. ``times`` is how many requests it applies to (None: all until
    :meth:`heal`).
    """

    path: str = ".*"
    methods: tuple[str, ...] = ("GET", "HEAD")
    times: int | None = None
    silent: bool = False  # take the request and never answer
    reset: bool = False  # break the connection before any answer
    hold: Gate | None = None
    hold_at: int | None = None  # None: before the status line
    status: int | None = None  # answer this, with ``headers`` and ``body``
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    content_type: str | None = None
    cut_after: int | None = None  # then a reset, with the whole length announced
    end_after: int | None = None  # then a clean end, with a Content-Length that agrees
    chunked: bool = False  # no Content-Length
    corrupt_at: int | None = None
    ignore_range: bool = False  # 200 from the start
    content_range: str | None = None  # a Content-Range that is not what was asked
    rate: int | None = None  # bytes/s
    hits: int = 0

    def __post_init__(self) -> None:
        self._pattern = re.compile(self.path)
        self.healed = False

    def takes(self, method: str, path: str) -> bool:
        """Whether this request is hit; one that is counts."""
        if self.healed or method not in self.methods or not self._pattern.fullmatch(path):
            return False
        if self.times is not None and self.hits >= self.times:
            return False
        self.hits += 1
        return True

    def heal(self) -> None:
        """Stop: requests from now on are answered rightly, those waiting are dropped."""
        self.healed = True
        if self.hold is not None:
            self.hold.open()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.heal()


def answer(
    status: int, body: bytes = b"", *, path: str = ".*", content_type: str = "application/json"
) -> Fault:
    """Return a fault that gives every request this answer."""
    return Fault(path=path, status=status, body=body, headers={"Content-Type": content_type})


def portal(status: int = 200, *, path: str = ".*") -> Fault:
    """Return a captive portal: its page with ``status``, or its redirect to itself for a 302."""
    fault = answer(status, PORTAL, path=path, content_type="text/html; charset=utf-8")
    if status == 302:
        fault.headers = {"Content-Type": "text/html", "Location": "http://127.0.0.1:9/login"}
    return fault
