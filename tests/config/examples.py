"""Configurations to load, and what loads them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from pullthrough.config import Config, Loaded

Load = Callable[..., Loaded]
Accept = Callable[..., Config]
Reject = Callable[..., list[str]]

MINIMAL: Final = "version: 0.1\nproxy:\n  remoteurl: https://harbor.example.com\n"

FIELD: Final = """\
version: 0.1
log:
  fields:
    service: registry
storage:
  cache:
    blobdescriptor: inmemory
  filesystem:
    rootdirectory: /var/lib/registry
http:
  addr: :5000
  headers:
    X-Content-Type-Options: [nosniff]
health:
  storagedriver:
    enabled: true
    interval: 10s
    threshold: 3
proxy:
  remoteurl: https://harbor.example.com
  username: robot$region
  password: secret
"""
"""A region's file for registry:2, as it was found."""


def value(config: Config, key: str) -> Any:
    """Return what ``key`` of the model holds."""
    found: Any = config
    for name in key.split("."):
        found = getattr(found, name)
    return found
