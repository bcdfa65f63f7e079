"""What is refused, with its place and its key, and what is only mentioned."""

from __future__ import annotations

from pathlib import Path

import pytest

from pullthrough.config import load
from tests.config.examples import MINIMAL, Load, Reject

UNIT = "a bare number would be nanoseconds: write the unit, as in 30s or 500ms"
ONE = "expected a single value"
DRIVER = "this storage is not supported; use storage.filesystem or storage.s3"
SIZE = "not a size like 20GiB, 500MB or 80%"
RATE = "not a rate like 20MiB/s"
NO_LOGIN = "must not hold a login: use storage.s3.accesskey and storage.s3.secretkey"
CLASSES = (
    "must be 'NONE', 'STANDARD', 'REDUCED_REDUNDANCY', 'STANDARD_IA', 'ONEZONE_IA', "
    "'INTELLIGENT_TIERING', 'OUTPOSTS', 'GLACIER_IR' or 'EXPRESS_ONEZONE'"
)
PIN = "not a pattern like prod/** or base/python:3.*"
LOGIN = "this login is not supported; use auth.htpasswd"
TLS = "TLS is not supported yet; put it behind a TLS proxy"
MISSING_FILE = "cannot be read: No such file or directory"

# What is added to MINIMAL's three lines, and the one problem that it makes, without the file.
TOP = [
    # unknown keys
    ("lgo: {}", "4: lgo: unknown key; nearest known: log"),
    ("\n\nhttp:\n  adr: :5", "7: http.adr: unknown key; nearest known: http.addr"),
    ("maxage: 5s", "4: maxage: unknown key; nearest known: proxy.freshness.maxage"),
    ("remoteURL: x", "4: remoteURL: unknown key; nearest known: proxy.remoteurl"),
    ("zzz: 1", "4: zzz: unknown key"),
    ("1: x", "4: 1: unknown key"),
    ("? [a]\n: b", "4: a key that is not text"),
    ("~: b", "4: a key that is not text"),
    ("log: {}\nlog: {}", "5: log: the key stands here twice"),
    ("log: {accesslog: {disable: 1}}",
     "4: log.accesslog.disable: unknown key; nearest known: log.accesslog.disabled"),
    ("storage: {filesytem: {}}",
     "4: storage.filesytem: unknown key; nearest known: storage.filesystem"),
    # wrong types
    ("log: 5", "4: log: expected a map"),
    ("log: [a]", "4: log: expected a map"),
    ("log: {level: {a: b}}", "4: log.level: must be 'error', 'warn', 'info' or 'debug'"),
    ("log: {level: loud}", "4: log.level: must be 'error', 'warn', 'info' or 'debug'"),
    ("log: {formatter: xml}", "4: log.formatter: must be 'text', 'json' or 'logstash'"),
    ("log: {fields: [a]}", "4: log.fields: expected a map"),
    ("log: {fields: {a: [b]}}", f"4: log.fields.a: {ONE}"),
    ("log: {accesslog: {disabled: maybe}}", "4: log.accesslog.disabled: expected true or false"),
    ("storage: {filesystem: {rootdirectory: [a]}}", f"4: storage.filesystem.rootdirectory: {ONE}"),
    ('storage: {filesystem: {rootdirectory: "a\\0"}}',
     "4: storage.filesystem.rootdirectory: a NUL or half a surrogate pair in the text"),
    ('log: {fields: {a: "\\uD800"}}',
     "4: log.fields.a: a NUL or half a surrogate pair in the text"),
    ("log: !!set {}", "4: log: a YAML tag, which nothing here takes"),
    ("log: !!python/object:os.system {}", "4: log: a YAML tag, which nothing here takes"),
    ("log: {<<: 5}", "4: log: << wants a map"),
    # storage and login
    *((f"storage: {{{name}: {{a: b}}}}", f"4: storage.{name}: {DRIVER}")
      for name in ("azure", "gcs", "inmemory", "oss", "s3aws", "swift")),
    ("storage: swift", f"4: storage.swift: {DRIVER}"),
    ("storage: {redirekt: {}}",
     "4: storage.redirekt: unknown key; nearest known: storage.redirect"),
    ("storage: {redirect: {disabel: true}}",
     "4: storage.redirect.disabel: unknown key; nearest known: storage.redirect.disable"),
    ("storage: {redirect: {disable: maybe}}",
     "4: storage.redirect.disable: expected true or false"),
    ("storage: {redirect: {endpoint: s3.example.com}}",
     "4: storage.redirect.endpoint: must begin with http:// or https://"),
    ("storage: {redirect: {endpoint: 'https://hunter2@a'}}",
     f"4: storage.redirect.endpoint: {NO_LOGIN}"),
    ("storage: {redirect: {endpoint: 'https://a/b'}}",
     "4: storage.redirect.endpoint: must not have a path"),
    # cache
    ("cache: 5GiB", "4: cache: expected a map"),
    ("cache: {quotas: 5GiB}", "4: cache.quotas: unknown key; nearest known: cache.quota"),
    ("cache: {pins: [a]}", "4: cache.pins: unknown key; nearest known: cache.pin"),
    ("cach: {quota: 5GiB}", "4: cach: unknown key; nearest known: cache"),
    ("quota: 5GiB", "4: quota: unknown key; nearest known: cache.quota"),
    *((f"cache: {{quota: '{text}'}}", f"4: cache.quota: {SIZE}")
      for text in ("5G", "5 GiB", "5iB", "-5GiB", "1e9", ".5GiB", "5GiB/s", "%", "-5%", "9" * 99)),
    ("cache: {quota: 0}", "4: cache.quota: must be more than 0"),
    ("cache: {quota: 0.1}", "4: cache.quota: must be more than 0"),
    ("cache: {quota: 8192PiB}", "4: cache.quota: larger than 8 EiB"),
    ("cache: {quota: 0%}", "4: cache.quota: must be more than 0% and at most 100%"),
    ("cache: {quota: 101%}", "4: cache.quota: must be more than 0% and at most 100%"),
    ("cache: {quota: [5GiB]}", f"4: cache.quota: {ONE}"),
    ("cache: {scrub: 20MiB/s}", "4: cache.scrub: expected a map"),
    ("cache: {scrub: {rate: 80%}}", f"4: cache.scrub.rate: {RATE}"),
    ("cache: {scrub: {rate: 20MiB/m}}", f"4: cache.scrub.rate: {RATE}"),
    ("cache: {scrub: {rate: 0}}", "4: cache.scrub.rate: must be more than 0"),
    ("cache: {scrub: {rate: {a: b}}}", f"4: cache.scrub.rate: {ONE}"),
    ("cache: {pin: prod/**}", "4: cache.pin: expected a list"),
    ("cache: {pin: [a, [b]]}", f"4: cache.pin.1: {ONE}"),
    *((f"cache: {{pin: [a, '{text}']}}", f"4: cache.pin.1: {PIN}")
      for text in ("Prod/**", "/a", "a/", "a//b", "a:", ":v1", "a:b:c", "a@sha256:b", "a b", "[a]",
                   "{a,b}", "ü", "a" * 256, f"a:{'b' * 129}")),
    ("cache: {local: {rootdirectory: /l}}",
     "4: cache.local: only before a bucket: without storage.s3 there is storage.filesystem"),
    ("auth: {token: {realm: x}}", f"4: auth.token: {LOGIN}"),
    ("auth: silly", f"4: auth.silly: {LOGIN}"),
    ("auth:", "4: auth: empty: name htpasswd, or leave auth out"),
    ("auth: {}", "4: auth: empty: name htpasswd, or leave auth out"),
    ('auth: ""', "4: auth: empty: name htpasswd, or leave auth out"),
    ("auth: {htpaswd: {}}", "4: auth.htpaswd: unknown key; nearest known: auth.htpasswd"),
    ("auth: {htpasswd: {realm: x}}", "4: auth.htpasswd.path: missing"),
    ("auth: {htpasswd: {realm: x, path: nowhere}}", f"4: auth.htpasswd.path: {MISSING_FILE}"),
    ("auth: {htpasswd: {realm: x, path: /}}",
     "4: auth.htpasswd.path: cannot be read: Is a directory"),
    ("auth: {htpasswd: {path: config.yml}}", "4: auth.htpasswd.realm: missing"),
    ("auth: {htpasswd: {path: config.yml, realm: 'a\"'}}",
     "4: auth.htpasswd.realm: only plain ASCII without quotes and backslashes"),
    # http
    ("http: {addr: 5000}", "4: http.addr: expected host:port, or :port for every interface"),
    ("http: {addr: 'h:65536'}",
     "4: http.addr: expected a port from 0 to 65535"),
    ("http: {addr: 'h:-1'}",
     "4: http.addr: expected a port from 0 to 65535"),
    ("http: {addr: 'a b:1'}", "4: http.addr: not a host name"),
    ("http: {addr: '[g]:1'}", "4: http.addr: not an IP address"),
    ("http: {addr: [a]}", f"4: http.addr: {ONE}"),
    ("http: {debug: {addr: x}}",
     "4: http.debug.addr: expected host:port, or :port for every interface"),
    ("http: {debug: {prometheus: {path: metrics}}}",
     "4: http.debug.prometheus.path: expected a path like /metrics"),
    ("http: {net: unix}", "4: http.net: only tcp is supported"),
    ("http: {prefix: /x/}", "4: http.prefix: not supported: every path would differ"),
    ("http: {tls: {certificate: a, key: b}}", f"4: http.tls: {TLS}"),
    ("http: {tls: {letsencrypt: {hosts: [a]}}}", f"4: http.tls: {TLS}"),
    ("http: {workers: 0}", "4: http.workers: must be at least 1"),
    ("http: {workers: 65}", "4: http.workers: must be at most 64"),
    ("http: {workers: many}", "4: http.workers: not a whole number"),
    ("http: {workers: [1]}", f"4: http.workers: {ONE}"),
    ("http: {draintimeout: 30}", f"4: http.draintimeout: {UNIT}"),
    ("http: {draintimeout: -30s}", "4: http.draintimeout: must not be negative"),
    ("http: {draintimeout: 30 s}",
     "4: http.draintimeout: not a duration like 1.5s, 300ms or 1h30m"),
    ("http: {draintimeout: 9999999h}", "4: http.draintimeout: longer than 292 years"),
    ("http: {headers: {X: a}}", "4: http.headers.X: expected a list"),
    ("http: {headers: {'X Y': [a]}}", "4: http.headers.X…: not a header's name"),
    ("http: {headers: {'': [a]}}", "4: http.headers.: not a header's name"),
    ('http: {headers: {X: [a, "b\\r\\nc"]}}',
     "4: http.headers.X.1: a control character, which no header may hold"),
    ("http: {headers: {X: [~]}}", f"4: http.headers.X.0: {ONE}"),
    # health
    ("health: {storagedriver: {interval: 0}}",
     "4: health.storagedriver.interval: must be more than 0"),
    ("health: {storagedriver: {threshold: -1}}",
     "4: health.storagedriver.threshold: must be at least 0"),
]  # fmt: skip


@pytest.mark.parametrize(("added", "problem"), TOP)
def test_each_wrong_thing_is_one_problem(reject: Reject, added: str, problem: str) -> None:
    """What is wrong is said once, with the line and the key, and nothing beside it."""
    assert reject(f"{MINIMAL}{added}\n") == [f"config.yml:{problem}"]


# What is added to an s3 section that is complete, and the problem that it makes there.
S3 = [
    ("bucket: ", "bucket: missing"),
    ("bucket: a/b", "bucket: not a bucket's name"),
    ("bucket: ..", "bucket: not a bucket's name"),
    ("buket: b", "buket: unknown key; nearest known: storage.s3.bucket"),
    ("region: ", "region: missing, and there is no regionendpoint either"),
    ("region: eu.1", "region: not a region's name"),
    ("region: -eu", "region: not a region's name"),
    ("region: 123", "region: not a region's name"),
    ("regionendpoint: ftp://a", "regionendpoint: must begin with http:// or https://"),
    ("regionendpoint: 'http://a/b'", "regionendpoint: must not have a path"),
    ("regionendpoint: 'http://hunter2@a'", f"regionendpoint: {NO_LOGIN}"),
    ("regionendpoint: 'http://a?b'", "regionendpoint: must not have a query or a fragment"),
    ("regionendpoint: 'a:b'", "regionendpoint: expected a port from 0 to 65535"),
    ("accesskey: hunter2", "accesskey: without a secretkey"),
    ("secretkey: hunter2", "secretkey: without an accesskey"),
    ("accesskey: a, secretkey: [hunter2]", f"secretkey: {ONE}"),
    ("secure: maybe", "secure: expected true or false"),
    ("skipverify: 1", "skipverify: expected true or false"),
    ("forcepathstyle: 1", "forcepathstyle: expected true or false"),
    ("rootdirectory: a/../b", "rootdirectory: a control character, or . or .. for a directory"),
    ('rootdirectory: "a\\nb"', "rootdirectory: a control character, or . or .. for a directory"),
    (f"rootdirectory: {'a' * 513}", "rootdirectory: longer than 512 bytes"),
    ("chunksize: 10MiB", "chunksize: not a whole number"),
    ("chunksize: 5242879", "chunksize: must be at least 5242880"),
    ("chunksize: 5368709121", "chunksize: must be at most 5368709120"),
    ("encrypt: maybe", "encrypt: expected true or false"),
    ("keyid: a", "keyid: without encrypt"),
    ('encrypt: true, keyid: "a\\nb"', "keyid: a control character, which no header may hold"),
    ("storageclass: GLACIER", f"storageclass: {CLASSES}"),
]  # fmt: skip


@pytest.mark.parametrize(("added", "problem"), S3)
def test_each_wrong_thing_about_the_bucket_is_one_problem(
    reject: Reject, added: str, problem: str
) -> None:
    """The same for storage.s3; of a key, only its name is ever said."""
    assert reject(
        f"{MINIMAL}cache: {{local: {{rootdirectory: /l}}}}\n"
        f"storage: {{s3: {{<<: {{bucket: b, region: eu-1}}, {added}}}}}\n"
    ) == [f"config.yml:5: storage.s3.{problem}"]


@pytest.mark.parametrize(
    ("added", "problems"),
    [
        ("", [": cache.local.rootdirectory: missing"]),
        ("cache: {quota: 5GiB}", [":5: cache.local.rootdirectory: missing"]),
        ("cache: {local: {quota: 5GiB}}", [":5: cache.local.rootdirectory: missing"]),
        ("cache: {local: {rootdirectory: ''}}", [":5: cache.local.rootdirectory: missing"]),
        ("cache: {local: {rootdirectory: /l, quota: 0%}}",
         [":5: cache.local.quota: must be more than 0% and at most 100%"]),
        ("cache: {local: {rootdirectory: /l, qouta: 1GB}}",
         [":5: cache.local.qouta: unknown key; nearest known: cache.local.quota"]),
        ("cache: {quota: 80%, local: {rootdirectory: /l}}",
         [":5: cache.quota: a bucket has no size to take a share of: write it as in 500GiB"]),
    ],
)  # fmt: skip
def test_a_bucket_wants_a_disk_before_it_and_a_bound_in_bytes(
    reject: Reject, added: str, problems: list[str]
) -> None:
    """What the one section says is held against the other."""
    assert reject(f"{MINIMAL}storage: {{s3: {{bucket: b, region: eu-1}}}}\n{added}\n") == [
        f"config.yml{problem}" for problem in problems
    ]


def test_a_bucket_of_which_nothing_is_said_is_a_problem(reject: Reject) -> None:
    """The driver's name alone is not enough."""
    assert reject(f"{MINIMAL}storage: s3\n") == [
        "config.yml:4: storage.s3.region: missing, and there is no regionendpoint either",
        "config.yml:4: storage.s3.bucket: missing",
        "config.yml: cache.local.rootdirectory: missing",
    ]


# A line added to the proxy section, and the problem that it makes there.
PROXY = [
    ("remoturl: x", "remoturl: unknown key; nearest known: proxy.remoteurl"),
    ("username: a", "username: without a password or passwordfile"),
    ("password: a", "password: without a username"),
    ("passwordfile: secret.txt", "passwordfile: without a username"),
    ("exec: {command: x}", "exec: not supported: the upstream would be asked without a credential"),
    ("cafile: nowhere", f"cafile: {MISSING_FILE}"),
    ("cafile: config.yml", "cafile: holds no certificate in PEM"),
    ("skipverify: 1", "skipverify: expected true or false"),
    ("tokenhosts: a", "tokenhosts: expected a list"),
    ("tokenhosts: ['https://a/']", "tokenhosts.0: expected a port from 0 to 65535"),
    ("tokenhosts: ['a/b']", "tokenhosts.0: not a host name"),
    (
        "tokenhosts: ['a:x']",
        "tokenhosts.0: expected a port from 0 to 65535",
    ),
    ("resolve: {a: b}", "resolve.a: not an IP address"),
    ("resolve: {'a/b': 10.0.0.1}", "resolve.a…: not a host name"),
    ("resolve: 10.0.0.1", "resolve: expected a map"),
    ("freshness: {maxage: 5}", f"freshness.maxage: {UNIT}"),
    ("freshness: {maxage: -5s}", "freshness.maxage: must not be negative"),
    ("freshness: {deadline: 0s}", "freshness.deadline: must be more than 0"),
    ("timeouts: {connect: 0}", "timeouts.connect: must be more than 0"),
    ("timeouts: {firstbyte: soon}", "timeouts.firstbyte: not a duration like 1.5s, 300ms or 1h30m"),
    ("timeouts: {stall: [1s]}", f"timeouts.stall: {ONE}"),
    ("retries: 0", "retries: must be at least 1"),
    ("retries: -3", "retries: must be at least 1"),
    ("retries: 1.5", "retries: not a whole number"),
    (f"retries: {'9' * 5000}", "retries: not a whole number"),
    ("timeouts: 5s", "timeouts: expected a map"),
    ("ttl: 7", f"ttl: {UNIT}"),
    ("ttl: -1h", "ttl: must not be negative"),
    ("ttl: 7d", "ttl: not a duration like 1.5s, 300ms or 1h30m"),
    ("tll: 7h", "tll: unknown key; nearest known: proxy.ttl"),
]


@pytest.mark.parametrize(("line", "problem"), PROXY)
def test_each_wrong_thing_about_the_upstream_is_one_problem(
    reject: Reject, tmp_path: Path, line: str, problem: str
) -> None:
    """The same for the proxy section, whose added line is the file's fourth."""
    (tmp_path / "secret.txt").write_text("x")
    assert reject(f"{MINIMAL}  {line}\n") == [f"config.yml:4: proxy.{problem}"]


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ftp://a", "must begin with http:// or https://"),
        ("harbor.example.com", "must begin with http:// or https://"),
        ("https://u:hunter2@a", "must not hold a login: use proxy.username and proxy.password"),
        ("https://@a", "must not hold a login: use proxy.username and proxy.password"),
        ("https://a?b", "must not have a query or a fragment"),
        ("https://a/?", "must not have a query or a fragment"),
        ("https://a#b", "must not have a query or a fragment"),
        ("https://a/v2", "must not have a path: the API is taken to be at /v2/"),
        ("https://", "not a host name"),
        ("'https://a b'", "not a host name"),
        ('"https://a\\nb"', "not a host name"),
        ("https://[::1", "expected host or host:port"),
        ("https://[::1]]", "expected host or host:port"),
        ("https://[g]", "not an IP address"),
        ("https://a:b:c", "expected host or host:port"),
        ("https://a:99999", "expected a port from 0 to 65535"),
        ("https://a:x", "expected a port from 0 to 65535"),
        ("https://ü.example", "not a host name"),
        ("[a]", "expected a single value"),
    ],
)
def test_an_upstream_that_is_no_plain_origin_is_refused(
    reject: Reject, url: str, message: str
) -> None:
    """Only http and https, a host and a port; what else stands there is never repeated."""
    assert reject(f"version: 0.1\nproxy:\n  remoteurl: {url}\n") == [
        f"config.yml:3: proxy.remoteurl: {message}"
    ]


BOMB = """\
a: &a [x, x, x, x, x, x, x, x]
b: &b [*a, *a, *a, *a, *a, *a, *a, *a]
c: &c [*b, *b, *b, *b, *b, *b, *b, *b]
d: &d [*c, *c, *c, *c, *c, *c, *c, *c]
e: &e [*d, *d, *d, *d, *d, *d, *d, *d]
"""


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ("", ["config.yml: version: missing: write version: 0.1",
              "config.yml: proxy.remoteurl: missing"]),
        ("version: 0.1", ["config.yml: proxy.remoteurl: missing"]),
        ("version: 0.1\nproxy:", ["config.yml:2: proxy.remoteurl: missing"]),
        ("version: 0.1\nproxy: {remoteurl: }", ["config.yml:2: proxy.remoteurl: missing"]),
        ("version: 0.1\nproxy: {remoteurl: ''}", ["config.yml:2: proxy.remoteurl: missing"]),
        ("version: 1\nproxy: {remoteurl: http://a}",
         ["config.yml:1: version: only 0.1 is supported"]),
        ("- a", ["config.yml:1: expected a map of keys"]),
        ("just text", ["config.yml:1: expected a map of keys"]),
        ("a: b\n c: d", ["config.yml:2: not valid YAML: mapping values are not allowed here"]),
        ("a: {b", ["config.yml:1: not valid YAML: expected ',' or '}', but got '<stream end>'"]),
        ("a:\n\t- b",
         ["config.yml:2: not valid YAML: found character '\\t' that cannot start any token"]),
        ("a: b\n---\nc: d", ["config.yml:2: not valid YAML: but found another document"]),
        ("a: b\nc: *hunter2", ["config.yml:2: not valid YAML: found undefined alias …"]),
        ('a: b\nc: "\\UFFFFFFFF"', ["config.yml:2: not valid YAML: a number out of range"]),
        ("a: b\nc: \x07", ["config.yml:2: not valid YAML: a control character"]),
        (b"a: b\nc: \xff", ["config.yml:2: not UTF-8"]),
        ("a: &a [*a]", ["config.yml:1: nested too deeply, or too large"]),
        ("[" * 100_000, ["config.yml:1: nested too deeply, or too large"]),
        ("{a: " * 100_000, ["config.yml:1: nested too deeply, or too large"]),
        ("a: [" + "1, " * 30_000 + "}", ["config.yml:1: nested too deeply, or too large"]),
        (BOMB, ["config.yml:1: nested too deeply, or too large"]),
        (b"a" * (1024 * 1024 + 1), ["config.yml: larger than 1048576 bytes"]),
    ],
    ids=range(22),
)  # fmt: skip
def test_a_file_that_is_no_configuration_is_refused(
    reject: Reject, text: str | bytes, problems: list[str]
) -> None:
    """What cannot be parsed, or would cost too much to, ends with a place and a reason."""
    assert reject(text) == problems


def test_a_file_that_cannot_be_read_is_a_problem(tmp_path: Path) -> None:
    """A missing file and a directory are reported as everything else is."""
    assert [str(p) for p in load(tmp_path / "no", {}).problems] == [
        f"{tmp_path}/no: cannot be read: No such file or directory"
    ]
    assert [p.message for p in load(tmp_path, {}).problems] == ["cannot be read: Is a directory"]
    assert [p.message for p in load(Path("\0"), {}).problems] == [
        "cannot be read: not a file's name"
    ]


def test_a_file_of_any_size_is_read_no_further_than_the_limit(tmp_path: Path) -> None:
    """A terabyte is refused, not read."""
    with (tmp_path / "config.yml").open("wb") as file:
        file.truncate(1 << 40)
    (problem,) = load(tmp_path / "config.yml", {}).problems
    assert problem.message == "larger than 1048576 bytes"


def test_every_problem_is_told_at_once_in_the_order_of_the_file(reject: Reject) -> None:
    """One look shows all there is to mend: unknown, mistyped, missing and contradictory."""
    assert reject(
        "version: 0.2\n"
        "storage:\n"
        "  s3: {accesskey: AKIA}\n"
        "  filesystem: {}\n"
        "http:\n"
        "  addr: :x\n"
        "  addr: :5\n"
        "  workers: 0\n"
        "proxy:\n"
        "  username: a:b\n"
        "  password: hunter2\n"
        "  passwordfile: nowhere\n"
        "  retries: x\n",
        {"REGISTRY_LOG_LEVEL": "loud"},
    ) == [
        "config.yml:1: version: only 0.1 is supported",
        "config.yml:3: storage.s3.region: missing, and there is no regionendpoint either",
        "config.yml:3: storage.s3.accesskey: without a secretkey",
        "config.yml:3: storage.s3.bucket: missing",
        "config.yml:4: storage: several drivers, where only one can be",
        "config.yml:7: http.addr: the key stands here twice",
        "config.yml:8: http.workers: must be at least 1",
        "config.yml:9: proxy.remoteurl: missing",
        "config.yml:10: proxy.username: a colon or a control character, which Basic cannot carry",
        "config.yml:12: proxy.passwordfile: stands beside proxy.password: only one can be",
        f"config.yml:12: proxy.passwordfile: {MISSING_FILE}",
        "config.yml:13: proxy.retries: not a whole number",
        "REGISTRY_LOG_LEVEL: log.level: must be 'error', 'warn', 'info' or 'debug'",
        "config.yml: cache.local.rootdirectory: missing",
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"\n", "empty"),
        (b"\xff", "not UTF-8"),
        (b"x" * (64 * 1024 + 1), "larger than 65536 bytes"),
    ],
)
def test_a_file_without_a_password_is_refused(
    reject: Reject, tmp_path: Path, content: bytes, message: str
) -> None:
    """A password file is looked into before the start."""
    (tmp_path / "password").write_bytes(content)
    assert reject(f"{MINIMAL}  username: a\n  passwordfile: password\n") == [
        f"config.yml:5: proxy.passwordfile: {message}"
    ]


@pytest.mark.parametrize(
    ("added", "key"),
    [
        ("loglevel: debug", "loglevel"),
        ("log: {hooks: [{type: mail}]}", "log.hooks"),
        ("log: {reportcaller: true}", "log.reportcaller"),
        ("storage: {cache: {blobdescriptor: redis}}", "storage.cache"),
        ("storage: {delete: {enabled: true}}", "storage.delete"),
        ("storage: {maintenance: {uploadpurging: {enabled: false}}}", "storage.maintenance"),
        ("storage: {redirect: {endpoint: 'http://a'}}", "storage.redirect.endpoint"),
        ("storage: {tag: {concurrencylimit: 8}}", "storage.tag"),
        ("storage: {filesystem: {maxthreads: 100}}", "storage.filesystem.maxthreads"),
        ("middleware: {storage: [{name: x}]}", "middleware"),
        ("reporting: {bugsnag: {apikey: x}}", "reporting"),
        ("http: {host: https://x}", "http.host"),
        ("http: {secret: x}", "http.secret"),
        ("http: {relativeurls: true}", "http.relativeurls"),
        ("http: {http2: {disabled: true}}", "http.http2"),
        ("http: {h2c: {enabled: true}}", "http.h2c"),
        ("notifications: {endpoints: []}", "notifications"),
        ("redis: {addr: x, password: y}", "redis"),
        ("health: {tcp: [{addr: x}]}", "health.tcp"),
        ("health: {http: [{uri: x}]}", "health.http"),
        ("health: {file: [{file: x}]}", "health.file"),
        ("catalog: {maxentries: 5}", "catalog"),
        ("compatibility: {schema1: {enabled: true}}", "compatibility"),
        ("validation: {disabled: true}", "validation"),
        ("policy: {repository: {classes: [image]}}", "policy"),
        ("http: {debug: {prometheus: {enabled: false}}}", "http.debug.prometheus.enabled"),
    ],
)
def test_a_key_of_distributions_that_changes_nothing_is_a_notice(
    load_text: Load, added: str, key: str
) -> None:
    """It starts all the same, and says which key it passes over and why."""
    loaded = load_text(f"{MINIMAL}{added}\n")
    assert loaded.problems == ()
    assert loaded.config is not None
    (notice,) = loaded.notices
    assert (notice.file, notice.line, notice.key) == ("config.yml", 4, key)
    assert notice.message.startswith("ignored: ")


@pytest.mark.parametrize(
    "key",
    [
        "accelerate",
        "loglevel",
        "logs3apirequests",
        "logs3apiresponseheaders",
        "multipartcopychunksize",
        "multipartcopymaxconcurrency",
        "multipartcopythresholdsize",
        "objectacl",
        "sessiontoken",
        "usedualstack",
        "usefipsendpoint",
        "useragent",
        "v4auth",
    ],
)
def test_a_key_of_a_bucket_that_changes_nothing_is_a_notice(load_text: Load, key: str) -> None:
    """The same for what distribution's s3 driver, or a fork's, has beside."""
    loaded = load_text(
        f"{MINIMAL}cache: {{local: {{rootdirectory: /l}}}}\n"
        f"storage: {{s3: {{bucket: b, region: eu-1, {key}: x}}}}\n"
    )
    assert loaded.problems == ()
    (notice,) = loaded.notices
    assert (notice.line, notice.key) == (5, f"storage.s3.{key}")
    assert notice.message.startswith("ignored: ")


@pytest.mark.parametrize(
    "text",
    [
        "  username: a\n  password: [hunter2]",
        "  username: a\n  password: {hunter2: 1, hunter2: 2}",
        "  username: a\n  password: {hunter2: hunter2}",
        "  username: a\n  {password:hunter2}: x",
        "  {username: a, password:hunter2}: x",
        "  username: a\n  password: hunter2\n  passwordfile: hunter2",
        "  password: hunter2",
        "  passwrod: hunter2",
        "  tokenhosts: [hunter2/]",
        "storage: {s3: {accesskey: hunter2, secretkey: hunter2}}",
        "storage: {s3: {accesskey: [hunter2], secretkey: {hunter2: hunter2}}}",
        "storage: {s3: {secretkey: {hunter2: 1, hunter2: 2}}}",
        "storage: {s3: {sessiontoken: {hunter2: 1, hunter2: 2}}}",
        "storage: {s3: {secretkey: hunter2}}",
        "storage: {s3: {secretkey: *hunter2}}",
        "storage: {s3: {secretky: hunter2}}",
        "storage: {s3: {regionendpoint: 'http://a:hunter2@b'}}",
        "storage: {s3: hunter2}",
        "http: {secret: hunter2}",
        "  username: a\n  password: *hunter2",
        "  username: a\n  password: !hunter2 x",
        "  username: a\n  password: @hunter2",
        '  username: a\n  password: "hunter2\\hunter2"',
        "  username: a\n  password: hunter2: hunter2",
        "  username: a\n  password:hunter2",
        "redis: {password: hunter2}",
    ],
)
def test_no_secret_is_ever_repeated(load_text: Load, text: str) -> None:
    """Whatever slip was made around a password, no problem and no notice quotes it."""
    loaded = load_text(f"{MINIMAL}{text}\n")
    said = [str(finding) for finding in (*loaded.problems, *loaded.notices)]
    assert said
    assert not [line for line in said if "hunter2" in line]
