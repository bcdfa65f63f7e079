"""Names, tags and references: the spec's grammar, and nothing that leads out of a directory."""

from __future__ import annotations

from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pullthrough.oci.digest import Digest
from pullthrough.oci.errors import DigestInvalid, NameInvalid, RegistryError
from pullthrough.oci.reference import Repository, Tag, parse_reference, referrers_tag

# What an attacker would build a name of.
_HOSTILE = st.text(alphabet="a0/._-:~%\\\0\n \u2024\uff0e", max_size=30)


@pytest.mark.parametrize(
    "name",
    [
        "a",
        "0",
        "library/app",
        "a/b/c/d/e",
        "a.b_c__d-e---f/0",
        "a" * 255,
        "/".join(["a"] * 128),
    ],
)
def test_repository(name: str) -> None:
    """Names of the spec's grammar are taken as they are."""
    assert str(Repository.parse(name)) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/",
        "/a",
        "a/",
        "a//b",
        ".",
        "..",
        "../a",
        "a/../b",
        "a/..",
        "a/./b",
        "a..b",
        "a___b",
        "a.-b",
        "-a",
        "a-",
        "_a",
        "_manifests",
        "a/_uploads",
        ".a",
        "A",
        "a b",
        "a%2e",
        "a\\b",
        "a\0",
        "a\n",
        "é",
        "a:b",
        "a" * 256,
        "a-" * 5_000_000 + "!",
    ],
)
def test_repository_refused(name: str) -> None:
    """Any other name is refused, at once however long it is, in a message of bounded length."""
    with pytest.raises(NameInvalid) as caught:
        Repository.parse(name)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("name", ["latest", "v1.0", "_", "0", "A-b_c.D", "a" * 128, "a..b"])
def test_tag(name: str) -> None:
    """Tags of the spec's grammar are taken as they are."""
    assert str(Tag.parse(name)) == name


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".a", "-a", "a/b", "a b", "a\n", "a\0", "é", "a+b", "a" * 129]
)
def test_tag_refused(name: str) -> None:
    """Any other tag is refused."""
    with pytest.raises(NameInvalid):
        Tag.parse(name)


@given(st.text() | _HOSTILE)
def test_anything_as_repository(text: str) -> None:
    """Any text is a name that stays within its directory, or a registry error."""
    try:
        repository = Repository.parse(text)
    except RegistryError:
        return
    assert repository.name == text
    parts = PurePosixPath(text).parts
    assert "/".join(parts) == text
    # What starts with an underscore is registry:2's own, beside the names.
    assert not any(part in {".", "..", "/"} or part.startswith("_") for part in parts)


@given(st.text() | _HOSTILE)
def test_anything_as_reference(text: str) -> None:
    """Any text is a tag or digest that is one plain path component, or a registry error."""
    try:
        reference = parse_reference(text)
    except RegistryError:
        return
    assert str(reference) == text
    assert PurePosixPath(text).parts == (text,)
    assert text not in {".", ".."}


def test_reference() -> None:
    """A colon makes it a digest, a valid one or none at all."""
    digest = Digest.of(b"")
    assert parse_reference(str(digest)) == digest
    assert parse_reference(digest.hex) == Tag(digest.hex)
    with pytest.raises(DigestInvalid):
        parse_reference("latest:1")
    with pytest.raises(NameInvalid):
        parse_reference("latest/1")


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_referrers_tag(algorithm: str) -> None:
    """The tag of a referrers list is the algorithm, a dash and 64 of the hex, as in the spec."""
    digest = Digest.of(b"subject", algorithm)
    tag = referrers_tag(digest)
    assert str(tag) == f"{algorithm}-{digest.hex[:64]}"
    assert Tag.parse(str(tag)) == tag
