"""The embedded index: what the files do not say (freshness, last use) or say slowly (sizes).

It may be lost: every answer it gives is a shortcut, and :meth:`Index.rebuild_from` makes the part
of it that matters anew. So its failures are logged and otherwise count as "not known"; no pull
fails for it. One connection a process, in one thread; never on the path of a warm request.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, TypeVar

import structlog

from pullthrough.oci.digest import Digest
from pullthrough.oci.manifest import Descriptor
from pullthrough.oci.reference import Repository, Tag

T = TypeVar("T")

_log = structlog.get_logger()

_VERSION: Final = 1
_BUSY_MS: Final = 5000
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS blob (      -- content that is here and was verified
    digest TEXT PRIMARY KEY, size INTEGER NOT NULL, used REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS descriptor (  -- content that a cached manifest names, here or not
    digest TEXT PRIMARY KEY, size INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS tag (       -- when the upstream last said what a tag is
    repository TEXT NOT NULL, tag TEXT NOT NULL, digest TEXT NOT NULL, checked REAL NOT NULL,
    PRIMARY KEY (repository, tag)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS listing (   -- tags/list and referrers as last seen
    repository TEXT NOT NULL, subject TEXT NOT NULL, body BLOB NOT NULL, seen REAL NOT NULL,
    PRIMARY KEY (repository, subject)
) WITHOUT ROWID;
"""


def prepare(path: Path) -> bool:
    """Make or mend the index, before any worker opens it; return whether it wants rebuilding."""
    try:
        connection, new = _connect(path)
    except sqlite3.OperationalError as error:
        # Locked, or no room: not a reason to throw a good index away.
        _log.warning("index unavailable", error=str(error))
        return False
    except sqlite3.DatabaseError as error:
        _log.warning("index unreadable, begun anew", error=str(error))
        for suffix in ("", "-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        return prepare(path)
    connection.close()
    return new


def _connect(path: Path) -> tuple[sqlite3.Connection, bool]:
    connection = sqlite3.connect(
        path, timeout=_BUSY_MS / 1000, isolation_level=None, check_same_thread=False
    )
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        # NORMAL: a power cut may lose the last shortcuts, never the file's soundness.
        connection.execute("PRAGMA synchronous=NORMAL")
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version not in (0, _VERSION):
            raise sqlite3.DatabaseError(f"version {version}")  # noqa: TRY301 - closed below
        connection.executescript(_SCHEMA)
        connection.execute(f"PRAGMA user_version={_VERSION}")
    except BaseException:
        connection.close()
        raise
    return connection, version == 0


class Index:
    """The index of one store, as one process sees it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="index")
        self._connection: sqlite3.Connection | None = None
        self._used: dict[Digest, float] = {}

    async def open(self) -> None:
        """Open the index that :func:`prepare` made."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._open)

    def _open(self) -> None:
        try:
            self._connection, _ = _connect(self._path)
        except sqlite3.Error as error:
            _log.warning("index unavailable", error=str(error))

    async def _call(self, default: T, work: Callable[[sqlite3.Connection], T]) -> T:
        def run() -> T:
            if self._connection is None:
                return default
            try:
                return work(self._connection)
            except sqlite3.Error as error:
                _log.warning("index failed", error=str(error))
                return default

        return await asyncio.get_running_loop().run_in_executor(self._thread, run)

    # -- content ---------------------------------------------------------------------------------

    async def verified(self, digest: Digest) -> bool:
        """Whether the content under ``digest`` was seen to be what it should be."""
        row = await self._one("SELECT 1 FROM blob WHERE digest=?", str(digest))
        return row is not None

    async def add_blob(self, digest: Digest, size: int) -> None:
        """Remember verified content of ``size`` bytes."""
        sql = "INSERT OR REPLACE INTO blob VALUES (?, ?, ?)"
        await self._execute(sql, [(str(digest), size, time.time())])

    async def forget_blob(self, digest: Digest) -> None:
        """Content is no longer here."""
        await self._execute("DELETE FROM blob WHERE digest=?", [(str(digest),)])

    async def add_descriptors(self, descriptors: Iterable[Descriptor]) -> None:
        """Remember the sizes that a manifest tells."""
        rows = [(str(d.digest), d.size) for d in descriptors if d.size is not None]
        await self._execute("INSERT OR REPLACE INTO descriptor VALUES (?, ?)", rows)

    async def size_of(self, digest: Digest) -> int | None:
        """Return the size in bytes that a cached manifest gives for ``digest``."""
        row = await self._one("SELECT size FROM descriptor WHERE digest=?", str(digest))
        return None if row is None else int(row[0])

    def touch(self, digest: Digest) -> None:
        """Note a use; written with the next :meth:`flush`, not now."""
        self._used[digest] = time.time()

    async def flush(self) -> None:
        """Write the uses noted since the last time."""
        if self._connection is None:
            await self.open()
        used, self._used = self._used, {}
        rows = [(when, str(digest)) for digest, when in used.items()]
        await self._execute("UPDATE blob SET used=? WHERE digest=?", rows)

    # -- tags ------------------------------------------------------------------------------------

    async def checked(self, repository: Repository, tag: Tag, digest: Digest) -> float:
        """Return when (Unix time) ``tag`` was last said to be ``digest``; 0 if not known."""
        sql = "SELECT checked FROM tag WHERE repository=? AND tag=? AND digest=?"
        row = await self._one(sql, repository.name, tag.name, str(digest))
        return 0.0 if row is None else float(row[0])

    async def set_checked(
        self, repository: Repository, tag: Tag, digest: Digest, when: float
    ) -> None:
        """Remember when the upstream said that ``tag`` is ``digest``."""
        row = (repository.name, tag.name, str(digest), when)
        await self._execute("INSERT OR REPLACE INTO tag VALUES (?, ?, ?, ?)", [row])

    async def forget_tag(self, repository: Repository, tag: Tag) -> None:
        """Forget a tag that the upstream no longer has."""
        sql = "DELETE FROM tag WHERE repository=? AND tag=?"
        await self._execute(sql, [(repository.name, tag.name)])

    # -- listings --------------------------------------------------------------------------------

    async def listing(self, repository: Repository, subject: str) -> tuple[bytes, float] | None:
        """Return a listing as it was last seen, and when (Unix time)."""
        sql = "SELECT body, seen FROM listing WHERE repository=? AND subject=?"
        row = await self._one(sql, repository.name, subject)
        return None if row is None else (bytes(row[0]), float(row[1]))

    async def set_listing(self, repository: Repository, subject: str, body: bytes) -> None:
        """Remember a listing."""
        row = (repository.name, subject, body, time.time())
        await self._execute("INSERT OR REPLACE INTO listing VALUES (?, ?, ?, ?)", [row])

    # -- all of it -------------------------------------------------------------------------------

    async def rebuild_from(self, sizes: Mapping[Digest, int]) -> None:
        """Take the sizes that cached manifests tell; verification is made up for at first use."""
        rows = [(str(digest), size) for digest, size in sizes.items()]
        await self._execute("INSERT OR IGNORE INTO descriptor VALUES (?, ?)", rows)

    async def close(self) -> None:
        """Write what is noted, and close."""
        await self.flush()

        def close() -> None:
            if self._connection is not None:
                with contextlib.suppress(sqlite3.Error):
                    self._connection.close()
                self._connection = None

        await asyncio.get_running_loop().run_in_executor(self._thread, close)
        self._thread.shutdown()

    async def _one(self, sql: str, *values: str) -> tuple[Any, ...] | None:
        def work(connection: sqlite3.Connection) -> tuple[Any, ...] | None:
            row: tuple[Any, ...] | None = connection.execute(sql, values).fetchone()
            return row

        return await self._call(None, work)

    async def _execute(self, sql: str, rows: Sequence[tuple[object, ...]]) -> None:
        if not rows:
            return

        def work(connection: sqlite3.Connection) -> None:
            connection.execute("BEGIN IMMEDIATE")
            try:
                connection.executemany(sql, rows)
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")

        await self._call(None, work)
