"""A store with very many small things, made straight in registry:2's layout."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from bench.content import OCI_MANIFEST

IMAGES_EACH = 100
"""Tags of a repository."""
LAYERS = 8  # with the config and the manifest ten blobs an image
LAYER_SIZE = 1000


def fill(root: Path, images: int) -> list[str]:
    """Put ``images`` into the store at ``root``; return the paths of their manifests, by digest."""
    v2 = root / "docker/registry/v2"
    for first in range(256):
        (v2 / f"blobs/sha256/{first:02x}").mkdir(parents=True)
    return [
        path
        for number in range(0, images, IMAGES_EACH)
        for path in _repository(v2, f"bulk/r{number // IMAGES_EACH}", images - number)
    ]


def _repository(v2: Path, name: str, images: int) -> Iterator[str]:
    repository = f"{v2}/repositories/{name}"
    os.makedirs(f"{repository}/_layers/sha256")  # noqa: PTH103 - half a million paths in all
    for number in range(min(images, IMAGES_EACH)):
        layers = [_blob(v2, os.urandom(LAYER_SIZE)) for _ in range(LAYERS)]
        config = json.dumps(
            {"architecture": "amd64", "os": "linux", "rootfs": {"diff_ids": layers}}
        )
        named = _blob(v2, config.encode())
        manifest = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": OCI_MANIFEST,
                "config": _descriptor("config.v1+json", named, len(config)),
                "layers": [_descriptor("layer.v1.tar", layer, LAYER_SIZE) for layer in layers],
            }
        )
        digest = _blob(v2, manifest.encode())
        for each in (named, *layers):
            _link(f"{repository}/_layers/sha256/{each}", each)
        tag = f"{repository}/_manifests/tags/v{number}"
        for place in (
            f"{repository}/_manifests/revisions/sha256/{digest}",
            f"{tag}/index/sha256/{digest}",
            f"{tag}/current",
        ):
            _link(place, digest)
        yield f"/v2/{name}/manifests/sha256:{digest}"


def _descriptor(kind: str, hexadecimal: str, size: int) -> dict[str, str | int]:
    media_type = f"application/vnd.oci.image.{kind}"
    return {"mediaType": media_type, "digest": f"sha256:{hexadecimal}", "size": size}


def _blob(v2: Path, content: bytes) -> str:
    hexadecimal = hashlib.sha256(content).hexdigest()
    _write(f"{v2}/blobs/sha256/{hexadecimal[:2]}/{hexadecimal}", "data", content)
    return hexadecimal


def _link(directory: str, hexadecimal: str) -> None:
    _write(directory, "link", f"sha256:{hexadecimal}".encode())


def _write(directory: str, name: str, content: bytes) -> None:
    try:
        os.mkdir(directory)  # noqa: PTH102 - half a million paths in all
    except FileNotFoundError:
        os.makedirs(directory)  # noqa: PTH103 - the same
    with open(f"{directory}/{name}", "wb", buffering=0) as file:  # noqa: PTH123 - the same
        file.write(content)
