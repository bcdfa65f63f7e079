"""A plain HTTP client that keeps apart an answer that ended and one that broke off."""

from __future__ import annotations

import base64
import http.client
import json
import socket
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any, Final

from tests.fakes.content import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_INDEX,
    OCI_MANIFEST,
    Image,
)

ACCEPT: Final = f"{OCI_INDEX}, {OCI_MANIFEST}, {DOCKER_LIST}, {DOCKER_MANIFEST}, */*"

CODES: Final = frozenset(
    {
        "BLOB_UNKNOWN",
        "DENIED",
        "DIGEST_INVALID",
        "MANIFEST_BLOB_UNKNOWN",
        "MANIFEST_INVALID",
        "MANIFEST_UNKNOWN",
        "NAME_INVALID",
        "NAME_UNKNOWN",
        "RANGE_INVALID",
        "SIZE_INVALID",
        "TOOMANYREQUESTS",
        "UNAUTHORIZED",
        "UNAVAILABLE",
        "UNSUPPORTED",
    }
)
"""The distribution-spec's error codes that a pull can meet, and those that registries added."""


def basic(username: str, password: str) -> str:
    """Return the Authorization header's value."""
    return "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode()


@dataclass(frozen=True)
class Answer:
    """What came; ``complete`` is false when the connection broke before the body's end."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes
    complete: bool

    def header(self, name: str) -> str:
        return str(self.headers.get(name, ""))

    @property
    def cache_status(self) -> str:
        return self.header("Cache-Status")

    @property
    def request_id(self) -> str:
        """The request id, under whichever header has that name."""
        found = [value for name, value in self.headers.items() if "request-id" in name.lower()]
        return found[0] if found else ""

    @property
    def is_stale(self) -> bool:
        """Whether it says, in both headers, that the upstream was not there to ask."""
        return self.header("Warning").startswith("110") and "fwd=stale" in self.cache_status

    def json(self) -> Any:
        return json.loads(self.body)

    def assert_error(self, statuses: int | set[int], *codes: str) -> None:
        """Assert that this is the spec's error, of one of these statuses and ``codes`` (or any)."""
        allowed = {statuses} if isinstance(statuses, int) else statuses
        assert self.status in allowed, f"{self.status} {self.body[:300]!r}, not {allowed}"
        assert self.header("Content-Type").startswith("application/json"), self.headers.items()
        errors = self.json()["errors"]
        assert errors
        assert all(isinstance(error["message"], str) for error in errors)
        assert errors[0]["code"] in (codes or CODES), errors

    def assert_unavailable(self) -> None:
        """Assert that nothing is cached and that the upstream is at fault."""
        self.assert_error({502, 503, 504}, "UNAVAILABLE")


class Pending:
    """A request that was sent, and whose answer is not read yet."""

    def __init__(self, connection: http.client.HTTPConnection, method: str) -> None:
        self._connection = connection
        self._method = method

    def answer(self) -> Answer:
        """Read the whole answer, or as much as comes of it, and close the connection."""
        with closing(self._connection), self._connection.getresponse() as response:
            parts: list[bytes] = []
            try:
                # In pieces: what came before a break is kept.
                while piece := response.read1(1 << 20):
                    parts.append(piece)
                complete = self._method == "HEAD" or not response.length
            except (http.client.IncompleteRead, ConnectionError) as error:
                if isinstance(error, http.client.IncompleteRead):
                    parts.append(error.partial)
                complete = False
            return Answer(response.status, response.headers, b"".join(parts), complete)


class Client:
    """Requests to one port of this machine, each on its own connection, from ``address``."""

    def __init__(
        self,
        port: int,
        *,
        login: tuple[str, str] | None = None,
        address: str = "127.0.0.1",
        timeout: float = 30,
    ) -> None:
        self.port = port
        self._address = address
        self.timeout = timeout
        self._login = {"Authorization": basic(*login)} if login else {}

    def begin(
        self,
        path: str,
        headers: Mapping[str, str] | None = None,
        *,
        method: str = "GET",
        body: bytes | None = None,
    ) -> Pending:
        """Send a request, and leave the answer for later."""
        return Pending(self._send(method, path, headers, body), method)

    def request(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
    ) -> Answer:
        return self.begin(path, headers, method=method, body=body).answer()

    def get(self, path: str, headers: Mapping[str, str] | None = None) -> Answer:
        return self.request("GET", path, headers)

    def head(self, path: str, headers: Mapping[str, str] | None = None) -> Answer:
        return self.request("HEAD", path, headers)

    def manifest(self, repository: str, reference: str, method: str = "GET") -> Answer:
        return self.request(method, f"/v2/{repository}/manifests/{reference}", {"Accept": ACCEPT})

    def blob(
        self, repository: str, digest: str, *, range_: str | None = None, method: str = "GET"
    ) -> Answer:
        headers = {"Range": range_} if range_ else None
        return self.request(method, f"/v2/{repository}/blobs/{digest}", headers)

    def pull(self, image: Image) -> None:
        """Pull the whole image by its tag and assert that every byte of it is right."""
        top = self.manifest(image.repository, image.tag)
        assert (top.status, top.body) == (200, image.top.content), top
        for manifest in image.manifests[1:]:
            got = self.manifest(image.repository, manifest.digest)
            assert (got.status, got.body) == (200, manifest.content), got
        for digest, content in image.blobs.items():
            got = self.blob(image.repository, digest)
            assert got.status == 200, got
            assert got.complete
            assert got.body == content

    @contextmanager
    def stream(
        self, path: str, headers: Mapping[str, str] | None = None
    ) -> Iterator[http.client.HTTPResponse]:
        """Open a GET, to be read by and by; leaving the block closes the connection."""
        with (
            closing(self._send("GET", path, headers, None)) as connection,
            connection.getresponse() as response,
        ):
            yield response

    def _send(
        self, method: str, path: str, headers: Mapping[str, str] | None, body: bytes | None
    ) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection(
            "127.0.0.1", self.port, timeout=self.timeout, source_address=(self._address, 0)
        )
        try:
            connection.request(method, path, body, {**self._login, **(headers or {})})
        except OSError:
            connection.close()
            raise
        return connection

    def raw(self, request: bytes) -> bytes:
        """Send bytes as they are and return all that comes until the server closes (ask it to)."""
        with socket.create_connection(("127.0.0.1", self.port), self.timeout) as connection:
            connection.sendall(request)
            parts = []
            try:
                while piece := connection.recv(65536):
                    parts.append(piece)
            except ConnectionResetError:
                pass
            return b"".join(parts)


def together(count: int, work: Any) -> list[Any]:
    """Return ``work(0)`` … ``work(count - 1)``, done at the same time."""
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(work, range(count)))
