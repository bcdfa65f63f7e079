"""The cache as a child process: configured, started, looked at from outside, stopped and killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.fakes.client import Client
from tests.fakes.faults import eventually
from tests.fakes.listener import hold_port

ROOT: Final = Path(__file__).parents[2]

QUICK: Final = {
    "freshness": {"maxage": "0s", "deadline": "2s"},
    "timeouts": {"connect": "2s", "firstbyte": "5s", "stall": "10s"},
}
"""Limits that a busy machine keeps, and under which no test waits long for a dead link."""

IMPATIENT: Final = {
    "freshness": {"deadline": "300ms"},
    "timeouts": {"connect": "500ms", "firstbyte": "1s", "stall": "1s"},
}
"""Limits for a test whose upstream is silent, and that does not mind taking a slow one for it."""


class Cache:
    """One ``pullthrough serve``; ``config`` is laid over what every test needs.

    ``directory`` has the configuration, the log and, in ``store``, the content.
    """

    def __init__(
        self,
        directory: Path,
        config: Mapping[str, Any],
        *,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._holders = [hold_port(), hold_port()]
        ports: list[int] = [holder.getsockname()[1] for holder in self._holders]
        self.port, self.debug_port = ports
        self.directory = directory
        self.log = directory / "cache.log"
        self._file = directory / "config.yml"
        self.environment = dict(environment or {})
        self._process: subprocess.Popen[bytes] | None = None
        basis = {
            "version": 0.1,
            "log": {"level": "info", "formatter": "json"},
            "storage": {"filesystem": {"rootdirectory": str(directory / "store")}},
            "http": {
                "addr": f"127.0.0.1:{self.port}",
                "debug": {"addr": f"127.0.0.1:{self.debug_port}"},
                "workers": 1,
            },
            "proxy": QUICK,
        }
        self.config = merged(basis, config)

    @property
    def store(self) -> Path:
        """The directory with the content, which has registry:2's layout."""
        return Path(self.config["storage"]["filesystem"]["rootdirectory"])

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def client(
        self,
        *,
        login: tuple[str, str] | None = None,
        address: str = "127.0.0.1",
        timeout: float = 30,
    ) -> Client:
        return Client(self.port, login=login, address=address, timeout=timeout)

    def configure(self, change: Mapping[str, Any]) -> None:
        """Change the configuration file; what reads it, and when, is the cache's affair."""
        self.config = merged(self.config, change)
        self._file.write_text(yaml.safe_dump(self.config))

    # Life

    def start(self) -> None:
        """Start it and wait until it is alive."""
        self.configure({})
        inherited = {
            name: value for name, value in os.environ.items() if not name.startswith("REGISTRY_")
        }
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "pullthrough", "serve", str(self._file)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                env={**inherited, "PYTHONPATH": str(ROOT), **self.environment},
                start_new_session=True,
            )
        eventually(self._is_up, f"an answer of /livez\n{self.log_text()[-4000:]}", seconds=20)

    def _is_up(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise AssertionError(f"it did not start:\n{self.log_text()[-4000:]}")
        try:
            return self.client(timeout=5).get("/livez").status == 200
        except OSError:
            return False

    def terminate(self) -> None:
        """Ask it to stop, and do not wait."""
        os.kill(self.pid, signal.SIGTERM)

    def reload(self) -> None:
        os.kill(self.pid, signal.SIGHUP)

    def wait(self, *, seconds: float = 20) -> int:
        """Return its exit status once it has ended by itself."""
        assert self._process is not None
        return self._process.wait(seconds)

    def stop(self) -> None:
        """Stop it and assert that it ended well."""
        self.terminate()
        assert self.wait() == 0, self.log_text()[-4000:]
        self._process = None

    def kill(self) -> None:
        """End it as a power cut does: all its processes at once."""
        if self._process is None:
            return
        for pid in self.pids():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self._process.wait(20)
        self._process = None

    def restart(self) -> None:
        self.stop()
        self.start()

    def close(self) -> None:
        """Leave nothing running, and give the ports back."""
        self.kill()
        for holder in self._holders:
            holder.close()

    def pids(self) -> list[int]:
        """Return its process and all below it, parents first."""
        children: dict[int, list[int]] = {}
        for entry in Path("/proc").glob("[0-9]*/stat"):
            try:
                after_name = entry.read_text().rpartition(")")[2].split()
            except OSError:
                continue
            children.setdefault(int(after_name[1]), []).append(int(entry.parent.name))
        found = [self.pid]
        for pid in found:
            found.extend(children.get(pid, []))
        return found

    def workers(self) -> list[int]:
        """Return the processes that answer requests: not the supervisor, nor the keeper."""
        return [pid for pid in self.pids()[1:] if title(pid).startswith("pullthrough: worker")]

    # Looking at it

    def log_text(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def log_lines(self) -> list[dict[str, Any]]:
        """Return the log's lines that are JSON objects."""
        found = []
        for line in self.log_text().splitlines():
            try:
                document = json.loads(line)
            except json.JSONDecodeError:
                continue
            if isinstance(document, dict):
                found.append(document)
        return found

    def log_line(self, value: object) -> dict[str, Any]:
        """Return the line that has ``value`` in one of its fields, once it is there."""

        def find() -> list[dict[str, Any]]:
            return [line for line in self.log_lines() if value in line.values()]

        found: list[dict[str, Any]] = eventually(find, f"a log line with {value!r}")
        return found[-1]

    def metric(self, *words: str) -> float:
        """Return the sum of all samples that have each of ``words`` in their name or a label.

        A cache may call its metrics as it likes. Histograms count by their ``_count``.
        """
        return sum(
            float(sample.value)
            for family in self.metric_families()
            for sample in family.samples
            if not sample.name.endswith(("_created", "_bucket", "_sum"))
            and all(word in f"{sample.name} {sample.labels}" for word in words)
        )

    def metric_families(self) -> list[Any]:
        """Return Prometheus' families, parsed."""
        answer = Client(self.debug_port).get("/metrics")
        assert answer.status == 200
        return list(text_string_to_metric_families(answer.body.decode()))

    # What it keeps

    def blob_file(self, digest: str) -> Path:
        """Return where registry:2's layout has a blob's bytes."""
        return blob_file(self.store, digest)

    def wait_stored(self, digest: str) -> Path:
        """Return where a blob is, once it is: a client may have its last byte a moment earlier."""
        file = self.blob_file(digest)
        eventually(file.exists, f"{digest} in the store")
        return file


def title(pid: int) -> str:
    """Return what ps calls a process; empty if there is none."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").decode()
    except OSError:
        return ""


def layout(store: Path) -> Path:
    """Return the directory below which registry:2 keeps everything."""
    return store / "docker" / "registry" / "v2"


def blob_file(store: Path, digest: str) -> Path:
    """Return where registry:2's layout has a blob's bytes."""
    algorithm, _, digits = digest.partition(":")
    return layout(store) / "blobs" / algorithm / digits[:2] / digits / "data"


def merged(basis: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``basis`` with ``change`` laid over it, mapping by mapping; None takes a key away."""
    result = dict(basis)
    for key, value in change.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, Mapping) and isinstance(result.get(key), Mapping):
            result[key] = merged(result[key], value)
        else:
            result[key] = value
    return result


def towards(url: str, **proxy: Any) -> dict[str, Any]:
    """Return the configuration of a cache of the registry at ``url``, with the right login."""
    login = {"username": "robot$region", "password": "upstream-secret"}
    return {"proxy": {"remoteurl": url, **login, **proxy}}
