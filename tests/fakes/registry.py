"""A registry with Harbor's manners, in memory and on real sockets, that fails as it is told to.

It runs in a thread of its own: plain tests and child processes can use it.
"""

from __future__ import annotations

import json
import re
import ssl
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, urlencode

from aiohttp import web

from tests.fakes.content import Image, Manifest, digest_of, make_image, make_referrer
from tests.fakes.faults import Fault
from tests.fakes.listener import Listener
from tests.fakes.logins import Login, LoginDesk, Reply, error
from tests.fakes.sending import Seen, broken, send, until, wait_at


@dataclass
class Repository:
    """What one repository holds."""

    manifests: dict[str, Manifest] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)


class FakeRegistry:
    """Harbor-like: see :class:`LoginDesk` for its logins, :class:`Fault` for what it can do wrong.

    The switches ``redirect_blobs``, ``referrers_api`` and ``page_size`` can be set at any time.
    """

    def __init__(
        self,
        *,
        login: Login = Login.BEARER,
        host: str = "127.0.0.1",
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.repositories: dict[str, Repository] = {}
        self.desk = LoginDesk(login, scheme="https" if tls else "http")
        self.redirect_blobs = False
        self.referrers_api = True
        self.page_size = 100
        self.seen: list[Seen] = []
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        self._crashes: list[Exception] = []
        self._listener = Listener(self._handle, host, tls)

    @property
    def host(self) -> str:
        """``host:port``."""
        return f"{self._listener.host}:{self._listener.port}"

    @property
    def port(self) -> int:
        return int(self._listener.port)

    @property
    def url(self) -> str:
        return f"{self.desk.scheme}://{self.host}"

    def __enter__(self) -> Self:
        self._listener.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.heal()
        self._listener.close()
        assert not self._crashes, self._crashes

    # Content

    def put_image(
        self, repository: str, tag: str = "v1", layers: tuple[bytes, ...] = (), **how: Any
    ) -> Image:
        """Make an image of ``layers`` (see :func:`make_image`), keep it and let ``tag`` name it."""
        image = make_image(repository, tag, layers or (tag.encode() * 50,), **how)
        for manifest in image.manifests:
            self.put_manifest(repository, manifest)
        self._repository(repository).blobs.update(image.blobs)
        self.tag(repository, tag, image.digest)
        return image

    def put_manifest(self, repository: str, manifest: Manifest, tag: str | None = None) -> None:
        self._repository(repository).manifests[manifest.digest] = manifest
        if tag:
            self.tag(repository, tag, manifest.digest)

    def put_blob(self, repository: str, content: bytes, algorithm: str = "sha256") -> str:
        digest = digest_of(content, algorithm)
        self._repository(repository).blobs[digest] = content
        return digest

    def put_referrer(self, repository: str, subject: Manifest, artifact_type: str) -> Manifest:
        referrer = make_referrer(subject, artifact_type)
        self.put_manifest(repository, referrer)
        return referrer

    def tag(self, repository: str, tag: str, digest: str) -> None:
        """Let ``tag`` name ``digest``; moves it where it named another."""
        self._repository(repository).tags[tag] = digest

    def untag(self, repository: str, tag: str) -> None:
        del self._repository(repository).tags[tag]

    def _repository(self, name: str) -> Repository:
        return self.repositories.setdefault(name, Repository())

    # Faults

    def inject(self, fault: Fault) -> Fault:
        """Let ``fault`` hit from now on; the newest that takes a request wins."""
        with self._lock:
            self._faults.insert(0, fault)
        return fault

    def heal(self) -> None:
        """End every fault and listen."""
        with self._lock:
            faults, self._faults = self._faults, []
        for fault in faults:
            fault.heal()

    def refuse(self) -> None:
        """Refuse connections, and break those that are open."""
        self._listener.refuse()

    def accept(self) -> None:
        """Listen again, on the same port."""
        self._listener.accept()

    # What was seen

    def requests(self, method: str = "GET|HEAD", path: str = ".*") -> list[Seen]:
        """Return the requests so far whose method and path match these patterns wholly."""
        return [
            seen
            for seen in list(self.seen)
            if re.fullmatch(method, seen.method) and re.fullmatch(path, seen.path)
        ]

    def count(self, method: str = "GET|HEAD", path: str = ".*") -> int:
        return len(self.requests(method, path))

    def fetches(self, path: str = ".*") -> list[Seen]:
        """Return the GETs that were given content, or a part of it."""
        return [seen for seen in self.requests("GET", path) if 200 <= seen.status < 300]

    def bytes_sent(self, path: str = ".*") -> int:
        """Return the bytes of content sent, those of error answers left out."""
        return sum(seen.sent for seen in self.fetches(path))

    def forget(self) -> None:
        """Start counting anew."""
        self.seen.clear()

    # Answering

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        seen = Seen(
            method=request.method,
            path=request.rel_url.raw_path,
            query={name: values[-1] for name, values in parse_qs(request.query_string).items()},
            headers=request.headers.copy(),
            at=time.monotonic(),
        )
        self.seen.append(seen)
        try:
            return await self._answer(request, seen)
        except ConnectionError:
            return web.Response()  # the client left
        except Exception as crash:
            self._crashes.append(crash)
            raise

    async def _answer(self, request: web.BaseRequest, seen: Seen) -> web.StreamResponse:
        with self._lock:
            faults = [each for each in self._faults if each.takes(seen.method, seen.path)][:1]
        fault = faults[0] if faults else Fault()
        if fault.hold is not None and fault.hold_at is None:
            await wait_at(fault)
        if fault.silent:
            await until(lambda: fault.healed)
        if fault.reset or fault.silent:
            return await broken(request)
        if fault.status is not None:
            reply = Reply(fault.status, fault.body, dict(fault.headers))
        else:
            reply = self._reply(request, seen, ignore_range=fault.ignore_range)
        return await send(request, seen, fault, reply)

    def _reply(self, request: web.BaseRequest, seen: Seen, *, ignore_range: bool) -> Reply:
        if seen.method not in {"GET", "HEAD"}:
            return error(405, "METHOD_NOT_ALLOWED", "not here")
        if seen.path == "/service/token":
            return self.desk.token(seen.headers, seen.query)
        if seen.path.startswith("/bucket/"):
            return self._bucket(seen)
        found = re.fullmatch(r"/v2/(?:(.+)/(manifests|blobs|tags|referrers)/(.+))?", seen.path)
        if found is None:
            return error(404, "NOT_FOUND", "no such path")
        name, kind, reference = found.groups()
        return self.desk.refusal(seen.headers, request.host, name) or self._content(
            name, kind, reference, seen, ignore_range=ignore_range
        )

    def _content(
        self, name: str | None, kind: str, reference: str, seen: Seen, *, ignore_range: bool
    ) -> Reply:
        if name is None:
            return Reply(200, b"{}", {"Content-Type": "application/json"})
        if not any(known.split("/")[0] == name.split("/")[0] for known in self.repositories):
            # Harbor's answer for a project that is not there, to one who is logged in.
            missing = error(401, "UNAUTHORIZED", "unauthorized to access repository")
            return missing.with_headers({"WWW-Authenticate": ""})
        repository = self.repositories.get(name)
        if repository is None:
            return error(404, "NOT_FOUND", f"repository {name} not found")
        parts = {
            "manifests": lambda: _manifest(repository, reference, seen.headers),
            "blobs": lambda: self._blob(repository, reference, seen, ignore_range=ignore_range),
            "tags": lambda: self._tags(name, repository, seen.query),
            "referrers": lambda: self._referrers(repository, reference, seen.query),
        }
        return parts[kind]()

    def _blob(
        self, repository: Repository, digest: str, seen: Seen, *, ignore_range: bool
    ) -> Reply:
        content = repository.blobs.get(digest)
        if content is None:
            return error(404, "NOT_FOUND", f"blob {digest} not found")
        if self.redirect_blobs:
            signed = urlencode({"method": seen.method, "signature": "a-presigned-secret"})
            location = f"http://{self._listener.host}:{self._listener.store_port}/bucket/{digest}"
            return Reply(307, b"", {"Location": f"{location}?{signed}"})
        headers = {"Docker-Content-Digest": digest, "Content-Type": "application/octet-stream"}
        wanted = None if ignore_range else seen.headers.get("Range")
        return _ranged(content, wanted).with_headers(headers)

    def _bucket(self, seen: Seen) -> Reply:
        """Answer as an object store does: signed for one method, and with no other login."""
        if "Authorization" in seen.headers:
            return Reply(400, b"<Error><Code>InvalidArgument</Code></Error>")
        if seen.query.get("method") != seen.method:
            return Reply(403, b"<Error><Code>SignatureDoesNotMatch</Code></Error>")
        digest = seen.path.removeprefix("/bucket/")
        for repository in self.repositories.values():
            if digest in repository.blobs:
                return _ranged(repository.blobs[digest], seen.headers.get("Range"))
        return Reply(404, b"<Error><Code>NoSuchKey</Code></Error>")

    def _tags(self, name: str, repository: Repository, query: Mapping[str, str]) -> Reply:
        limit = min(int(query.get("n", self.page_size)), self.page_size)
        tags = sorted(tag for tag in repository.tags if tag > query.get("last", ""))
        headers = {"Content-Type": "application/json"}
        if len(tags) > limit:
            following = urlencode({"last": tags[limit - 1], "n": limit})
            headers["Link"] = f'</v2/{name}/tags/list?{following}>; rel="next"'
        document = {"name": name, "tags": tags[:limit]}
        return Reply(200, json.dumps(document).encode(), headers)

    def _referrers(self, repository: Repository, digest: str, query: Mapping[str, str]) -> Reply:
        if not self.referrers_api:
            return Reply(404, b"404 page not found\n", {"Content-Type": "text/plain"})
        index = referrers_index(repository, digest, query.get("artifactType"))
        headers = {"Content-Type": index.media_type}
        if "artifactType" in query:
            headers["OCI-Filters-Applied"] = "artifactType"
        return Reply(200, index.content, headers)


def referrers_index(
    repository: Repository, digest: str, artifact_type: str | None = None
) -> Manifest:
    """Return the index of what refers to ``digest``."""
    found = []
    for manifest in repository.manifests.values():
        document = json.loads(manifest.content)
        kind = document.get("artifactType", "")
        if document.get("subject", {}).get("digest") == digest and artifact_type in {None, kind}:
            found.append(manifest.descriptor(artifactType=kind))
    media_type = "application/vnd.oci.image.index.v1+json"
    index = {"schemaVersion": 2, "mediaType": media_type, "manifests": found}
    return Manifest(json.dumps(index).encode(), media_type)


def _manifest(repository: Repository, reference: str, headers: Mapping[str, str]) -> Reply:
    digest = repository.tags.get(reference, reference)
    manifest = repository.manifests.get(digest)
    if manifest is None:
        return error(404, "NOT_FOUND", f"artifact {reference} not found")
    described = {"Docker-Content-Digest": digest, "Etag": f'"{digest}"'}
    if headers.get("If-None-Match") == f'"{digest}"':
        return Reply(304, b"", described)
    return Reply(200, manifest.content, {**described, "Content-Type": manifest.media_type})


def _ranged(content: bytes, wanted: str | None) -> Reply:
    found = re.fullmatch(r"bytes=(\d*)-(\d*)", wanted or "")
    if found is None or found.group(0) == "bytes=-":
        return Reply(200, content, {"Accept-Ranges": "bytes"})
    first, last = found.groups()
    start = int(first) if first else max(0, len(content) - int(last))
    end = min(int(last) + 1 if first and last else len(content), len(content))
    if start >= end:
        return Reply(416, b"", {"Content-Range": f"bytes */{len(content)}"})
    span = {"Content-Range": f"bytes {start}-{end - 1}/{len(content)}", "Accept-Ranges": "bytes"}
    return Reply(206, content[start:end], span, start)
