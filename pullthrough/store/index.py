"""The embedded index: what the files do not say (freshness, last use) or say slowly (sizes).

It may be lost: every answer it gives is a shortcut, and the keeper makes it anew from the files
(store/reconcile.py). So its failures are logged and otherwise count as "not known"; no pull
fails for it. One connection a process, in one thread; never on the path of a warm request.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import structlog

from pullthrough.oci.digest import Digest
from pullthrough.oci.reference import Repository, Tag

T = TypeVar("T")

_log = structlog.get_logger()

MIRROR_KNOWN: Final = "mirror known"
"""A note: the index knows all that is in the bucket."""

LENT: Final = "lent "
"""A note's name begins so, and goes on with the digest that clients were sent to the bucket for."""

_VERSION: Final = 2
_BUSY_MS: Final = 5000
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS blob (      -- content that is somewhere here; used: Unix time
    digest TEXT PRIMARY KEY, size INTEGER NOT NULL, used REAL NOT NULL,
    verified INTEGER NOT NULL DEFAULT 0,  -- what is on the disk was seen to be what it should be
    here INTEGER NOT NULL DEFAULT 0,      -- on the local disk
    there INTEGER NOT NULL DEFAULT 0      -- in the bucket
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS pending ON blob (digest) WHERE here AND NOT there;
CREATE TABLE IF NOT EXISTS refers (    -- what a cached manifest names, here or not
    manifest TEXT NOT NULL, digest TEXT NOT NULL, size INTEGER, platform TEXT NOT NULL,
    is_manifest INTEGER NOT NULL,
    PRIMARY KEY (manifest, digest)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS named ON refers (digest, size);
CREATE TABLE IF NOT EXISTS link (      -- what a repository has; kind: revisions or layers
    digest TEXT NOT NULL, kind TEXT NOT NULL, repository TEXT NOT NULL,
    there INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (digest, kind, repository)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS tag (       -- checked: when the upstream last said what a tag is
    repository TEXT NOT NULL, tag TEXT NOT NULL, digest TEXT NOT NULL, checked REAL NOT NULL,
    there INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (repository, tag)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS tagged ON tag (digest);
CREATE TABLE IF NOT EXISTS listing (   -- tags/list and referrers as last seen
    repository TEXT NOT NULL, subject TEXT NOT NULL, body BLOB NOT NULL, seen REAL NOT NULL,
    PRIMARY KEY (repository, subject)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS gone (      -- what is yet to be deleted from the bucket
    key TEXT PRIMARY KEY
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS note (      -- how far the keeper is
    name TEXT PRIMARY KEY, value TEXT NOT NULL
) WITHOUT ROWID;
"""


def prepare(path: Path) -> None:
    """Make or mend the index, before any process opens it."""
    try:
        connection = connect(path)
    except sqlite3.OperationalError as error:
        # Locked, or no room: not a reason to throw a good index away.
        _log.warning("index unavailable", error=str(error))
        return
    except sqlite3.DatabaseError as error:
        _log.warning("index unreadable, begun anew", error=str(error))
        for suffix in ("", "-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        prepare(path)
        return
    connection.close()


def connect(path: Path) -> sqlite3.Connection:
    """Open the index, made where it is missing; raises :class:`sqlite3.Error`."""
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
        if version == 0:  # on a full disk nothing more could be written, and need not be
            connection.executescript(_SCHEMA)
            connection.execute(f"PRAGMA user_version={_VERSION}")
    except BaseException:
        connection.close()
        raise
    return connection


Change = tuple[str, Sequence[tuple[object, ...]]]
"""A statement and the rows to run it for."""


def execute(connection: sqlite3.Connection, *changes: Change) -> None:
    """Make all ``changes`` or none; raises :class:`sqlite3.Error`."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        for sql, rows in changes:
            connection.executemany(sql, rows)
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


class Named(NamedTuple):
    """What a manifest names, as the index keeps it."""

    digest: Digest
    size: int | None
    platform: str = ""
    is_manifest: bool = False


_ADD_BLOB: Final = """
    INSERT INTO blob (digest, size, used, verified, here) VALUES (?, ?, ?, 1, 1)
    ON CONFLICT DO UPDATE SET size=excluded.size, used=max(used, excluded.used), verified=1, here=1
"""
ADD_REFERS: Final = "INSERT OR REPLACE INTO refers VALUES (?, ?, ?, ?, ?)"
ADD_LINK: Final = "INSERT OR IGNORE INTO link (digest, kind, repository) VALUES (?, ?, ?)"
_LINK_LAYERS: Final = """
    INSERT OR IGNORE INTO link (digest, kind, repository)
    SELECT digest, 'layers', ? FROM refers JOIN blob USING (digest)
    WHERE manifest=? AND NOT is_manifest
"""
NOT_HERE: Final = "UPDATE blob SET here=0, verified=0 WHERE digest=?"
NOT_THERE: Final = "UPDATE blob SET there=0 WHERE digest=?"
NOWHERE: Final = "DELETE FROM blob WHERE digest=? AND NOT here AND NOT there"
_SET_TAG: Final = """
    INSERT INTO tag (repository, tag, digest, checked) VALUES (?, ?, ?, ?)
    ON CONFLICT DO UPDATE SET
        checked=excluded.checked, there=there AND digest=excluded.digest, digest=excluded.digest
"""


def refers_rows(manifest: Digest, names: Iterable[Named]) -> list[tuple[object, ...]]:
    """Return what ``ADD_REFERS`` takes."""
    return [
        (str(manifest), str(each.digest), each.size, each.platform, each.is_manifest)
        for each in names
    ]


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
            self._connection = connect(self._path)
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
        row = await self._one("SELECT 1 FROM blob WHERE digest=? AND verified", str(digest))
        return row is not None

    async def add_blob(self, digest: Digest, size: int) -> None:
        """Remember verified content of ``size`` bytes on the local disk."""
        await self._execute((_ADD_BLOB, [(str(digest), size, time.time())]))

    async def add_manifest(
        self, repository: Repository, digest: Digest, size: int, names: Iterable[Named]
    ) -> None:
        """Remember a verified manifest of a repository, and what it names."""
        await self._execute(
            (_ADD_BLOB, [(str(digest), size, time.time())]),
            (ADD_REFERS, refers_rows(digest, names)),
            (ADD_LINK, [(str(digest), "revisions", repository.name)]),
            (_LINK_LAYERS, [(repository.name, str(digest))]),
        )

    async def add_link(self, repository: Repository, digest: Digest, kind: str) -> None:
        """Remember that a repository has something."""
        await self._execute((ADD_LINK, [(str(digest), kind, repository.name)]))

    async def forget_blob(self, digest: Digest) -> None:
        """Content is no longer on the local disk."""
        await self._execute((NOT_HERE, [(str(digest),)]), (NOWHERE, [(str(digest),)]))

    async def not_there(self, digest: Digest) -> None:
        """Content is not in the bucket, or not as it should be."""
        await self._execute((NOT_THERE, [(str(digest),)]), (NOWHERE, [(str(digest),)]))

    async def there(self, digest: Digest) -> int | None:
        """Return the size in bytes of what is in the bucket, None if that is not known."""
        row = await self._one("SELECT size FROM blob WHERE digest=? AND there", str(digest))
        return None if row is None else int(row[0])

    async def size_of(self, digest: Digest) -> int | None:
        """Return the size in bytes that cached manifests give for ``digest``, if they agree."""
        sql = "SELECT min(size), max(size) FROM refers WHERE digest=? AND size IS NOT NULL"
        row = await self._one(sql, str(digest))
        return None if row is None or row[0] is None or row[0] != row[1] else int(row[0])

    def touch(self, digest: Digest) -> None:
        """Note a use; written with the next :meth:`flush`, not now."""
        self._used[digest] = time.time()

    async def flush(self) -> None:
        """Write the uses noted since the last time."""
        if self._connection is None:
            await self.open()
        used, self._used = self._used, {}
        rows = [(when, str(digest)) for digest, when in used.items()]
        await self._execute(("UPDATE blob SET used=max(used, ?) WHERE digest=?", rows))

    # -- tags ------------------------------------------------------------------------------------

    async def checked(self, repository: Repository, tag: Tag, digest: Digest) -> float:
        """Return when (Unix time) ``tag`` was last said to be ``digest``; 0 if not known."""
        sql = "SELECT checked FROM tag WHERE repository=? AND tag=? AND digest=?"
        row = await self._one(sql, repository.name, tag.name, str(digest))
        return 0.0 if row is None else float(row[0])

    async def set_checked(
        self, repository: Repository, tag: Tag, digest: Digest, when: float, key: str = ""
    ) -> None:
        """Remember when the upstream said that ``tag`` is ``digest``; ``key`` is the bucket's."""
        row = (repository.name, tag.name, str(digest), when)
        # Of the bucket's, the tag and its place with what it once was: see tending/removal.py.
        place = key.removesuffix("current/link")
        gone = ("DELETE FROM gone WHERE key IN (?, ?)", [(key, place)])
        await self._execute((_SET_TAG, [row]), gone)

    async def forget_tag(self, repository: Repository, tag: Tag) -> None:
        """Forget a tag that the upstream no longer has."""
        sql = "DELETE FROM tag WHERE repository=? AND tag=?"
        await self._execute((sql, [(repository.name, tag.name)]))

    async def bury(self, key: str) -> None:
        """Remember what is to be deleted from the bucket."""
        await self._execute(("INSERT OR IGNORE INTO gone VALUES (?)", [(key,)]))

    # -- listings --------------------------------------------------------------------------------

    async def listing(self, repository: Repository, subject: str) -> tuple[bytes, float] | None:
        """Return a listing as it was last seen, and when (Unix time)."""
        sql = "SELECT body, seen FROM listing WHERE repository=? AND subject=?"
        row = await self._one(sql, repository.name, subject)
        return None if row is None else (bytes(row[0]), float(row[1]))

    async def set_listing(self, repository: Repository, subject: str, body: bytes) -> None:
        """Remember a listing."""
        row = (repository.name, subject, body, time.time())
        await self._execute(("INSERT OR REPLACE INTO listing VALUES (?, ?, ?, ?)", [row]))

    async def lend(self, digest: Digest, until: float) -> None:
        """Remember that a client was sent to the bucket for content, with an address good so long.

        ``until`` is Unix time.
        """
        row = (f"{LENT}{digest}", str(until))
        await self._execute(("INSERT OR REPLACE INTO note VALUES (?, ?)", [row]))

    async def buried(self, key: str) -> bool:
        """Whether something is to be deleted from the bucket."""
        return await self._one("SELECT 1 FROM gone WHERE key=?", key) is not None

    async def noted(self, name: str) -> str | None:
        """Return what the keeper noted under ``name``."""
        row = await self._one("SELECT value FROM note WHERE name=?", name)
        return None if row is None else str(row[0])

    # -- all of it -------------------------------------------------------------------------------

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

    async def _execute(self, *changes: Change) -> None:
        if not any(rows for _, rows in changes):
            return
        await self._call(None, lambda connection: execute(connection, *changes))
