"""The upstream (section 3): its limits, retries, the breaker, and its TLS."""

from __future__ import annotations

import socket
import ssl
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import CacheStarter
from tests.contract.conftest import Region
from tests.fakes.cache import IMPATIENT, Cache, towards
from tests.fakes.client import together
from tests.fakes.content import MIB, noise
from tests.fakes.faults import Fault, Gate, answer, eventually
from tests.fakes.registry import FakeRegistry

TOKENS = "/service/token"
PATIENCE = b'{"errors":[{"code":"TOOMANYREQUESTS","message":"slow"}]}'


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
        cache = start_cache(remoteurl=f"http://127.0.0.1:{deaf.getsockname()[1]}", **IMPATIENT)
        cache.client(timeout=25).manifest("project/app", "v1").assert_unavailable()


def test_no_limit_on_a_whole_transfer(registry: FakeRegistry, start_cache: CacheStarter) -> None:
    """A link so slow that a blob takes longer than every limit together still brings it."""
    image = registry.put_image("project/app", layers=(noise(MIB),))
    cache = start_cache(**IMPATIENT)
    registry.inject(Fault(path=f".*{image.layer}", rate=MIB // 2))
    cache.client().pull(image)
    assert len(registry.fetches(f".*{image.layer}")) == 1


def test_stall_is_a_break(registry: FakeRegistry, start_cache: CacheStarter) -> None:
    """A transfer that stops for longer than the stall limit goes on from where it was."""
    image = registry.put_image("project/app", layers=(noise(2 * MIB),))
    registry.inject(Fault(path=f".*{image.layer}", hold=Gate(), hold_at=MIB, times=1))
    start_cache(**IMPATIENT).client().pull(image)
    first, second = registry.fetches(f".*{image.layer}")
    assert "Range" not in first.headers
    assert second.headers["Range"] == f"bytes={MIB}-"


@pytest.mark.parametrize("status", [500, 502, 503, 504])
@pytest.mark.parametrize("what", ["manifests", "blobs"])
def test_passing_trouble_is_tried_again(
    region: Region, repository: str, status: int, what: str
) -> None:
    """One 5xx in the middle of a cold pull is not the client's affair."""
    image = region.registry.put_image(repository, layers=(noise(5000),))
    path = f"/v2/{repository}/{what}/.*"
    trouble = answer(status, b"oops", path=path, content_type="text/plain")
    trouble.times = 1
    region.registry.inject(trouble)
    region.client.pull(image)
    assert trouble.hits == 1


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
    client = start_cache(**IMPATIENT).client()
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
