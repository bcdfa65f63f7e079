"""Pins: which images a pattern means, and what these need, against slow models."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pullthrough.tending.pins import closure, pattern


@pytest.mark.parametrize(
    ("text", "repository", "expected"),
    [
        ("base/python", "base/python", True),
        ("base/python", "base/python3", False),
        ("base/python", "a/base/python", False),
        ("base/python", "base/python/a", False),
        # A dot is a dot.
        ("a.b", "a.b", True),
        ("a.b", "acb", False),
        # One star stays within its component.
        ("*", "prod", True),
        ("*", "prod/app", False),
        ("prod/*", "prod/app", True),
        ("prod/*", "prod/team/app", False),
        ("prod/*", "prod", False),
        ("prod/a*", "prod/a", True),
        ("prod/*-base", "prod/python-base", True),
        ("prod/*-base", "prod/python-base-2", False),
        ("*/app", "prod/app", True),
        ("*/*", "prod/app", True),
        ("*b*b", "aabab", True),
        ("*ab*b", "abab", True),
        # A question mark is one character, and no slash.
        ("ap?", "app", True),
        ("ap?", "ap", False),
        ("ap?", "apps", False),
        ("a?b", "a/b", False),
        # Two stars are components, also none; at the end one at least.
        ("**", "prod", True),
        ("**", "prod/team/app", True),
        ("prod/**", "prod/app", True),
        ("prod/**", "prod/team/app", True),
        ("prod/**", "prod", False),
        ("prod/**", "production/app", False),
        ("**/app", "app", True),
        ("**/app", "prod/team/app", True),
        ("**/app", "prod/myapp", False),
        ("prod/**/app", "prod/app", True),
        ("prod/**/app", "prod/a/b/app", True),
        ("prod/**/app", "prod/app/x", False),
        # The first place where the middle fits need not be the last.
        ("**/a/*/**/b", "a/b/a/b", True),
        ("**/a/b/**/c", "a/a/b/c", True),
        ("**/a/b/**", "a/a/b", False),
        ("**/a*/**/*c", "x/ab/y/abc", True),
    ],
)
def test_repository(text: str, repository: str, *, expected: bool) -> None:
    """A pattern means the repositories that it spells, and without a tag part all in them."""
    pin = pattern(text)
    assert pin.matches(repository, "latest") is expected
    assert pin.matches(repository, None) is expected
    assert str(pin) == text


@pytest.mark.parametrize(
    ("text", "tag", "expected"),
    [
        ("a:3.*", "3.12", True),
        ("a:3.*", "3.", True),
        ("a:3.*", "3", False),
        ("a:3.*", "3x12", False),
        ("a:3.*", "13.1", False),
        ("a:*", "latest", True),
        ("a:**", "latest", True),
        ("a:v?", "v1", True),
        ("a:v?", "v10", False),
        ("a:V1-*_b", "V1-x-y_b", True),
        ("a:V1", "v1", False),
        # A pattern with a tag part means tags alone.
        ("a:*", None, False),
        ("a:latest", None, False),
    ],
)
def test_tag(text: str, tag: str | None, *, expected: bool) -> None:
    """A tag part means the tags that it spells, and nothing that has none."""
    assert pattern(text).matches("a", tag) is expected
    assert pattern(text).matches("b", tag) is False


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":latest",
        "a:",
        "/a",
        "a/",
        "a//b",
        "A",
        "a b",
        " a",
        "[ab]",
        "a\n",
        "a@sha256:00",
        "registry.example.com:5000/a",
        "a:b:c",
        "a:b c",
        "prod**",
        "**app/x",
        "a/***/b",
    ],
)
def test_what_can_match_nothing_is_refused(text: str) -> None:
    """A pattern that no image can match, or that says no one thing, is an error."""
    with pytest.raises(ValueError, match=r"no repository|no tag|stands alone"):
        pattern(text)


def slowly(glob: str, text: str, *, wild: str) -> bool:
    """Match by trying every length for each ``wild``; ``?`` is one."""
    if not glob:
        return not text
    if glob[0] == wild:
        return any(slowly(glob[1:], text[end:], wild=wild) for end in range(len(text) + 1))
    return bool(text) and glob[0] in ("?", text[0]) and slowly(glob[1:], text[1:], wild=wild)


def slowly_path(globs: list[str], names: list[str]) -> bool:
    """Match by trying every number of components for each ``**``."""
    if not globs:
        return not names
    if globs == ["**"]:
        return bool(names)
    if globs[0] == "**":
        return any(slowly_path(globs[1:], names[end:]) for end in range(len(names) + 1))
    return (
        bool(names) and slowly(globs[0], names[0], wild="*") and slowly_path(globs[1:], names[1:])
    )


# Two letters and short parts, so that much almost matches.
GLOBS = st.from_regex(r"(?!.*\*\*)[ab*?.]{1,5}", fullmatch=True, alphabet="ab*?.")
PATHS = st.lists(GLOBS | st.just("**"), min_size=1, max_size=5)
NAMES = st.lists(st.text("ab.", min_size=1, max_size=4), min_size=1, max_size=6)


@given(PATHS, NAMES, GLOBS | st.none(), st.text("abB.", min_size=1, max_size=5) | st.none())
def test_pattern_is_the_models(
    globs: list[str], names: list[str], tag_glob: str | None, tag: str | None
) -> None:
    """The answer is that of trying every way to match."""
    text = "/".join(globs) + ("" if tag_glob is None else f":{tag_glob}")
    expected = slowly_path(globs, names) and (
        tag_glob is None or (tag is not None and slowly(tag_glob, tag, wild="*"))
    )
    assert pattern(text).matches("/".join(names), tag) is expected


@given(st.data())
def test_what_a_pattern_was_made_from_matches(data: st.DataObject) -> None:
    """A name in which parts were replaced by wildcards is matched."""
    names = data.draw(NAMES)
    globs: list[str] = []
    for name in names:
        start = data.draw(st.integers(0, len(name)))
        end = data.draw(st.integers(start, len(name)))
        star = f"{name[:start]}*{name[end:]}"
        globs.append(data.draw(st.sampled_from([name, "**", star, "?" * len(name)])))
    assert pattern("/".join(globs)).matches("/".join(names), None)


@pytest.mark.parametrize(
    ("text", "repository"),
    [
        ("*a" * 40 + "*b", "a" * 255),
        ("**/*a*/" * 20 + "b", "/".join(["a"] * 128)),
        ("**/a/" * 20 + "**/b", "/".join(["a"] * 128)),
    ],
)
@pytest.mark.timeout(20)
def test_many_wildcards_do_not_hang(text: str, repository: str) -> None:
    """What almost matches in very many ways is refused at once."""
    assert not pattern(text).matches(repository, None)
    if "/" not in text:
        assert not pattern(f"a:{text}").matches("a", repository)


@pytest.mark.parametrize(
    ("roots", "expected"),
    [
        ("", ""),
        ("x", "x"),
        ("m", "mcl"),
        ("i", "imnclk"),
        ("n", "nck"),
        ("mn", "mnclk"),
        # A cycle ends.
        ("p", "pq"),
    ],
)
def test_closure(roots: str, expected: str) -> None:
    """An index needs its manifests, these their configs and layers; a root needs itself."""
    refers = [tuple(edge) for edge in ("ml", "mc", "nc", "nk", "im", "in", "pq", "qp", "pp")]
    assert closure(roots, ((manifest, name) for manifest, name in refers)) == set(expected)


DIGESTS = st.sampled_from("abcdefgh")


@given(st.sets(DIGESTS, max_size=3), st.lists(st.tuples(DIGESTS, DIGESTS), max_size=20))
def test_closure_is_the_models(roots: set[str], refers: list[tuple[str, str]]) -> None:
    """The answer is that of adding what is named until nothing is added; the roots stay."""
    expected = set(roots)
    while more := {name for manifest, name in refers if manifest in expected} - expected:
        expected |= more
    before = set(roots)
    assert closure(roots, iter(refers)) == expected
    assert roots == before
