"""Where things stand: registry:2's paths (distribution registry/storage/paths.go), ours beside."""

from __future__ import annotations

from pathlib import Path

import pytest

from pullthrough.oci.digest import Digest
from pullthrough.oci.reference import Repository, Tag
from pullthrough.store.layout import Layout

LAYOUT = Layout(Path("/srv"))
NAME = Repository("project/app")
TAG = Tag("v1")
DIGEST = Digest("sha256", "ab" + "0" * 62)
SHA512 = Digest("sha512", "cd" + "1" * 126)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (LAYOUT.blob(DIGEST), f"blobs/sha256/ab/{DIGEST.hex}/data"),
        (LAYOUT.blob(SHA512), f"blobs/sha512/cd/{SHA512.hex}/data"),
        (LAYOUT.repository(NAME), "repositories/project/app"),
        (
            LAYOUT.link(NAME, "layers", DIGEST),
            f"repositories/project/app/_layers/sha256/{DIGEST.hex}/link",
        ),
        (
            LAYOUT.link(NAME, "revisions", DIGEST),
            f"repositories/project/app/_manifests/revisions/sha256/{DIGEST.hex}/link",
        ),
        (LAYOUT.tags(NAME), "repositories/project/app/_manifests/tags"),
        (LAYOUT.tag_link(NAME, TAG), "repositories/project/app/_manifests/tags/v1/current/link"),
        (
            LAYOUT.tag_index_link(NAME, TAG, SHA512),
            f"repositories/project/app/_manifests/tags/v1/index/sha512/{SHA512.hex}/link",
        ),
    ],
)
def test_registry_2s_paths(path: Path, expected: str) -> None:
    """Each path is the one that registry:2 would look at."""
    assert path == Path("/srv/docker/registry/v2") / expected


def test_ours_stand_beside() -> None:
    """Nothing of ours stands where registry:2 looks, and no two things have one name."""
    ours = [
        LAYOUT.partials,
        LAYOUT.temporary,
        LAYOUT.quarantine,
        LAYOUT.index,
        LAYOUT.locks,
        LAYOUT.partial(DIGEST),
        LAYOUT.partial(SHA512),
    ]
    assert all(path.is_relative_to("/srv/pullthrough") for path in ours)
    assert len(set(ours)) == len(ours)
    assert LAYOUT.partial(DIGEST).parent == LAYOUT.partials
