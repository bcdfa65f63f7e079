"""REGISTRY_* over the file, by distribution's rule (its configuration/parser.go).

REGISTRY_HTTP_DEBUG_ADDR is ``http.debug.addr``: the name is split at every ``_`` and matched
without case; the value is YAML; variables apply in lexical order, so a section comes before what is
in it; a list takes an index, the one past its end appends.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from pullthrough.config import tree
from pullthrough.config.problem import Findings, Path, Place
from pullthrough.config.schema import DRIVERS, nearest, recognised
from pullthrough.config.tree import Node

PREFIX: Final = "REGISTRY_"
CONFIGURATION_PATH: Final = "REGISTRY_CONFIGURATION_PATH"


class _Misfit(Exception):
    """There is no such place in the configuration."""


def override(root: Node, environ: Mapping[str, str], findings: Findings) -> None:
    """Put the variables' values into ``root``."""
    name_drivers(root)
    for variable in sorted(environ):
        if not variable.startswith(PREFIX) or variable == CONFIGURATION_PATH:
            continue
        place = Place(variable)
        path: Path = tuple(variable.removeprefix(PREFIX).lower().split("_"))
        if not recognised(path):
            findings.notice(place, path, "ignored: unknown key", nearest(path))
            continue
        try:
            _put(root, path, tree.parse(environ[variable], place, findings, path))
        except tree.NotYaml:
            findings.problem(place, path, "not valid YAML: put the value in quotes")
        except _Misfit as error:
            findings.problem(place, path, str(error))
        name_drivers(root)


def name_drivers(root: Node) -> None:
    """Make ``auth: htpasswd`` mean ``auth: {htpasswd: {}}``, and so for storage."""
    for section in DRIVERS:
        node = root.value.get(section) if isinstance(root.value, dict) else None
        if node and node.value and isinstance(node.value, str):
            node.value = {node.value: Node({}, node.place)}


def _put(node: Node, path: Path, new: Node) -> None:
    key, *rest = path
    if node.value is None:
        # No name of ours is a number, so a number can only be a list's index.
        node.value = [] if _is_index(key) else {}
    if isinstance(node.value, str):
        raise _Misfit("the key above holds a single value, not a map")
    if isinstance(node.value, list):
        child = _item(node.value, key, new.place)
    else:
        same = (name for name in node.value if name.lower() == key)
        child = node.value.setdefault(next(same, key), Node(None, new.place))
    if rest:
        _put(child, tuple(rest), new)
    else:
        child.value, child.place = new.value, new.place


def _item(items: list[Node], key: str, place: Place) -> Node:
    if not _is_index(key) or int(key) > len(items):
        raise _Misfit(f"no such index: the list has {len(items)}")
    if int(key) == len(items):
        items.append(Node(None, place))
    return items[int(key)]


def _is_index(key: str) -> bool:
    return key.isascii() and key.isdecimal() and len(key) < 6  # noqa: PLR2004 - no list is so long
