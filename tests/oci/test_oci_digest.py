"""Digests: what is one, and that nothing else ever becomes one."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pullthrough.oci.digest import Digest
from pullthrough.oci.errors import DigestInvalid, RegistryError

_HEX = "0123456789abcdef"


@pytest.mark.parametrize(("algorithm", "length"), [("sha256", 64), ("sha512", 128)])
def test_both_algorithms(algorithm: str, length: int) -> None:
    """Lowercase hex of exactly the algorithm's length is a digest."""
    digest = Digest.parse(f"{algorithm}:{'a0' * (length // 2)}")
    assert (digest.algorithm, digest.hex) == (algorithm, "a0" * (length // 2))


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        "sha256",
        "sha256:",
        "sha256:" + "a" * 63,
        "sha256:" + "a" * 65,
        "sha256:" + "a" * 128,
        "sha512:" + "a" * 64,
        "sha256:" + "A" * 64,
        "SHA256:" + "a" * 64,
        "sha256:" + "g" * 64,
        "sha256:" + "a" * 63 + "\n",
        "sha256:" + "a" * 64 + "\n",
        " sha256:" + "a" * 64,
        "sha256::" + "a" * 63,
        "sha384:" + "a" * 96,
        "md5:" + "a" * 32,
        "sha256:" + "٣" * 64,
        "sha256:" + "../" * 21 + "a",
        "../sha256:" + "a" * 64,
        "a" * 10_000_000,
    ],
)
def test_refused(text: str) -> None:
    """What is not a digest of a known algorithm is refused, in a message of bounded length."""
    with pytest.raises(DigestInvalid) as caught:
        Digest.parse(text)
    assert len(str(caught.value)) < 1000


@given(st.text() | st.from_regex(r"sha(256|512):[0-9a-fA-F]{60,130}\n?"))
def test_anything(text: str) -> None:
    """Any text is a digest that spells itself, or a registry error."""
    try:
        digest = Digest.parse(text)
    except RegistryError:
        return
    assert str(digest) == text


@given(st.binary(), st.sampled_from(["sha256", "sha512"]))
def test_there_and_back(content: bytes, algorithm: str) -> None:
    """The digest of content is hashlib's, comes back from its text, and is safe in a path."""
    digest = Digest.of(content, algorithm)
    assert digest.hex == hashlib.new(algorithm, content).hexdigest()
    assert Digest.parse(str(digest)) == digest
    assert set(digest.hex) <= set(_HEX)


def test_matches() -> None:
    """Content matches its own digest only, by the digest's own algorithm."""
    for algorithm in ("sha256", "sha512"):
        digest = Digest.of(b"content", algorithm)
        assert digest.matches(b"content")
        assert not digest.matches(b"Content")


def test_hasher() -> None:
    """A hasher is fresh, and of the digest's algorithm."""
    digest = Digest.of(b"content", "sha512")
    for _ in range(2):
        hasher = digest.hasher()
        hasher.update(b"content")
        assert hasher.hexdigest() == digest.hex
