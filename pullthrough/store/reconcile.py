"""The index made to agree with the files, which are the truth, beside a running server."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from pullthrough.oci import manifest as manifests
from pullthrough.oci.digest import Digest
from pullthrough.oci.errors import DigestInvalid, NameInvalid
from pullthrough.oci.reference import Repository, Tag
from pullthrough.store.catalogue import Catalogue, Found, LinkRow, TagRow
from pullthrough.store.files import read_bounded
from pullthrough.store.index import Named
from pullthrough.store.layout import Layout, repositories

LINK_LIMIT: Final = 256
"""Bytes of a link's file."""


def reconcile(layout: Layout, catalogue: Catalogue) -> None:
    """Take up what is not known, forget what is not there; raises OSError and sqlite3.Error."""
    known = {row.digest: row for row in catalogue.rows()}
    files = {each.digest: each for each in _files(layout)}
    catalogue.found(
        each
        for digest, each in files.items()
        if digest not in known or not known[digest].here or known[digest].size != each.size
    )
    lost = [digest for digest, row in known.items() if row.here and digest not in files]
    # It may have come since they were looked through.
    catalogue.not_here(each for each in lost if not layout.blob(Digest.parse(each)).exists())
    for repository in repositories(layout):
        catalogue.add_links(_links(layout, repository))
    tags = {(tag.repository, tag.tag): tag for tag in catalogue.tags()}
    found = {(tag.repository, tag.tag): tag for tag in _tags(layout)}
    catalogue.add_tags(tag for key, tag in found.items() if tags.get(key) != tag)
    catalogue.remove_tags(
        tag for key, tag in tags.items() if key not in found and not _tag_link(layout, tag).exists()
    )
    for digest in catalogue.unread():
        read_manifest(layout, catalogue, digest)


def read_manifest(layout: Layout, catalogue: Catalogue, digest: Digest) -> None:
    """Take up what a manifest on the disk names, if it is a sound one."""
    content = read_bounded(layout.blob(digest), manifests.LIMIT)
    if content is None or not digest.matches(content):
        return
    try:
        parsed = manifests.parse(content)
    except manifests.ManifestInvalid:
        return
    # In this order: once its names are known it is not read again.
    catalogue.set_verified(digest, verified=True)
    catalogue.add_names(digest, named_by(parsed))


def named_by(manifest: manifests.Manifest) -> list[Named]:
    """Return what a manifest names, as the index keeps it."""
    return [
        *(Named(d.digest, d.size, d.platform, is_manifest=True) for d in manifest.manifests),
        *(Named(d.digest, d.size) for d in manifest.blobs),
    ]


def digest_in(link: Path) -> Digest | None:
    """Return the digest that a link's file holds."""
    try:
        return Digest.parse((read_bounded(link, LINK_LIMIT) or b"").decode("ascii").strip())
    except (DigestInvalid, UnicodeDecodeError):
        return None


def _tag_link(layout: Layout, tag: TagRow) -> Path:
    return layout.tag_link(Repository.parse(tag.repository), Tag.parse(tag.tag))


def _files(layout: Layout) -> Iterator[Found]:
    """Give all blobs."""
    for algorithm in _below(layout.blobs):
        for prefix in _below(Path(algorithm)):
            for entry in _below(Path(prefix)):
                text = f"{algorithm.name}:{entry.name}"
                try:
                    Digest.parse(text)
                    status = os.stat(f"{entry.path}/data")  # noqa: PTH116 - 100,000 of them
                    yield Found(text, status.st_size, status.st_mtime)
                except (DigestInvalid, OSError):
                    continue


def _below(directory: Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(directory) as entries:
            yield from entries
    except (FileNotFoundError, NotADirectoryError):
        return


def _links(layout: Layout, repository: Repository) -> Iterator[LinkRow]:
    for kind in ("revisions", "layers"):
        parent = layout.links(repository, kind)
        for algorithm in _below(parent):
            for entry in _below(Path(algorithm)):
                text = f"{algorithm.name}:{entry.name}"
                try:
                    Digest.parse(text)
                except DigestInvalid:
                    continue
                yield LinkRow(text, kind, repository.name)


def _tags(layout: Layout) -> Iterator[TagRow]:
    for repository in repositories(layout):
        for entry in _below(layout.tags(repository)):
            try:
                tag = Tag.parse(entry.name)
            except NameInvalid:
                continue
            digest = digest_in(layout.tag_link(repository, tag))
            if digest is not None:
                yield TagRow(repository.name, tag.name, str(digest))
