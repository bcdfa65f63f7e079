"""What must stay: patterns of pinned images, and all that these images need. Pure."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

_COMPONENT: Final = re.compile(r"[a-z0-9._*?-]+")
_TAG: Final = re.compile(r"[a-zA-Z0-9._*?-]+")

_ANY: Final = "[^/]"
_COMPONENTS: Final = f"(?:{_ANY}+/)*"


@dataclass(frozen=True, slots=True)
class Pin:
    """A pattern of images that are never evicted; :func:`pattern` makes one."""

    text: str
    repository: re.Pattern[str]
    tag: re.Pattern[str] | None

    def matches(self, repository: str, tag: str | None) -> bool:
        """Whether this pins what ``tag`` names in ``repository``; None: a revision without a tag.

        A pattern without a tag part pins every tag and every untagged revision, one with a tag
        part pins tags alone.
        """
        if not self.repository.fullmatch(repository):
            return False
        return self.tag is None or (tag is not None and self.tag.fullmatch(tag) is not None)

    def __str__(self) -> str:
        return self.text


def pattern(text: str) -> Pin:
    """Return the pin that ``text``, ``repository[:tag]``, describes.

    ``*`` is any run of characters within one path component or in the tag, ``?`` one of them. The
    component ``**`` is any number of components, none included; at the end it is at least one.

    Raises :class:`ValueError` for what could match nothing: a pin that does not hold is noticed
    when it is too late.
    """
    repository, colon, tag = text.partition(":")
    components = repository.split("/")
    for component in components:
        if not _COMPONENT.fullmatch(component):
            raise ValueError(
                f"no repository can match {repository[:160]!r}: a name is lower-case letters, "
                "digits and . _ - between single slashes, here with * and ?"
            )
        if "**" in component and component != "**":
            raise ValueError(f"** stands alone between slashes, not as in {component[:160]!r}")
    if colon and not _TAG.fullmatch(tag):
        raise ValueError(
            f"no tag can match {tag[:160]!r}: a tag is letters, digits and . _ -, here with * and ?"
        )
    return Pin(text, re.compile(_path(components)), re.compile(_run(tag)) if colon else None)


# Both translations take the first place where a part between two wildcards fits and never come
# back for another (atomic groups): the first leaves the most for what follows, so no match is
# missed, and no pattern takes exponential time.


def _path(components: list[str]) -> str:
    """Return the regular expression of a repository's pattern."""
    parts: list[list[str]] = [[]]
    for component in components:
        if component == "**":
            parts.append([])
        else:
            parts[-1].append(_run(component))
    first, *rest = parts
    if not rest:
        return "/".join(first)
    *middle, last = rest
    return "".join(
        [
            *(f"{run}/" for run in first),
            *(f"(?>{_COMPONENTS}?{'/'.join(runs)}/)" for runs in middle if runs),
            _COMPONENTS,
            "/".join(last) or f"{_ANY}+",
        ]
    )


def _run(glob: str) -> str:
    """Return the regular expression of a component or tag with ``*`` and ``?``."""
    first, *rest = (re.escape(part).replace(r"\?", _ANY) for part in re.split(r"\*+", glob))
    if not rest:
        return first
    *middle, last = rest
    return "".join([first, *(f"(?>{_ANY}*?{part})" for part in middle if part), f"{_ANY}*{last}"])


def closure(roots: Iterable[str], refers: Iterable[tuple[str, str]]) -> set[str]:
    """Return the digests of ``roots`` and of all they need, by edges (manifest, what it names).

    What is named belongs to it whether or not it is here: a cycle or an unknown name is harmless.
    """
    names = named(refers)
    needed = set(roots)
    pending = list(needed)
    while pending:
        for name in names.get(pending.pop(), ()):
            if name not in needed:
                needed.add(name)
                pending.append(name)
    return needed


def named(refers: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Return what each manifest names."""
    names: defaultdict[str, list[str]] = defaultdict(list)
    for manifest, name in refers:
        names[manifest].append(name)
    return names
