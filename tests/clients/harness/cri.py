"""The three messages of the CRI that a pull needs, written by hand (runtime/v1/api.proto).

A field is a tag (its number and the wire type 2: bytes with their length before them) and its
content, and a message is its fields one after another (protobuf, "Encoding").
"""

from __future__ import annotations

from pathlib import Path

import grpc

from tests.clients.harness.client import ClientFailed, Login

_BYTES = 2


def version(socket: Path) -> None:
    """Ask whether the CRI plugin is up; raises :class:`ClientFailed` where it is not."""
    _call(socket, "RuntimeService/Version", b"", timeout=5)


def pull(socket: Path, image: str, login: Login | None) -> str:
    """Pull ``image`` and return its reference; raises :class:`ClientFailed`."""
    spec = _field(1, image.encode())  # ImageSpec.image
    request = _field(1, spec)
    if login is not None:
        auth = _field(1, login.user.encode()) + _field(2, login.password.encode())  # AuthConfig
        request += _field(2, auth)
    answer = _call(socket, "ImageService/PullImage", request, timeout=60)
    # PullImageResponse has one field, image_ref, shorter than 128 bytes.
    return answer[2 : 2 + answer[1]].decode()


def _call(socket: Path, method: str, request: bytes, *, timeout: float) -> bytes:
    with grpc.insecure_channel(f"unix://{socket}") as channel:
        try:
            answer: bytes = channel.unary_unary(f"/runtime.v1.{method}")(request, timeout=timeout)
        except grpc.RpcError as error:
            raise ClientFailed(str(error)) from None
    return answer


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | _BYTES) + _varint(len(content)) + content


def _varint(number: int) -> bytes:
    """Seven bits a byte, the lowest first; all but the last have the eighth bit set."""
    encoded = bytearray()
    while number > 127:
        encoded.append(number & 127 | 128)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
