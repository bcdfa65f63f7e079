"""The demo's upstream and cache, as processes of their own: they can really be killed."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import IO, Any, cast

import bcrypt
import orjson
import yaml
from aiohttp import ClientError, ClientSession, ClientTimeout

from pullthrough.demo.client import Login
from pullthrough.demo.upstream import Settings

_BCRYPT_COST = 10
_POLL = 0.05  # seconds between looks whether the cache answers
_LOOK = ClientTimeout(total=1.0)
_END_LIMIT = 6.0  # seconds that a process has to end by itself
_ANSWER_LIMIT = 20.0  # seconds that the upstream has to make its images and answer


class DemoFailed(Exception):
    """A process of the demo did not do its part."""


class Upstream:
    """The running upstream: where it is, and what its tags name."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self.url = ""
        self.tags: Mapping[str, str] = {}

    @property
    def pid(self) -> int:
        """The process, as the system numbers it."""
        return self._process.pid

    async def configure(self, settings: Settings) -> None:
        """Say what to be, and learn where it is."""
        answer = await self._ask(settings.to_json())
        self.url = f"http://127.0.0.1:{answer['port']}"

    async def push(self) -> None:
        """Have it take in a new version of an image."""
        await self._ask(b"push\n")

    async def kill(self) -> None:
        """Kill it, and wait until it is gone. Raises :class:`DemoFailed` if it was gone before."""
        with suppress(ProcessLookupError):
            self._process.kill()
        if await self._process.wait() != -signal.SIGKILL:
            raise DemoFailed(f"the upstream ended by itself, with {self._process.returncode}")

    async def _ask(self, line: bytes) -> dict[str, Any]:
        # Both are pipes: upstream() asks for them.
        orders = cast("asyncio.StreamWriter", self._process.stdin)
        answers = cast("asyncio.StreamReader", self._process.stdout)
        orders.write(line)
        try:
            async with asyncio.timeout(_ANSWER_LIMIT):
                answer = orjson.loads(await answers.readline())
        except (TimeoutError, ConnectionError, orjson.JSONDecodeError) as error:
            raise DemoFailed("the upstream does not answer") from error
        self.tags = answer["tags"]
        return dict(answer)


@asynccontextmanager
async def upstream(settings: Settings, log: IO[bytes]) -> AsyncIterator[Upstream]:
    """Run an upstream on a free port. Raises :class:`DemoFailed`."""
    async with _running("pullthrough.demo.upstream", log=log, stdin=PIPE, stdout=PIPE) as process:
        started = Upstream(process)
        await started.configure(settings)
        yield started


@asynccontextmanager
async def cache(config: Path, url: str, log: IO[bytes]) -> AsyncIterator[int]:
    """Run ``pullthrough serve CONFIG``, and give its pid once it answers at ``url``.

    Raises :class:`DemoFailed` when it does not start, or does not end well.
    """
    command = ("pullthrough", "serve", str(config))
    async with _running(*command, log=log, stdin=DEVNULL, stdout=log) as process:
        async with ClientSession(timeout=_LOOK) as session:
            while not await _answers(session, url):
                if process.returncode is not None:
                    raise DemoFailed(f"the cache ended at its start, with {process.returncode}")
                await asyncio.sleep(_POLL)
        yield process.pid
    if process.returncode != 0:
        raise DemoFailed(f"the cache was asked to end, and did with {process.returncode}")


async def _answers(session: ClientSession, url: str) -> bool:
    try:
        async with session.get(f"{url}/v2/"):
            return True
    except (ClientError, TimeoutError):
        return False


@asynccontextmanager
async def _running(
    *command: str, log: IO[bytes], stdin: int, stdout: int | IO[bytes]
) -> AsyncIterator[Process]:
    """Run ``python -m COMMAND`` and end it."""
    # A variable that configures another cache must not change this one.
    environment = {key: value for key, value in os.environ.items() if key[:9] != "REGISTRY_"}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        *command,
        stdin=stdin,
        stdout=stdout,
        stderr=log,
        env=environment,
        # A group of its own: Ctrl-C reaches the demo alone, which then ends its processes in order.
        start_new_session=True,
    )
    try:
        yield process
    finally:
        await _end(process)


async def _end(process: Process) -> None:
    """End a process and its children: asked first, and killed when it does not."""
    if process.returncode is not None:
        return
    with suppress(ProcessLookupError):
        process.terminate()
    try:
        with suppress(TimeoutError):
            async with asyncio.timeout(_END_LIMIT):
                await process.wait()
    finally:
        # Also when the demo is interrupted while it waits.
        if process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


def free_port() -> int:
    """Return a port of the loopback that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def configure(directory: Path, *, port: int, user: Login, remote: str, robot: Login) -> Path:
    """Write the cache's configuration and its htpasswd file, and return the former's path."""
    hashed = bcrypt.hashpw(user.password.encode(), bcrypt.gensalt(_BCRYPT_COST)).decode()
    passwords = directory / "htpasswd"
    passwords.write_text(f"{user.username}:{hashed}\n")
    config = directory / "config.yml"
    document = {
        "version": 0.1,
        "storage": {"filesystem": {"rootdirectory": str(directory / "registry")}},
        "http": {"addr": f"127.0.0.1:{port}"},
        "auth": {"htpasswd": {"realm": "pullthrough demo", "path": str(passwords)}},
        "proxy": {"remoteurl": remote, "username": robot.username, "password": robot.password},
    }
    config.write_text(yaml.safe_dump(document))
    return config
