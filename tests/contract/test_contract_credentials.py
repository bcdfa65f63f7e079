"""The upstream's logins (section 3): tokens, Basic, and whom a credential is shown."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import CacheStarter
from tests.fakes.content import MIB, noise
from tests.fakes.faults import Fault, Gate, eventually
from tests.fakes.logins import Login
from tests.fakes.registry import FakeRegistry

TOKENS = "/service/token"
PATIENCE = b'{"errors":[{"code":"TOOMANYREQUESTS","message":"slow"}]}'


def logins_seen(registry: FakeRegistry) -> int:
    """Return how often a password was shown to the upstream."""
    return sum(seen.headers.get("Authorization", "").startswith("Basic") for seen in registry.seen)


@pytest.mark.parametrize("login", list(Login))
def test_each_kind_of_login(
    registry: FakeRegistry, start_cache: CacheStarter, login: Login
) -> None:
    """Images are pulled from a registry that wants a token, a Basic login, or none."""
    registry.desk.login = login
    image = registry.put_image("project/app", layers=(noise(5000),), index=True)
    start_cache().client().pull(image)


def test_anonymous_upstream_needs_no_credential(
    registry: FakeRegistry, start_cache: CacheStarter
) -> None:
    """Without a username in the configuration, nothing is sent as one."""
    registry.desk.login = Login.NONE
    image = registry.put_image("project/app")
    start_cache(username=None, password=None).client().pull(image)
    assert not any("Authorization" in seen.headers for seen in registry.seen)


def test_password_from_a_file(
    registry: FakeRegistry, start_cache: CacheStarter, tmp_path: Path
) -> None:
    """proxy.passwordfile is the password, without the newline at its end."""
    file = tmp_path / "password"
    file.write_text("upstream-secret\n")
    image = registry.put_image("project/app")
    start_cache(password=None, passwordfile=str(file)).client().pull(image)


@pytest.mark.parametrize("fields", [("token",), ("access_token", "issued_at")])
def test_sparse_tokens_are_good(
    registry: FakeRegistry, start_cache: CacheStarter, fields: tuple[str, ...]
) -> None:
    """Other registries leave out the token's life or its start, or call it access_token."""
    registry.desk.token_fields = fields
    image = registry.put_image("project/app", layers=(noise(5000),))
    start_cache().client().pull(image)


def test_one_token_serves_all_who_wait(registry: FakeRegistry, start_cache: CacheStarter) -> None:
    """Eight cold pulls from one repository, at once and again later, cost one token."""
    images = [registry.put_image("project/app", f"v{number}") for number in range(8)]
    gate = Gate()
    registry.inject(Fault(path=TOKENS, hold=gate))
    client = start_cache().client()
    with ThreadPoolExecutor(8) as pool:
        pulls = [pool.submit(client.pull, image) for image in images]
        gate.wait_for()
        gate.open()
        for pull in pulls:
            pull.result(30)
    client.pull(images[0])
    assert registry.count(path=TOKENS) == 1


def test_tokens_are_kept_per_repository(registry: FakeRegistry, start_cache: CacheStarter) -> None:
    """A second repository's token does not push out the first one's."""
    images = [registry.put_image(f"project/{name}") for name in ("a", "b")]
    client = start_cache().client()
    for image in images * 3:
        client.pull(image)
    assert registry.count(path=TOKENS) == 2


def test_token_that_ran_out_is_fetched_anew(
    registry: FakeRegistry, start_cache: CacheStarter
) -> None:
    """A token that the upstream no longer takes is replaced, and the client sees nothing of it."""
    image = registry.put_image("project/app")
    client = start_cache().client()
    client.pull(image)
    registry.desk.tokens.clear()
    registry.tag("project/app", "v1", registry.put_image("project/app", "v2").digest)
    got = client.manifest("project/app", "v1")
    assert (got.status, got.is_stale) == (200, False)
    assert got.header("Docker-Content-Digest") != image.digest
    assert registry.count(path=TOKENS) == 2


def test_refused_fresh_token_gets_a_second(
    registry: FakeRegistry, start_cache: CacheStarter
) -> None:
    """Harbor HA: the first use of a token is 401 on a replica with another key."""
    registry.desk.glitches = 1
    image = registry.put_image("project/app", layers=(noise(5000),))
    start_cache().client().pull(image)


def test_basic_is_the_way_out_when_tokens_fail(
    registry: FakeRegistry, start_cache: CacheStarter
) -> None:
    """Where every token is refused, Harbor's Basic login is used."""
    registry.desk.refuse_tokens = True
    image = registry.put_image("project/app", layers=(noise(5000),))
    start_cache().client().pull(image)


def test_token_is_never_in_an_address(registry: FakeRegistry, start_cache: CacheStarter) -> None:
    """The token service is asked by GET with the login in a header, and nothing in the query."""
    image = registry.put_image("project/app")
    start_cache().client().pull(image)
    (asked,) = registry.requests(path=TOKENS)
    assert asked.headers["Authorization"].startswith("Basic ")
    assert asked.query["scope"] == "repository:project/app:pull"
    assert asked.query["service"] == "harbor-registry"
    assert "upstream-secret" not in str(asked.query)


def test_refused_credential_is_rested(registry: FakeRegistry, start_cache: CacheStarter) -> None:
    """A wrong password is soon shown no more, and what is here is served meanwhile."""
    image = registry.put_image("project/app", layers=(noise(5000),))
    cache = start_cache()
    client = cache.client()
    client.pull(image)
    registry.desk.tokens.clear()
    registry.desk.password = "another"
    for number in range(15):
        got = client.manifest(f"project/app{number}", "v1")
        got.assert_error({401, 403, 502, 503, 504})
    shown = logins_seen(registry)
    for number in range(15, 30):
        client.manifest(f"project/app{number}", "v1").assert_error({401, 403, 502, 503, 504})
    assert logins_seen(registry) - shown <= 2
    stale = client.manifest("project/app", "v1")
    assert (stale.status, stale.body, stale.is_stale) == (200, image.top.content, True)
    client.pull(image)
    assert sum(cache.metric(word) for word in ("refused", "fail", "unauthorized")) > 0


def test_new_credential_counts_after_sighup(
    registry: FakeRegistry, start_cache: CacheStarter, tmp_path: Path
) -> None:
    """A rested credential is forgotten when SIGHUP brings a new one."""
    file = tmp_path / "password"
    file.write_text("old-secret")
    image = registry.put_image("project/app")
    cache = start_cache(password=None, passwordfile=str(file))
    for _ in range(10):
        assert cache.client().manifest("project/app", "v1").status >= 400
    file.write_text("upstream-secret")
    cache.reload()
    eventually(lambda: cache.client().manifest("project/app", "v1").status == 200, "a pull")
    cache.client().pull(image)


def test_missing_projects_do_not_rest_the_credential(
    registry: FakeRegistry, start_cache: CacheStarter
) -> None:
    """Harbor's 401 for a project that is not there is about the project: a typo stops nobody."""
    image = registry.put_image("project/app")
    client = start_cache().client()
    for number in range(12):
        got = client.manifest(f"missing{number}/app", "v1")
        got.assert_error({401, 403, 404, 502, 503, 504})
    client.pull(image)
    assert not client.manifest("project/app", "v1").is_stale


def test_redirected_blobs_lose_the_login(registry: FakeRegistry, start_cache: CacheStarter) -> None:
    """A 307 to an object store is followed without Authorization."""
    registry.redirect_blobs = True
    image = registry.put_image("project/app", layers=(noise(MIB),))
    start_cache().client().pull(image)
    stored = registry.requests(path="/bucket/.*")
    assert len(stored) == len(image.blobs)
    assert not any("Authorization" in seen.headers for seen in stored)


def test_redirected_blob_is_resumed(registry: FakeRegistry, start_cache: CacheStarter) -> None:
    """A break at the object store is mended there too."""
    registry.redirect_blobs = True
    image = registry.put_image("project/app", layers=(noise(2 * MIB),))
    registry.inject(Fault(path=f"/bucket/{image.layer}", cut_after=MIB, times=1))
    start_cache().client().pull(image)
    assert registry.bytes_sent(f"/bucket/{image.layer}") < 2.2 * MIB


def test_credentials_go_to_no_other_host(registry: FakeRegistry, start_cache: CacheStarter) -> None:
    """A realm or a redirect on another host sees no Authorization."""
    image = registry.put_image("project/app")
    cache = start_cache()
    with FakeRegistry(login=Login.NONE, host="127.0.0.2") as other:
        other.repositories = registry.repositories
        registry.desk.realm = f"{other.url}/service/token"
        cache.client().manifest("project/app", "v1")
        assert not any("Authorization" in seen.headers for seen in other.seen)
        registry.desk.realm = None
        away = {"Location": f"{other.url}/v2/project/app/blobs/{image.layer}"}
        registry.inject(Fault(path=".*/blobs/.*", status=307, headers=away))
        cache.client().blob("project/app", image.layer)
        assert not any("Authorization" in seen.headers for seen in other.seen)
