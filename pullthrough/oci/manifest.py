"""Manifests and their descriptors (image-spec, manifest.md and image-index.md; docker's schema 2).

A manifest is kept and served as the very bytes that came; parsing only says what it is and needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import orjson

from pullthrough.oci.digest import Digest
from pullthrough.oci.errors import DigestInvalid

LIMIT: Final = 4 * 1024 * 1024
"""Bytes; what containerd and the spec allow a manifest (distribution-spec, "Pushing Manifests")."""

OCI_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX: Final = "application/vnd.oci.image.index.v1+json"
DOCKER_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_SCHEMA1: Final = "application/vnd.docker.distribution.manifest.v1+json"
DOCKER_SCHEMA1_SIGNED: Final = "application/vnd.docker.distribution.manifest.v1+prettyjws"

_INDEXES = frozenset({OCI_INDEX, DOCKER_LIST})
_IMAGES = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
_SCHEMA1 = frozenset({DOCKER_SCHEMA1, DOCKER_SCHEMA1_SIGNED})

ACCEPT: Final = (
    f"{OCI_INDEX}, {OCI_MANIFEST}, {DOCKER_LIST}, {DOCKER_MANIFEST}, "
    f"{DOCKER_SCHEMA1_SIGNED}, {DOCKER_SCHEMA1}"
)
"""What is asked of an upstream: everything. One cached copy then serves every client."""

_SIZE_LIMIT = 1 << 50
_WORD = 32
"""Characters of a platform's part that are kept."""


class ManifestInvalid(ValueError):
    """The bytes are not the manifest that their media type says."""


@dataclass(frozen=True, slots=True)
class Descriptor:
    """What a manifest says of content it names; ``size`` is in bytes, None in docker's schema 1.

    ``platform`` is what an index says of an image, as in ``linux/arm64/v8``.
    """

    digest: Digest
    size: int | None
    media_type: str
    platform: str = ""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What it is and names: ``manifests`` of an index, ``blobs`` (config, layers) of an image."""

    media_type: str
    manifests: tuple[Descriptor, ...] = ()
    blobs: tuple[Descriptor, ...] = ()
    subject: Descriptor | None = None
    artifact_type: str = ""


def parse(content: bytes, content_type: str | None = None) -> Manifest:
    """Return what ``content`` is, checked against the Content-Type that it came with, if any.

    Raises :class:`ManifestInvalid` when it is too large, is not JSON, or is not what it says.
    """
    if len(content) > LIMIT:
        raise ManifestInvalid(f"{len(content)} bytes, more than the {LIMIT} allowed")
    try:
        document = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise ManifestInvalid(f"not JSON: {error}") from error
    if not isinstance(document, dict):
        raise ManifestInvalid("not a JSON object")
    media_type = _media_type(document, content_type)
    if media_type in _INDEXES:
        if "layers" in document or not isinstance(document.get("manifests"), list):
            raise ManifestInvalid(f"{media_type} without a list of manifests, or with layers")
        return Manifest(
            media_type,
            manifests=_descriptors(document["manifests"]),
            subject=_optional(document.get("subject")),
            artifact_type=_text(document, "artifactType"),
        )
    if media_type in _IMAGES:
        if "manifests" in document or not isinstance(document.get("layers"), list):
            raise ManifestInvalid(f"{media_type} without a list of layers, or with manifests")
        config = _descriptor(document.get("config"))
        return Manifest(
            media_type,
            blobs=(config, *_descriptors(document["layers"])),
            subject=_optional(document.get("subject")),
            artifact_type=_text(document, "artifactType") or config.media_type,
        )
    return Manifest(media_type, blobs=_schema1_blobs(document))


def _media_type(document: dict[str, Any], content_type: str | None) -> str:
    stated = _text(document, "mediaType")
    received = (content_type or "").partition(";")[0].strip().lower()
    inferred = stated or _inferred(document)
    known = _INDEXES | _IMAGES | _SCHEMA1
    # Schema 1 has no mediaType of its own, and both its types are right for a signed one.
    if received in _SCHEMA1 and inferred in _SCHEMA1:
        return received
    if inferred not in known:
        raise ManifestInvalid(f"not a manifest's media type: {inferred[:120]!r}")
    if received in known and received != inferred:
        # Without a mediaType of its own, docker's and OCI's forms look the same.
        if (
            not stated
            and (received in _INDEXES) == (inferred in _INDEXES)
            and received not in _SCHEMA1
        ):
            return received
        raise ManifestInvalid(f"came as {received}, but is {inferred}")
    if content_type and received not in known and received not in _VAGUE:
        raise ManifestInvalid(f"came as {received[:120]!r}, but is {inferred}")
    return inferred


# What servers send when they do not know better; the content then says what it is.
_VAGUE = frozenset({"application/json", "application/octet-stream", "text/plain"})


def _inferred(document: dict[str, Any]) -> str:
    if document.get("schemaVersion") == 1:
        return DOCKER_SCHEMA1_SIGNED if "signatures" in document else DOCKER_SCHEMA1
    if isinstance(document.get("manifests"), list):
        return OCI_INDEX
    if isinstance(document.get("layers"), list):
        return OCI_MANIFEST
    return ""


def _schema1_blobs(document: dict[str, Any]) -> tuple[Descriptor, ...]:
    layers = document.get("fsLayers")
    if not isinstance(layers, list):
        raise ManifestInvalid("schema 1 without fsLayers")
    found = []
    for layer in layers:
        digest = layer.get("blobSum") if isinstance(layer, dict) else None
        found.append(Descriptor(_digest(digest), None, "application/octet-stream"))
    return tuple(dict.fromkeys(found))


def _descriptors(entries: list[Any]) -> tuple[Descriptor, ...]:
    return tuple(_descriptor(entry) for entry in entries)


def _optional(entry: Any) -> Descriptor | None:
    return None if entry is None else _descriptor(entry)


def _descriptor(entry: Any) -> Descriptor:
    if not isinstance(entry, dict):
        raise ManifestInvalid("a descriptor that is not an object")
    size = entry.get("size")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= _SIZE_LIMIT:
        raise ManifestInvalid("a descriptor without a size")
    digest = _digest(entry.get("digest"))
    return Descriptor(digest, size, _text(entry, "mediaType"), platform(entry.get("platform")))


def platform(entry: Any) -> str:
    """Return ``os/architecture[/variant]`` of an index's platform or an image's config, else ""."""
    if not isinstance(entry, dict):
        return ""
    parts = [entry.get(key) for key in ("os", "architecture", "variant")]
    return "/".join(part[:_WORD] for part in parts if isinstance(part, str) and part)


def _digest(value: Any) -> Digest:
    if not isinstance(value, str):
        raise ManifestInvalid("a descriptor without a digest")
    try:
        return Digest.parse(value)
    except DigestInvalid as error:
        raise ManifestInvalid(str(error)) from error


def _text(document: dict[str, Any], key: str) -> str:
    value = document.get(key, "")
    if not isinstance(value, str):
        raise ManifestInvalid(f"{key} is not text")
    return value
