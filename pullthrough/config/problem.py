"""What is wrong with a configuration, and where.

No value of it is ever quoted: any could be a secret.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import NamedTuple

Path = tuple[str, ...]
"""The keys from the top down to one, as they are written."""

# A slip like {password:hunter2} makes a key of a secret: only what can be a key's name is shown.
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
# And what stands below one of these is no key, but a secret that looks like YAML.
_SECRET = re.compile(r"password|secret|accesskey|sessiontoken", re.IGNORECASE)


class Place(NamedTuple):
    """Where something was written: a file and its line, or the name of an environment variable."""

    source: str
    line: int | None = None


@dataclass(frozen=True, slots=True)
class Problem:
    """One finding. ``file`` is the variable's name, and ``line`` None, when it came from there."""

    file: str
    line: int | None
    key: str
    message: str
    nearest: str | None = None

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        nearest = f"; nearest known: {self.nearest}" if self.nearest else ""
        return ": ".join(part for part in (place, self.key, self.message) if part) + nearest


@dataclass(frozen=True, slots=True)
class Findings:
    """All that was found while reading: problems forbid a start, notices do not."""

    problems: list[Problem] = field(default_factory=list)
    notices: list[Problem] = field(default_factory=list)

    def problem(self, place: Place, key: Path, message: str, nearest: str | None = None) -> None:
        """Add what must be mended before a start."""
        self.problems.append(Problem(place.source, place.line, dotted(key), message, nearest))

    def notice(self, place: Place, key: Path, message: str, nearest: str | None = None) -> None:
        """Add what is worth knowing."""
        self.notices.append(Problem(place.source, place.line, dotted(key), message, nearest))


def dotted(path: Path) -> str:
    """Return ``path`` as it is shown, ``proxy.remoteurl``."""
    last = next((i for i, key in enumerate(path, 1) if _SECRET.search(key)), len(path))
    below = ["…"] if last < len(path) else []
    return ".".join([*map(_shown, path[:last]), *below])


def _shown(key: str) -> str:
    name = _NAME.match(key)
    shown = name.group() if name else ""
    return shown if shown == key else f"{shown}…"
