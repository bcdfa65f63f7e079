"""Where things stand under the root: registry:2's layout, and ours beside it.

Source: distribution ``registry/storage/paths.go``. Every path is made of parsed values, never of
a client's string.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pullthrough.oci.digest import Digest
from pullthrough.oci.errors import NameInvalid
from pullthrough.oci.reference import Repository, Tag


@dataclass(frozen=True, slots=True)
class Layout:
    """Paths under ``root`` (registry:2's ``rootdirectory``)."""

    root: Path

    @property
    def v2(self) -> Path:
        """All that registry:2 knows of."""
        return self.root / "docker" / "registry" / "v2"

    @property
    def blobs(self) -> Path:
        """Content by digest."""
        return self.v2 / "blobs"

    @property
    def repositories(self) -> Path:
        """Names and their links to content."""
        return self.v2 / "repositories"

    @property
    def own(self) -> Path:
        """What registry:2 does not know: the index, partials, what was set aside."""
        return self.root / "pullthrough"

    @property
    def partials(self) -> Path:
        """Unfinished fills."""
        return self.own / "partial"

    @property
    def temporary(self) -> Path:
        """Files on their way to a rename; swept at start."""
        return self.own / "tmp"

    @property
    def quarantine(self) -> Path:
        """Files that were not what their digest says."""
        return self.own / "quarantine"

    @property
    def index(self) -> Path:
        """The embedded index."""
        return self.own / "index.sqlite"

    @property
    def generation(self) -> Path:
        """A counter in a file, which goes up when something that was here is taken away."""
        return self.own / "generation"

    @property
    def tending(self) -> Path:
        """Locked by who takes things away."""
        return self.own / "tending"

    @property
    def locks(self) -> Path:
        """One file whose bytes are locks between worker processes."""
        return self.own / "locks"

    def blob(self, digest: Digest) -> Path:
        """Return the path of a digest's content."""
        return self.blobs / blob_name(digest)

    def repository(self, repository: Repository) -> Path:
        """Return a repository's directory."""
        return self.repositories / repository.name

    def links(self, repository: Repository, kind: str) -> Path:
        """Return the directory of a repository's links; ``kind`` is revisions or layers."""
        place = self.repository(repository)
        return place / "_layers" if kind == "layers" else place / "_manifests" / "revisions"

    def link(self, repository: Repository, kind: str, digest: Digest) -> Path:
        """Return the link that says that a repository has a manifest or lets it have a blob."""
        return self.links(repository, kind) / digest.algorithm / digest.hex / "link"

    def key(self, path: Path) -> str:
        """Return the key in a bucket of what stands at ``path``."""
        return path.relative_to(self.root).as_posix()

    def tags(self, repository: Repository) -> Path:
        """Return the directory of a repository's tags."""
        return self.repository(repository) / "_manifests" / "tags"

    def tag_link(self, repository: Repository, tag: Tag) -> Path:
        """Return the link that holds a tag's digest."""
        return self.tags(repository) / tag.name / "current" / "link"

    def tag_index_link(self, repository: Repository, tag: Tag, digest: Digest) -> Path:
        """Return the link by which registry:2 remembers a digest that a tag had."""
        index = self.tags(repository) / tag.name / "index"
        return index / digest.algorithm / digest.hex / "link"

    def partial(self, digest: Digest) -> Path:
        """Return the path of a digest's unfinished content."""
        return self.partials / f"{digest.algorithm}-{digest.hex}"


def blob_name(digest: Digest) -> str:
    """Return the path of a digest's content under ``blobs``, for who makes very many of them."""
    return f"{digest.algorithm}/{digest.hex[:2]}/{digest.hex}/data"


def repositories(layout: Layout) -> Iterator[Repository]:
    """Give the repositories of which a manifest is cached; raises nothing for odd names."""
    for directory, below, _ in os.walk(layout.repositories):
        if "_manifests" in below:
            try:
                yield Repository.parse(Path(directory).relative_to(layout.repositories).as_posix())
            except NameInvalid:
                continue
        below[:] = [name for name in below if not name.startswith("_")]
