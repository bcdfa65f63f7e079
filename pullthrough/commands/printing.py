"""What commands print: tables and documents on standard output, progress beside them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import click
import orjson

_UNITS = ("KiB", "MiB", "GiB", "TiB", "PiB")
_STEP = 1024
_SHORT = 10
_DIGITS = 12


def document(value: Any) -> None:
    """Print JSON."""
    click.echo(orjson.dumps(value, option=orjson.OPT_INDENT_2))


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print columns: rich's are made for a screen's width, and slow for thousands of rows."""
    shown = [tuple(headings), *(tuple(printable(cell) for cell in row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    for row in shown:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo("  ".join(cells).rstrip())


def printable(text: str) -> str:
    """Return ``text`` without what would steer a terminal: much of it is an image maker's."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def size(count: float) -> str:
    """Return bytes for people."""
    if count < _STEP:
        return f"{count:.0f} B"
    for unit in _UNITS:
        count /= _STEP
        if count < _STEP or unit == _UNITS[-1]:
            break
    return f"{count:.1f} {unit}" if count < _SHORT else f"{count:.0f} {unit}"


def counted(count: int, one: str, many: str = "") -> str:
    """Return a number with its word."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def when(used: float | None) -> str:
    """Return a Unix time for people, in their time zone."""
    return "never" if used is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(used))


def stamp(used: float | None) -> str | None:
    """Return a Unix time for programs."""
    return None if used is None else datetime.fromtimestamp(used, UTC).isoformat(timespec="seconds")


def short(digest: str) -> str:
    """Return enough of a digest to know it by."""
    algorithm, _, digits = digest.partition(":")
    return f"{algorithm}:{digits[:_DIGITS]}"


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show how many of ``total`` bytes are done, on a terminal; gives what is told of more."""
    # rich is only wanted by commands that take their time.
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True),
        TransferSpeedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(what, total=total)
        yield lambda count: bar.update(task, advance=count)


@contextmanager
def working(what: str) -> Iterator[None]:
    """Show, on a terminal, that something of unknown length goes on."""
    from rich.console import Console  # as above

    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    with console.status(what):
        yield
