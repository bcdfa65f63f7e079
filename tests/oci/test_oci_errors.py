"""Errors have the codes and statuses of the spec."""

from __future__ import annotations

import pytest

from pullthrough.oci import errors

# Distribution-spec, "Error Codes"; UNAVAILABLE is distribution's, for what is nobody's fault here.
_SPEC = {
    "BlobUnknown": ("BLOB_UNKNOWN", 404),
    "ManifestUnknown": ("MANIFEST_UNKNOWN", 404),
    "NameUnknown": ("NAME_UNKNOWN", 404),
    "NameInvalid": ("NAME_INVALID", 400),
    "DigestInvalid": ("DIGEST_INVALID", 400),
    "Unauthorized": ("UNAUTHORIZED", 401),
    "Denied": ("DENIED", 403),
    "Unsupported": ("UNSUPPORTED", 405),
    "RangeInvalid": ("RANGE_INVALID", 416),
    "TooManyRequests": ("TOOMANYREQUESTS", 429),
    "BadUpstream": ("UNAVAILABLE", 502),
    "Unavailable": ("UNAVAILABLE", 503),
    "UpstreamTimeout": ("UNAVAILABLE", 504),
    "RegistryError": ("UNAVAILABLE", 503),
}


def _all() -> dict[str, type[errors.RegistryError]]:
    return {
        name: value
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.RegistryError)
    }


def test_every_error_is_in_the_table() -> None:
    """No error is without its row."""
    assert set(_all()) == set(_SPEC)


@pytest.mark.parametrize(("name", "expected"), _SPEC.items())
def test_code_and_status(name: str, expected: tuple[str, int]) -> None:
    """Each error has the spec's code and that code's status."""
    error = _all()[name]
    assert (error.code, error.status) == expected


def test_what_an_error_carries() -> None:
    """An error carries a message, a detail and when to come again; the last two may be missing."""
    error = errors.TooManyRequests("later", detail="rate-limited", retry_after=7)
    assert (str(error), error.message, error.detail, error.retry_after) == (
        "later", "later", "rate-limited", 7,
    )  # fmt: skip
    plain = errors.BlobUnknown("no such blob")
    assert (plain.detail, plain.retry_after) == ("", None)
