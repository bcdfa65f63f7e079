"""Manifests: what each media type is parsed to, and that nothing else passes for one."""

from __future__ import annotations

import json
from typing import Any, Final

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pullthrough.oci.digest import Digest
from pullthrough.oci.manifest import (
    ACCEPT,
    DOCKER_LIST,
    DOCKER_MANIFEST,
    DOCKER_SCHEMA1,
    DOCKER_SCHEMA1_SIGNED,
    LIMIT,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    ManifestInvalid,
    parse,
)

_CONFIG: Final = Digest.of(b"config")
_LAYER: Final = Digest.of(b"layer", "sha512")
_CHILD: Final = Digest.of(b"child")
_SUBJECT: Final = Digest.of(b"subject")


def _entry(digest: Digest, size: object = 7, media_type: object = "a/b") -> dict[str, Any]:
    return {"digest": str(digest), "size": size, "mediaType": media_type}


def _image(media_type: str | None = None, **more: Any) -> dict[str, Any]:
    document = {
        "schemaVersion": 2,
        "config": _entry(_CONFIG, 6, "config/type"),
        "layers": [_entry(_LAYER, 5, "layer/type")],
        **more,
    }
    return document if media_type is None else {"mediaType": media_type, **document}


def _index(media_type: str | None = None, **more: Any) -> dict[str, Any]:
    document = {"schemaVersion": 2, "manifests": [_entry(_CHILD, 4, OCI_MANIFEST)], **more}
    return document if media_type is None else {"mediaType": media_type, **document}


def _schema1(**more: Any) -> dict[str, Any]:
    layers = [{"blobSum": str(_CHILD)}, {"blobSum": str(_CONFIG)}, {"blobSum": str(_CHILD)}]
    return {"schemaVersion": 1, "name": "a", "tag": "b", "fsLayers": layers, **more}


def _bytes(document: object) -> bytes:
    return json.dumps(document).encode()


@pytest.mark.parametrize("media_type", [OCI_MANIFEST, DOCKER_MANIFEST])
@pytest.mark.parametrize("received", [True, False])
def test_image(media_type: str, *, received: bool) -> None:
    """An image names its config and layers, with sizes and types."""
    found = parse(_bytes(_image(media_type)), media_type if received else None)
    assert found.media_type == media_type
    assert found.blobs == (
        Descriptor(_CONFIG, 6, "config/type"),
        Descriptor(_LAYER, 5, "layer/type"),
    )
    assert (found.manifests, found.subject) == ((), None)


@pytest.mark.parametrize("media_type", [OCI_INDEX, DOCKER_LIST])
@pytest.mark.parametrize("received", [True, False])
def test_index(media_type: str, *, received: bool) -> None:
    """An index names its manifests."""
    found = parse(_bytes(_index(media_type)), media_type if received else None)
    assert found.media_type == media_type
    assert found.manifests == (Descriptor(_CHILD, 4, OCI_MANIFEST),)
    assert (found.blobs, found.artifact_type) == ((), "")


def test_schema1() -> None:
    """Docker's schema 1 names its layers once each, and no size; a signature makes it signed."""
    plain = parse(_bytes(_schema1()))
    assert plain.media_type == DOCKER_SCHEMA1
    assert [(blob.digest, blob.size) for blob in plain.blobs] == [(_CHILD, None), (_CONFIG, None)]
    assert parse(_bytes(_schema1(signatures=[]))).media_type == DOCKER_SCHEMA1_SIGNED


@pytest.mark.parametrize("received", [DOCKER_SCHEMA1, DOCKER_SCHEMA1_SIGNED])
def test_schema1_is_what_it_came_as(received: str) -> None:
    """A signed schema 1 may come as either of its types."""
    assert parse(_bytes(_schema1(signatures=[])), received).media_type == received


@pytest.mark.parametrize(
    ("document", "received", "expected"),
    [
        (_image(), None, OCI_MANIFEST),
        (_index(), None, OCI_INDEX),
        (_image(), OCI_MANIFEST, OCI_MANIFEST),
        (_image(), DOCKER_MANIFEST, DOCKER_MANIFEST),
        (_index(), OCI_INDEX, OCI_INDEX),
        (_index(), DOCKER_LIST, DOCKER_LIST),
        (_image(), "application/json; charset=utf-8", OCI_MANIFEST),
        (_image(DOCKER_MANIFEST), "application/octet-stream", DOCKER_MANIFEST),
        (_image(DOCKER_MANIFEST), "text/plain", DOCKER_MANIFEST),
        (_image(DOCKER_MANIFEST), "", DOCKER_MANIFEST),
        (_image(DOCKER_MANIFEST), f"{DOCKER_MANIFEST}; charset=utf-8", DOCKER_MANIFEST),
        (_image(DOCKER_MANIFEST), DOCKER_MANIFEST.upper(), DOCKER_MANIFEST),
    ],
)
def test_type_from_what_there_is(
    document: dict[str, Any], received: str | None, expected: str
) -> None:
    """The type is the document's own, else the Content-Type's, else what it looks like."""
    assert parse(_bytes(document), received).media_type == expected


@pytest.mark.parametrize(
    ("document", "received"),
    [
        (_image(OCI_MANIFEST), DOCKER_MANIFEST),
        (_image(OCI_MANIFEST), OCI_INDEX),
        (_image(), OCI_INDEX),
        (_image(), DOCKER_LIST),
        (_index(), OCI_MANIFEST),
        (_index(), DOCKER_MANIFEST),
        (_index(OCI_INDEX), DOCKER_LIST),
        (_image(), DOCKER_SCHEMA1),
        (_image(OCI_MANIFEST), DOCKER_SCHEMA1_SIGNED),
        (_schema1(), OCI_MANIFEST),
        (_schema1(), DOCKER_LIST),
        (_image(OCI_MANIFEST), "text/html"),
        (_image(OCI_MANIFEST), "application/vnd.oci.image.manifest.v2+json"),
        (_image(OCI_MANIFEST), "nonsense"),
    ],
)
def test_type_against_content_type(document: dict[str, Any], received: str) -> None:
    """What is not what it came as is refused."""
    with pytest.raises(ManifestInvalid):
        parse(_bytes(document), received)


@pytest.mark.parametrize(
    "document",
    [
        _index(OCI_MANIFEST),
        _image(OCI_INDEX),
        _image(DOCKER_LIST),
        _image(OCI_MANIFEST, manifests=[]),
        _index(OCI_INDEX, layers=[]),
        _image("application/vnd.oci.image.manifest.v2+json"),
        _image("text/html"),
        _image(media_type="\x00"),
        {},
        {"schemaVersion": 2},
        {"schemaVersion": 1},
        {"schemaVersion": 1, "fsLayers": {}},
        {"schemaVersion": 1, "fsLayers": [{}]},
        {"schemaVersion": 1, "fsLayers": ["sha256:x"]},
        {"mediaType": 5},
        {"mediaType": OCI_MANIFEST},
        {"mediaType": OCI_INDEX},
        {"mediaType": OCI_INDEX, "manifests": {}},
        {"mediaType": OCI_MANIFEST, "layers": {}, "config": _entry(_CONFIG)},
        {"mediaType": OCI_MANIFEST, "layers": []},
        _image(config=None),
        _image(config="text"),
        _image(layers=[None]),
        _image(layers=[[]]),
        _image(layers=["text"]),
        _image(layers=[{"digest": str(_LAYER)}]),
        _image(layers=[_entry(_LAYER, -1)]),
        _image(layers=[_entry(_LAYER, 1 << 51)]),
        _image(layers=[_entry(_LAYER, 1.5)]),
        _image(layers=[_entry(_LAYER, "7")]),
        _image(layers=[_entry(_LAYER, size=True)]),
        _image(layers=[_entry(_LAYER, media_type=7)]),
        _image(layers=[{"size": 7, "mediaType": "a/b"}]),
        _image(layers=[{"size": 7, "mediaType": "a/b", "digest": 7}]),
        _image(layers=[{"size": 7, "mediaType": "a/b", "digest": "sha256:../../x"}]),
        _index(manifests=[1]),
        _image(subject="text"),
        _index(subject=[]),
        _image(artifactType=7),
        _index(artifactType=7),
        [],
        [_image()],
        "text",
        7,
        None,
    ],
)
def test_refused(document: object) -> None:
    """What is not wholly a manifest is refused."""
    with pytest.raises(ManifestInvalid):
        parse(_bytes(document))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<!DOCTYPE html><html><body>Log in to the guests' network</body></html>",
        b'{"schemaVersion": 2, "layers": [',
        b"\xff\xfe",
        b'{"mediaType": NaN}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
    ],
    ids=["empty", "portal", "cut", "not-utf8", "nan", "deep-list", "deep-object"],
)
@pytest.mark.parametrize("received", [None, OCI_MANIFEST, "text/html"])
def test_not_json(content: bytes, received: str | None) -> None:
    """A portal's page, and JSON that is cut or is none, are refused whatever they came as."""
    with pytest.raises(ManifestInvalid, match="not JSON"):
        parse(content, received)


def test_size_limit() -> None:
    """A manifest may have 4 MiB, and not a byte more."""
    content = _bytes(_image(OCI_MANIFEST))
    assert parse(content.ljust(LIMIT)).media_type == OCI_MANIFEST
    with pytest.raises(ManifestInvalid, match="more than"):
        parse(content.ljust(LIMIT + 1))


@pytest.mark.parametrize("document", [_image(OCI_MANIFEST), _index(OCI_INDEX)])
def test_subject_and_artifact_type(document: dict[str, Any]) -> None:
    """An artifact says what it is and what it refers to."""
    extra = {"subject": _entry(_SUBJECT, 3, OCI_MANIFEST), "artifactType": "a/signature"}
    found = parse(_bytes(document | extra))
    assert found.subject == Descriptor(_SUBJECT, 3, OCI_MANIFEST)
    assert found.artifact_type == "a/signature"
    assert parse(_bytes(document | {"subject": None})).subject is None


def test_artifact_type_of_the_config() -> None:
    """An image without an artifactType is of its config's type (image-spec)."""
    assert parse(_bytes(_image(OCI_MANIFEST))).artifact_type == "config/type"


def test_empty_lists() -> None:
    """An index of nothing and an image without layers are manifests."""
    assert parse(_bytes(_index(OCI_INDEX, manifests=[]))).manifests == ()
    assert len(parse(_bytes(_image(OCI_MANIFEST, layers=[]))).blobs) == 1


def test_accept() -> None:
    """An upstream is asked for every type that is understood, each once."""
    asked = ACCEPT.split(", ")
    assert len(asked) == len(set(asked))
    assert set(asked) == {
        OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST,
        DOCKER_SCHEMA1, DOCKER_SCHEMA1_SIGNED,
    }  # fmt: skip


_KEYS = st.sampled_from(
    [
        "schemaVersion", "mediaType", "manifests", "layers", "config", "digest", "size",
        "subject", "artifactType", "fsLayers", "blobSum", "signatures",
    ]
)  # fmt: skip
_LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(1 << 53), 1 << 60),
    st.floats(allow_nan=False),
    st.text(),
    st.sampled_from([OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_SCHEMA1, str(_CONFIG)]),
    st.sampled_from([1, 2]),
)
_DOCUMENTS = st.recursive(
    _LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS | st.text(), inner),
    max_leaves=20,
)
_RECEIVED = st.none() | st.text() | st.sampled_from(ACCEPT.split(", "))


@given(_DOCUMENTS, _RECEIVED)
def test_any_json(document: object, received: str | None) -> None:
    """Any JSON is a manifest or is refused: it never raises anything else."""
    try:
        found = parse(orjson.dumps(document), received)
    except ManifestInvalid:
        return
    assert found.media_type in ACCEPT


@given(st.binary(), _RECEIVED)
def test_any_bytes(content: bytes, received: str | None) -> None:
    """Any bytes are a manifest or are refused."""
    try:
        found = parse(content, received)
    except ManifestInvalid:
        return
    assert found.media_type in ACCEPT
