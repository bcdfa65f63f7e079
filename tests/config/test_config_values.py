"""What is accepted, and what it becomes."""

from __future__ import annotations

import os
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest

from pullthrough.config import Address, Config, ConfigError, Proxy, read_credential
from tests.config.examples import MINIMAL, Accept, value

# A certificate of nobody's; only that it is one matters.
CERTIFICATE = """\
-----BEGIN CERTIFICATE-----
MIIBiTCCAS+gAwIBAgIUTq8PXmiclpirYHjGZKif69+fkhAwCgYIKoZIzj0EAwIw
GTEXMBUGA1UEAwwOY2EuZXhhbXBsZS5jb20wIBcNMjYxMTIxMTIwNTA1WhgPMjEy
NjEwMjgxMjA1MDVaMBkxFzAVBgNVBAMMDmNhLmV4YW1wbGUuY29tMFkwEwYHKoZI
zj0CAQYIKoZIzj0DAQcDQgAEvVlXhFlIlyvhXK+88RG3K/2RP4UuHH9db3+XVZsP
4bUN8P8n1JhjcD5S9tLF7gv25JOg0o2o5vJiqtRyDACGDaNTMFEwHQYDVR0OBBYE
FLsGPSaIQgB89ZyC3G13pUEdlOBlMB8GA1UdIwQYMBaAFLsGPSaIQgB89ZyC3G13
pUEdlOBlMA8GA1UdEwEB/wQFMAMBAf8wCgYIKoZIzj0EAwIDSAAwRQIhAOoLNCF5
YLUF6iELhYnzkZhP8cfa81dQoHZZGDFsYlYzAiBAnpg6c/qK6crvqstT2W5SG7wJ
/6C0XsD7uW8rpdL1UQ==
-----END CERTIFICATE-----
"""


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("log.level", "info"),
        ("log.formatter", "text"),
        ("log.fields", {}),
        ("log.accesslog.disabled", False),
        ("storage.rootdirectory", Path("/var/lib/registry")),
        ("http.addr", Address("", 5000)),
        ("http.headers", {}),
        ("http.draintimeout", 30.0),
        ("http.debug.addr", None),
        ("http.debug.prometheus.path", "/metrics"),
        ("http.workers", min(len(os.sched_getaffinity(0)), 64)),
        ("health.storagedriver.enabled", False),
        ("health.storagedriver.interval", 10.0),
        ("health.storagedriver.threshold", 3),
        ("proxy.remoteurl", "https://harbor.example.com"),
        ("proxy.username", None),
        ("proxy.password", None),
        ("proxy.passwordfile", None),
        ("proxy.resolve", {}),
        ("proxy.cafile", None),
        ("proxy.skipverify", False),
        ("proxy.tokenhosts", ()),
        ("proxy.freshness.maxage", 0.0),
        ("proxy.freshness.deadline", 1.5),
        ("proxy.timeouts.connect", 5.0),
        ("proxy.timeouts.firstbyte", 25.0),
        ("proxy.timeouts.stall", 15.0),
        ("proxy.retries", 8),
        ("auth", None),
    ],
)
def test_what_is_left_out_has_its_default(accept: Accept, key: str, expected: Any) -> None:
    """Only the version and the upstream must be named."""
    assert value(accept(MINIMAL), key) == expected


@pytest.mark.parametrize(
    ("added", "key", "expected"),
    [
        ("log: {level: Warn}", "log.level", "warn"),
        ("log: {level: }", "log.level", "info"),
        ("log: ", "log.level", "info"),
        ("log: {fields: {a: 012, b: no, c: }}", "log.fields", {"a": "012", "b": "no"}),
        ("log: {fields: {1: x}}", "log.fields", {"1": "x"}),
        ("log: {accesslog: {disabled: on}}", "log.accesslog.disabled", True),
        ("storage: filesystem", "storage.rootdirectory", Path("/var/lib/registry")),
        ("storage: {filesystem: }", "storage.rootdirectory", Path("/var/lib/registry")),
        ("storage: {filesystem: {rootdirectory: /x}}", "storage.rootdirectory", Path("/x")),
        ("http: {addr: 'localhost:0'}", "http.addr", Address("localhost", 0)),
        ("http: {addr: '[::1]:80'}", "http.addr", Address("::1", 80)),
        ("http: {addr: 10.0.0.1:80}", "http.addr", Address("10.0.0.1", 80)),
        ("http: {net: tcp, prefix: /}", "http.addr", Address("", 5000)),
        ("http: {tls: {}}", "http.addr", Address("", 5000)),
        ("http: {headers: {X-A: [b, c], X-N: }}", "http.headers", {"X-A": ("b", "c")}),
        ("http: {workers: 3}", "http.workers", 3),
        ("http: {workers: auto}", "http.workers", min(len(os.sched_getaffinity(0)), 64)),
        ("http: {draintimeout: 0}", "http.draintimeout", 0.0),
        ("http: {draintimeout: 1.5s}", "http.draintimeout", 1.5),
        ("http: {draintimeout: 300ms}", "http.draintimeout", 0.3),
        ("http: {draintimeout: 168h}", "http.draintimeout", 604800.0),
        ("http: {draintimeout: 1h30m}", "http.draintimeout", 5400.0),
        ("http: {draintimeout: +.5m1us5ns}", "http.draintimeout", 30.000001005),
        ("http: {debug: {addr: ':1'}}", "http.debug.addr", Address("", 1)),
        ("  retries: 20", "proxy.retries", 20),
        ("  skipverify: yes", "proxy.skipverify", True),
        ("  tokenhosts: [Auth.example.com, 'b:8443']", "proxy.tokenhosts",
         ("auth.example.com", "b:8443")),
        ("  resolve: {Harbor.example.com: 10.0.0.8, b: 'fd00:0::1'}", "proxy.resolve",
         {"harbor.example.com": "10.0.0.8", "b": "fd00::1"}),
        ("  freshness: {<<: {maxage: 5s, deadline: 9s}, deadline: 1s}",
         "proxy.freshness.maxage", 5),
        ("  freshness: {<<: {maxage: 5s, deadline: 9s}, deadline: 1s}",
         "proxy.freshness.deadline", 1),
        ("  freshness: {<<: [{maxage: 5s}, {maxage: 6s}]}", "proxy.freshness.maxage", 5),
        ("  timeouts: {connect: &t 7s, stall: *t}", "proxy.timeouts.stall", 7),
    ],
)  # fmt: skip
def test_what_is_written_becomes_its_value(
    accept: Accept, added: str, key: str, expected: Any
) -> None:
    """YAML's texts become numbers, seconds, addresses and tuples."""
    assert value(accept(f"{MINIMAL}{added}\n"), key) == expected


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("https://Harbor.Example.com/", "https://harbor.example.com"),
        ("HTTPS://a:443", "https://a:443"),
        ("http://[FD00::1]:80", "http://[fd00::1]:80"),
    ],
)
def test_the_upstream_is_an_origin(accept: Accept, url: str, expected: str) -> None:
    """The URL is kept as scheme, host and port, without a slash at its end."""
    config = accept(f'version: "0.1"\nproxy:\n  remoteurl: {url}\n')
    assert config.proxy.remoteurl == expected


def test_a_cafile_with_a_certificate_is_accepted(accept: Accept, tmp_path: Path) -> None:
    """PEM is looked into before the start."""
    (tmp_path / "ca.pem").write_text(CERTIFICATE)
    assert accept(f"{MINIMAL}  cafile: ca.pem\n").proxy.cafile == Path("ca.pem")


@pytest.mark.parametrize(
    ("written", "password"),
    [("012345", "012345"), ("no", "no"), ("1e3", "1e3"), ("'a: b'", "a: b"), ('"# x"', "# x")],
)
def test_a_password_is_the_text_that_was_written(
    accept: Accept, written: str, password: str
) -> None:
    """What looks like a number or a truth value stays what it is, as with distribution."""
    config = accept(f"{MINIMAL}  username: robot$region\n  password: {written}\n")
    assert read_credential(config.proxy) == ("robot$region", password)


def test_a_password_file_is_read_anew(accept: Accept, tmp_path: Path) -> None:
    """What stands in the file now counts, without its line's end; an emptied one is an error."""
    file = tmp_path / "password"
    file.write_bytes(b"first\n")
    config = accept(f"{MINIMAL}  username: robot$p+n\n  passwordfile: password\n")
    assert read_credential(config.proxy) == ("robot$p+n", "first")
    file.write_bytes(b" second \r\n")
    assert read_credential(config.proxy) == ("robot$p+n", " second ")
    file.write_bytes(b"")
    with pytest.raises(ConfigError, match=r"^proxy\.passwordfile: empty$"):
        read_credential(config.proxy)
    file.unlink()
    with pytest.raises(ConfigError, match=r"^proxy\.passwordfile: cannot be read"):
        read_credential(config.proxy)


def test_without_a_login_there_is_no_credential(accept: Accept) -> None:
    """An upstream that needs no login gets none."""
    assert read_credential(accept(MINIMAL).proxy) is None


def test_the_configuration_is_frozen_and_hides_its_password(accept: Accept) -> None:
    """Nothing can change it, and what prints it prints no secret."""
    config = accept(f"{MINIMAL}  username: a\n  password: hunter2\n")
    assert "hunter2" not in repr(config)
    with pytest.raises(FrozenInstanceError):
        config.proxy.retries = 3  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        config.proxy = Proxy(remoteurl="http://a")  # type: ignore[misc]


def test_the_model_can_be_made_without_a_file() -> None:
    """Its own types are taken as they are."""
    config = Config(proxy=Proxy(remoteurl="http://a", retries=3))
    assert (config.proxy.retries, config.http.addr.port) == (3, 5000)
