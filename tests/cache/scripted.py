"""A source without sockets: connections that go as they are told, and a registry in memory."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from pullthrough.oci.digest import Digest
from pullthrough.oci.reference import Repository, Tag
from pullthrough.upstream.base import (
    BlobBody,
    Failure,
    FetchedManifest,
    ManifestHead,
    UpstreamError,
)

K = TypeVar("K")
V = TypeVar("V")

NAME: Final = Repository("library/app")
OTHER: Final = Repository("library/other")
TAG: Final = Tag("v1")

Step = bytes | UpstreamError | asyncio.Event
"""What a read does: give bytes, fail, or wait before the next step."""


def broken(failure: Failure, **more: Any) -> UpstreamError:
    """Return an error as a source raises it."""
    return UpstreamError(failure, failure.value, **more)


class Body:
    """A connection's body, told step by step; after the last step it ends cleanly."""

    def __init__(
        self, steps: Iterable[Step] = (), *, start: int | None = None, size: int | None = None
    ) -> None:
        self._steps = deque(steps)
        self._start = start
        self.size = size

    @property
    def start(self) -> int:
        """Where it begins: where it was asked to, unless the script says otherwise."""
        return self._start or 0

    def asked(self, start: int) -> None:
        """Say what was asked for."""
        if self._start is None:
            self._start = start

    async def read(self) -> bytes:
        """Take the next step."""
        await asyncio.sleep(0)  # others run, as at a socket
        while self._steps:
            step = self._steps.popleft()
            if isinstance(step, bytes):
                return step
            if isinstance(step, UpstreamError):
                raise step
            await step.wait()
        return b""


def body_of(content: bytes, start: int = 0, *, chunk: int = 64 * 1024) -> Body:
    """Return a body that gives ``content`` from ``start`` on."""
    pieces = (content[at : at + chunk] for at in range(start, len(content), chunk))
    return Body(pieces, start=start, size=len(content))


@dataclass
class FakeSource:
    """A registry in memory. What is ``planned`` comes first, connection by connection."""

    up: bool = True
    blobs: dict[Digest, bytes] = field(default_factory=dict)
    manifests: dict[str, FetchedManifest] = field(default_factory=dict)
    heads: dict[str, Digest] = field(default_factory=dict)
    tag_list: tuple[str, ...] | None = None
    referrers_list: bytes | None = None
    planned: deque[Body | UpstreamError] = field(default_factory=deque)
    failing: UpstreamError | None = None
    """What every question is answered with."""
    gate: asyncio.Event | None = None
    """What every question waits for."""
    asked: list[tuple[Any, ...]] = field(default_factory=list)
    connections: int = 0
    """How many bodies are open now."""
    late: int = 0
    """How often an answer was called overdue."""

    def overdue(self) -> None:
        """Count it."""
        self.late += 1

    def add(self, content: bytes, algorithm: str = "sha256") -> Digest:
        """Have a blob."""
        digest = Digest.of(content, algorithm)
        self.blobs[digest] = content
        return digest

    async def _answer(self, *question: Any) -> None:
        self.asked.append(question)
        if self.gate is not None:
            await self.gate.wait()
        else:
            await asyncio.sleep(0)  # others run, as at a socket
        if self.failing is not None:
            raise self.failing

    async def head_manifest(self, repository: Repository, reference: Tag | Digest) -> ManifestHead:
        """Say what ``heads``, else ``manifests``, has."""
        await self._answer("HEAD", repository, reference)
        digest = self.heads.get(str(reference))
        if digest is None:
            digest = Digest.of(_found(self.manifests, str(reference)).content)
        return ManifestHead(digest)

    async def get_manifest(
        self, repository: Repository, reference: Tag | Digest
    ) -> FetchedManifest:
        """Give what ``manifests`` has."""
        await self._answer("GET", repository, reference)
        return _found(self.manifests, str(reference))

    async def head_blob(self, repository: Repository, digest: Digest) -> int:
        """Return the size of one of ``blobs``."""
        await self._answer("HEAD blob", repository, digest)
        return len(_found(self.blobs, digest))

    @asynccontextmanager
    async def get_blob(
        self, repository: Repository, digest: Digest, *, start: int = 0, end: int | None = None
    ) -> AsyncIterator[BlobBody]:
        """Give what is planned, else one of ``blobs``."""
        await self._answer("blob", repository, digest, start, end)
        if self.planned:
            body = self.planned.popleft()
            if isinstance(body, UpstreamError):
                raise body
            body.asked(start)
        else:
            content = _found(self.blobs, digest)
            if start >= len(content) and start:
                raise broken(Failure.CUT, status=416)
            body = body_of(content[:end], start)
            body.size = len(content)
        self.connections += 1
        try:
            yield body
        finally:
            self.connections -= 1

    async def tags(self, repository: Repository) -> tuple[str, ...]:
        """Return ``tag_list``."""
        await self._answer("tags", repository)
        if self.tag_list is None:
            raise broken(Failure.NOT_FOUND)
        return self.tag_list

    async def referrers(self, repository: Repository, digest: Digest) -> bytes | None:
        """Return ``referrers_list``."""
        await self._answer("referrers", repository, digest)
        return self.referrers_list

    @property
    def ranges(self) -> list[tuple[int, int | None]]:
        """What downloads were asked for: start and end."""
        return [(asked[-2], asked[-1]) for asked in self.asked if asked[0] == "blob"]


class FakeMirror(FakeSource):
    """A bucket in memory. What is ``planned`` comes first, as with the registry."""

    async def size(self, digest: Digest) -> int | None:
        """Return the size of one of ``blobs``."""
        await self._answer("size", digest)
        content = self.blobs.get(digest)
        return None if content is None else len(content)

    async def address(self, digest: Digest) -> str:
        """Return an address."""
        await self._answer("address", digest)
        return f"https://bucket.example.com/{digest.hex}?signature=a-presigned-secret"

    @property
    def looks(self) -> int:
        """How often it was asked whether it has something."""
        return sum(kind == "size" for kind, *_ in self.asked)


class Room:
    """Makes room on a disk, or not: remembers what was asked for."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.make: Callable[[], bool] = lambda: False

    def __call__(self, size: int) -> bool:
        """Do what the test says."""
        self.asked.append(size)
        return self.make()


def _found(things: Mapping[K, V], key: K) -> V:
    if key not in things:
        raise broken(Failure.NOT_FOUND)
    return things[key]


class Sleep:
    """A sleep that takes no time, and remembers how long it would have been."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    async def __call__(self, seconds: float) -> None:
        """Note it, and let others run."""
        self.slept.append(seconds)
        await asyncio.sleep(0)


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


async def until(condition: Callable[[], Any], what: str) -> None:
    """Wait until ``condition`` holds; fail with ``what`` when it does not."""
    for _ in range(10_000):
        if condition():
            return
        await asyncio.sleep(0.001)  # a bounded poll: threads and tasks tell no event
    raise AssertionError(f"never: {what}")
