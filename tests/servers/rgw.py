"""A real Ceph object gateway (RGW) on the loopback: one monitor, one OSD in memory, one gateway.

Debian's packages are ceph-mon, ceph-osd, radosgw and ceph-common. It needs no root, takes about two
seconds to start, and leaves nothing behind. Plain Python: tests, benches and scripts may use it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import http.client
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

TOOLS: Final = ("ceph-mon", "ceph-osd", "radosgw", "radosgw-admin", "ceph", "monmaptool", "openssl")
"""What has to be installed."""

ACCESS_KEY: Final = "TESTACCESSKEY0000001"
SECRET_KEY: Final = "testsecretkey00000000000000000000000000001"

_ROOT: Final = Path(__file__).resolve().parents[2]
# Debian keeps servers in sbin, which is not on every user's PATH.
_PATH: Final = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))
_SECONDS: Final = 60.0

# tcp_nodelay: else every small GET on a kept connection takes 44 ms (Nagle and delayed ACK).
# ms mon client mode: the gateway's own default is impossible without authentication, and it would
# try for ever. The collector is made quick, or overwritten objects would fill the memory.
_CONFIG: Final = """
[global]
fsid = {fsid}
mon host = [v2:127.0.0.1:{mon_port}/0]
public addr = 127.0.0.1
cluster addr = 127.0.0.1
ms bind msgr1 = false
ms mon client mode = crc
auth cluster required = none
auth service required = none
auth client required = none
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
osd pool default pgp num = 4
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon max pg per osd = 2000
mon data avail crit = 1
mon data avail warn = 2
run dir = {directory}/run
admin socket = {directory}/run/$name.$pid.asok
log file = {directory}/run/$name.log
log to stderr = false
paxos propose interval = 0.05
paxos min wait = 0.01
[mon]
mon data = {directory}/mon
mon cluster log file = {directory}/run/cluster.log
[osd]
osd data = {directory}/osd
osd journal = {directory}/osd/journal
osd objectstore = memstore
memstore device bytes = {capacity}
osd heartbeat grace = 60
[client]
rgw frontends = beast endpoint=127.0.0.1:{port} tcp_nodelay=1 \
ssl_endpoint=127.0.0.1:{tls_port} ssl_certificate={directory}/tls.crt \
ssl_private_key={directory}/tls.key
rgw data = {directory}/run/rgw
rgw thread pool size = 64
rgw enable usage log = false
rgw enable apis = s3, admin
rgw gc obj min wait = 2
rgw gc processor period = 2
debug rgw = 1
"""


class RgwError(Exception):
    """It did not start, or a command of its failed."""


def missing() -> list[str]:
    """Return which tools are not installed."""
    return [tool for tool in TOOLS if shutil.which(tool, path=_PATH) is None]


@dataclass(frozen=True, slots=True)
class Gateway:
    """Where a running gateway is, and how it lets one in. ``certificate`` signs for itself."""

    directory: Path
    port: int
    tls_port: int
    access_key: str = ACCESS_KEY
    secret_key: str = SECRET_KEY

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def tls_url(self) -> str:
        return f"https://127.0.0.1:{self.tls_port}"

    @property
    def certificate(self) -> Path:
        return self.directory / "tls.crt"

    def admin(self, *arguments: str) -> Any:
        """Run ``radosgw-admin`` and return what it prints, parsed where it is JSON."""
        output = _run(self.directory, "radosgw-admin", *arguments)
        return json.loads(output) if output.startswith((b"{", b"[")) else output.decode()


class Rgw:
    """One that belongs to who starts it, and may be stopped, paused and killed."""

    def __init__(self, capacity: int = 16 << 30) -> None:
        # A short path: Unix sockets stand in it.
        self.directory = Path(tempfile.mkdtemp(prefix="rgw-"))
        # Bound and not listening while this lives, so that nobody else is given these ports.
        self._held = [_hold_port() for _ in range(3)]
        self._mon_port, port, tls_port = (held.getsockname()[1] for held in self._held)
        self._capacity = capacity
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self.gateway = Gateway(self.directory, port, tls_port)

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def kill(self) -> None:
        """End the gateway at once; connections are refused then. What it stored stays."""
        process = self._running.pop("radosgw")
        process.kill()
        process.wait()

    def restart(self) -> None:
        """Start the gateway again after :meth:`kill`, on the same ports."""
        self._start_gateway()

    def pause(self) -> None:
        """Have the gateway take connections and say nothing."""
        self._running["radosgw"].send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Have it go on after :meth:`pause`."""
        self._running["radosgw"].send_signal(signal.SIGCONT)

    def close(self) -> None:
        """End all of it, and remove its files."""
        # By force: nothing of it is to be kept, and in order it takes seconds.
        for process in self._running.values():
            process.kill()
        for process in self._running.values():
            process.wait()
        self._running.clear()
        for held in self._held:
            held.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _start(self) -> None:
        for name in ("mon", "osd", "run"):
            (self.directory / name).mkdir()
        fsid, osd = str(uuid.uuid4()), str(uuid.uuid4())
        config = _CONFIG.format(
            fsid=fsid,
            mon_port=self._mon_port,
            directory=self.directory,
            capacity=self._capacity,
            port=self.gateway.port,
            tls_port=self.gateway.tls_port,
        )
        (self.directory / "ceph.conf").write_text(config)
        self._make_certificate()
        monmap = str(self.directory / "monmap")
        address = f"[v2:127.0.0.1:{self._mon_port}/0]"
        self._run("monmaptool", "--create", "--fsid", fsid, "--addv", "a", address, monmap)
        self._run("ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap)
        self._spawn("ceph-mon", "-i", "a", "-f")
        self._run("ceph", "--connect-timeout", str(int(_SECONDS)), "osd", "new", osd)
        self._run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd)
        self._spawn("ceph-osd", "-i", "0", "-f")
        self._start_gateway()
        keys = ("--access-key", ACCESS_KEY, "--secret-key", SECRET_KEY)
        self.gateway.admin("user", "create", "--uid=test", "--display-name=test", *keys)

    def _start_gateway(self) -> None:
        process = self._spawn("radosgw", "-n", "client.rgw", "-f")

        def answers() -> bool:
            if process.poll() is not None:
                log = self.directory / "run" / "client.rgw.log"
                said = log.read_text(errors="replace")[-2000:] if log.exists() else ""
                raise RgwError(f"radosgw ended:\n{said}")
            return _answers(self.gateway.port)

        _wait(answers, "radosgw does not answer")

    def _make_certificate(self) -> None:
        self._run(
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-days", "2", "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
            *("-keyout", str(self.directory / "tls.key"), "-out", str(self.gateway.certificate)),
        )

    def _run(self, *command: str) -> None:
        _run(self.directory, *command)

    def _spawn(self, *command: str) -> subprocess.Popen[bytes]:
        with (self.directory / "run" / f"{command[0]}.out").open("ab") as output:
            process = subprocess.Popen(
                command,
                env=_environment(self.directory),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self._running[command[0]] = process
        return process


@contextlib.contextmanager
def shared(meeting: Path) -> Iterator[Gateway]:
    """Give the one gateway of all processes that name the same directory.

    The first to come starts it. A FIFO counts who uses it: a process of its own holds the reading
    end, each user a writing end, and when the last of these is gone, however it went, so is the
    gateway.
    """
    meeting.mkdir(parents=True, exist_ok=True)
    with _locked(meeting):
        use = _join(meeting)
        if use is None:
            _start_guardian(meeting)
            use = _join(meeting)
        if use is None:
            log = (meeting / "rgw.log").read_text(errors="replace")
            raise RgwError(f"the gateway did not start:\n{log[-4000:]}")
        place = json.loads((meeting / "rgw.json").read_text())
    try:
        yield Gateway(Path(place["directory"]), place["port"], place["tls_port"])
    finally:
        os.close(use)


def _join(meeting: Path) -> int | None:
    try:
        return os.open(meeting / "rgw.fifo", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in {errno.ENXIO, errno.ENOENT}:  # nobody reads: it is not running
            return None
        raise


def _start_guardian(meeting: Path) -> None:
    with (meeting / "rgw.log").open("ab") as log:
        guardian = subprocess.Popen(
            [sys.executable, "-m", "tests.servers.rgw", str(meeting)],
            cwd=_ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
        )
    # It lives on after this process, perhaps: nobody is to wait for it, nor to warn of that.
    guardian.returncode = 0
    assert guardian.stdout is not None
    with guardian.stdout as ready:
        ready.readline()  # a line when it runs, the end where it failed


def _guard(meeting: Path) -> None:
    """Run a gateway as long as somebody uses it; who starts this holds the lock until the line."""
    fifo = meeting / "rgw.fifo"
    fifo.unlink(missing_ok=True)
    with Rgw() as rgw:
        place = {
            "directory": str(rgw.directory),
            "port": rgw.gateway.port,
            "tls_port": rgw.gateway.tls_port,
        }
        (meeting / "rgw.json").write_text(json.dumps(place))
        os.mkfifo(fifo)
        reading = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        print("ready", flush=True)
        users = select.poll()
        users.register(reading, 0)  # POLLHUP is told unasked, once the last of them is gone
        while True:
            users.poll()
            with _locked(meeting):
                # Under the lock nobody joins. Perhaps somebody did before.
                if users.poll(0):
                    os.close(reading)
                    fifo.unlink()
                    return


@contextlib.contextmanager
def _locked(meeting: Path) -> Iterator[None]:
    lock = os.open(meeting / "rgw.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _hold_port() -> socket.socket:
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("127.0.0.1", 0))
    return held


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", "/")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _wait(ready: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _SECONDS
    while not ready():
        if time.monotonic() > deadline:
            raise RgwError(what)
        time.sleep(0.05)  # a bounded poll: other processes tell nobody


def _run(directory: Path, *command: str) -> bytes:
    done = subprocess.run(
        command, env=_environment(directory), capture_output=True, timeout=_SECONDS, check=False
    )
    if done.returncode != 0:
        raise RgwError(f"{command[0]}: {done.stderr.decode(errors='replace')[-2000:]}")
    return done.stdout


def _environment(directory: Path) -> dict[str, str]:
    return {"PATH": _PATH, "CEPH_CONF": str(directory / "ceph.conf"), "HOME": str(directory)}


if __name__ == "__main__":
    _guard(Path(sys.argv[1]))
