"""Images made in memory: the bytes, the digests and the manifests that name them."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field
from typing import Any, Final

OCI_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX: Final = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
OCI_LAYER: Final = "application/vnd.oci.image.layer.v1.tar+gzip"
DOCKER_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG: Final = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER: Final = "application/vnd.docker.image.rootfs.diff.tar.gzip"

KIB: Final = 1024
MIB: Final = 1024 * 1024


def digest_of(content: bytes, algorithm: str = "sha256") -> str:
    return f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}"


def noise(size: int) -> bytes:
    """Return ``size`` bytes that nothing else will ever have."""
    return os.urandom(size)


def encode(document: Any) -> bytes:
    """Return JSON with spaces in it: a cache that writes manifests anew is found out."""
    return json.dumps(document, indent=3).encode()


@dataclass(frozen=True)
class Manifest:
    """A manifest as bytes."""

    content: bytes
    media_type: str
    algorithm: str = "sha256"

    @property
    def digest(self) -> str:
        return digest_of(self.content, self.algorithm)

    def descriptor(self, **more: Any) -> dict[str, Any]:
        return {
            "mediaType": self.media_type,
            "digest": self.digest,
            "size": len(self.content),
            **more,
        }


@dataclass(frozen=True)
class Image:
    """An image: ``top`` is what the tag names, ``manifests`` all its manifests, ``top`` among them.

    ``layers`` are digests in order; ``blobs`` has the config too.
    """

    repository: str
    tag: str
    top: Manifest
    manifests: tuple[Manifest, ...]
    config: str
    layers: tuple[str, ...]
    blobs: dict[str, bytes] = field(repr=False)

    @property
    def digest(self) -> str:
        return self.top.digest

    @property
    def layer(self) -> str:
        """The first layer's digest."""
        return self.layers[0]

    @property
    def layer_content(self) -> bytes:
        return self.blobs[self.layer]


def make_image(
    repository: str,
    tag: str,
    layers: tuple[bytes, ...],
    *,
    docker: bool = False,
    index: bool = False,
    algorithm: str = "sha256",
) -> Image:
    """Return an image of ``layers``, of docker's or OCI's media types, in an index where asked."""
    config = encode({"architecture": "amd64", "os": "linux", "note": noise(8).hex()})
    blobs = {digest_of(content, algorithm): content for content in (config, *layers)}
    layer_type = DOCKER_LAYER if docker else OCI_LAYER
    document = {
        "schemaVersion": 2,
        "mediaType": DOCKER_MANIFEST if docker else OCI_MANIFEST,
        "config": {
            "mediaType": DOCKER_CONFIG if docker else OCI_CONFIG,
            "digest": digest_of(config, algorithm),
            "size": len(config),
        },
        "layers": [
            {
                "mediaType": layer_type,
                "digest": digest_of(content, algorithm),
                "size": len(content),
            }
            for content in layers
        ],
    }
    manifest = Manifest(encode(document), str(document["mediaType"]), algorithm)
    manifests: tuple[Manifest, ...] = (manifest,)
    if index:
        platform = {"architecture": "amd64", "os": "linux"}
        media_type = DOCKER_LIST if docker else OCI_INDEX
        listing = {
            "schemaVersion": 2,
            "mediaType": media_type,
            "manifests": [manifest.descriptor(platform=platform)],
        }
        manifests = (Manifest(encode(listing), media_type, algorithm), manifest)
    return Image(
        repository=repository,
        tag=tag,
        top=manifests[0],
        manifests=manifests,
        config=digest_of(config, algorithm),
        layers=tuple(digest_of(content, algorithm) for content in layers),
        blobs=blobs,
    )


def make_referrer(subject: Manifest, artifact_type: str) -> Manifest:
    """Return an artifact's manifest that refers to ``subject``; its blobs are the empty one."""
    empty = b"{}"
    descriptor = {
        "mediaType": "application/vnd.oci.empty.v1+json",
        "digest": digest_of(empty),
        "size": len(empty),
    }
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": artifact_type,
        "config": descriptor,
        "layers": [descriptor],
        "subject": subject.descriptor(),
        "annotations": {"note": noise(8).hex()},
    }
    return Manifest(encode(document), OCI_MANIFEST)
