"""What a command works on: the configuration, and the store it names, beside a running server."""

from __future__ import annotations

import fcntl
import os
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pullthrough import config as configuration
from pullthrough.config import Config

if TYPE_CHECKING:
    from pullthrough.store.bucket import Bucket
    from pullthrough.store.catalogue import Catalogue
    from pullthrough.store.layout import Layout

# The parts of the program are imported where they are used: `serve` has its own order of importing,
# and `ls` does not wait for an HTTP library.


def load(argument: Path | None) -> tuple[Path, Config | None]:
    """Load the configuration and say on standard error what there is to say of it."""
    try:
        path = configuration.find(argument, os.environ)
    except configuration.ConfigError as error:
        raise click.ClickException(str(error)) from error
    loaded = configuration.load(path, os.environ)
    for problem in (*loaded.notices, *loaded.problems):
        click.echo(str(problem), err=True)
    return path, loaded.config


@dataclass(frozen=True, slots=True)
class Opened:
    """A store, open for one command; ``bucket`` only where there is one and it was asked for."""

    config: Config
    layout: Layout
    catalogue: Catalogue
    bucket: Bucket | None


@contextmanager
def opened(argument: Path | None, *, with_bucket: bool = False) -> Iterator[Opened]:
    """Open the store of a configuration. What goes wrong with it ends the command, in one line."""
    from pullthrough.store.catalogue import Catalogue
    from pullthrough.store.layout import Layout
    from pullthrough.telemetry import logs

    _, config = load(argument)
    if config is None:
        sys.exit(1)
    logs.configure("warn", "text", {})
    layout = Layout(configuration.local_root(config))
    troubles: tuple[type[Exception], ...] = (OSError, sqlite3.Error)
    if with_bucket and config.storage.s3 is not None:
        from pullthrough.store.bucket import BucketError

        troubles = (*troubles, BucketError)
    try:
        with ExitStack() as stack:
            stack.enter_context(_in_use(layout))
            catalogue = stack.enter_context(Catalogue(layout.index))
            bucket = None
            if with_bucket:
                from pullthrough import parts

                bucket = parts.bucket(config)
            yield Opened(config, layout, catalogue, bucket)
    except troubles as error:
        message = str(error)
        if isinstance(error, sqlite3.Error):
            message = f"the index {layout.index}: {error}"
            if not isinstance(error, sqlite3.OperationalError):  # locked, say, or no room
                message += "; with the server stopped, `pullthrough reindex` makes it anew"
        raise click.ClickException(message) from error


@contextmanager
def _in_use(layout: Layout) -> Iterator[None]:
    """Say that the store is in use, so that a server that starts meanwhile sweeps nothing away."""
    from pullthrough.store.catalogue import Catalogue
    from pullthrough.store.reconcile import reconcile

    if not layout.v2.is_dir():
        raise click.ClickException(f"there is no store at {layout.root} yet")
    for directory in (layout.partials, layout.temporary):
        directory.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(layout.own / "in-use", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            made = _make_index(layout, alone=False)
        else:
            made = _make_index(layout, alone=True)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        if made:
            with Catalogue(layout.index) as catalogue:
                reconcile(layout, catalogue)
        yield
    finally:
        os.close(descriptor)


def _make_index(layout: Layout, *, alone: bool) -> bool:
    """Make the index if it is lost, or registry:2 was the last here; return whether it was made.

    One that is damaged, or of another version, is made anew if nobody else uses it.
    """
    from pullthrough.store import index

    if layout.index.exists():
        try:
            index.connect(layout.index).close()
        except sqlite3.OperationalError:
            return False
        except sqlite3.DatabaseError:
            if not alone:
                return False
        else:
            return False
    else:
        # A running server keeps those of the lost one open; a new one cannot stand beside them.
        for suffix in ("-wal", "-shm"):
            layout.index.with_name(layout.index.name + suffix).unlink(missing_ok=True)
    index.prepare(layout.index)
    return True
