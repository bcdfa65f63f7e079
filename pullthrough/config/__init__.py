"""From config.yml and REGISTRY_*, as distribution reads them, to one frozen, valid value."""

from pullthrough.config.credential import read_credential
from pullthrough.config.loading import Loaded, load
from pullthrough.config.model import (
    S3,
    AccessLog,
    Cache,
    Config,
    Debug,
    Filesystem,
    Freshness,
    Health,
    Htpasswd,
    Http,
    Local,
    Log,
    Prometheus,
    Proxy,
    Redirect,
    Scrub,
    Storage,
    StorageDriver,
    Timeouts,
    local_root,
)
from pullthrough.config.problem import Problem
from pullthrough.config.search import ConfigError, find
from pullthrough.config.sizes import Bound, Share
from pullthrough.config.values import Address

__all__ = [
    "S3",
    "AccessLog",
    "Address",
    "Bound",
    "Cache",
    "Config",
    "ConfigError",
    "Debug",
    "Filesystem",
    "Freshness",
    "Health",
    "Htpasswd",
    "Http",
    "Loaded",
    "Local",
    "Log",
    "Problem",
    "Prometheus",
    "Proxy",
    "Redirect",
    "Scrub",
    "Share",
    "Storage",
    "StorageDriver",
    "Timeouts",
    "find",
    "load",
    "local_root",
    "read_credential",
]
