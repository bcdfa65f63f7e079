"""Starting, measuring and stopping the programs."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path

HOST = "127.0.0.1"
START_LIMIT = 30.0
STOP_LIMIT = 15.0


@dataclass(frozen=True, slots=True)
class Server:
    """A running program; ``start_seconds`` is from its start to its first answer."""

    pid: int
    port: int
    log: Path
    start_seconds: float

    def memory(self) -> float:
        """Return the MiB that the program and all its children hold.

        The proportional set size (proc_pid_smaps_rollup): memory that several processes share
        counts once.
        """
        return sum(map(_pss, [self.pid, *_descendants(self.pid)])) / 1024


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def running(
    command: Sequence[str | Path], port: int, log: Path, environment: Mapping[str, str], cwd: Path
) -> Iterator[Server]:
    """Run ``command``, which listens on ``port``, and stop it at the end.

    Raises :class:`RuntimeError` when it does not come up. What goes wrong while it runs gets the
    end of its log as a note.
    """
    inherited = {
        name: value
        for name, value in os.environ.items()
        # docker-registry 2.8.2 panics over AWS_CA_BUNDLE, and the config is this bench's alone.
        if name != "AWS_CA_BUNDLE" and not name.startswith("REGISTRY_")
    }
    with log.open("ab") as output:
        started = time.perf_counter()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=inherited | {"OTEL_TRACES_EXPORTER": "none"} | dict(environment),
            cwd=cwd,
        )
    try:
        _wait_answer(process, port, log.stem, started + START_LIMIT)
        yield Server(process.pid, port, log, time.perf_counter() - started)
    except Exception as failure:
        failure.add_note(f"the end of {log.name}:\n{_tail(log)}")
        raise
    finally:
        _stop(process)


def _wait_answer(process: subprocess.Popen[bytes], port: int, program: str, give_up: float) -> None:
    while not _answers(port):
        if time.perf_counter() > give_up or process.poll() is not None:
            raise RuntimeError(f"{program} did not start")
        time.sleep(0.005)  # a bounded poll, and as fine as start_seconds is to be


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-2000:]


def _answers(port: int) -> bool:
    connection = HTTPConnection(HOST, port, timeout=2)
    try:
        connection.request("GET", "/v2/")
        connection.getresponse().read()
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()
    return True


def _stop(process: subprocess.Popen[bytes]) -> None:
    children = _descendants(process.pid)
    process.terminate()
    try:
        process.wait(STOP_LIMIT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        for child in children:
            with suppress(ProcessLookupError):
                os.kill(child, 9)


def _descendants(pid: int) -> list[int]:
    found = []
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            for child in map(int, children.read_text().split()):
                found += [child, *_descendants(child)]
    return found


def _pss(pid: int) -> int:
    """Return KiB, 0 for a process that has ended meanwhile."""
    with suppress(FileNotFoundError, ProcessLookupError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1])
    return 0
