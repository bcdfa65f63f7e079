"""REGISTRY_* over the file, by distribution's rule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pullthrough.config import Address, Config, Filesystem, Share, local_root
from tests.config.examples import FIELD, MINIMAL, Accept, Load, value


def test_a_config_from_the_field_runs_with_its_login_from_the_environment(
    load_text: Load, tmp_path: Path
) -> None:
    """A file of registry:2's gets its htpasswd section from three variables."""
    (tmp_path / "htpasswd").touch()
    loaded = load_text(
        FIELD,
        {
            "REGISTRY_AUTH": "htpasswd",
            "REGISTRY_AUTH_HTPASSWD_REALM": "Registry Realm",
            "REGISTRY_AUTH_HTPASSWD_PATH": "htpasswd",
        },
    )
    assert loaded.problems == ()
    assert [str(notice) for notice in loaded.notices] == [
        "config.yml:6: storage.cache: ignored: the index is kept beside the files"
    ]
    config = loaded.config
    assert isinstance(config, Config)
    assert config.auth
    assert (config.auth.realm, config.auth.path) == ("Registry Realm", Path("htpasswd"))
    assert local_root(config) == Path("/var/lib/registry")
    assert config.health.storagedriver.enabled


@pytest.mark.parametrize(
    ("environ", "key", "expected"),
    [
        ({"HTTP_ADDR": ":6"}, "http.addr", Address("", 6)),
        ({"HTTP": "{addr: ':6'}"}, "http.addr", Address("", 6)),
        ({"HTTP": "{addr: ':6'}", "HTTP_ADDR": ":7"}, "http.addr", Address("", 7)),
        ({"HTTP": "{addr: ':6'}"}, "http.headers", {}),
        ({"HTTP_DEBUG_ADDR": "a:1"}, "http.debug.addr", Address("a", 1)),
        ({"LOG_ACCESSLOG_DISABLED": "true"}, "log.accesslog.disabled", True),
        ({"LOG_FIELDS_REGION": "eu"}, "log.fields", {"service": "registry", "region": "eu"}),
        ({"LOG_FIELDS": "{region: eu}"}, "log.fields", {"region": "eu"}),
        ({"LOG_FIELDS_SERVICE": ""}, "log.fields", {}),
        ({"STORAGE": "filesystem"}, "storage.filesystem", Filesystem()),
        ({"STORAGE_FILESYSTEM_ROOTDIRECTORY": "/x"}, "storage.filesystem.rootdirectory",
         Path("/x")),
        ({"STORAGE": "filesystem", "STORAGE_FILESYSTEM_ROOTDIRECTORY": "/y"},
         "storage.filesystem.rootdirectory", Path("/y")),
        ({"STORAGE": "{s3: {bucket: b, region: eu-1}}", "CACHE_LOCAL_ROOTDIRECTORY": "/l"},
         "storage.filesystem", None),
        ({"STORAGE": "s3", "STORAGE_S3_BUCKET": "b", "STORAGE_S3_REGION": "eu-1",
          "CACHE_LOCAL_ROOTDIRECTORY": "/l"}, "cache.local.rootdirectory", Path("/l")),
        ({"STORAGE": "s3", "STORAGE_S3_BUCKET": "b", "STORAGE_S3_REGIONENDPOINT": "rgw:7480",
          "STORAGE_S3_SECURE": "false", "CACHE_LOCAL": "{rootdirectory: /l, quota: 5%}"},
         "storage.s3.endpoint", "http://rgw:7480"),
        ({"STORAGE_REDIRECT_DISABLE": "true"}, "storage.redirect.disable", True),
        ({"CACHE_QUOTA": "80%"}, "cache.quota", Share(80)),
        ({"CACHE": "{quota: 1TiB, pin: [a]}", "CACHE_PIN_1": "b/**"}, "cache.pin", ("a", "b/**")),
        ({"CACHE": "{quota: 1TiB, pin: [a]}", "CACHE_QUOTA": "1GB"}, "cache.quota", 10**9),
        ({"CACHE_SCRUB_RATE": "20MiB/s"}, "cache.scrub.rate", 20 * 1024**2),
        ({"PROXY_TTL": "1h"}, "proxy.ttl", 3600.0),
        ({"HTTP_HEADERS_X-A": "[b]"}, "http.headers",
         {"X-Content-Type-Options": ("nosniff",), "x-a": ("b",)}),
        ({"HTTP_HEADERS_X-CONTENT-TYPE-OPTIONS": "[b]"}, "http.headers",
         {"X-Content-Type-Options": ("b",)}),
        ({"HTTP_HEADERS_X-CONTENT-TYPE-OPTIONS_0": "b"}, "http.headers",
         {"X-Content-Type-Options": ("b",)}),
        ({"HTTP_HEADERS_X-CONTENT-TYPE-OPTIONS_1": "b"}, "http.headers",
         {"X-Content-Type-Options": ("nosniff", "b")}),
        ({"HTTP_HEADERS_X-A_0": "b", "HTTP_HEADERS_X-A_1": "c"}, "http.headers",
         {"X-Content-Type-Options": ("nosniff",), "x-a": ("b", "c")}),
        ({"PROXY_TOKENHOSTS_0": "a"}, "proxy.tokenhosts", ("a",)),
        ({"PROXY_TOKENHOSTS": "[a, b]"}, "proxy.tokenhosts", ("a", "b")),
        ({"PROXY_RESOLVE": "{harbor.example.com: 10.0.0.8}"}, "proxy.resolve",
         {"harbor.example.com": "10.0.0.8"}),
        ({"PROXY_RESOLVE_HARBOR.EXAMPLE.COM": "10.0.0.8"}, "proxy.resolve",
         {"harbor.example.com": "10.0.0.8"}),
        ({"PROXY_FRESHNESS_MAXAGE": "60s"}, "proxy.freshness.maxage", 60.0),
        ({"PROXY_RETRIES": "3"}, "proxy.retries", 3),
        ({"HTTP_WORKERS": "2"}, "http.workers", 2),
        ({"PROXY_USERNAME": "0123"}, "proxy.username", "0123"),
    ],
)  # fmt: skip
def test_a_variable_sets_its_key(
    accept: Accept, environ: dict[str, str], key: str, expected: Any
) -> None:
    """Values are YAML, sections come before what is in them, lists take an index."""
    found = accept(FIELD, {f"REGISTRY_{name}": text for name, text in environ.items()})
    assert value(found, key) == expected


def test_variables_can_be_the_whole_configuration(accept: Accept) -> None:
    """Sections that the file does not have are made."""
    environ = {"REGISTRY_PROXY_REMOTEURL": "http://a", "REGISTRY_VERSION": "0.1", "OTHER": "x"}
    assert accept("", environ).proxy.remoteurl == "http://a"


@pytest.mark.parametrize(
    ("variable", "text", "problem"),
    [
        ("LOG_LEVEL", "loud", "log.level: must be 'error', 'warn', 'info' or 'debug'"),
        ("PROXY_PASSWORD", "a: b: c", "proxy.password: not valid YAML: put the value in quotes"),
        ("PROXY_PASSWORD", "@hunter2", "proxy.password: not valid YAML: put the value in quotes"),
        ("PROXY_PASSWORD", "\udc80", "proxy.password: not valid YAML: put the value in quotes"),
        ("PROXY_PASSWORD", "{hunter2: x}", "proxy.password: expected a single value"),
        ("PROXY_RETRIES", "[" * 5000, "proxy.retries: not valid YAML: put the value in quotes"),
        ("PROXY", "{remoteurl: http://a, a: 1}", "proxy.a: unknown key"),
        ("PROXY", "{remoteurl: http://a, retries: 1, retries: 2}",
         "proxy.retries: the key stands here twice"),
        ("PROXY_TOKENHOSTS_1", "a", "proxy.tokenhosts.1: no such index: the list has 0"),
        ("HTTP_HEADERS_X-CONTENT-TYPE-OPTIONS_5", "a",
         "http.headers.x-content-type-options.5: no such index: the list has 1"),
        ("HTTP_HEADERS_X-CONTENT-TYPE-OPTIONS_B", "a",
         "http.headers.x-content-type-options.b: no such index: the list has 1"),
        ("LOG_FIELDS_SERVICE_X", "a",
         "log.fields.service.x: the key above holds a single value, not a map"),
        ("HTTP", "a", "http: expected a map"),
        ("HTTP_TLS_KEY", "a", "http.tls: TLS is not supported yet; put it behind a TLS proxy"),
        ("AUTH", "", "auth: empty: name htpasswd, or leave auth out"),
        ("AUTH", "token", "auth.token: this login is not supported; use auth.htpasswd"),
        ("AUTH_HTPASWD_PATH", "a", "auth.htpaswd: unknown key; nearest known: auth.htpasswd"),
        ("STORAGE", "swift",
         "storage.swift: this storage is not supported; use storage.filesystem or storage.s3"),
        ("CACHE_QUOTA", "much", "cache.quota: not a size like 20GiB, 500MB or 80%"),
        ("CACHE_LOCAL_QUOTA", "5GiB",
         "cache.local: only before a bucket: without storage.s3 there is storage.filesystem"),
        ("CACHE_PIN_0", "A", "cache.pin.0: not a pattern like prod/** or base/python:3.*"),
        ("VERSION", "2", "version: only 0.1 is supported"),
    ],
)  # fmt: skip
def test_a_variables_problem_names_the_variable(
    load_text: Load, variable: str, text: str, problem: str
) -> None:
    """The variable stands where a file and a line would."""
    loaded = load_text(FIELD, {f"REGISTRY_{variable}": text})
    assert loaded.config is None
    assert [str(found) for found in loaded.problems] == [f"REGISTRY_{variable}: {problem}"]


def test_a_driver_beside_the_files_is_a_problem(load_text: Load) -> None:
    """Distribution takes any variable under storage for a driver, and refuses to start with two."""
    environ = {
        "REGISTRY_STORAGE_S3_BUCKET": "a",
        "REGISTRY_STORAGE_S3_REGION": "eu-1",
        "REGISTRY_CACHE_LOCAL_ROOTDIRECTORY": "/l",
    }
    loaded = load_text(FIELD, environ)
    assert [str(found) for found in loaded.problems] == [
        "REGISTRY_STORAGE_S3_BUCKET: storage: several drivers, where only one can be"
    ]


@pytest.mark.parametrize(
    ("variable", "key", "nearest"),
    [
        ("PROXY_REMOTURL", "proxy.remoturl", "proxy.remoteurl"),
        ("PROXY_REMOTEURL_X", "proxy.remoteurl.x", None),
        ("CACHE_QUOTTA", "cache.quotta", "cache.quota"),
        ("STORAGE_S3_BUKET", "storage.s3.buket", "storage.s3.bucket"),
        # What Kubernetes sets for a service that is called registry.
        ("PORT", "port", None),
        ("PORT_5000_TCP_ADDR", "port.5000.tcp.addr", "http.addr"),
        ("SERVICE_HOST", "service.host", "http.host"),
        ("", "", None),
        ("_", ".", None),
    ],
)
def test_an_unknown_variable_is_only_mentioned(
    load_text: Load, variable: str, key: str, nearest: str | None
) -> None:
    """As with distribution: Kubernetes, too, sets variables that begin with REGISTRY_."""
    loaded = load_text(MINIMAL, {f"REGISTRY_{variable}": "tcp://10.0.0.1:5000"})
    assert loaded.problems == ()
    (notice,) = loaded.notices
    assert (notice.file, notice.line) == (f"REGISTRY_{variable}", None)
    assert (notice.key, notice.message) == (key, "ignored: unknown key")
    assert notice.nearest == nearest


def test_the_variable_that_names_the_file_is_no_override(load_text: Load) -> None:
    """It stands in the same environment, and is not taken for a key."""
    loaded = load_text(MINIMAL, {"REGISTRY_CONFIGURATION_PATH": "config.yml"})
    assert (loaded.problems, loaded.notices) == ((), ())


def test_a_variable_for_an_ignored_key_is_mentioned(load_text: Load) -> None:
    """Distribution's other keys are passed over wherever they are set."""
    loaded = load_text(MINIMAL, {"REGISTRY_REDIS_ADDR": "a:1", "REGISTRY_STORAGE_CACHE": "a"})
    assert [str(notice) for notice in loaded.notices] == [
        "REGISTRY_REDIS_ADDR: redis: ignored: no redis is used",
        "REGISTRY_STORAGE_CACHE: storage.cache: ignored: the index is kept beside the files",
    ]
