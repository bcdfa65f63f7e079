"""Images made on the spot: a few random files in each layer, as any client can unpack them."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import io
import json
import os
import platform
import tarfile
from dataclasses import dataclass, field
from typing import Any, Final

KIB: Final = 1024
# What this machine's clients choose from an index, and something they do not.
_HERE: Final = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
_ELSEWHERE: Final = "s390x"


@dataclass(frozen=True)
class Form:
    """The media types of a family of images."""

    manifest: str
    index: str
    config: str
    layer: str


OCI: Final = Form(
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.oci.image.layer.v1.tar+gzip",
)
DOCKER: Final = Form(
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.container.image.v1+json",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
)


@dataclass(frozen=True)
class Image:
    """An image, or an index of images: ``image_id`` is the config's digest on this machine."""

    media_type: str
    manifest: bytes = field(repr=False)
    image_id: str
    blobs: dict[str, bytes] = field(repr=False)
    """By digest, of this image alone; an index has none."""
    children: tuple[Image, ...] = ()

    @property
    def digest(self) -> str:
        return _digest(self.manifest)

    @property
    def pulled(self) -> Image:
        """The image that a client on this machine gets."""
        return self.children[0] if self.children else self


def make_image(form: Form = OCI, *, layer_sizes: tuple[int, ...] = (8 * KIB, 64 * KIB)) -> Image:
    """Return a new random image for this machine; ``layer_sizes`` are in bytes, before gzip."""
    return _make(form, layer_sizes, _HERE)


def make_index(form: Form = OCI) -> Image:
    """Return an index of two images, the first of them for this machine."""
    children = tuple(_make(form, (8 * KIB,), architecture) for architecture in (_HERE, _ELSEWHERE))
    manifests = [
        _descriptor(form.manifest, child.manifest)
        | {"platform": {"architecture": architecture, "os": "linux"}}
        for child, architecture in zip(children, (_HERE, _ELSEWHERE), strict=True)
    ]
    index = _json({"schemaVersion": 2, "mediaType": form.index, "manifests": manifests})
    return Image(form.index, index, children[0].image_id, {}, children)


def _make(form: Form, layer_sizes: tuple[int, ...], architecture: str) -> Image:
    tars = [_tar(f"data/layer-{n}", size) for n, size in enumerate(layer_sizes)]
    # Random bytes do not shrink: level 1 keeps the making quick.
    layers = [gzip.compress(tar, 1, mtime=0) for tar in tars]
    config = _json(
        {
            "architecture": architecture,
            "os": "linux",
            "created": "2024-01-01T00:00:00Z",
            "config": {"Cmd": ["/bin/true"]},
            "rootfs": {"type": "layers", "diff_ids": [_digest(tar) for tar in tars]},
            "history": [{"created": "2024-01-01T00:00:00Z", "created_by": "test"} for _ in tars],
        }
    )
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": form.manifest,
            "config": _descriptor(form.config, config),
            "layers": [_descriptor(form.layer, layer) for layer in layers],
        }
    )
    blobs = {_digest(content): content for content in (config, *layers)}
    return Image(form.manifest, manifest, _digest(config), blobs)


def _tar(path: str, size: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        entry = tarfile.TarInfo(path)
        entry.size = size
        tar.addfile(entry, io.BytesIO(os.urandom(size)))
    return buffer.getvalue()


def _descriptor(media_type: str, content: bytes) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": _digest(content), "size": len(content)}


def _json(document: dict[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def push(address: str, repository: str, tag: str, image: Image) -> None:
    """Push ``image`` as ``repository:tag`` to the registry at ``address``, which wants no login."""
    connection = http.client.HTTPConnection(address, timeout=30)
    try:
        _push(connection, repository, tag, image)
    finally:
        connection.close()


def _push(
    connection: http.client.HTTPConnection, repository: str, reference: str, image: Image
) -> None:
    for child in image.children:
        _push(connection, repository, child.digest, child)
    for digest, content in image.blobs.items():
        where = _send(connection, "POST", f"/v2/{repository}/blobs/uploads/", b"", expected=202)
        location = where.partition(connection.host + f":{connection.port}")[2]
        mark = "&" if "?" in location else "?"
        _send(connection, "PUT", f"{location}{mark}digest={digest}", content, expected=201)
    _send(
        connection,
        "PUT",
        f"/v2/{repository}/manifests/{reference}",
        image.manifest,
        expected=201,
        content_type=image.media_type,
    )


def _send(
    connection: http.client.HTTPConnection,
    method: str,
    path: str,
    body: bytes,
    *,
    expected: int,
    content_type: str = "application/octet-stream",
) -> str:
    connection.request(method, path, body, {"Content-Type": content_type})
    answer = connection.getresponse()
    text = answer.read()
    assert answer.status == expected, f"{method} {path}: {answer.status} {text[:400]!r}"
    return answer.headers.get("Location", "")
