"""What is accepted, and what it becomes."""

from __future__ import annotations

import os
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest

from pullthrough.config import (
    S3,
    Address,
    Cache,
    Config,
    ConfigError,
    Filesystem,
    Local,
    Proxy,
    Redirect,
    Share,
    Storage,
    local_root,
    read_credential,
)
from tests.config.examples import MINIMAL, Accept, Load, value

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
        ("storage.filesystem.rootdirectory", Path("/var/lib/registry")),
        ("storage.s3", None),
        ("storage.redirect", Redirect(disable=False, endpoint=None)),
        ("cache.quota", None),
        ("cache.local", None),
        ("cache.pin", ()),
        ("cache.scrub.rate", None),
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
        ("proxy.ttl", 604800.0),
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
        ("storage: filesystem", "storage.filesystem.rootdirectory", Path("/var/lib/registry")),
        ("storage: {filesystem: }", "storage.filesystem.rootdirectory", Path("/var/lib/registry")),
        ("storage: {filesystem: {rootdirectory: /x}}", "storage.filesystem.rootdirectory",
         Path("/x")),
        ("storage: {redirect: {disable: true}}", "storage.filesystem", Filesystem()),
        ("storage: {redirect: {disable: true}}", "storage.redirect.disable", True),
        ("cache: {quota: 1000}", "cache.quota", 1000),
        ("cache: {quota: 1000B}", "cache.quota", 1000),
        ("cache: {quota: 500MB}", "cache.quota", 500 * 1000**2),
        ("cache: {quota: 20GiB}", "cache.quota", 20 * 1024**3),
        ("cache: {quota: 20gib}", "cache.quota", 20 * 1024**3),
        ("cache: {quota: 1.5TiB}", "cache.quota", 1536 * 1024**3),
        ("cache: {quota: 80%}", "cache.quota", Share(80)),
        ("cache: {quota: 12.5%}", "cache.quota", Share(12.5)),
        ("cache: {quota: 100%, pin: , scrub: , local: }", "cache.quota", Share(100)),
        ("cache: {pin: [prod/**, 'base/python:3.*', '**', '*/a?b__c', 'a:V1_?']}", "cache.pin",
         ("prod/**", "base/python:3.*", "**", "*/a?b__c", "a:V1_?")),
        ("cache: {scrub: {rate: 20MiB/s}}", "cache.scrub.rate", 20 * 1024**2),
        ("cache: {scrub: {rate: 1MB}}", "cache.scrub.rate", 1000**2),
        ("cache: {scrub: {rate: 512}}", "cache.scrub.rate", 512),
        ("  ttl: 0", "proxy.ttl", 0.0),
        ("  ttl: 30m", "proxy.ttl", 1800.0),
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


BUCKET = "cache: {local: {rootdirectory: /l}}\nstorage: {s3: {bucket: b, region: eu-1}}\n"


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("storage.filesystem", None),
        ("storage.s3.bucket", "b"),
        ("storage.s3.region", "eu-1"),
        ("storage.s3.regionendpoint", None),
        ("storage.s3.endpoint", None),
        ("storage.s3.accesskey", None),
        ("storage.s3.secretkey", None),
        ("storage.s3.secure", True),
        ("storage.s3.skipverify", False),
        ("storage.s3.path_style", False),
        ("storage.s3.rootdirectory", ""),
        ("storage.s3.chunksize", 10 * 1024**2),
        ("storage.s3.encrypt", False),
        ("storage.s3.keyid", None),
        ("storage.s3.storageclass", "STANDARD"),
        ("cache.local.rootdirectory", Path("/l")),
        ("cache.local.quota", 20 * 1024**3),
    ],
)
def test_what_is_left_out_of_a_bucket_has_its_default(
    accept: Accept, key: str, expected: Any
) -> None:
    """Only its name, a region or an endpoint, and the disk before it must be named."""
    assert value(accept(MINIMAL + BUCKET), key) == expected


@pytest.mark.parametrize(
    ("added", "key", "expected"),
    [
        ("region: ", "region", "us-east-1"),
        ("secure: true", "endpoint", "https://rgw.example.com:7480"),
        ("secure: false", "endpoint", "http://rgw.example.com:7480"),
        ("regionendpoint: 'https://RGW:1/', secure: false", "endpoint", "https://rgw:1"),
        ("regionendpoint: 'http://[::1]:1'", "endpoint", "http://[::1]:1"),
        ("regionendpoint: rgw", "endpoint", "https://rgw"),
        ("secure: true", "path_style", True),
        ("forcepathstyle: false", "path_style", False),
        ("skipverify: true", "skipverify", True),
        ("rootdirectory: ''", "rootdirectory", ""),
        ("rootdirectory: /", "rootdirectory", ""),
        ("rootdirectory: /a/b", "rootdirectory", "a/b"),
        ("rootdirectory: a/b/", "rootdirectory", "a/b"),
        ("chunksize: 5242880", "chunksize", 5 * 1024**2),
        ("chunksize: 5368709120", "chunksize", 5 * 1024**3),
        ("encrypt: true", "encrypt", True),
        ("encrypt: true, keyid: 'arn:aws:kms:x'", "keyid", "arn:aws:kms:x"),
        ("storageclass: standard_ia", "storageclass", "STANDARD_IA"),
        ("storageclass: NONE", "storageclass", "NONE"),
        ("bucket: A.b_c-1", "bucket", "A.b_c-1"),
    ],
)
def test_what_is_written_of_a_bucket_becomes_its_value(
    accept: Accept, added: str, key: str, expected: Any
) -> None:
    """As distribution's s3 driver takes it; an endpoint without a scheme has that of secure."""
    config = accept(
        f"{MINIMAL}cache: {{local: {{rootdirectory: /l, quota: 50%}}}}\n"
        "storage: {redirect: {endpoint: 'https://S3.example.com/'}, s3: {<<: {bucket: b, "
        f"region: eu-1, regionendpoint: 'rgw.example.com:7480'}}, {added}}}}}\n"
    )
    assert config.storage.s3
    assert getattr(config.storage.s3, key) == expected
    assert config.storage.redirect.endpoint == "https://s3.example.com"
    assert value(config, "cache.local.quota") == Share(50)


def test_the_local_store_is_the_disk_or_what_is_before_the_bucket(accept: Accept) -> None:
    """There is one with every driver."""
    assert local_root(accept(MINIMAL)) == Path("/var/lib/registry")
    assert local_root(accept(f"{MINIMAL}storage: {{filesystem: {{rootdirectory: /x}}}}\n")) == Path(
        "/x"
    )
    assert local_root(accept(MINIMAL + BUCKET)) == Path("/l")


def test_a_buckets_keys_are_the_text_that_was_written_and_hidden(accept: Accept) -> None:
    """What looks like a number is none, and what prints the configuration prints neither."""
    config = accept(
        MINIMAL + BUCKET.replace("bucket: b", "bucket: b, accesskey: 0123, secretkey: 1e3")
    )
    s3 = config.storage.s3
    assert s3
    assert s3.accesskey
    assert s3.secretkey
    assert (s3.accesskey.get_secret_value(), s3.secretkey.get_secret_value()) == ("0123", "1e3")
    assert "0123" not in repr(config)
    assert "1e3" not in repr(config)


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


def test_a_bucket_can_be_made_without_a_file() -> None:
    """With one there is no disk of its own kind; a size and a share are taken as they are."""
    config = Config(
        proxy=Proxy(remoteurl="http://a"),
        storage=Storage(s3=S3(bucket="b", regionendpoint="http://rgw:7480")),
        cache=Cache(quota=5, local=Local(rootdirectory=Path("/l"), quota=Share(5))),
    )
    assert config.storage.filesystem is None
    assert config.storage.s3
    assert config.storage.s3.path_style
    assert local_root(config) == Path("/l")
    assert (config.cache.quota, value(config, "cache.local.quota")) == (5, Share(5))


def test_a_redirect_to_a_bucket_goes_without_a_word(load_text: Load) -> None:
    """Only where there is no bucket does it say that the address is of no use."""
    loaded = load_text(
        MINIMAL + BUCKET.replace("storage: {", "storage: {redirect: {endpoint: 'http://a'}, ")
    )
    assert (loaded.problems, loaded.notices) == ((), ())
