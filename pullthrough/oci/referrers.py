"""Referrers lists: an image index of the manifests that have a subject (distribution-spec)."""

from __future__ import annotations

from typing import Any, Final

import orjson

from pullthrough.oci.manifest import OCI_INDEX

EMPTY: Final = orjson.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []})
"""What a registry answers for a digest that nothing refers to."""


def parse(body: bytes) -> list[dict[str, Any]]:
    """Return the descriptors of a referrers list; raises :class:`ValueError` if it is none."""
    document = orjson.loads(body)
    manifests = document.get("manifests") if isinstance(document, dict) else None
    if not isinstance(manifests, list) or not all(isinstance(entry, dict) for entry in manifests):
        raise ValueError("not an image index")
    return manifests


def filtered(body: bytes, artifact_type: str) -> bytes:
    """Return the list with only the referrers of one artifact type."""
    document = orjson.loads(body)
    document["manifests"] = [
        entry for entry in parse(body) if entry.get("artifactType") == artifact_type
    ]
    return orjson.dumps(document)
