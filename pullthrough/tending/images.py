"""Images as people know them: what is here of each, so what would survive an outage now."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, NamedTuple

import orjson

from pullthrough.oci import manifest as manifests
from pullthrough.oci.digest import Digest
from pullthrough.oci.errors import DigestInvalid
from pullthrough.store.catalogue import Catalogue, LinkRow, TagRow
from pullthrough.store.layout import Layout, blob_name
from pullthrough.store.reconcile import named_by
from pullthrough.tending.eviction import effective

_CONFIG_LIMIT: Final = 4 << 20
"""Bytes of an image's config that are read to learn its platform."""
_CONFIGS: Final = frozenset(
    {
        "application/vnd.oci.image.config.v1+json",
        "application/vnd.docker.container.image.v1+json",
    }
)
_NOT_A_PLATFORM: Final = "unknown/unknown"
"""What buildkit calls the attestations that it puts into an index: nobody runs them."""


class Name(NamedTuple):
    """A name under which an image is here: by tag, or by digest where nothing else names it."""

    repository: str
    tag: str | None
    digest: str

    def __str__(self) -> str:
        return f"{self.repository}:{self.tag}" if self.tag else f"{self.repository}@{self.digest}"


class Platform(NamedTuple):
    """One image of an index; ``size`` is the bytes that are here of it."""

    name: str
    digest: str
    size: int
    complete: bool


@dataclass(frozen=True, slots=True)
class Image:
    """What is here under a name, on the disk or in the bucket.

    ``size`` is the bytes that are here of all it needs, ``used`` its effective last use (Unix time,
    None if not even its manifest is here). ``artifact`` is the type of what is no image to run.
    ``platforms`` is what an index has, ``platform`` what a single image is for, where that is
    known. Complete is what needs nothing from anywhere else: an index with all its platforms.
    """

    name: Name
    size: int
    used: float | None
    complete: bool
    platform: str = ""
    artifact: str = ""
    platforms: tuple[Platform, ...] = ()


class Leaving(NamedTuple):
    """What goes with names that are removed.

    Tags, content that no other image needs, and links to content that others still need.
    """

    tags: list[TagRow]
    digests: list[str]
    links: list[LinkRow]


class _Edge(NamedTuple):
    digest: str
    size: int | None
    platform: str
    is_manifest: bool


class Inventory:
    """All images of a store, as its index had them when this was made. Raises sqlite3.Error."""

    def __init__(self, layout: Layout, catalogue: Catalogue) -> None:
        self._blobs = os.fspath(layout.blobs)
        self._rows = {row.digest: row for row in catalogue.rows()}
        self._names: defaultdict[str, list[_Edge]] = defaultdict(list)
        for manifest, *edge in catalogue.all_named():
            self._names[manifest].append(_Edge._make(edge))
        self._tags = catalogue.tags()
        self._catalogue = catalogue
        self._revisions = catalogue.links("revisions")
        self._unsound: set[str] = set()

    @cached_property
    def names(self) -> list[Name]:
        """The names, sorted: all tags, and every manifest of a repository that has no other name.

        What an index in the same repository names has one: it is a part of that.
        """
        found = [Name(*tag) for tag in self._tags]
        revisions: defaultdict[str, set[str]] = defaultdict(set)
        for link in self._revisions:
            revisions[link.repository].add(link.digest)
        named: defaultdict[str, set[str]] = defaultdict(set)
        for tag in self._tags:
            named[tag.repository].add(tag.digest)
        for repository, digests in revisions.items():
            for manifest in digests | named[repository]:
                named[repository].update(
                    edge.digest for edge in self._names.get(manifest, ()) if edge.is_manifest
                )
        found += [
            Name(repository, None, digest)
            for repository, digests in revisions.items()
            for digest in digests - named[repository]
        ]
        return sorted(found, key=lambda name: (name.repository, name.tag or "~", name.digest))

    def images(self, repository: str | None = None) -> Iterator[Image]:
        """Give the images, of one repository or all."""
        for name in self.names:
            if repository in (None, name.repository):
                yield self._image(name)

    def named(
        self, repository: str, tag: str | None = None, digest: str | None = None
    ) -> list[Name]:
        """Return a repository's names, or those by a tag, or those of a digest."""
        return [
            name
            for name in self.names
            if name.repository == repository
            and tag in (None, name.tag)
            and digest in (None, name.digest)
        ]

    def has(self, repository: str) -> bool:
        """Whether anything is known of a repository."""
        return any(tag.repository == repository for tag in self._tags) or any(
            link.repository == repository
            for link in (*self._revisions, *self._catalogue.links("layers"))
        )

    def needing(self, digests: Collection[str]) -> dict[str, list[Name]]:
        """Return for each of ``digests`` the images that need it."""
        needing: defaultdict[str, list[Name]] = defaultdict(list)
        wanted = set(digests)
        for name in self.names:
            for digest in wanted & self._needs(name.digest)[0]:
                needing[digest].append(name)
        return needing

    def leaving(self, names: Iterable[Name], repositories: Collection[str] = ()) -> Leaving:
        """Return what goes with ``names``, and with all else that ``repositories`` have."""
        going = set(names)
        staying = [name for name in self.names if name not in going]
        kept = self._needed(staying)
        going_from = {
            repository: self._needed(n for n in going if n.repository == repository)
            - self._needed(n for n in staying if n.repository == repository)
            for repository in {name.repository for name in going}.union(repositories)
        }
        links = [
            link
            for link in (*self._revisions, *self._catalogue.links("layers"))
            if link.digest in going_from.get(link.repository, ()) or link.repository in repositories
        ]
        digests = {link.digest for link in links}.union(*going_from.values()) - kept
        known = self._rows.keys() | {link.digest for link in links}
        manifests_first = sorted(digests & known, key=lambda each: (each not in self._names, each))
        tags = {TagRow(name.repository, name.tag, name.digest) for name in going if name.tag}
        return Leaving(
            sorted(tags), manifests_first, [each for each in links if each.digest in kept]
        )

    def size(self, digests: Iterable[str]) -> int:
        """Return the bytes that are here of ``digests``."""
        return sum(self._rows[each].size for each in digests if each in self._rows)

    # -- one image -------------------------------------------------------------------------------

    def _image(self, name: Name) -> Image:
        used = self._used.get(name.digest)
        edges = self._edges(name.digest)
        children = [edge for edge in edges or () if edge.is_manifest]
        needs, complete = self._needs(name.digest)
        size = self.size(needs)
        if not children:
            platform, artifact = ("", "") if edges is None else self._kind(name.digest)
            return Image(name, size, used, complete, platform, artifact)
        platforms = tuple(
            sorted(self._platform(each) for each in children if each.platform != _NOT_A_PLATFORM)
        )
        complete = self._whole(name.digest, None) and all(each.complete for each in platforms)
        return Image(name, size, used, complete, platforms=platforms)

    def _platform(self, child: _Edge) -> Platform:
        needs, complete = self._needs(child.digest)
        name = child.platform
        if not name and self._edges(child.digest) is not None:
            name = next(filter(None, self._kind(child.digest)), "")
        return Platform(name, child.digest, self.size(needs), complete)

    def _needs(self, top: str) -> tuple[set[str], bool]:
        """Return what a manifest needs, itself too, and whether all of that is here."""
        needs, pending = {top}, [top]
        complete = self._whole(top, None)
        while pending:
            edges = self._edges(pending.pop())
            if edges is None:
                complete = False
                continue
            for edge in edges:
                if edge.digest not in needs:
                    needs.add(edge.digest)
                    complete = complete and self._whole(edge.digest, edge.size)
                    if edge.is_manifest:
                        pending.append(edge.digest)
        return needs, complete

    def _needed(self, names: Iterable[Name]) -> set[str]:
        return set[str]().union(*(self._needs(name.digest)[0] for name in names))

    def _whole(self, digest: str, size: int | None) -> bool:
        row = self._rows.get(digest)
        return row is not None and (row.here or row.there) and size in (None, row.size)

    def _edges(self, manifest: str) -> list[_Edge] | None:
        """Return what a manifest names; None where it is not here, or not sound: nobody knows."""
        known = self._names.get(manifest)
        if known is not None or manifest in self._unsound:
            return known
        parsed = self._read(manifest)
        if parsed is None:
            self._unsound.add(manifest)
            return None
        self._names[manifest] = [
            _Edge(str(each.digest), each.size, each.platform, each.is_manifest)
            for each in named_by(parsed)
        ]
        return self._names[manifest]

    def _read(self, digest: str) -> manifests.Manifest | None:
        if digest not in self._rows:
            return None
        content = self._content(digest, manifests.LIMIT)
        try:
            return None if content is None else manifests.parse(content)
        except manifests.ManifestInvalid:
            return None

    def _kind(self, digest: str) -> tuple[str, str]:
        """Return an image's platform, where its config is on the disk, or an artifact's type."""
        # Not parsed in full, as it was when it came: thousands are looked at for one list.
        document = _object(self._content(digest, manifests.LIMIT))
        config = _object(document.get("config"))
        media_type, artifact = config.get("mediaType"), document.get("artifactType")
        if artifact or media_type not in _CONFIGS:
            return "", str(artifact or media_type or "")
        try:
            return manifests.platform(
                _object(self._content(str(config.get("digest")), _CONFIG_LIMIT))
            ), ""
        except DigestInvalid:
            return "", ""

    def _content(self, digest: str, limit: int) -> bytes | None:
        """Return what is on the disk; raises :class:`DigestInvalid`."""
        # With the least that it takes: thousands are read for one list.
        try:
            file = os.open(f"{self._blobs}/{blob_name(Digest.parse(digest))}", os.O_RDONLY)
        except OSError:
            return None
        try:
            size = os.fstat(file).st_size
            return None if size > limit else os.pread(file, size, 0)
        except OSError:
            return None
        finally:
            os.close(file)

    @cached_property
    def _used(self) -> dict[str, float]:
        return effective({row.digest: row.used for row in self._rows.values()}, self._refers)

    @property
    def _refers(self) -> list[tuple[str, str]]:
        return [
            (manifest, edge.digest) for manifest, edges in self._names.items() for edge in edges
        ]


def _object(value: Any) -> dict[str, Any]:
    """Return a JSON object, parsed or not; an empty one for anything else."""
    if isinstance(value, bytes):
        try:
            value = orjson.loads(value)
        except orjson.JSONDecodeError:
            return {}
    return value if isinstance(value, dict) else {}
