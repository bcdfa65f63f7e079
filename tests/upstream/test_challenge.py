"""Reading WWW-Authenticate."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from pullthrough.upstream.challenge import Basic, Bearer, Challenge, choose, parse

HARBOR = (
    'Bearer realm="https://h.example.com/service/token",'
    'service="harbor-registry",scope="repository:p/r:pull,push"'
)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([], []),
        ([""], []),
        (['Basic realm="harbor"'], [("basic", {"realm": "harbor"})]),
        (
            [HARBOR],
            [
                (
                    "bearer",
                    {
                        "realm": "https://h.example.com/service/token",
                        "service": "harbor-registry",
                        "scope": "repository:p/r:pull,push",
                    },
                )
            ],
        ),
        (
            ['Bearer realm="x" , SERVICE = y , , Basic realm=z'],
            [("bearer", {"realm": "x", "service": "y"}), ("basic", {"realm": "z"})],
        ),
        (['Basic realm=a, x="y"', "NTLM"], [("basic", {"realm": "a", "x": "y"}), ("ntlm", {})]),
        (["Negotiate abc+/==, Basic realm=x"], [("negotiate", {}), ("basic", {"realm": "x"})]),
        ([r'Basic realm="a \"q\" \\, b=c"'], [("basic", {"realm": 'a "q" \\, b=c'})]),
        (["Basic, Bearer realm=x"], [("basic", {}), ("bearer", {"realm": "x"})]),
        (['Bearer realm="never closed'], [("bearer", {})]),
        (["=nonsense", "Basic"], [("basic", {})]),
    ],
)  # fmt: skip
def test_parse(headers: list[str], expected: list[tuple[str, dict[str, str]]]) -> None:
    """Challenges come out in order, commas in quotes are text, a mistake ends its header."""
    assert parse(headers) == tuple(Challenge(*each) for each in expected)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([], None),
        ([""], None),
        (["Negotiate"], None),
        (['Basic realm="harbor"'], Basic()),
        ([HARBOR], Bearer(URL("https://h.example.com/service/token"), "harbor-registry")),
        (['Basic realm="x"', 'Bearer realm="http://h/t"'], Bearer(URL("http://h/t"), "")),
        (['Bearer realm="/relative"', "Basic"], Basic()),
        (['Bearer realm="ftp://h/t"'], None),
        (['Bearer realm="https://h:99999/t"'], None),
        (["Bearer"], None),
        (['Bearer realm="https://me:pass@h/t"'], Bearer(URL("https://h/t"), "")),
    ],
)
def test_choose(headers: list[str], expected: Bearer | Basic | None) -> None:
    """A Bearer whose realm can be asked is preferred to Basic; nothing usable is nothing."""
    assert choose(headers) == expected


@given(
    st.lists(st.text(max_size=300) | st.from_regex(r'(Bearer|Basic)( \w+="[^"]*",?)*'), max_size=4)
)
def test_nothing_breaks_it(headers: list[str]) -> None:
    """Whatever the header says, it is read without an error."""
    parse(headers)
    choose(headers)


def test_a_huge_header_is_cut() -> None:
    """No more than a bounded part of a header is looked at."""
    assert len(parse(["a=" * 5 + "Basic, " * 1_000_000])) < 10_000
