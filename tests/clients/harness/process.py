"""Starting real servers and tools, and cleaning up after them."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import pytest

# Debian keeps servers in sbin, which is not on every user's PATH.
_PATH = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))
# Ports that the system does not give to outgoing connections.
_PORTS = range(10_000, 32_000)


def need(tool: str) -> str:
    """Return the path of ``tool``; without it the test fails in CI and is skipped elsewhere."""
    found = shutil.which(tool, path=_PATH)
    if found is None:
        _without(f"{tool} is not installed; `make packages` does it on Debian")
    return found


def need_root() -> None:
    """End the test where it may not mount: a failure in CI, elsewhere a skip."""
    if os.geteuid() != 0:
        _without("needs root")


def _without(reason: str) -> NoReturn:
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return this process's environment for a server or client, with ``extra``.

    Without REGISTRY_*, which would configure a registry, without AWS_CA_BUNDLE, on which
    distribution 2.8 panics, and without a proxy between the test's own processes.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("REGISTRY_")
        and name != "AWS_CA_BUNDLE"
        and name.lower() not in {"http_proxy", "https_proxy", "all_proxy"}
    }
    return kept | {"PATH": _PATH, "OTEL_TRACES_EXPORTER": "none"} | dict(extra or {})


def bound_socket() -> socket.socket:
    """Return a TCP socket bound to a loopback port that nobody else has, not listening.

    As long as it is open nobody else gets the port from here, and a server can listen on it all
    the same, again and again, when it sets SO_REUSEADDR, as servers do.
    """
    while True:
        bound = socket.socket()
        try:
            bound.bind(("127.0.0.1", random.choice(_PORTS)))  # noqa: S311 - not a secret
        except OSError:
            bound.close()
        else:
            # Only now: set before, it would have bound a port that another test holds.
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            return bound


def wait_until(ready: Callable[[], bool], what: str, *, seconds: float = 30) -> None:
    """Poll ``ready`` until it holds; fail the test with ``what`` after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            pytest.fail(f"not within {seconds} s: {what}")
        time.sleep(0.02)  # a bounded poll: other processes tell nobody


class Server:
    """A running server process, its output in a file."""

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        *,
        extra_environment: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        self.log = log
        self.name = Path(command[0]).name
        with log.open("ab") as output:
            # A session of its own: a Ctrl-C reaches the tests, which then stop it in order.
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment(extra_environment),
                cwd=cwd,
                start_new_session=True,
            )

    def wait_for(self, ready: Callable[[], bool], what: str) -> None:
        """Wait until ``ready`` holds; fail with the end of the log where it does not."""

        def ready_or_ended() -> bool:
            if self._process.poll() is not None:
                pytest.fail(f"{self.name} ended, before {what}:\n{self.tail()}")
            return ready()

        try:
            wait_until(ready_or_ended, what)
        except BaseException:
            self.stop()
            print(self.tail())
            raise

    def tail(self) -> str:
        """Return the last of what the server wrote."""
        return self.log.read_text(errors="replace")[-4000:]

    def stop(self) -> None:
        """End the server in order; where it does not end, end it by force and fail the test."""
        self._process.terminate()
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            # With all that it started: they share its session.
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(15)
            pytest.fail(f"{self.name} did not end on SIGTERM:\n{self.tail()}")


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """Give a directory whose path is short enough for Unix sockets; unmount and remove it after."""
    root = Path(tempfile.mkdtemp(prefix="pt-"))
    try:
        yield root
    finally:
        unmount(root)
        shutil.rmtree(root, ignore_errors=True)


def unmount(root: Path) -> None:
    """Unmount everything under ``root``, the innermost first."""
    mounts = Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()
    targets = [line.split()[1] for line in mounts]
    for target in reversed([t for t in targets if t.startswith(f"{root}/")]):
        subprocess.run([need("umount"), "--lazy", target], check=False)
