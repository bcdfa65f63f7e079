"""The index as those who tend the store see it: all of it at once, in a thread of their own."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

import orjson

from pullthrough.oci.digest import Digest
from pullthrough.store.index import (
    ADD_LINK,
    ADD_REFERS,
    LENT,
    MIRROR_KNOWN,
    NOT_HERE,
    NOT_THERE,
    NOWHERE,
    Change,
    Named,
    connect,
    execute,
    refers_rows,
)

_BATCH: Final = 500
_MIRROR: Final = "mirror"
"""A note: which bucket it is that the index speaks of."""
_REMOVE_TAG: Final = "DELETE FROM tag WHERE repository=? AND tag=? AND digest=?"
_REMOVE_LINK: Final = "DELETE FROM link WHERE digest=? AND kind=? AND repository=?"
_LINK_NOT_THERE: Final = "UPDATE link SET there=0 WHERE digest=? AND kind=? AND repository=?"
_TAG_NOT_THERE: Final = "UPDATE tag SET there=0 WHERE repository=? AND tag=?"
_LATELY: Final = 1000.0
"""By how much the age of what was found counts less."""


class Row(NamedTuple):
    """What the index says of one digest; ``size`` in bytes, ``used`` Unix time."""

    digest: str
    size: int
    used: float
    verified: bool
    here: bool
    there: bool


class TagRow(NamedTuple):
    """A tag and what it is."""

    repository: str
    tag: str
    digest: str


class TagKey(NamedTuple):
    """A tag's name."""

    repository: str
    tag: str


class LinkRow(NamedTuple):
    """What a repository has; ``kind`` is ``revisions`` or ``layers``."""

    digest: str
    kind: str
    repository: str


class Found(NamedTuple):
    """Content of ``size`` bytes, ``changed`` at a Unix time."""

    digest: str
    size: int
    changed: float


class Usage(NamedTuple):
    """Bytes on the local disk, in the bucket, and not yet in the bucket."""

    here: int
    there: int
    pending: int


class Catalogue:
    """One connection to the index, for one thread. Methods raise :class:`sqlite3.Error`."""

    def __init__(self, path: Path) -> None:
        self._connection = connect(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    # -- what there is -----------------------------------------------------------------------------

    def rows(self) -> list[Row]:
        """Return all content."""
        sql = "SELECT digest, size, used, verified, here, there FROM blob"
        return [_row(row) for row in self._connection.execute(sql)]

    def row(self, digest: Digest) -> Row | None:
        """Return what is known of one digest."""
        sql = "SELECT digest, size, used, verified, here, there FROM blob WHERE digest=?"
        found = self._connection.execute(sql, (str(digest),)).fetchone()
        return None if found is None else _row(found)

    def usage(self) -> Usage:
        """Return the sums."""
        sql = """
            SELECT coalesce(sum(size * here), 0), coalesce(sum(size * there), 0),
                   coalesce(sum(size * (here AND NOT there)), 0) FROM blob
        """
        return Usage._make(self._connection.execute(sql).fetchone())

    def refers(self) -> list[tuple[str, str]]:
        """Return all pairs of a manifest and what it names."""
        return self._connection.execute("SELECT manifest, digest FROM refers").fetchall()

    def named(self, manifest: str) -> list[Named]:
        """Return what one manifest names."""
        sql = "SELECT digest, size, platform, is_manifest FROM refers WHERE manifest=?"
        return [
            Named(Digest.parse(digest), size, platform, bool(is_manifest))
            for digest, size, platform, is_manifest in self._connection.execute(sql, (manifest,))
        ]

    def all_named(self) -> Iterator[tuple[str, str, int | None, str, bool]]:
        """Give manifest, digest, size, platform and whether that is a manifest, of all."""
        yield from self._connection.execute(
            "SELECT manifest, digest, size, platform, is_manifest FROM refers"
        )

    def tags(self) -> list[TagRow]:
        """Return all tags."""
        sql = "SELECT repository, tag, digest FROM tag ORDER BY repository, tag"
        return [TagRow._make(row) for row in self._connection.execute(sql)]

    def tags_of(self, digest: str) -> list[TagRow]:
        """Return the tags that are ``digest``."""
        sql = "SELECT repository, tag, digest FROM tag WHERE digest=?"
        return [TagRow._make(row) for row in self._connection.execute(sql, (digest,))]

    def links(self, kind: str) -> list[LinkRow]:
        """Return all links of a kind."""
        sql = "SELECT digest, kind, repository FROM link WHERE kind=?"
        return [LinkRow._make(row) for row in self._connection.execute(sql, (kind,))]

    def links_of(self, digest: str) -> list[LinkRow]:
        """Return the repositories that have ``digest``."""
        sql = "SELECT digest, kind, repository FROM link WHERE digest=?"
        return [LinkRow._make(row) for row in self._connection.execute(sql, (digest,))]

    def said_of(self, digests: Collection[str]) -> tuple[list[TagRow], list[LinkRow]]:
        """Return the tags that are any of ``digests``, and the repositories that have them."""
        these = (orjson.dumps(list(digests)).decode(),)
        tags = self._connection.execute(
            """
            SELECT repository, tag, digest FROM tag
            WHERE digest IN (SELECT value FROM json_each(?))
            """,
            these,
        )
        links = self._connection.execute(
            """
            SELECT digest, kind, repository FROM link
            WHERE digest IN (SELECT value FROM json_each(?))
            """,
            these,
        )
        return list(map(TagRow._make, tags)), list(map(LinkRow._make, links))

    def repository_of(self, digest: str) -> str | None:
        """Return a repository that has ``digest``, itself or by a manifest that names it."""
        sql = """
            WITH RECURSIVE up(digest) AS (
                SELECT ? UNION SELECT manifest FROM refers JOIN up USING (digest)
            )
            SELECT repository FROM link JOIN up USING (digest) LIMIT 1
        """
        found = self._connection.execute(sql, (digest,)).fetchone()
        return None if found is None else str(found[0])

    def unread(self) -> list[Digest]:
        """Return the manifests on the disk of which it is not known what they name."""
        sql = """
            SELECT DISTINCT digest FROM link JOIN blob USING (digest)
            WHERE kind='revisions' AND here AND digest NOT IN (SELECT manifest FROM refers)
        """
        return [Digest.parse(digest) for (digest,) in self._connection.execute(sql)]

    # -- what changes ------------------------------------------------------------------------------

    def found(self, contents: Iterable[Found]) -> None:
        """Remember content that was found on the disk, not verified.

        Its uses are not known: in the order of its age, but all of it lately, so that nothing
        expires only because the index was lost.
        """
        now = time.time()
        self._batches(
            """
            INSERT INTO blob (digest, size, used, here) VALUES (?, ?, ?, 1)
            ON CONFLICT DO UPDATE SET
                verified=verified AND size=excluded.size, size=excluded.size, here=1
            """,
            (
                (digest, size, now - max(0.0, now - changed) / _LATELY)
                for digest, size, changed in contents
            ),
        )

    def found_there(self, contents: Iterable[tuple[str, int]]) -> None:
        """Remember content that was found in the bucket."""
        now = time.time()
        self._batches(
            """
            INSERT INTO blob (digest, size, used, there) VALUES (?, ?, ?, 1)
            ON CONFLICT DO UPDATE SET there=1
            """,
            ((digest, size, now) for digest, size in contents),
        )

    def set_verified(self, digest: Digest, *, verified: bool) -> None:
        """Remember whether what is on the disk is what it should be."""
        self._batches("UPDATE blob SET verified=? WHERE digest=?", [(verified, str(digest))])

    def not_here(self, digests: Iterable[str]) -> None:
        """Forget content that is not on the disk any more."""
        rows = [(digest,) for digest in digests]
        self._change((NOT_HERE, rows), (NOWHERE, rows))

    def not_there(self, digests: Iterable[str]) -> None:
        """Forget content that is not in the bucket any more."""
        rows = [(digest,) for digest in digests]
        self._change((NOT_THERE, rows), (NOWHERE, rows))

    def removed(
        self,
        digests: Iterable[str] = (),
        *,
        tags: Iterable[TagRow] = (),
        links: Iterable[LinkRow] = (),
        keys: Iterable[str] = (),
    ) -> None:
        """Forget content altogether, with all that is said of it, and single tags and links.

        At the same time ``keys`` are noted as to be deleted from the bucket; one that ends in "/"
        stands for all that begin with it.
        """
        rows = [(digest,) for digest in digests]
        self._change(
            ("DELETE FROM blob WHERE digest=?", rows),
            ("DELETE FROM refers WHERE manifest=?", rows),
            ("DELETE FROM link WHERE digest=?", rows),
            ("DELETE FROM tag WHERE digest=?", rows),
            (_REMOVE_TAG, list(tags)),
            (_REMOVE_LINK, list(links)),
            ("INSERT OR IGNORE INTO gone VALUES (?)", [(key,) for key in keys]),
        )

    def add_names(self, manifest: Digest, names: Iterable[Named]) -> None:
        """Remember what a manifest names."""
        self._change((ADD_REFERS, refers_rows(manifest, names)))

    def add_links(self, links: Iterable[LinkRow], *, there: bool = False) -> None:
        """Remember what repositories have."""
        rows = list(links)
        self._batches(ADD_LINK, rows)
        if there:
            self._batches(
                "UPDATE link SET there=1 WHERE digest=? AND kind=? AND repository=?", rows
            )

    def add_tags(self, tags: Iterable[TagRow], *, there: bool = False) -> None:
        """Remember tags as they were found; when they were last checked is not known."""
        self._batches(
            """
            INSERT INTO tag (repository, tag, digest, checked, there) VALUES (?, ?, ?, 0, ?)
            ON CONFLICT DO UPDATE SET digest=excluded.digest, checked=0, there=excluded.there
            WHERE digest<>excluded.digest
            """,
            ((*tag, there) for tag in tags),
        )

    def remove_tags(self, tags: Iterable[TagRow]) -> None:
        """Forget tags, if they still are what was said."""
        self._batches(_REMOVE_TAG, tags)

    def forget_listings(self, before: float) -> None:
        """Forget lists that were last seen before a time (Unix)."""
        self._change(("DELETE FROM listing WHERE seen<?", [(before,)]))

    # -- the bucket --------------------------------------------------------------------------------

    def pending(self) -> list[Row]:
        """Return content that is not in the bucket yet."""
        sql = """
            SELECT digest, size, used, verified, here, there FROM blob WHERE here AND NOT there
        """
        return [_row(row) for row in self._connection.execute(sql)]

    def uploaded(self, digest: Digest, key: str = "") -> None:
        """Remember that content is in the bucket, unless its key is to be deleted there."""
        sql = (
            "UPDATE blob SET there=1 WHERE digest=? AND NOT EXISTS (SELECT 1 FROM gone WHERE key=?)"
        )
        self._change((sql, [(str(digest), key)]))

    def pending_links(self) -> list[LinkRow]:
        """Return links that are not in the bucket yet, of content that is."""
        sql = """
            SELECT digest, kind, repository FROM link JOIN blob USING (digest)
            WHERE NOT link.there AND blob.there
        """
        return [LinkRow._make(row) for row in self._connection.execute(sql)]

    def pending_tags(self) -> list[TagRow]:
        """Return tags that are not in the bucket yet, of manifests that are."""
        sql = """
            SELECT repository, tag, digest FROM tag JOIN blob USING (digest)
            WHERE NOT tag.there AND blob.there
        """
        return [TagRow._make(row) for row in self._connection.execute(sql)]

    def linked_there(self, link: LinkRow) -> None:
        """Remember that a link is in the bucket."""
        sql = "UPDATE link SET there=1 WHERE digest=? AND kind=? AND repository=?"
        self._change((sql, [link]))

    def tagged_there(self, tag: TagRow) -> None:
        """Remember that a tag is in the bucket, as it was then."""
        sql = "UPDATE tag SET there=1 WHERE repository=? AND tag=? AND digest=?"
        self._change((sql, [tag]))

    def names_not_there(self, links: Collection[LinkRow], tags: Collection[TagKey]) -> None:
        """Remember that of all links and tags only these are in the bucket."""
        known = self._connection.execute("SELECT digest, kind, repository FROM link WHERE there")
        lost = [row for row in map(LinkRow._make, known) if row not in links]
        self._batches(_LINK_NOT_THERE, lost)
        there = self._connection.execute("SELECT repository, tag FROM tag WHERE there")
        gone = [row for row in map(TagKey._make, there) if row not in tags]
        self._batches(_TAG_NOT_THERE, gone)

    def buried(self) -> list[str]:
        """Return the keys, and what keys begin with, that are to be deleted from the bucket."""
        return [key for (key,) in self._connection.execute("SELECT key FROM gone")]

    def unbury(self, key: str, what: Digest | LinkRow | TagKey | None) -> None:
        """Forget a key that is deleted, and that the bucket has what stood there.

        That may have come again meanwhile, and have been found there.
        """
        changes: list[Change] = [("DELETE FROM gone WHERE key=?", [(key,)])]
        match what:
            case Digest():
                changes += [(NOT_THERE, [(str(what),)]), (NOWHERE, [(str(what),)])]
            case LinkRow():
                changes.append((_LINK_NOT_THERE, [what]))
            case TagKey():
                changes.append((_TAG_NOT_THERE, [what]))
        self._change(*changes)

    def shift_uses(self, by: float) -> None:
        """Count all uses, and what lists were seen, as so many seconds later."""
        rows: list[tuple[object, ...]] = [(by,)]
        self._change(
            ("UPDATE blob SET used=used+?", rows), ("UPDATE listing SET seen=seen+?", rows)
        )

    # -- notes -------------------------------------------------------------------------------------

    def noted(self, name: str) -> str | None:
        """Return what was noted under ``name``."""
        found = self._connection.execute("SELECT value FROM note WHERE name=?", (name,)).fetchone()
        return None if found is None else str(found[0])

    def lent(self, now: float) -> set[str]:
        """Return what clients may be fetching from the bucket at a time (Unix)."""
        sql = "DELETE FROM note WHERE name LIKE ? AND CAST(value AS REAL)<?"
        self._change((sql, [(f"{LENT}%", now)]))
        found = self._connection.execute("SELECT name FROM note WHERE name LIKE ?", (f"{LENT}%",))
        return {name.removeprefix(LENT) for (name,) in found}

    def note(self, name: str, value: str) -> None:
        """Remember ``value`` under ``name``."""
        self._change(("INSERT OR REPLACE INTO note VALUES (?, ?)", [(name, value)]))

    def mirror_is(self, identity: str) -> None:
        """Forget what was in another bucket than this, "" for none."""
        if (self.noted(_MIRROR) or "") == identity:
            return
        everything: list[tuple[object, ...]] = [()]
        self._change(
            ("UPDATE blob SET there=0 WHERE there", everything),
            ("DELETE FROM blob WHERE NOT here", everything),
            ("UPDATE link SET there=0 WHERE there", everything),
            ("UPDATE tag SET there=0 WHERE there", everything),
            ("DELETE FROM gone", everything),
            ("DELETE FROM note WHERE name=?", [(MIRROR_KNOWN,)]),
            ("INSERT OR REPLACE INTO note VALUES (?, ?)", [(_MIRROR, identity)]),
        )

    def know_mirror(self) -> None:
        """Remember that the index has all that is in the bucket."""
        self.note(MIRROR_KNOWN, "yes")

    def _change(self, *changes: Change) -> None:
        if any(rows for _, rows in changes):
            execute(self._connection, *changes)

    def _batches(self, sql: str, rows: Iterable[Sequence[Any]]) -> None:
        """Make many changes, never keeping the workers from theirs for long."""
        every = [tuple(row) for row in rows]
        for start in range(0, len(every), _BATCH):
            execute(self._connection, (sql, every[start : start + _BATCH]))


def _row(found: tuple[str, int, float, int, int, int]) -> Row:
    digest, size, used, *flags = found
    return Row(digest, size, used, *map(bool, flags))
