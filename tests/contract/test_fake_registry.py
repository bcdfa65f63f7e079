"""The scriptable registry does what the other tests of this directory rely on."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.fakes.client import Answer, Client, basic
from tests.fakes.content import MIB, digest_of, noise
from tests.fakes.faults import Fault, Gate, answer, portal
from tests.fakes.logins import Login
from tests.fakes.registry import FakeRegistry

RIGHT = ("robot$region", "upstream-secret")


def token(client: Client, login: tuple[str, str], scope: str) -> dict[str, str]:
    """Return the header of a token for ``scope``."""
    path = f"/service/token?service=harbor-registry&scope={scope}"
    got = client.get(path, {"Authorization": basic(*login)})
    assert got.status == 200
    return {"Authorization": f"Bearer {got.json()['token']}"}


def test_bearer_login_lets_a_robot_in_and_nobody_else(registry: FakeRegistry) -> None:
    """Harbor's flow: a challenge, a token; a wrong password's token is given, and opens nothing."""
    image = registry.put_image("project/app")
    client = Client(registry.port)
    path = "/v2/project/app/manifests/v1"
    refused = client.get(path)
    assert refused.status == 401
    assert f'realm="{registry.url}/service/token"' in refused.header("WWW-Authenticate")
    scope = "repository:project/app:pull"
    assert client.get(path, token(client, RIGHT, scope)).body == image.top.content
    assert client.get(path, token(client, ("robot$region", "wrong"), scope)).status == 401
    assert client.get(path, {"Authorization": basic(*RIGHT)}).status == 200


def test_missing_project_and_missing_repository_differ(registry: FakeRegistry) -> None:
    """Harbor says 401 with an empty challenge for one, and 404 NOT_FOUND for the other."""
    registry.put_image("project/app")
    client = Client(registry.port, login=RIGHT)
    project = client.get("/v2/nowhere/app/manifests/v1")
    assert (project.status, project.headers["WWW-Authenticate"]) == (401, "")
    missing = client.get("/v2/project/none/manifests/v1")
    assert (missing.status, missing.json()["errors"][0]["code"]) == (404, "NOT_FOUND")


@pytest.fixture
def plain() -> Iterator[FakeRegistry]:
    """Run a registry without a login."""
    with FakeRegistry(login=Login.NONE) as running:
        yield running


def fetch(registry: FakeRegistry, digest: str, wanted: str | None = None) -> Answer:
    return Client(registry.port, timeout=5).blob("project/app", digest, range_=wanted)


def test_body_faults_break_what_they_name(plain: FakeRegistry) -> None:
    """Cut, short, chunked, corrupt and range faults reach the client as they are meant."""
    content = noise(MIB)
    digest = plain.put_blob("project/app", content)
    with plain.inject(Fault(cut_after=300_000)):
        cut = fetch(plain, digest)
        assert (cut.complete, cut.body) == (False, content[:300_000])
    with plain.inject(Fault(end_after=1000)):
        short = fetch(plain, digest)
        assert (short.complete, short.header("Content-Length")) == (True, "1000")
    with plain.inject(Fault(end_after=1000, chunked=True)):
        short = fetch(plain, digest)
        assert (short.complete, len(short.body)) == (True, 1000)
        assert "Content-Length" not in short.headers
    with plain.inject(Fault(corrupt_at=500)):
        assert digest_of(fetch(plain, digest).body) != digest
        assert fetch(plain, digest, "bytes=0-499").body == content[:500]
    with plain.inject(Fault(ignore_range=True)):
        assert fetch(plain, digest, "bytes=500-").status == 200
    with plain.inject(Fault(content_range="bytes 0-9/10")):
        assert fetch(plain, digest, "bytes=500-").header("Content-Range") == "bytes 0-9/10"
    assert fetch(plain, digest).body == content
    assert fetch(plain, digest, "bytes=-3").body == content[-3:]
    assert fetch(plain, digest, f"bytes={MIB}-").status == 416


def test_connection_faults_break_what_they_name(plain: FakeRegistry) -> None:
    """Refused, silent, reset, portal and a few answers of every other kind."""
    digest = plain.put_blob("project/app", b"content")
    plain.refuse()
    with pytest.raises(ConnectionRefusedError):
        fetch(plain, digest)
    plain.accept()
    with plain.inject(Fault(silent=True)), pytest.raises(TimeoutError):
        Client(plain.port, timeout=0.1).blob("project/app", digest)
    with plain.inject(Fault(reset=True)), pytest.raises(ConnectionError):
        fetch(plain, digest)
    with plain.inject(portal(302)):
        assert fetch(plain, digest).status == 302
    plain.inject(answer(503)).times = 1
    assert [fetch(plain, digest).status for _ in range(2)] == [503, 200]
    assert plain.bytes_sent(".*/blobs/.*") == len(b"content")


def test_gate_holds_an_answer_in_its_middle(plain: FakeRegistry) -> None:
    """A held body gives what comes before the gate, and the rest once it is open."""
    content = noise(MIB)
    digest = plain.put_blob("project/app", content)
    gate = Gate()
    plain.inject(Fault(hold=gate, hold_at=1000))
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(fetch, plain, digest)
        gate.wait_for()
        assert plain.bytes_sent() == 1000
        gate.open()
        assert coming.result(10).body == content


def test_object_store_wants_no_login(registry: FakeRegistry) -> None:
    """A redirected blob is served on another port, for the signed method, without a login."""
    digest = registry.put_blob("project/app", b"content")
    registry.redirect_blobs = True
    client = Client(registry.port, login=RIGHT)
    location = client.blob("project/app", digest).header("Location")
    host, _, path = location.removeprefix("http://").partition("/")
    store = Client(int(host.partition(":")[2]))
    assert store.get("/" + path).body == b"content"
    assert store.head("/" + path).status == 403
    assert store.get("/" + path, {"Authorization": basic(*RIGHT)}).status == 400
