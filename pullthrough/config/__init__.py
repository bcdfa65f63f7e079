"""From config.yml and REGISTRY_*, as distribution reads them, to one frozen, valid value."""

from pullthrough.config.credential import read_credential
from pullthrough.config.loading import Loaded, load
from pullthrough.config.model import (
    AccessLog,
    Config,
    Debug,
    Freshness,
    Health,
    Htpasswd,
    Http,
    Log,
    Prometheus,
    Proxy,
    Storage,
    StorageDriver,
    Timeouts,
)
from pullthrough.config.problem import Problem
from pullthrough.config.search import ConfigError, find
from pullthrough.config.values import Address

__all__ = [
    "AccessLog",
    "Address",
    "Config",
    "ConfigError",
    "Debug",
    "Freshness",
    "Health",
    "Htpasswd",
    "Http",
    "Loaded",
    "Log",
    "Problem",
    "Prometheus",
    "Proxy",
    "Storage",
    "StorageDriver",
    "Timeouts",
    "find",
    "load",
    "read_credential",
]
