"""Byte ranges: RFC 9110, section 14, as a table and against a plain model of it."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pullthrough.oci.errors import RangeInvalid
from pullthrough.server.ranges import ByteRange, parse

SIZE = 10000

NUMBERS = st.integers(min_value=0, max_value=30).map(str) | st.sampled_from(["", "9" * 18, "007"])
SPECS = st.tuples(NUMBERS, st.sampled_from(["-", "-", "-", "--", ""]), NUMBERS).map("".join)
HEADERS = st.lists(SPECS, min_size=1, max_size=5).map(lambda specs: "bytes=" + ",".join(specs))


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        # RFC 9110, 14.1.2: its own examples, of a representation of 10000 bytes
        ("bytes=0-499", [(0, 500)]),
        ("bytes=500-999", [(500, 1000)]),
        ("bytes=-500", [(9500, 10000)]),
        ("bytes=9500-", [(9500, 10000)]),
        ("bytes=0-0,-1", [(0, 1), (9999, 10000)]),
        ("bytes= 0-999, 4500-5499, -1000", [(0, 1000), (4500, 5500), (9000, 10000)]),
        ("bytes=500-600,601-999", [(500, 601), (601, 1000)]),
        ("bytes=500-700,601-999", [(500, 701), (601, 1000)]),
        # together the whole, and not a byte more
        ("bytes=0-4999,5000-", [(0, 5000), (5000, 10000)]),
        ("bytes=-5000,0-4999", [(5000, 10000), (0, 5000)]),
        # what is beyond the end is cut off, or left out beside one that is not
        ("bytes=0-", [(0, 10000)]),
        ("bytes=0-9999", [(0, 10000)]),
        ("bytes=0-10000", [(0, 10000)]),
        ("bytes=9999-10000", [(9999, 10000)]),
        (f"bytes=1-{'9' * 18}", [(1, 10000)]),
        ("bytes=-10000", [(0, 10000)]),
        ("bytes=-10001", [(0, 10000)]),
        ("bytes=10000-,5-6", [(5, 7)]),
        ("bytes=-0,5-6", [(5, 7)]),
        # spelling
        ("BYTES=1-2", [(1, 3)]),
        ("bytes=001-002", [(1, 3)]),
        ("bytes=1-2 ,\t3-4", [(1, 3), (3, 5)]),
    ],
)
def test_ranges_that_are_served(header: str, expected: list[tuple[int, int]]) -> None:
    """The bytes asked for, in the order asked for, cut at the end of the content."""
    assert [(each.start, each.end) for each in parse(header, SIZE)] == expected


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("bytes=0-", [True]),
        ("bytes=9999-", [True]),
        ("bytes=0-9999", [False]),
        ("bytes=0-10000", [False]),
        ("bytes=-500", [False]),
        ("bytes=-10000", [False]),
        ("bytes=0-1,5-,-1", [False, True, False]),
    ],
)
def test_ranges_without_an_end(header: str, expected: list[bool]) -> None:
    """Only what names no end is open: not a suffix, and not what reaches the end by its number."""
    assert [each.open for each in parse(header, SIZE)] == expected


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "bytes",
        "bytes=",
        "bytes= ",
        "bytes=-",
        "bytes=a-b",
        "bytes=1",
        "bytes=1-2-3",
        "bytes=--1",
        "bytes=+1-2",
        "bytes=1_0-20",
        "bytes=0x1-2",
        "bytes=1.0-2",
        "bytes=1 -2",
        "bytes=2-1",
        "bytes=0-1,2-1",
        "bytes=0-1,x",
        "bytes=\u0661-\u0662",  # digits, but not ASCII's
        "items=0-1",
        "0-1",
        "=0-1",
        "bytes:0-1",
        f"bytes={'9' * 5000}-",
        "bytes=" + ",".join(["0-0"] * 2000),
        "bytes=" + "," * 100_000,
    ],
)
def test_headers_that_are_ignored(header: str | None) -> None:
    """What is not understood, or asks for more than is sane, gets the whole (RFC 9110, 14.2)."""
    assert parse(header, SIZE) == ()


@pytest.mark.parametrize(
    ("header", "size"),
    [
        ("bytes=10000-", SIZE),
        ("bytes=10000-10001", SIZE),
        (f"bytes={'9' * 18}-", SIZE),
        ("bytes=-0", SIZE),
        ("bytes=10000-,-0", SIZE),
    ],
)
def test_ranges_that_nothing_lies_in(header: str, size: int) -> None:
    """Not one byte asked for exists: 416, and the client is told how many there are."""
    with pytest.raises(RangeInvalid) as raised:
        parse(header, size)
    assert raised.value.status == 416
    assert raised.value.detail == f"bytes */{size}"


@pytest.mark.parametrize(
    "header",
    [
        "bytes=0-,0-",
        "bytes=0-,-1",
        "bytes=0-9999,9999-9999",
        "bytes=-10000,0-0",
        "bytes=0-5000,5000-9999",
        "bytes=" + ",".join(["0-"] * 256),
    ],
)
def test_overlapping_ranges_are_not_served(header: str) -> None:
    """Ranges that add up to more than there is are an attack: once the whole is all they get."""
    assert parse(header, SIZE) == ()


@pytest.mark.parametrize("header", ["bytes=0-", "bytes=0-0", "bytes=-0", "bytes=-1", "bytes=x"])
def test_empty_content_is_sent_whole(header: str) -> None:
    """There is no part of nothing, and a client that resumes at its end is done: no error."""
    assert parse(header, 0) == ()


def test_content_range_counts_inclusively() -> None:
    """The header's end is the last byte, not the one after it."""
    assert ByteRange(0, 1).content_range(10) == "bytes 0-0/10"
    assert ByteRange(5, 10).content_range(10) == "bytes 5-9/10"


def bytes_of(spec: str, size: int) -> list[int] | None:
    """Return the positions that one spec names, by counting; None where it is not well formed."""
    match = re.fullmatch("([0-9]*)-([0-9]*)", spec)
    if match is None or spec == "-":
        return None
    first, last = match.groups()
    if not first:
        return list(range(size))[-int(last) :] if int(last) else []
    if last and int(last) < int(first):
        return None
    return [at for at in range(size) if at >= int(first) and (not last or at <= int(last))]


@given(HEADERS, st.integers(min_value=0, max_value=25))
def test_agrees_with_counting(header: str, size: int) -> None:
    """For any header the ranges are what one finds by counting, if no more than there is."""
    counted = [bytes_of(spec, size) for spec in header.removeprefix("bytes=").split(",")]
    expected = [each for each in counted if each]
    if None in counted or not size or sum(map(len, expected)) > size:
        assert parse(header, size) == ()
    elif not expected:
        with pytest.raises(RangeInvalid):
            parse(header, size)
    else:
        assert [list(range(each.start, each.end)) for each in parse(header, size)] == expected


@given(st.text(max_size=60) | st.text("bytes=0123456789-, ", max_size=60), st.integers(0, 1 << 50))
def test_no_header_breaks_it(header: str, size: int) -> None:
    """Whatever a client sends, each range lies within the content, or there is none."""
    try:
        ranges = parse(header, size)
    except RangeInvalid:
        return
    assert all(0 <= each.start < each.end <= size for each in ranges)
    assert sum(each.end - each.start for each in ranges) <= size
