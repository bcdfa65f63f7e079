"""What the demo's upstream has, and who may have it: no HTTP, no link."""

from __future__ import annotations

import hmac
import secrets

from aiohttp import encode_basic_auth

from pullthrough.demo.images import Image, Manifest
from pullthrough.oci.digest import Digest


class Registry:
    """Images by repository, one robot's login, and the tokens that it was given."""

    def __init__(self, username: str, password: str) -> None:
        self._login = encode_basic_auth(username, password)
        self._scopes: dict[str, str] = {}  # what each token was given for
        self._tags: dict[tuple[str, str], str] = {}
        self._manifests: dict[tuple[str, str], Manifest] = {}
        self._blobs: dict[tuple[str, str], bytes] = {}

    def push(self, image: Image) -> None:
        """Take ``image`` in; from now on its tag names it."""
        name = image.repository
        self._blobs |= {(name, str(Digest.of(blob))): blob for blob in image.blobs}
        self._manifests |= {(name, str(each.digest)): each for each in image.manifests}
        self._tags[name, image.tag] = str(image.digest)

    def tags(self) -> dict[str, str]:
        """Return the digest that each ``repository:tag`` names."""
        return {f"{name}:{tag}": digest for (name, tag), digest in self._tags.items()}

    def manifest(self, repository: str, reference: str) -> Manifest | None:
        """Return what a tag or digest names, None where there is no such thing."""
        digest = self._tags.get((repository, reference), reference)
        return self._manifests.get((repository, digest))

    def blob(self, repository: str, digest: str) -> bytes | None:
        """Return a blob, None where ``repository`` has no such blob."""
        return self._blobs.get((repository, digest))

    def knows(self, authorization: str) -> bool:
        """Whether this Authorization header is the robot's Basic login."""
        return hmac.compare_digest(authorization.encode(), self._login.encode())

    def issue(self, scope: str) -> str:
        """Return a new token for ``scope``, ``""`` for none in particular."""
        token = secrets.token_urlsafe()
        self._scopes[token] = scope
        return token

    def allows(self, authorization: str, scope: str) -> bool:
        """Whether this Authorization header opens ``scope``; any login opens ``""``."""
        if self.knows(authorization):
            return True
        granted = self._scopes.get(authorization.removeprefix("Bearer "))
        return granted is not None and scope in ("", granted)
