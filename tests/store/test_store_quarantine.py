"""Content that is not what its digest says: found out, and set aside."""

from __future__ import annotations

import time

import pytest

from pullthrough.oci.digest import Digest
from pullthrough.store.layout import Layout
from pullthrough.store.quarantine import set_aside, sound, throw_away
from tests.store.kit import CONTENT, DIGEST, SHA512, place

MIB = 1 << 20


@pytest.mark.parametrize("digest", [DIGEST, SHA512], ids=["sha256", "sha512"])
@pytest.mark.parametrize(
    ("content", "right"),
    [(CONTENT, True), (CONTENT[:-1], False), (CONTENT + b"x", False), (b"", False)],
    ids=["right", "short", "long", "empty"],
)
def test_sound_is_what_its_digest_says(
    layout: Layout, digest: Digest, content: bytes, *, right: bool
) -> None:
    """All of it is hashed, by the digest's own algorithm, wherever the file's position is."""
    place(layout.blob(digest), content)
    with layout.blob(digest).open("rb") as file:
        file.seek(5)
        assert sound(file, digest) is right
        assert file.tell() == 5


def test_sound_looks_at_every_block(layout: Layout) -> None:
    """A wrong byte anywhere in a large file is found."""
    content = bytes(3 * MIB)
    digest = Digest.of(content)
    for place_of_damage in (0, MIB, 3 * MIB - 1):
        damaged = bytearray(content)
        damaged[place_of_damage] = 1
        place(layout.blob(digest), bytes(damaged))
        with layout.blob(digest).open("rb") as file:
            assert not sound(file, digest)


def test_set_aside_of_what_is_there(layout: Layout) -> None:
    """It has no name any more, is kept to be looked at, and that is said once."""
    place(layout.blob(DIGEST), b"damaged")
    assert set_aside(layout, DIGEST)
    assert not layout.blob(DIGEST).exists()
    assert [path.read_bytes() for path in layout.quarantine.iterdir()] == [b"damaged"]
    assert not set_aside(layout, DIGEST)


def test_set_aside_of_what_was_replaced(layout: Layout) -> None:
    """Sound content that came in the place of what was read is let be."""
    place(layout.blob(DIGEST), b"damaged")
    with layout.blob(DIGEST).open("rb") as seen:
        layout.blob(DIGEST).unlink()
        place(layout.blob(DIGEST), CONTENT)
        assert not set_aside(layout, DIGEST, seen)
    with layout.blob(DIGEST).open("rb") as seen:
        assert set_aside(layout, DIGEST, seen)


def test_what_is_old_is_thrown_away(layout: Layout) -> None:
    """Rotten files are kept to be looked at for a time, and nothing else is touched."""
    throw_away(layout, time.time())  # nothing was ever set aside
    path = layout.blob(DIGEST)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"rotten")
    assert set_aside(layout, DIGEST)
    (kept,) = layout.quarantine.iterdir()
    throw_away(layout, kept.stat().st_ctime)
    assert kept.exists()
    throw_away(layout, kept.stat().st_ctime + 1)
    assert not kept.exists()
