"""Referrers lists: what is one, and the filter."""

from __future__ import annotations

import json

import pytest

from pullthrough.oci import referrers
from pullthrough.oci.manifest import OCI_INDEX

_SIGNATURE = {"digest": "sha256:1", "artifactType": "a/signature"}
_SBOM = {"digest": "sha256:2", "artifactType": "a/sbom"}
_UNTYPED = {"digest": "sha256:3"}


def _list(*entries: object, **more: object) -> bytes:
    return json.dumps(
        {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries, **more}
    ).encode()


def test_filtered() -> None:
    """Only the referrers of the type asked for are left, and all that stands beside them."""
    body = _list(_SIGNATURE, _SBOM, _UNTYPED, _SIGNATURE, annotations={"a": "b"})
    document = json.loads(referrers.filtered(body, "a/signature"))
    assert document == {
        "schemaVersion": 2,
        "mediaType": OCI_INDEX,
        "manifests": [_SIGNATURE, _SIGNATURE],
        "annotations": {"a": "b"},
    }


def test_filtered_to_nothing() -> None:
    """A type that nothing has leaves an empty list, not an error."""
    assert referrers.parse(referrers.filtered(_list(_SBOM), "a/other")) == []


def test_parse() -> None:
    """A list is parsed to its entries."""
    assert referrers.parse(_list(_SIGNATURE, _SBOM)) == [_SIGNATURE, _SBOM]


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>", b"[]", b"{}", b"null", b'{"manifests": {}}', b'{"manifests": [1]}', b"\xff"],
)
def test_refused(body: bytes) -> None:
    """What is not an index is a ValueError, to parse and to filter."""
    with pytest.raises(ValueError, match=r".+"):
        referrers.parse(body)
    with pytest.raises((ValueError, TypeError, KeyError)):
        referrers.filtered(body, "a/signature")


def test_empty() -> None:
    """The answer for what nothing refers to is an empty OCI index."""
    assert json.loads(referrers.EMPTY) == {
        "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [],
    }  # fmt: skip
