"""The cache's own login (section 2): htpasswd, on everything below /v2/."""

from __future__ import annotations

import base64
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import bcrypt
import pytest

from tests.conftest import CacheStarter, assert_quiet
from tests.fakes.cache import Cache, towards
from tests.fakes.client import Client, basic, together
from tests.fakes.content import digest_of, noise
from tests.fakes.faults import eventually
from tests.fakes.registry import FakeRegistry

REALM = "A region's cache"
DIGEST = digest_of(b"content")
LOGINS = {
    "node": "client-secret",
    "colon": "client-secret:with:colons",
    "ümlaut": "client-secret-pässwörd",
    "apache": "client-secret-2y",
    "old": "client-secret-2a",
}
PREFIXES = {"apache": "$2y$", "old": "$2a$"}

PATHS = [
    "",
    "_catalog",
    "project/app/manifests/v1",
    f"project/app/manifests/{DIGEST}",
    f"project/app/blobs/{DIGEST}",
    "project/app/tags/list",
    f"project/app/referrers/{DIGEST}",
    "no/such/path",
    "UPPER/manifests/v1",
]


def entry(user: str, password: str, *, cost: int = 4) -> str:
    """Return a line of htpasswd."""
    hashed = bcrypt.hashpw(password.encode(), bcrypt.gensalt(cost)).decode()
    return f"{user}:{PREFIXES.get(user, '$2b$')}{hashed[4:]}\n"


def htpasswd(path: Path) -> dict[str, Any]:
    """Return the configuration of a login by the file at ``path``."""
    return {"auth": {"htpasswd": {"realm": REALM, "path": str(path)}}}


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cache]:
    """Run a cache that wants a login, shared by the tests that leave its file alone."""
    directory = tmp_path_factory.mktemp("guarded")
    file = directory / "htpasswd"
    file.write_text("# who may pull\n\n" + "".join(entry(*login) for login in LOGINS.items()))
    with FakeRegistry() as registry:
        registry.put_image("project/app", layers=(noise(1000),))
        cache = Cache(directory, {**towards(registry.url), **htpasswd(file)})
        try:
            cache.start()
            yield cache
        finally:
            cache.close()
        assert_quiet(cache)


_ADDRESSES = itertools.count(1)


def elsewhere() -> str:
    """Return an address that no other test fails from: failures are slowed, address by address."""
    return f"127.9.{os.getpid() % 250}.{next(_ADDRESSES)}"


@pytest.mark.parametrize("path", PATHS)
def test_nothing_below_v2_without_a_login(guarded: Cache, path: str) -> None:
    """Every path, /v2/ itself included, is 401 with Basic's realm, for GET, HEAD and writes."""
    client = guarded.client(address=elsewhere())
    got = client.get(f"/v2/{path}")
    got.assert_error(401, "UNAUTHORIZED")
    assert got.header("WWW-Authenticate") == f'Basic realm="{REALM}"'
    assert got.header("Docker-Distribution-Api-Version") == "registry/2.0"
    assert got.request_id
    assert client.head(f"/v2/{path}").status == 401
    assert client.request("PUT", f"/v2/{path}", body=b"x").status in {401, 405}


@pytest.mark.parametrize(
    "authorization",
    [
        basic("node", "wrong"),
        basic("node", ""),
        basic("", "client-secret"),
        basic("nobody", "client-secret"),
        basic("Node", "client-secret"),
        basic("node", "client-secret "),
        basic("node", "x" * 5000),
        basic("node\n", "client-secret"),
        "Basic",
        "Basic !!!!",
        "Basic " + base64.b64encode(b"nocolon").decode(),
        "Basic " + base64.b64encode(b"\xff\xfe:\xff").decode(),
        "Basic " + base64.b64encode(b"node\0:client-secret\0").decode(),
        "Bearer client-secret",
        "client-secret",
    ],
)
def test_wrong_logins_are_401(guarded: Cache, authorization: str) -> None:
    """A wrong password, an unknown user or a header of no form is told the same as no login."""
    client = guarded.client(address=elsewhere())
    got = client.get("/v2/", {"Authorization": authorization})
    got.assert_error(401, "UNAUTHORIZED")
    assert got.header("WWW-Authenticate").startswith("Basic realm=")


@pytest.mark.parametrize("user", list(LOGINS))
def test_right_logins_are_let_in(guarded: Cache, user: str) -> None:
    """Each of bcrypt's prefixes, a password with colons and one beyond ASCII are right."""
    client = guarded.client(login=(user, LOGINS[user]))
    assert client.get("/v2/").status == 200
    assert client.get("/v2/project/app/manifests/v1").status == 200


def test_scheme_is_read_without_case(guarded: Cache) -> None:
    """RFC 7617: "basic" is "Basic"."""
    header = basic("node", "client-secret").replace("Basic", "bAsIc")
    assert guarded.client().get("/v2/", {"Authorization": header}).status == 200


@pytest.mark.parametrize("path", ["/livez", "/readyz"])
def test_health_needs_no_login(guarded: Cache, path: str) -> None:
    """An orchestrator asks without a login, on the main port and on the debug port."""
    assert guarded.client().get(path).status == 200
    assert Client(guarded.debug_port).get(path).status == 200


def test_a_verified_login_is_remembered_per_password(guarded: Cache) -> None:
    """A right login that was seen does not let in a wrong one of the same user."""
    assert guarded.client(login=("node", "client-secret")).get("/v2/").status == 200
    for password in ("wrong", "client-secret2", "client-secre"):
        client = guarded.client(login=("node", password), address=elsewhere())
        assert client.get("/v2/").status == 401


def test_failures_do_not_shut_out_a_good_login(guarded: Cache) -> None:
    """After many wrong ones from the same address, and while more come, a right one is served."""
    before = guarded.client(login=("colon", LOGINS["colon"])).get("/v2/").status

    def attempt(number: int) -> int:
        if number < 12:
            return guarded.client(login=("node", f"wrong {number}")).get("/v2/").status
        return guarded.client(login=("node", "client-secret")).get("/v2/").status

    assert together(16, attempt) == [401] * 12 + [200] * 4
    never_seen = guarded.client(login=("apache", LOGINS["apache"])).get("/v2/").status
    assert (before, never_seen) == (200, 200)


Guard = Callable[..., tuple[Cache, Path]]


@pytest.fixture
def guard(tmp_path: Path, start_cache: CacheStarter) -> Guard:
    """Start a cache whose htpasswd file the test may change."""

    def start(text: str, **proxy: Any) -> tuple[Cache, Path]:
        file = tmp_path / "htpasswd"
        file.write_text(text)
        return start_cache(htpasswd(file), **proxy), file

    return start


def test_bcrypt_runs_once_a_login(guard: Guard) -> None:
    """Two hundred requests with a hash of cost 12 (50 s of bcrypt, each verified) soon end."""
    cache, _ = guard(entry("node", "client-secret", cost=12))
    client = cache.client(login=("node", "client-secret"), timeout=20)
    assert together(8, lambda _: {client.get("/v2/").status for _ in range(25)}) == [{200}] * 8


@pytest.mark.parametrize("hangup", [False, True])
def test_changed_file_counts_without_a_restart(guard: Guard, hangup: bool) -> None:
    """A new user comes in, a removed one and an old password stay out; SIGHUP is not needed."""
    cache, file = guard(entry("leaver", "client-secret") + entry("node", "client-secret-1"))
    leaver = cache.client(login=("leaver", "client-secret"))
    old = cache.client(login=("node", "client-secret-1"))
    new = cache.client(login=("node", "client-secret-2"))
    joiner = cache.client(login=("joiner", "client-secret"))
    assert [each.get("/v2/").status for each in (leaver, old)] == [200, 200]
    file.write_text(entry("joiner", "client-secret") + entry("node", "client-secret-2"))
    if hangup:
        cache.reload()
    eventually(lambda: leaver.get("/v2/").status == 401, "the end of the old user")
    assert joiner.get("/v2/").status == 200
    statuses = [each.get("/v2/").status for each in (leaver, old, new)]
    assert statuses == [401, 401, 200]


def test_file_that_goes_away_opens_nothing(guard: Guard) -> None:
    """While the file is missing or being written anew, nobody unknown comes in."""
    cache, file = guard(entry("node", "client-secret"))
    file.unlink()
    cache.reload()

    def stranger() -> int:
        login = ("stranger", "client-secret")
        return cache.client(login=login, address=elsewhere()).get("/v2/").status

    assert {stranger() for _ in range(10)} <= {401, 503}
    assert cache.client(address=elsewhere()).get("/v2/").status in {401, 503}
    file.write_text(entry("stranger", "client-secret"))
    eventually(lambda: stranger() == 200, "the user of the new file")


def test_without_auth_it_is_open_and_says_so(start_cache: CacheStarter) -> None:
    """No auth section: nobody is asked for a login, and the log warns at start."""
    cache = start_cache()
    assert cache.client().get("/v2/").status == 200
    warnings = [
        str(line) for line in cache.log_lines() if str(line.get("level")).startswith("warn")
    ]
    assert any("auth" in warning or "login" in warning for warning in warnings), warnings
