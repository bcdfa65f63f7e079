"""Where things stand under the root: registry:2's layout, and ours beside it.

Source: distribution ``registry/storage/paths.go``. Every path is made of parsed values, never of
a client's string.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pullthrough.oci.digest import Digest
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
    def locks(self) -> Path:
        """One file whose bytes are locks between worker processes."""
        return self.own / "locks"

    def blob(self, digest: Digest) -> Path:
        """Return the path of a digest's content."""
        return self.blobs / digest.algorithm / digest.hex[:2] / digest.hex / "data"

    def repository(self, repository: Repository) -> Path:
        """Return a repository's directory."""
        return self.repositories / repository.name

    def layer_link(self, repository: Repository, digest: Digest) -> Path:
        """Return the link that lets registry:2 serve a blob in a repository."""
        return self.repository(repository) / "_layers" / digest.algorithm / digest.hex / "link"

    def revision_link(self, repository: Repository, digest: Digest) -> Path:
        """Return the link that says that a repository has a manifest."""
        revisions = self.repository(repository) / "_manifests" / "revisions"
        return revisions / digest.algorithm / digest.hex / "link"

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
