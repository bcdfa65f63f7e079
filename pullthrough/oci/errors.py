"""The registry API's errors, one exception a code (distribution-spec, "Error Codes")."""

from __future__ import annotations

from typing import ClassVar


class RegistryError(Exception):
    """An error that a client is told of in the spec's JSON, with the status of its code.

    ``detail`` is shown to the client: it must not hold a secret. ``retry_after`` is in seconds.
    """

    code: ClassVar[str] = "UNAVAILABLE"
    status: ClassVar[int] = 503

    def __init__(self, message: str, *, detail: str = "", retry_after: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.detail = detail
        self.retry_after = retry_after


class BlobUnknown(RegistryError):
    """The upstream says that it has no such blob."""

    code, status = "BLOB_UNKNOWN", 404


class ManifestUnknown(RegistryError):
    """The upstream says that it has no such manifest."""

    code, status = "MANIFEST_UNKNOWN", 404


class NameUnknown(RegistryError):
    """The upstream says that it has no such repository, or the path is none of the API's."""

    code, status = "NAME_UNKNOWN", 404


class NameInvalid(RegistryError):
    """A repository name or tag outside the spec's grammar."""

    code, status = "NAME_INVALID", 400


class DigestInvalid(RegistryError):
    """A digest outside the spec's grammar, or of an algorithm that cannot be verified."""

    code, status = "DIGEST_INVALID", 400


class Unauthorized(RegistryError):
    """No login, or a wrong one."""

    code, status = "UNAUTHORIZED", 401


class Denied(RegistryError):
    """The upstream understood, and forbids."""

    code, status = "DENIED", 403


class Unsupported(RegistryError):
    """A write: this is a cache."""

    code, status = "UNSUPPORTED", 405


class RangeInvalid(RegistryError):
    """No byte of the content lies in the range asked for."""

    code, status = "RANGE_INVALID", 416


class TooManyRequests(RegistryError):
    """The upstream asks for patience, and nothing is cached."""

    code, status = "TOOMANYREQUESTS", 429


class BadUpstream(RegistryError):
    """The upstream's answer is unusable (wrong bytes, a portal's page), and nothing is cached."""

    code, status = "UNAVAILABLE", 502


class Unavailable(RegistryError):
    """The upstream is away, and nothing is cached."""

    code, status = "UNAVAILABLE", 503


class UpstreamTimeout(RegistryError):
    """The upstream did not answer in time, and nothing is cached."""

    code, status = "UNAVAILABLE", 504
