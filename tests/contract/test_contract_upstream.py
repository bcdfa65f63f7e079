"""The upstream (section 3): its logins, its redirects, its limits, retries and the breaker."""

from __future__ import annotations

import socket
import ssl
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import CacheStarter
from tests.fakes.cache import Cache, towards
from tests.fakes.client import together
from tests.fakes.content import MIB, noise
from tests.fakes.faults import Fault, Gate, answer, eventually
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
    assert cache.metric("fail") > 0


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


def test_redirects_do_not_go_on_for_ever(registry: FakeRegistry, start_cache: CacheStarter) -> None:
    """A redirect to itself ends, as an upstream that gives no content."""
    image = registry.put_image("project/app")
    path = f"/v2/project/app/blobs/{image.layer}"
    registry.inject(Fault(path=path, status=307, headers={"Location": f"{registry.url}{path}"}))
    start_cache().client().blob("project/app", image.layer).assert_unavailable()
    assert registry.count(path=path) < 100


def test_upstream_is_not_asked_at_start(registry: FakeRegistry, start_cache: CacheStarter) -> None:
    """Start, health and metrics need no upstream."""
    cache = start_cache()
    assert cache.client().get("/readyz").status == 200
    cache.metric_families()
    assert registry.seen == []


def test_start_with_the_upstream_down(registry: FakeRegistry, start_cache: CacheStarter) -> None:
    """It starts, says what is unavailable, and pulls once the upstream is there."""
    image = registry.put_image("project/app", layers=(noise(5000),))
    registry.refuse()
    client = start_cache().client()
    client.manifest("project/app", "v1").assert_unavailable()
    client.blob("project/app", image.layer).assert_unavailable()
    registry.accept()
    eventually(lambda: client.manifest("project/app", "v1").status == 200, "a pull", seconds=60)
    client.pull(image)


def test_connecting_has_its_own_limit(start_cache: CacheStarter) -> None:
    """An upstream that drops packets costs the connect limit, not the client's patience."""
    with ExitStack() as sockets:
        deaf = sockets.enter_context(socket.socket())
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        # With its queue full, Linux drops every further SYN.
        for _ in range(4):
            caller = sockets.enter_context(socket.socket())
            caller.setblocking(False)
            caller.connect_ex(deaf.getsockname())
        cache = start_cache({"proxy": {"remoteurl": f"http://127.0.0.1:{deaf.getsockname()[1]}"}})
        cache.client(timeout=25).manifest("project/app", "v1").assert_unavailable()


def test_no_limit_on_a_whole_transfer(registry: FakeRegistry, start_cache: CacheStarter) -> None:
    """A link so slow that a blob takes longer than every limit together still brings it."""
    image = registry.put_image("project/app", layers=(noise(MIB),))
    cache = start_cache(timeouts={"connect": "500ms", "firstbyte": "500ms", "stall": "500ms"})
    registry.inject(Fault(path=f".*{image.layer}", rate=MIB // 3))
    cache.client().pull(image)
    assert registry.count("GET", f".*{image.layer}") == 1


def test_stall_is_a_break(registry: FakeRegistry, start_cache: CacheStarter) -> None:
    """A transfer that stops for longer than the stall limit goes on from where it was."""
    image = registry.put_image("project/app", layers=(noise(2 * MIB),))
    registry.inject(Fault(path=f".*{image.layer}", hold=Gate(), hold_at=MIB, times=1))
    start_cache().client().pull(image)
    first, second = registry.requests("GET", f".*{image.layer}")
    assert "Range" not in first.headers
    assert second.headers["Range"] == f"bytes={MIB}-"


@pytest.mark.parametrize("status", [500, 502, 503, 504])
@pytest.mark.parametrize("what", ["manifests", "blobs"])
def test_passing_trouble_is_tried_again(
    registry: FakeRegistry, start_cache: CacheStarter, status: int, what: str
) -> None:
    """One 5xx in the middle of a cold pull is not the client's affair."""
    image = registry.put_image("project/app", layers=(noise(5000),))
    trouble = answer(status, b"oops", path=f".*/{what}/.*", content_type="text/plain")
    trouble.times = 1
    registry.inject(trouble)
    start_cache().client().pull(image)


def test_trying_again_is_bounded(registry: FakeRegistry, start_cache: CacheStarter) -> None:
    """An upstream that only fails is not hammered for one client's sake."""
    registry.put_image("project/app")
    registry.inject(answer(503, path="/v2/.*"))
    start_cache().client().manifest("project/app", "v1").assert_unavailable()
    assert registry.count(path="/v2/.*") <= 12


def test_429_is_honoured(registry: FakeRegistry, start_cache: CacheStarter) -> None:
    """The next try comes no earlier than Retry-After says."""
    image = registry.put_image("project/app")
    headers = {"Retry-After": "1", "Content-Type": "application/json"}
    fault = Fault(path=".*/manifests/.*", status=429, headers=headers, body=PATIENCE, times=1)
    registry.inject(fault)
    start_cache().client().pull(image)
    tries = registry.requests(path=".*/manifests/.*")
    refused = next(index for index, seen in enumerate(tries) if seen.status == 429)
    assert tries[refused + 1].at - tries[refused].at >= 0.95


def test_long_429_is_passed_on(registry: FakeRegistry, start_cache: CacheStarter) -> None:
    """Where the upstream wants an hour's patience, the client is told so at once."""
    registry.put_image("project/app")
    headers = {"Retry-After": "3600", "Content-Type": "application/json"}
    registry.inject(Fault(path=".*/manifests/.*", status=429, headers=headers, body=PATIENCE))
    got = start_cache().client(timeout=20).manifest("project/app", "v1")
    got.assert_error({429, 503}, "TOOMANYREQUESTS", "UNAVAILABLE")
    assert 0 < int(got.header("Retry-After")) <= 3600


def test_policy_refusal_is_told(registry: FakeRegistry, start_cache: CacheStarter) -> None:
    """Harbor's 412 (a vulnerability policy) reaches the client as a denial, not as an outage."""
    registry.put_image("project/app")
    body = b'{"errors":[{"code":"PROJECTPOLICYVIOLATION","message":"critical"}]}'
    registry.inject(answer(412, body, path=".*/manifests/.*"))
    start_cache().client().manifest("project/app", "v1").assert_error({403, 412}, "DENIED")


def test_breaker_spares_a_dead_upstream(registry: FakeRegistry, start_cache: CacheStarter) -> None:
    """After a few failures cached answers come without asking; one probe finds it back."""
    image = registry.put_image("project/app", layers=(noise(1000),))
    client = start_cache().client()
    client.pull(image)
    registry.forget()
    trouble = registry.inject(answer(503, path="/v2/.*"))
    for _ in range(40):
        got = client.manifest("project/app", "v1")
        assert (got.status, got.body, got.is_stale) == (200, image.top.content, True)
    assert registry.count(path="/v2/.*") <= 20
    trouble.heal()
    moved = registry.put_image("project/app")
    eventually(
        lambda: client.manifest("project/app", "v1").body == moved.top.content,
        "the moved tag, once a probe has found the upstream",
        seconds=60,
    )


def test_breaker_probes_one_at_a_time(registry: FakeRegistry, start_cache: CacheStarter) -> None:
    """However many ask while it is open, a silent upstream has one request at most to answer."""
    images = [registry.put_image("project/app", f"v{number}") for number in range(8)]
    client = start_cache(freshness={"maxage": "0s", "deadline": "200ms"}).client()
    for image in images:
        client.pull(image)
    registry.inject(Fault(path="/v2/.*", silent=True))
    for image in images:
        assert client.manifest("project/app", image.tag).is_stale
    registry.forget()
    assert all(
        got.is_stale for got in together(32, lambda n: client.manifest("project/app", f"v{n % 8}"))
    )
    assert registry.count() <= 1


def test_resolve_leads_past_the_hosts_file(start_cache: CacheStarter) -> None:
    """proxy.resolve gives the address; Host, and so Harbor's realm, stay the name's."""
    with FakeRegistry() as upstream:
        image = upstream.put_image("project/app", layers=(noise(5000),))
        config = towards(
            f"http://harbor.example.com:{upstream.port}",
            resolve={"harbor.example.com": "127.0.0.1"},
        )
        start_cache(config).client().pull(image)
        assert {seen.headers["Host"] for seen in upstream.seen} == {
            f"harbor.example.com:{upstream.port}"
        }


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Make a certificate of harbor.example.com, its own authority, and its key."""
    directory = tmp_path_factory.mktemp("tls")
    key, certificate = directory / "key.pem", directory / "certificate.pem"
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 "
        f"-subj /CN=harbor.example.com -addext subjectAltName=DNS:harbor.example.com "
        f"-keyout {key} -out {certificate}"
    )
    try:
        subprocess.run(command.split(), check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("no openssl to make a certificate with")
    return certificate, key


@pytest.mark.parametrize(
    ("name", "trust", "works"),
    [
        ("harbor.example.com", "cafile", True),
        ("harbor.example.com", "skipverify", True),
        ("harbor.example.com", "nothing", False),
        ("other.example.com", "cafile", False),
    ],
)
def test_tls_name_is_verified(
    start_cache: CacheStarter, certificate: tuple[Path, Path], name: str, trust: str, works: bool
) -> None:
    """A certificate counts for its own name and from a known authority, unless told otherwise."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    proxy: dict[str, Any] = {"resolve": {name: "127.0.0.1"}}
    if trust == "cafile":
        proxy["cafile"] = str(certificate[0])
    if trust == "skipverify":
        proxy["skipverify"] = True
    with FakeRegistry(tls=context) as upstream:
        image = upstream.put_image("project/app", layers=(noise(5000),))
        cache: Cache = start_cache(towards(f"https://{name}:{upstream.port}", **proxy))
        if works:
            cache.client().pull(image)
        else:
            cache.client().manifest("project/app", "v1").assert_unavailable()
            assert upstream.seen == []
