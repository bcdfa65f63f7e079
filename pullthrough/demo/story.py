"""What the demo does, and what it demands of each step."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from pullthrough.demo import counters, processes
from pullthrough.demo.client import Login, Pulled, PullFailed, pull
from pullthrough.demo.counters import Counters
from pullthrough.demo.processes import DemoFailed
from pullthrough.demo.upstream import Settings
from pullthrough.oci.digest import Digest

DELAY: Final = 0.1  # seconds for each request
RATE: Final = 20e6  # bytes a second
TIME_LIMIT: Final = 45.0  # seconds for the whole story; ending its processes comes on top


@dataclass(frozen=True, slots=True)
class Step:
    """One pull of all images: its seconds, its cost to the upstream, and what came for each tag."""

    name: str
    alive: bool
    seconds: float
    cost: Counters
    pulled: Mapping[str, Pulled]

    def blobs(self) -> dict[Digest, int]:
        """Return the size in bytes of each blob that came."""
        return {
            digest: size for each in self.pulled.values() for digest, size in each.blobs.items()
        }


def problems(step: Step, tags: Mapping[str, str], seen: Mapping[Digest, int]) -> Iterator[str]:
    """Say what is wrong with ``step`` if these are the ``tags``, and ``seen`` the cached blobs."""
    for tag, digest in tags.items():
        image = step.pulled[tag]
        if str(image.digest) != digest:
            yield f"{tag} came as {image.digest}, not as {digest}"
        if not image.cache_status.startswith("pullthrough;"):
            yield f"{tag} came with no Cache-Status of the cache's: {image.cache_status!r}"
        elif not step.alive and "fwd=stale" not in image.cache_status:
            yield f"{tag} is stale and does not say so: {image.cache_status}"
    new = sum(size for digest, size in step.blobs().items() if digest not in seen)
    if step.cost.blob_bytes != new:
        yield f"{step.cost.blob_bytes} bytes of blobs crossed the link, where {new} were new"
    if step.cost.requests and not step.alive:
        yield f"the upstream is dead and answered {step.cost.requests} requests"


class Story:
    """The steps so far, and what was wrong with them."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.failures: list[str] = []
        self._seen: dict[Digest, int] = {}

    async def tell(self, directory: Path, log: IO[bytes], say: Callable[[str], None]) -> None:
        """Do it all, with what it needs in ``directory``, within :data:`TIME_LIMIT`."""
        try:
            async with asyncio.timeout(TIME_LIMIT):
                await self._tell(directory, log, say)
        except TimeoutError:
            self.failures.append(f"it took longer than {TIME_LIMIT:.0f} s")
        except DemoFailed as failure:
            self.failures.append(str(failure))

    async def _tell(self, directory: Path, log: IO[bytes], say: Callable[[str], None]) -> None:
        robot = Login("robot$demo", secrets.token_urlsafe())
        user = Login("node", secrets.token_urlsafe())
        meter = directory / "counters"
        settings = Settings(robot.username, robot.password, str(meter), DELAY, RATE)
        async with processes.upstream(settings, log) as far:
            say(
                f"The upstream: a registry with Harbor's login, at {far.url}. Its link is "
                f"simulated: {DELAY * 1000:.0f} ms for each request, {RATE / 1e6:.0f} MB/s."
            )
            port = processes.free_port()
            near = f"http://127.0.0.1:{port}"
            config = processes.configure(
                directory, port=port, user=user, remote=far.url, robot=robot
            )

            async def step(name: str, *, alive: bool = True) -> None:
                before = counters.read(meter)
                start = time.perf_counter()
                try:
                    pulled = {tag: await pull(near, user, tag) for tag in far.tags}
                except PullFailed as failure:
                    self.failures.append(f"{name}: {failure}")
                    return
                seconds = time.perf_counter() - start
                cost = counters.read(meter) - before
                self._take(Step(name, alive, seconds, cost, pulled), far.tags)

            async with processes.cache(config, near, log) as pid:
                say(f"The cache: pullthrough serve, at {near} (process {pid}).")
                await step("first pull")
                await step("second pull")
                await far.push()
                await step("new version pushed")
                await far.kill()
                say(f"The upstream (process {far.pid}) was killed.")
                await step("upstream killed", alive=False)
            async with processes.cache(config, near, log) as pid:
                say(f"The cache was restarted (process {pid}), with the upstream still dead.")
                await step("cache restarted", alive=False)

    def _take(self, step: Step, tags: Mapping[str, str]) -> None:
        self.failures += [f"{step.name}: {each}" for each in problems(step, tags, self._seen)]
        self._seen |= step.blobs()
        self.steps.append(step)
