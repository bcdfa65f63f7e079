"""The demo's processes are real, and none is left behind."""

import asyncio
import os
import signal
from asyncio.subprocess import PIPE
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import bcrypt
import pytest
import yaml

from pullthrough.demo import counters, processes
from pullthrough.demo.client import Login, PullFailed, pull
from pullthrough.demo.images import app
from pullthrough.demo.processes import DemoFailed
from pullthrough.demo.upstream import Settings

TAG = "demo/app:stable"


@pytest.fixture
def settings(robot: Login, meter_path: Path) -> Settings:
    return Settings(robot.username, robot.password, str(meter_path), delay=0.0, rate=1e9)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[IO[bytes]]:
    with (tmp_path / "log").open("wb", buffering=0) as log:
        yield log


def _gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def _environment(pid: int) -> bytes:
    return Path(f"/proc/{pid}/environ").read_bytes()


async def test_a_killed_upstream_answers_nobody_and_its_counters_stay(
    settings: Settings, robot: Login, log: IO[bytes], meter_path: Path
) -> None:
    """It serves a pull; after SIGKILL it is gone, and what it had sent is still known."""
    async with processes.upstream(settings, log) as far:
        pulled = await pull(far.url, robot, TAG)
        assert str(pulled.digest) == far.tags[TAG]
        await far.kill()
        assert _gone(far.pid)
        assert counters.read(meter_path).blob_bytes == sum(pulled.blobs.values())
        with pytest.raises(PullFailed):
            await pull(far.url, robot, TAG)


async def test_a_push_moves_the_tag(settings: Settings, robot: Login, log: IO[bytes]) -> None:
    """After a push the upstream serves the new version under the old tag."""
    async with processes.upstream(settings, log) as far:
        assert far.tags[TAG] == str(app(1).digest)
        await far.push()
        assert far.tags[TAG] == str(app(2).digest)
        assert (await pull(far.url, robot, TAG)).digest == app(2).digest


async def test_an_upstream_that_ended_by_itself_was_not_killed(
    settings: Settings, log: IO[bytes]
) -> None:
    """The demo must not show an outage that it did not make."""
    async with processes.upstream(settings, log) as far:
        far._process.terminate()
        await far._process.wait()
        with pytest.raises(DemoFailed, match="by itself"):
            await far.kill()


async def test_the_upstream_ends_when_the_demo_is_gone(settings: Settings, log: IO[bytes]) -> None:
    """A demo that is killed closes the upstream's standard input, and so ends it."""
    async with processes.upstream(settings, log) as far:
        assert far._process.stdin is not None
        far._process.stdin.close()
        assert await far._process.wait() == 0


async def test_an_upstream_that_dies_at_its_start_is_named(
    settings: Settings, log: IO[bytes], tmp_path: Path
) -> None:
    """The demo says who failed, rather than waiting for an answer."""
    nowhere = str(tmp_path / "none" / "counters")
    broken = Settings(settings.username, settings.password, nowhere, delay=0.0, rate=1e9)
    with pytest.raises(DemoFailed, match="upstream does not answer"):
        async with processes.upstream(broken, log):
            pass


async def test_a_cache_that_does_not_start_is_named(log: IO[bytes], tmp_path: Path) -> None:
    """The demo ends when the cache does, rather than asking it for ever."""
    url = f"http://127.0.0.1:{processes.free_port()}"
    with pytest.raises(DemoFailed, match="ended at its start"):
        async with processes.cache(tmp_path / "none.yml", url, log):
            pass


async def test_a_process_that_does_not_end_when_asked_is_killed(
    settings: Settings, log: IO[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stopped process hears no SIGTERM; it is gone all the same."""
    monkeypatch.setattr(processes, "_END_LIMIT", 0.05)
    async with processes.upstream(settings, log) as far:
        os.kill(far.pid, signal.SIGSTOP)
    assert _gone(far.pid)


async def test_an_interrupted_end_is_an_end(settings: Settings, log: IO[bytes]) -> None:
    """Ctrl-C while the demo waits for a process to end leaves it no more than before."""
    pids = []
    ending = asyncio.Event()

    async def stop_it() -> None:
        async with processes.upstream(settings, log) as far:
            pids.append(far.pid)
            os.kill(far.pid, signal.SIGSTOP)
            ending.set()

    task = asyncio.create_task(stop_it())
    await ending.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [_gone(pid) for pid in pids] == [True]


async def test_an_error_in_the_demo_leaves_no_process(settings: Settings, log: IO[bytes]) -> None:
    """Whatever goes wrong while they run, they are ended."""
    pids = []

    async def fail() -> None:
        async with processes.upstream(settings, log) as far:
            pids.append(far.pid)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert [_gone(pid) for pid in pids] == [True]


async def test_the_configuration_of_another_cache_is_not_inherited(
    log: IO[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """REGISTRY_ variables in the user's environment do not reach the demo's cache."""
    monkeypatch.setenv("REGISTRY_HTTP_ADDR", "127.0.0.1:1")
    monkeypatch.setenv("OTHER", "kept")
    command = "pullthrough.demo.upstream"
    async with processes._running(command, log=log, stdin=PIPE, stdout=PIPE) as process:
        environment = _environment(process.pid)
    assert b"OTHER=kept" in environment
    assert b"REGISTRY_" not in environment


def test_the_configuration_is_what_distribution_reads(tmp_path: Path, robot: Login) -> None:
    """The file has distribution's keys alone, and the user's password nowhere."""
    user = Login("node", "staple")
    config = processes.configure(
        tmp_path, port=5000, user=user, remote="http://127.0.0.1:1", robot=robot
    )
    document = yaml.safe_load(config.read_text())
    assert document["proxy"]["username"] == robot.username
    assert document["http"] == {"addr": "127.0.0.1:5000"}
    passwords = Path(document["auth"]["htpasswd"]["path"]).read_text()
    name, _, hashed = passwords.strip().partition(":")
    assert name == user.username
    assert bcrypt.checkpw(user.password.encode(), hashed.encode())
    assert user.password not in passwords + config.read_text()
