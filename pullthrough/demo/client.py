"""A pull as a container client does it, with nothing kept: every digest and size is checked."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

import orjson
from aiohttp import (
    ClientError,
    ClientResponse,
    ClientSession,
    ClientTimeout,
    encode_basic_auth,
    hdrs,
)

from pullthrough.oci import manifest
from pullthrough.oci.digest import Digest
from pullthrough.oci.errors import DigestInvalid
from pullthrough.oci.manifest import Descriptor, Manifest, ManifestInvalid

# containerd gives a registry up that is silent for 30 s.
_TIMEOUT: Final = ClientTimeout(total=30.0)
_PLATFORM: Final = {"os": "linux", "architecture": "amd64"}
_SMALL: Final = 64 * 1024  # bytes; more than any token's or error's answer
_PARAMETER = re.compile(r'(\w+)="([^"]*)"')


class PullFailed(Exception):
    """An image did not come, or not as it should."""


@dataclass(frozen=True, slots=True)
class Login:
    """A user of a registry."""

    username: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Pulled:
    """What came: the tag's digest and its answer's Cache-Status, and each blob's size in bytes."""

    digest: Digest
    blobs: Mapping[Digest, int]
    cache_status: str


async def pull(registry: str, login: Login, reference: str) -> Pulled:
    """Pull ``repository:tag`` for linux/amd64 from the registry at the URL ``registry``.

    Every pull has connections of its own, as a new node has. Raises :class:`PullFailed`.
    """
    repository, _, tag = reference.rpartition(":")
    async with ClientSession(timeout=_TIMEOUT) as session:
        client = _Client(session, f"{registry}/v2/", repository)
        await client.log_in(login)
        top, cache_status = await client.resolve(tag)
        image = await client.image(top)
        sizes: dict[Digest, int] = {}
        failed: list[str] = []
        try:
            async with asyncio.TaskGroup() as group:
                for each in image.blobs:
                    sizes[each.digest] = each.size or 0
                    group.create_task(client.blob(each))
        except* PullFailed as failures:
            failed += [str(failure) for failure in failures.exceptions]
        if failed:
            raise PullFailed("; ".join(failed))
    return Pulled(top, sizes, cache_status)


class _Client:
    """The requests of one pull; ``root`` is the registry's ``/v2/``."""

    def __init__(self, session: ClientSession, root: str, repository: str) -> None:
        self._session = session
        self._root = root
        self._repository = repository
        self._authorization = ""

    async def log_in(self, login: Login) -> None:
        """Ask ``/v2/`` for which login it wants, and log in so."""
        async with self._asked("GET", self._root, status=401) as response:
            scheme, _, rest = response.headers.get(hdrs.WWW_AUTHENTICATE, "").partition(" ")
        parameters = dict(_PARAMETER.findall(rest))
        self._authorization = encode_basic_auth(login.username, login.password)
        if scheme.lower() == "bearer" and "realm" in parameters:
            self._authorization = f"Bearer {await self._token(parameters)}"
        elif scheme.lower() != "basic":
            raise PullFailed(f"GET {self._root}: wants neither Basic nor Bearer, but {scheme!r}")

    async def _token(self, parameters: Mapping[str, str]) -> str:
        realm = parameters["realm"]
        query = {
            "service": parameters.get("service", ""),
            "scope": f"repository:{self._repository}:pull",
        }
        async with self._asked("GET", realm, query=query) as response:
            content = bytearray()
            async for chunk in _bounded(response, _SMALL):
                content += chunk
        try:
            return str(orjson.loads(content)["token"])
        except (orjson.JSONDecodeError, KeyError, TypeError) as error:
            raise PullFailed(f"GET {realm}: no token in the answer") from error

    async def resolve(self, tag: str) -> tuple[Digest, str]:
        """Return the digest that ``tag`` names, and the Cache-Status of the answer."""
        url = f"{self._root}{self._repository}/manifests/{tag}"
        async with self._asked("HEAD", url) as response:
            try:
                digest = Digest.parse(response.headers.get("Docker-Content-Digest", ""))
            except DigestInvalid as error:
                raise PullFailed(f"HEAD {url}: {error}") from error
            return digest, response.headers.get("Cache-Status", "")

    async def image(self, top: Digest) -> Manifest:
        """Return the image manifest that ``top`` is, or names for this platform."""
        content, parsed = await self._manifest(top)
        if not parsed.manifests:
            return parsed
        entries = orjson.loads(content)["manifests"]
        for entry, named in zip(entries, parsed.manifests, strict=True):
            if entry.get("platform") == _PLATFORM:
                _, parsed = await self._manifest(named.digest)
                return parsed
        raise PullFailed(f"{top} names no image for linux/amd64")

    async def _manifest(self, digest: Digest) -> tuple[bytes, Manifest]:
        url = f"{self._root}{self._repository}/manifests/{digest}"
        content = bytearray()
        async with self._asked("GET", url) as response:
            content_type = response.headers.get(hdrs.CONTENT_TYPE)
            await _verified(response, digest, manifest.LIMIT, content.extend)
        try:
            return bytes(content), manifest.parse(bytes(content), content_type)
        except ManifestInvalid as error:
            raise PullFailed(f"GET {url}: {error}") from error

    async def blob(self, wanted: Descriptor) -> None:
        """Download a blob, and check that it is the one that the manifest names."""
        url = f"{self._root}{self._repository}/blobs/{wanted.digest}"
        async with self._asked("GET", url) as response:
            await _verified(response, wanted.digest, wanted.size or 0, lambda _: None)

    @asynccontextmanager
    async def _asked(
        self, method: str, url: str, *, status: int = 200, query: Mapping[str, str] | None = None
    ) -> AsyncIterator[ClientResponse]:
        """Give an answer of that status; the one place where foreign errors are translated."""
        headers = {hdrs.ACCEPT: manifest.ACCEPT}
        if self._authorization:
            headers[hdrs.AUTHORIZATION] = self._authorization
        try:
            async with self._session.request(
                method, url, headers=headers, params=query
            ) as response:
                if response.status != status:
                    raise PullFailed(f"{method} {url}: {response.status}, not {status}")
                yield response
        except (ClientError, TimeoutError) as error:
            raise PullFailed(f"{method} {url}: {type(error).__name__} {error}") from error


async def _bounded(response: ClientResponse, limit: int) -> AsyncIterator[bytes]:
    """Give the body's bytes, at most ``limit`` of them."""
    size = 0
    async for chunk in response.content.iter_any():
        size += len(chunk)
        if size > limit:
            raise PullFailed(f"{response.method} {response.url}: more than {limit} bytes")
        yield chunk


async def _verified(
    response: ClientResponse, digest: Digest, limit: int, sink: Callable[[bytes], object]
) -> None:
    """Feed the body to ``sink``; a digest names one length only, so it checks the size as well."""
    hasher = digest.hasher()
    async for chunk in _bounded(response, limit):
        hasher.update(chunk)
        sink(chunk)
    if hasher.hexdigest() != digest.hex:
        raise PullFailed(f"{response.method} {response.url}: the bytes have another digest")
