"""YAML into a tree of text that knows where each piece was written.

Every scalar stays the text that it was written as, for the key's own type to read: a password of
``012345`` or ``no`` is just that, as distribution's parser has it. No object is ever constructed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

import yaml

from pullthrough.config.problem import Findings, Path, Place

DEPTH: Final = 32
"""Levels of nesting; a configuration has six."""
NODES: Final = 20_000
"""Values in all, each alias counted anew: what stops a bomb of anchors."""

_PREFIX = "tag:yaml.org,2002:"
_MERGE = f"{_PREFIX}merge"
_NULL = f"{_PREFIX}null"
_TAGS = frozenset(
    _PREFIX + name
    for name in ("map", "seq", "str", "int", "float", "bool", "null", "timestamp", "merge", "value")
)
# PyYAML quotes pieces of the file in its messages; its own token names and lone signs tell nothing.
_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")
_HARMLESS = re.compile(r"'(<[a-z ]+>|\\t|[^A-Za-z0-9])'")


@dataclass(slots=True)
class Node:
    """A map, a list, a scalar's text, or nothing; ``place`` is where its key was written."""

    value: dict[str, Node] | list[Node] | str | None
    place: Place


class NotYaml(Exception):
    """The text is no YAML that can be read; ``line`` counts from 1. The message quotes nothing."""

    def __init__(self, message: str, line: int | None = None) -> None:
        super().__init__(message)
        self.line = line


def parse(text: str, source: Place, findings: Findings, at: Path = ()) -> Node:
    """Return the tree of ``text``, whose lines are counted where ``source`` has a line.

    Duplicate keys and the like go to ``findings``, under the key ``at``. Raises :class:`NotYaml`.
    """
    node = _compose(text)
    if node is None:
        return Node(None, source)
    return _Builder(source, findings).node(node, source, at, DEPTH)


class _Loader(yaml.SafeLoader):
    """PyYAML's composer, bounded: it recurses once a level."""

    depth = 0
    count = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self.depth += 1
        self.count += 1
        if self.depth > DEPTH or self.count > NODES:
            raise NotYaml("nested too deeply, or too large", self.get_mark().line + 1)
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


def _compose(text: str) -> yaml.Node | None:
    try:
        loader = _Loader(text)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise NotYaml("not valid YAML: a control character", line) from None
    try:
        return loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        message = _QUOTED.sub(_hidden, error.problem or error.context or "cannot be read")
        raise NotYaml(f"not valid YAML: {message}", mark.line + 1 if mark else None) from None
    except (yaml.YAMLError, ValueError, OverflowError):
        # An escape or a version out of range is let through to chr() and int().
        raise NotYaml("not valid YAML: a number out of range", loader.get_mark().line + 1) from None
    finally:
        loader.dispose()


def _hidden(quoted: re.Match[str]) -> str:
    return quoted[0] if _HARMLESS.fullmatch(quoted[0]) else "…"


class _Builder:
    """Turns one document's nodes into ours, within a common bound on their number."""

    def __init__(self, source: Place, findings: Findings) -> None:
        self._source = source
        self._findings = findings
        self._left = NODES

    def node(self, node: yaml.Node, place: Place, path: Path, depth: int) -> Node:
        self._left -= 1
        if depth <= 0 or self._left < 0:
            raise NotYaml("nested too deeply, or too large", self._place(node).line)
        if node.tag not in _TAGS:
            self._findings.problem(place, path, "a YAML tag, which nothing here takes")
            return Node(None, place)
        if isinstance(node, yaml.MappingNode):
            return Node(self._entries(node, path, depth), place)
        if isinstance(node, yaml.SequenceNode):
            items = enumerate(node.value)
            return Node(
                [self.node(v, self._place(v), (*path, str(i)), depth - 1) for i, v in items], place
            )
        if node.tag == _NULL:
            return Node(None, place)
        return Node(self._text(node, place, path), place)

    def _entries(self, node: yaml.MappingNode, path: Path, depth: int) -> dict[str, Node]:
        own: dict[str, Node] = {}
        merged: dict[str, Node] = {}
        for key, value in node.value:
            place = self._place(key)
            if key.tag == _MERGE:
                for entries in self._merges(value, path, depth - 1):
                    merged = entries | merged
            elif not isinstance(key, yaml.ScalarNode) or key.tag == _NULL:
                self._findings.problem(place, path, "a key that is not text")
            elif (name := self._text(key, place, path)) is not None:
                if name in own:
                    self._findings.problem(place, (*path, name), "the key stands here twice")
                own[name] = self.node(value, place, (*path, name), depth - 1)
        return merged | own

    def _merges(self, value: yaml.Node, path: Path, depth: int) -> list[dict[str, Node]]:
        merged = self.node(value, self._place(value), path, depth).value
        sources = merged if isinstance(merged, list) else [Node(merged, self._place(value))]
        found = [source.value for source in sources if isinstance(source.value, dict)]
        if len(found) != len(sources):
            self._findings.problem(self._place(value), path, "<< wants a map")
        return found

    def _text(self, node: yaml.Node, place: Place, path: Path) -> str | None:
        text: str = node.value
        # An escape can spell both, and no system call takes either.
        if "\0" in text or any("\ud800" <= char <= "\udfff" for char in text):
            self._findings.problem(place, path, "a NUL or half a surrogate pair in the text")
            return None
        return text

    def _place(self, node: yaml.Node) -> Place:
        if self._source.line is None:
            return self._source
        return Place(self._source.source, node.start_mark.line + 1)
