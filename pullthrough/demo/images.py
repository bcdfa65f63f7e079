"""The images that the demo's upstream has: made on the spot, and the same bytes every time."""

from __future__ import annotations

import gzip
import io
import random
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

from pullthrough.oci.digest import Digest
from pullthrough.oci.manifest import DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST

_MIB = 1024 * 1024
_OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
_OCI_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
_DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
_DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"

# Bytes of each layer. Only amd64 is pulled here; arm64 is there so that a client has to choose.
_LAYER_SIZES: Final = {"amd64": 8 * _MIB, "arm64": _MIB // 16}


@dataclass(frozen=True, slots=True)
class Manifest:
    """A manifest or an index, as it is served."""

    content: bytes
    media_type: str

    @property
    def digest(self) -> Digest:
        """The name of its bytes."""
        return Digest.of(self.content)


@dataclass(frozen=True, slots=True)
class Image:
    """What a tag names: ``manifests`` with the tag's own first, and all their blobs."""

    repository: str
    tag: str
    manifests: tuple[Manifest, ...]
    blobs: tuple[bytes, ...]

    @property
    def digest(self) -> Digest:
        """What the tag points at."""
        return self.manifests[0].digest


@dataclass(frozen=True, slots=True)
class _Layer:
    """A gzipped tar; ``diff_id`` is the digest of the tar itself (image-spec, config.md)."""

    blob: bytes
    diff_id: Digest


def app(version: int) -> Image:
    """Return ``demo/app:stable``: an OCI index of two platforms.

    A new ``version`` changes one of each platform's two layers, as a new build does.
    """
    blobs: list[bytes] = []
    manifests: list[Manifest] = []
    entries: list[dict[str, Any]] = []
    for architecture, size in _LAYER_SIZES.items():
        layers = (
            _layer(f"app/{architecture}/base", size),
            _layer(f"app/{architecture}/version {version}", size),
        )
        config = _config(architecture, layers)
        manifest = _manifest(OCI_MANIFEST, _OCI_CONFIG, _OCI_LAYER, config, layers)
        blobs += [config, *(layer.blob for layer in layers)]
        manifests.append(manifest)
        entries.append(
            _descriptor(OCI_MANIFEST, manifest.content)
            | {"platform": {"os": "linux", "architecture": architecture}}
        )
    index = orjson.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries})
    return Image("demo/app", "stable", (Manifest(index, OCI_INDEX), *manifests), tuple(blobs))


def tools() -> Image:
    """Return ``demo/tools:1.0``: docker's own manifest, as older builders push it."""
    layers = (_layer("tools", _MIB),)
    config = _config("amd64", layers)
    manifest = _manifest(DOCKER_MANIFEST, _DOCKER_CONFIG, _DOCKER_LAYER, config, layers)
    return Image("demo/tools", "1.0", (manifest,), (config, layers[0].blob))


def _layer(seed: str, size: int) -> _Layer:
    content = random.Random(seed).randbytes(size)  # noqa: S311 - filler, not a secret: it must repeat
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        entry = tarfile.TarInfo("usr/share/demo/" + seed.replace("/", "-").replace(" ", "-"))
        entry.size = size
        tar.addfile(entry, io.BytesIO(content))
    raw = archive.getvalue()
    # Random bytes do not get smaller: level 0 only wraps them.
    return _Layer(gzip.compress(raw, compresslevel=0, mtime=0), Digest.of(raw))


def _config(architecture: str, layers: Sequence[_Layer]) -> bytes:
    return orjson.dumps(
        {
            "architecture": architecture,
            "os": "linux",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [str(layer.diff_id) for layer in layers]},
        }
    )


def _manifest(
    media_type: str, config_type: str, layer_type: str, config: bytes, layers: Sequence[_Layer]
) -> Manifest:
    content = orjson.dumps(
        {
            "schemaVersion": 2,
            "mediaType": media_type,
            "config": _descriptor(config_type, config),
            "layers": [_descriptor(layer_type, layer.blob) for layer in layers],
        }
    )
    return Manifest(content, media_type)


def _descriptor(media_type: str, content: bytes) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": str(Digest.of(content)), "size": len(content)}
