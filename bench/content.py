"""The images that are pulled: made of random bytes, kept as flat files named by their digest."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Blob:
    """Content and its ``size`` in bytes; ``hex`` is its sha256."""

    hex: str
    size: int

    @property
    def digest(self) -> str:
        """The digest as it stands in a manifest and in a path."""
        return f"sha256:{self.hex}"


@dataclass(frozen=True, slots=True)
class Image:
    """An image of one layer."""

    repository: str
    tag: str
    manifest: Blob
    config: Blob
    layer: Blob

    @property
    def by_tag(self) -> str:
        """The path of its manifest, by tag."""
        return f"/v2/{self.repository}/manifests/{self.tag}"

    @property
    def by_digest(self) -> str:
        """The path of its manifest, by digest."""
        return f"/v2/{self.repository}/manifests/{self.manifest.digest}"

    def blob(self, blob: Blob) -> str:
        """Return the path of one of its blobs."""
        return f"/v2/{self.repository}/blobs/{blob.digest}"


def image(directory: Path, tag: str, layer_size: int) -> Image:
    """Write a new image, with a layer of ``layer_size`` bytes, to ``directory``."""
    layer = _write(directory, _random(layer_size))
    config = _write(
        directory,
        [
            json.dumps(
                {
                    "architecture": "amd64",
                    "os": "linux",
                    "rootfs": {"type": "layers", "diff_ids": [layer.digest]},
                }
            ).encode()
        ],
    )
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": _descriptor("application/vnd.oci.image.config.v1+json", config),
        "layers": [_descriptor("application/vnd.oci.image.layer.v1.tar", layer)],
    }
    written = _write(directory, [json.dumps(manifest, indent=2).encode()])
    return Image("bench/image", tag, written, config, layer)


def _descriptor(media_type: str, blob: Blob) -> dict[str, str | int]:
    return {"mediaType": media_type, "digest": blob.digest, "size": blob.size}


def _random(size: int) -> list[bytes]:
    """Return pieces of ``size`` bytes in all, new at every call.

    Only the first MiB is random, the rest repeats it: nothing here compresses, and making a large
    blob must not take longer than pulling it.
    """
    piece = os.urandom(min(size, MIB))
    whole, rest = divmod(size, len(piece))
    return [piece] * whole + [piece[:rest]]


def _write(directory: Path, pieces: list[bytes]) -> Blob:
    digest = hashlib.sha256()
    temporary = directory / "new"
    with temporary.open("wb") as file:
        for piece in pieces:
            digest.update(piece)
            file.write(piece)
    temporary.rename(directory / digest.hexdigest())
    return Blob(digest.hexdigest(), sum(map(len, pieces)))
