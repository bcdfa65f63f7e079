"""The clients: each as cheap as it can be, as they share the machine with what they measure."""

from __future__ import annotations

import asyncio
import hashlib
import re
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from http.client import HTTPConnection
from itertools import cycle
from typing import TypeVar
from urllib.parse import urlsplit

from aiohttp import ClientSession, ClientTimeout, TCPConnector

from bench.content import OCI_MANIFEST, Blob, Image
from bench.servers import HOST

TIMEOUT = 60.0  # seconds without a byte
DOWNLOAD_LIMIT = 120.0
PIECE = 4 << 20
ROUNDS = 3
LONGEST_SECONDS = 40

Headers = Mapping[str, str]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Download:
    """A finished download, in seconds since before the connection was made."""

    first_byte: float
    seconds: float


def check(port: int, path: str, headers: Headers, blob: Blob) -> None:
    """Raise :class:`RuntimeError` unless ``path`` gives the content of ``blob``."""
    with closing(HTTPConnection(HOST, port, timeout=TIMEOUT)) as connection:
        connection.request("GET", path, headers={"Accept": OCI_MANIFEST, **headers})
        response = connection.getresponse()
        digest = hashlib.sha256()
        start = piece = response.read(PIECE)
        while piece:
            digest.update(piece)
            piece = response.read(PIECE)
    if response.status != 200 or digest.hexdigest() != blob.hex:
        raise RuntimeError(f"GET {path}: {response.status}, {start[:200]!r}")


def pull(port: int, image: Image, headers: Headers) -> float:
    """Return the seconds that a client takes for ``image``, as containerd pulls: HEAD by tag first.

    Raises :class:`RuntimeError` when an answer is not the right one.
    """
    steps = (
        ("HEAD", image.by_tag, image.manifest),
        ("GET", image.by_digest, image.manifest),
        ("GET", image.blob(image.config), image.config),
        ("GET", image.blob(image.layer), image.layer),
    )
    started = time.perf_counter()
    with closing(HTTPConnection(HOST, port, timeout=TIMEOUT)) as connection:
        for method, path, blob in steps:
            connection.request(method, path, headers={"Accept": OCI_MANIFEST, **headers})
            response = connection.getresponse()
            body = response.read()
            if method == "HEAD":
                right = response.headers["Docker-Content-Digest"] == blob.digest
            else:
                right = hashlib.sha256(body).hexdigest() == blob.hex
            if response.status != 200 or not right:
                raise RuntimeError(f"{method} {path}: {response.status}, {body[:200]!r}")
    return time.perf_counter() - started


def open_get(port: int, path: str, headers: Headers) -> tuple[socket.socket, int, int]:
    """Ask for ``path``; return the connection, how much of the body has come, how much has not.

    Raises :class:`RuntimeError` unless the answer is a 200 with a Content-Length.
    """
    connection = socket.create_connection((HOST, port))
    try:
        # A limit in the kernel: Python's own would make the socket non-blocking, with two system
        # calls for each read.
        limit = struct.pack("ll", int(TIMEOUT), 0)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        fields = {"Host": f"{HOST}:{port}", "Connection": "close", **headers}
        lines = [f"GET {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        come, length = _read_head(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection, come, length - come


def _read_head(connection: socket.socket, path: str) -> tuple[int, int]:
    """Return how much of the body came with the head of the answer, and its Content-Length."""
    head = b""
    while b"\r\n\r\n" not in head:
        piece = connection.recv(1 << 16)
        if not piece:
            raise RuntimeError(f"GET {path}: cut off after {head[:200]!r}")
        head += piece
    head, _, body = head.partition(b"\r\n\r\n")
    length = re.search(rb"^content-length: *(\d+)", head, re.IGNORECASE | re.MULTILINE)
    if not head.startswith(b"HTTP/1.1 200 ") or not length:
        raise RuntimeError(f"GET {path}: {head[:200]!r}")
    return len(body), int(length[1])


def download(port: int, path: str, headers: Headers, size: int) -> Download:
    """Fetch ``path`` and throw the body away in the kernel, uncopied (MSG_TRUNC, tcp(7)).

    Raises :class:`RuntimeError` unless ``size`` bytes came.
    """
    started = time.perf_counter()
    connection, come, remaining = open_get(port, path, headers)
    with connection:
        if come + remaining != size:
            raise RuntimeError(f"GET {path}: {come + remaining} bytes announced, not {size}")
        buffer = bytearray(PIECE)
        if not come:
            remaining -= connection.recv_into(buffer, 1)
        first_byte = time.perf_counter() - started
        while remaining:
            wanted = min(remaining, PIECE)
            got = connection.recv_into(buffer, wanted, socket.MSG_TRUNC | socket.MSG_WAITALL)
            if not got:
                raise RuntimeError(f"GET {path}: cut off {remaining} bytes before the end")
            remaining -= got
            if time.perf_counter() - started > DOWNLOAD_LIMIT:
                raise RuntimeError(f"GET {path}: not done after {DOWNLOAD_LIMIT:.0f} s")
    return Download(first_byte, time.perf_counter() - started)


def redirected(port: int, path: str, headers: Headers, size: int) -> float:
    """Fetch ``path`` from where its 307 says, without ``headers``; return the seconds for both.

    Raises :class:`RuntimeError` when it is no 307, or ``size`` bytes did not come.
    """
    started = time.perf_counter()
    with closing(HTTPConnection(HOST, port, timeout=TIMEOUT)) as connection:
        connection.request("GET", path, headers=dict(headers))
        response = connection.getresponse()
        response.read()
    if response.status != 307:
        raise RuntimeError(f"GET {path}: {response.status}, not 307")
    place = urlsplit(response.headers["Location"])
    # Signed for the host as it stands there, whatever address that has.
    download(place.port or 80, f"{place.path}?{place.query}", {"Host": place.netloc}, size)
    return time.perf_counter() - started


def together(clients: int, task: Callable[[], T]) -> tuple[float, list[T]]:
    """Run ``task`` in ``clients`` threads; return the seconds for all, and what each returned."""
    ready = threading.Barrier(clients + 1)

    def run() -> T:
        ready.wait(TIMEOUT)
        return task()

    with ThreadPoolExecutor(clients) as pool:
        running = [pool.submit(run) for _ in range(clients)]
        ready.wait(TIMEOUT)
        started = time.perf_counter()
        results = [each.result() for each in running]
        return time.perf_counter() - started, results


def requests_per_second(
    port: int, path: str, headers: Headers, *, connections: int, seconds: int
) -> float:
    """Measure with wrk; raise :class:`RuntimeError` when any answer was not a 2xx.

    A slow server works on all connections at once and answers them in rounds: with fewer than a few
    rounds the edges would count for too much, and ``seconds`` is doubled.
    """
    requests, rate = _wrk(port, path, headers, connections, seconds)
    while requests < ROUNDS * connections:
        seconds *= 2
        if seconds > LONGEST_SECONDS:
            raise RuntimeError(f"GET {path}: {requests} requests in {seconds // 2} s are too few")
        requests, rate = _wrk(port, path, headers, connections, seconds)
    return rate


def _wrk(
    port: int, path: str, headers: Headers, connections: int, seconds: int
) -> tuple[int, float]:
    """Return the number of requests that were answered, and how many that is a second."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "30s"]
    for name, value in {"Accept": OCI_MANIFEST, **headers}.items():
        command += ["-H", f"{name}: {value}"]
    command.append(f"http://{HOST}:{port}{path}")
    output = subprocess.run(
        command, check=True, capture_output=True, text=True, timeout=seconds + TIMEOUT
    ).stdout
    requests = re.search(r"^ *(\d+) requests in ", output, re.MULTILINE)
    rate = re.search(r"^Requests/sec: *([0-9.]+)", output, re.MULTILINE)
    if not requests or not rate or "Non-2xx" in output or "Socket errors" in output:
        raise RuntimeError(f"wrk {path}: {output}")
    return int(requests[1]), float(rate[1])


def latencies(
    port: int,
    paths: Sequence[str],
    headers: Headers,
    *,
    rate: int,
    seconds: float,
    connections: int = 16,
) -> list[float]:
    """Ask ``rate`` times a second over kept connections; return the latencies in seconds, sorted.

    The ``paths`` are asked for in turn.

    Each counts from the time it was due, so that a pause of the server shows in every request that
    it delays. Raises :class:`RuntimeError` when an answer is not a 200.
    """
    every = cycle(f"http://{HOST}:{port}{path}" for path in paths)

    async def ask(session: ClientSession, due: float) -> float:
        url = next(every)
        async with session.get(url, headers={"Accept": OCI_MANIFEST, **headers}) as response:
            await response.read()
            if response.status != 200:
                raise RuntimeError(f"GET {url}: {response.status}")
        return time.monotonic() - due

    async def run() -> list[float]:
        async with ClientSession(
            connector=TCPConnector(limit=connections), timeout=ClientTimeout(TIMEOUT)
        ) as session:
            # Connect first.
            await asyncio.gather(*(ask(session, 0) for _ in range(connections)))
            started = time.monotonic()
            asking = []
            for number in range(int(rate * seconds)):
                due = started + number / rate
                await asyncio.sleep(due - time.monotonic())
                asking.append(asyncio.create_task(ask(session, due)))
            return await asyncio.gather(*asking)

    return sorted(asyncio.run(run()))
