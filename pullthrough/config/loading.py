"""From a file and an environment to a :class:`Config`, or to every reason why not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from pullthrough.config import environment, tree
from pullthrough.config.model import Config
from pullthrough.config.problem import Findings, Path, Place, Problem
from pullthrough.config.schema import (
    BESIDE_DRIVER,
    DRIVERS,
    IGNORED,
    KNOWN,
    REFUSED,
    Keys,
    nearest,
)
from pullthrough.config.tree import Node
from pullthrough.config.values import Invalid

SIZE_LIMIT: Final = 1024 * 1024
"""Bytes of a config.yml; nothing larger is parsed."""

_ADAPTER = TypeAdapter(Config)


@dataclass(frozen=True, slots=True)
class Loaded:
    """What came of a file: ``config`` is None exactly when there are problems."""

    config: Config | None
    problems: tuple[Problem, ...]
    notices: tuple[Problem, ...]


def load(path: FilePath, environ: Mapping[str, str]) -> Loaded:
    """Read ``path`` and the REGISTRY_* of ``environ``. Raises nothing: it returns what is wrong."""
    findings = Findings()
    root = _read(path, findings)
    config = None
    if root is not None:
        environment.override(root, environ, findings)
        config = _build(root, findings)
    return Loaded(
        config=None if findings.problems else config,
        problems=tuple(sorted(findings.problems, key=_order)),
        notices=tuple(sorted(findings.notices, key=_order)),
    )


def _order(problem: Problem) -> tuple[bool, int]:
    return problem.line is None, problem.line or 0


def _read(path: FilePath, findings: Findings) -> Node | None:
    whole = Place(str(path))
    try:
        with path.open("rb") as file:
            content = file.read(SIZE_LIMIT + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or "not a file's name"
        findings.problem(whole, (), f"cannot be read: {reason}")
        return None
    if len(content) > SIZE_LIMIT:
        findings.problem(whole, (), f"larger than {SIZE_LIMIT} bytes")
        return None
    try:
        root = tree.parse(content.decode("utf-8-sig"), Place(whole.source, 1), findings)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        findings.problem(Place(whole.source, line), (), "not UTF-8")
        return None
    except tree.NotYaml as error:
        findings.problem(Place(whole.source, error.line), (), str(error))
        return None
    if root.value is not None and not isinstance(root.value, dict):
        findings.problem(root.place, (), "expected a map of keys")
        return None
    # What is missing at the top is missing from the file, not from its first line.
    return Node(root.value or {}, whole)


def _build(root: Node, findings: Findings) -> Config | None:
    plain = _prune(root, KNOWN, (), findings)
    _check_version(plain.pop("version", None), root, findings)
    for section in DRIVERS:
        _check_driver(root, section, findings)
    login = plain.pop("auth", {})
    if "htpasswd" in login:
        plain["auth"] = login["htpasswd"]
    _check_login(plain.setdefault("proxy", {}), root, findings)
    _check_bucket(plain.get("storage", {}), plain.setdefault("cache", {}), root, findings)
    try:
        config = _ADAPTER.validate_python(plain)
    except ValidationError as error:
        # Never the error itself: its text holds the values.
        for found in error.errors(include_url=False, include_input=False):
            path = _path(found["loc"])
            findings.problem(_locate(root, path), path, _message(found))
        return None
    if not config.http.debug.prometheus.enabled:
        path = ("http", "debug", "prometheus", "enabled")
        message = "ignored: metrics are always served on http.debug.addr"
        findings.notice(_locate(root, path), path, message)
    if config.storage.s3 is None and config.storage.redirect.endpoint is not None:
        path = ("storage", "redirect", "endpoint")
        message = "ignored: without storage.s3 there is nothing to redirect to"
        findings.notice(_locate(root, path), path, message)
    return config


def _prune(node: Node, keys: Keys, at: Path, findings: Findings) -> dict[str, Any]:
    """Return what the model takes of a section, reporting every other key."""
    kept: dict[str, Any] = {}
    # As in distribution, nothing and unset are the same.
    for key, child in _entries(node).items():
        path = (*at, key)
        below = keys.get(key)
        if path in IGNORED:
            findings.notice(child.place, path, f"ignored: {IGNORED[path]}")
        elif path in REFUSED:
            message, harmless = REFUSED[path]
            if at in _DRIVERS or (child.value and child.value not in harmless):
                findings.problem(child.place, path, message)
        elif below is None:
            findings.problem(child.place, path, "unknown key", nearest(path))
        elif isinstance(below, dict):
            if child.value and not isinstance(child.value, dict):
                findings.problem(child.place, path, "expected a map")
            else:
                kept[key] = _prune(child, below, path, findings)
        elif child.value is not None and child.value != "":
            kept[key] = _plain(child)
    return kept


_DRIVERS = frozenset((section,) for section in DRIVERS)


def _entries(node: Node | None) -> dict[str, Node]:
    return node.value if node and isinstance(node.value, dict) else {}


def _plain(node: Node) -> Any:
    if isinstance(node.value, dict):
        return {k: _plain(v) for k, v in node.value.items() if v.value is not None}
    if isinstance(node.value, list):
        return [_plain(item) for item in node.value]
    return node.value


def _check_version(version: Any, root: Node, findings: Findings) -> None:
    if version != "0.1":
        message = "missing: write version: 0.1" if version is None else "only 0.1 is supported"
        findings.problem(_locate(root, ("version",)), ("version",), message)


def _check_driver(root: Node, section: str, findings: Findings) -> None:
    node = _entries(root).get(section)
    beside = {BESIDE_DRIVER, *IGNORED}
    drivers = [key for key in _entries(node) if (section, key) not in beside]
    if len(drivers) > 1:
        place = _locate(root, (section, drivers[-1]))
        findings.problem(place, (section,), "several drivers, where only one can be")
    if section == "auth" and node and not node.value:
        # To leave the cache open takes more than forgetting what stands below.
        findings.problem(node.place, (section,), "empty: name htpasswd, or leave auth out")


def _check_login(proxy: dict[str, Any], root: Node, findings: Findings) -> None:
    secrets = [key for key in ("password", "passwordfile") if key in proxy]
    for wrong, key, message in (
        (len(secrets) > 1, "passwordfile", "stands beside proxy.password: only one can be"),
        ("username" in proxy and not secrets, "username", "without a password or passwordfile"),
        ("username" not in proxy and secrets, secrets[0] if secrets else "", "without a username"),
    ):
        if wrong:
            path = ("proxy", key)
            findings.problem(_locate(root, path), path, message)


def _check_bucket(
    storage: dict[str, Any], cache: dict[str, Any], root: Node, findings: Findings
) -> None:
    bucket = "s3" in _entries(_entries(root).get("storage"))
    s3 = storage.get("s3", {})
    quota = cache.get("quota")
    local = cache.pop("local", {})
    if bucket:
        # What is missing there, the model says.
        cache["local"] = local
    for wrong, path, message in (
        (bucket and isinstance(quota, str) and quota.endswith("%"), ("cache", "quota"),
         "a bucket has no size to take a share of: write it as in 500GiB"),
        (local and not bucket, ("cache", "local"),
         "only before a bucket: without storage.s3 there is storage.filesystem"),
        ("s3" in storage and not s3.keys() & {"region", "regionendpoint"},
         ("storage", "s3", "region"), "missing, and there is no regionendpoint either"),
        ("accesskey" in s3 and "secretkey" not in s3, ("storage", "s3", "accesskey"),
         "without a secretkey"),
        ("secretkey" in s3 and "accesskey" not in s3, ("storage", "s3", "secretkey"),
         "without an accesskey"),
        ("keyid" in s3 and "encrypt" not in s3, ("storage", "s3", "keyid"), "without encrypt"),
    ):  # fmt: skip
        if wrong:
            findings.problem(_locate(root, path), path, message)


def _path(location: tuple[int | str, ...]) -> Path:
    """Return where in the file pydantic's location is."""
    keys = tuple(str(key) for key in location if key != "[key]")
    driver = ("htpasswd",) if keys[0] == "auth" else ()
    return (*keys[:1], *driver, *keys[1:])


def _locate(root: Node, path: Path) -> Place:
    """Return the place of ``path``, or of the nearest that is there above it."""
    here = root
    for key in path:
        if isinstance(here.value, dict) and key in here.value:
            here = here.value[key]
        elif isinstance(here.value, list) and key.isdecimal() and int(key) < len(here.value):
            here = here.value[int(key)]
        else:
            break
    return here.place


def _message(error: ErrorDetails) -> str:
    kind, context = error["type"], error.get("ctx", {})
    if isinstance(context.get("error"), Invalid):
        return str(context["error"])
    if "expected" in context:
        return f"must be {context['expected']}"
    for bound, words in (("ge", "at least"), ("gt", "more than"), ("le", "at most")):
        if bound in context:
            limit = context[bound]
            return f"must be {words} {limit if isinstance(limit, int) else format(limit, 'g')}"
    # What is left is of pydantic's own wording, which may quote the value.
    return _MESSAGES.get(kind, "expected a single value")


_MESSAGES = {
    "missing": "missing",
    "dict_type": "expected a map",
    "tuple_type": "expected a list",
}
