"""Running it (section 7): health, metrics, logs, reload, drain; and the field's configuration."""

from __future__ import annotations

import http.client
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import bcrypt
import pytest

from tests.conftest import CacheStarter
from tests.contract.conftest import Region
from tests.fakes.cache import ROOT, Cache, towards
from tests.fakes.client import Client
from tests.fakes.content import MIB, noise
from tests.fakes.faults import Fault, Gate, eventually
from tests.fakes.registry import FakeRegistry


@pytest.mark.parametrize("path", ["/livez", "/readyz"])
def test_health_is_on_both_ports(region: Region, path: str) -> None:
    """Liveness and readiness are told to whoever asks, by GET and HEAD."""
    for port in (region.cache.port, region.cache.debug_port):
        for method in ("GET", "HEAD"):
            assert Client(port).request(method, path).status == 200


def test_ready_without_an_upstream(registry: FakeRegistry, start_cache: CacheStarter) -> None:
    """A region whose link is dead still serves, so it must not be taken out of service."""
    image = registry.put_image("project/app")
    cache = start_cache()
    cache.client().pull(image)
    registry.refuse()
    for _ in range(10):
        assert cache.client().manifest("project/app", "v1").is_stale
    assert cache.client().get("/readyz").status == 200
    assert cache.client().get("/livez").status == 200


def test_ready_says_how_much_is_kept(registry: FakeRegistry, start_cache: CacheStarter) -> None:
    """What is kept, and what may be, is told to whoever asks, and decides nothing."""
    image = registry.put_image("project/app", layers=(noise(300_000),))
    cache = start_cache({"cache": {"quota": "1GiB", "pin": ["project/app"]}})
    cache.client().pull(image)
    size = sum(map(len, [image.top.content, *image.blobs.values()]))

    def details() -> dict[str, Any]:
        told: dict[str, Any] = cache.client().get("/readyz").json()
        return told

    eventually(lambda: details().get("stored_bytes") == size, "how much is kept")
    assert details() == {
        "ready": True,
        "store": "ok",
        "upstream": "up",
        "draining": False,
        "stored_bytes": size,
        "quota_bytes": 1024**3,
        "pinned": "ok",
    }


def test_ready_says_nothing_of_bounds_that_are_not_there(start_cache: CacheStarter) -> None:
    """Without a quota and a bucket there is only what is kept."""
    cache = start_cache()

    def told() -> set[str]:
        return set(cache.client().get("/readyz").json())

    eventually(lambda: "stored_bytes" in told(), "the keeper's word")
    assert told() == {"ready", "store", "upstream", "draining", "stored_bytes"}


def test_access_line_has_what_an_operator_looks_for(
    registry: FakeRegistry, start_cache: CacheStarter, tmp_path: Path
) -> None:
    """One JSON line a request: user, route, status, bytes, duration, cache outcome, request id."""
    hashed = bcrypt.hashpw(b"client-secret", bcrypt.gensalt(4)).decode()
    file = tmp_path / "htpasswd"
    file.write_text(f"node-7:{hashed}\n")
    auth = {"auth": {"htpasswd": {"realm": "region", "path": str(file)}}}
    image = registry.put_image("project/app", layers=(noise(4321),))
    cache = start_cache(auth)
    client = cache.client(login=("node-7", "client-secret"))
    for outcome in ("miss", "hit"):
        got = client.blob("project/app", image.layer)
        eventually(lambda: "hit" in client.blob("project/app", image.layer).cache_status, "a hit")
        line = cache.log_line(got.request_id)
        values = list(line.values())
        assert "node-7" in values
        assert 200 in values
        assert 4321 in values
        assert any("blob" in str(value) for value in values)
        assert any(outcome in str(value) for value in values)
        assert any("duration" in name or "elapsed" in name for name in line)
    refused = cache.client().get("/v2/")
    assert 401 in cache.log_line(refused.request_id).values()
    broken = client.get("/v2/UPPER/manifests/v1")
    assert 400 in cache.log_line(broken.request_id).values()


def test_each_request_has_one_access_line(
    registry: FakeRegistry, start_cache: CacheStarter
) -> None:
    """As many lines as requests, and each with its own id."""
    registry.put_image("project/app")
    cache = start_cache()
    ids = [cache.client().manifest("project/app", "v1").request_id for _ in range(5)]
    for each in ids:
        cache.log_line(each)
    access = [line for line in cache.log_lines() if 200 in line.values()]
    assert [line for line in access if set(ids) & {str(value) for value in line.values()}]
    for each in ids:
        assert sum(each in line.values() for line in access) == 1


def test_text_log_has_the_same(registry: FakeRegistry, start_cache: CacheStarter) -> None:
    """formatter: text is for people; the request id is in it all the same."""
    registry.put_image("project/app")
    cache = start_cache({"log": {"formatter": "text"}})
    got = cache.client().manifest("project/app", "v1")
    line = eventually(
        lambda: [line for line in cache.log_text().splitlines() if got.request_id in line],
        "the access line",
    )[0]
    assert "200" in line
    assert cache.log_lines() == []


def test_fields_of_the_configuration_are_on_every_line(start_cache: CacheStarter) -> None:
    """log.fields, as distribution has it, marks every line."""
    cache = start_cache({"log": {"fields": {"service": "registry-sg"}}})
    got = cache.client().get("/v2/")
    cache.log_line(got.request_id)
    assert all(line.get("service") == "registry-sg" for line in cache.log_lines())


def test_sighup_changes_the_log_level(registry: FakeRegistry, start_cache: CacheStarter) -> None:
    """A level of debug counts after SIGHUP, without a restart."""
    registry.put_image("project/app")
    cache = start_cache({"log": {"level": "error"}, "http": {"workers": 2}})

    def details() -> bool:
        """Whether a line below "warning" was written, access lines aside."""
        assert cache.client().get("/v2/").status == 200
        cache.client().manifest("project/none", "v1")
        return any(
            line["level"] in {"info", "debug"} and not {200, 404} & set(line.values())
            for line in cache.log_lines()
        )

    assert not details()
    cache.configure({"log": {"level": "debug"}})
    cache.reload()
    eventually(details, "a line of level info or debug")


def test_broken_configuration_at_sighup_stops_nothing(start_cache: CacheStarter) -> None:
    """A file that does not parse at SIGHUP is told of, and the old settings go on."""
    cache = start_cache()
    pids = cache.pids()
    (cache.directory / "config.yml").write_text("version: [0.1\n")
    cache.reload()
    eventually(lambda: "config.yml" in cache.log_text(), "word of the broken file")
    assert cache.client().get("/v2/").status == 200
    assert cache.pids() == pids


@pytest.mark.parametrize("workers", [1, 2])
def test_sigterm_drains_what_is_under_way(
    registry: FakeRegistry, start_cache: CacheStarter, workers: int
) -> None:
    """A download in progress ends whole after SIGTERM; then the process ends, with status 0."""
    image = registry.put_image("project/app", layers=(noise(4 * MIB),))
    cache = start_cache({"http": {"workers": workers, "draintimeout": "20s"}})
    cache.client().manifest("project/app", "v1")
    gate = Gate()
    registry.inject(Fault(path=f".*{image.layer}", hold=gate, hold_at=2 * MIB))
    with cache.client().stream(f"/v2/project/app/blobs/{image.layer}") as response:
        first = response.read(MIB)
        cache.terminate()
        eventually(lambda: not accepts(cache), "no new connections")
        gate.open()
        assert first + response.read() == image.layer_content
    assert cache.wait() == 0


def accepts(cache: Cache) -> bool:
    try:
        cache.client(timeout=2).get("/livez")
    except OSError:
        return False
    except http.client.HTTPException:
        return False
    return True


def test_drain_has_an_end(registry: FakeRegistry, start_cache: CacheStarter) -> None:
    """A client that reads nothing holds the process no longer than draintimeout."""
    image = registry.put_image("project/app", layers=(noise(4 * MIB),))
    cache = start_cache({"http": {"draintimeout": "1s"}})
    registry.inject(Fault(path=f".*{image.layer}", hold=Gate(), hold_at=2 * MIB))
    with cache.client().stream(f"/v2/project/app/blobs/{image.layer}") as response:
        response.read(65_536)
        cache.stop()


def test_dead_worker_is_replaced(start_cache: CacheStarter) -> None:
    """A worker that was killed comes back, and stopping then is still clean."""
    cache = start_cache({"http": {"workers": 2}})
    before = cache.workers()
    assert len(before) == 2
    os.kill(before[-1], 9)
    eventually(lambda: len(set(cache.workers()) - {before[-1]}) == 2, "a new worker")
    for _ in range(20):
        assert cache.client().get("/v2/").status == 200
    cache.stop()


FIELD = {
    "version": 0.1,
    "log": {"fields": {"service": "registry"}, "level": None, "formatter": None},
    "storage": {"cache": {"blobdescriptor": "inmemory"}},
    "http": {"headers": {"X-Content-Type-Options": ["nosniff"]}, "debug": None, "workers": None},
    "health": {"storagedriver": {"enabled": True, "interval": "10s", "threshold": 3}},
}


def test_the_fields_configuration_runs_unchanged(
    registry: FakeRegistry, start_cache: CacheStarter, tmp_path: Path
) -> None:
    """A config.yml of registry:2, with REGISTRY_AUTH* beside it, starts, guards and serves."""
    hashed = bcrypt.hashpw(b"client-secret", bcrypt.gensalt(4)).decode()
    file = tmp_path / "htpasswd"
    file.write_text(f"node:{hashed}\n")
    image = registry.put_image("project/app", layers=(noise(5000),))
    environment = {
        "REGISTRY_AUTH": "htpasswd",
        "REGISTRY_AUTH_HTPASSWD_REALM": "Registry Realm",
        "REGISTRY_AUTH_HTPASSWD_PATH": str(file),
    }
    cache = start_cache(FIELD, environment=environment, freshness=None, timeouts=None)
    refused = cache.client().get("/v2/")
    assert refused.status == 401
    assert refused.header("WWW-Authenticate") == 'Basic realm="Registry Realm"'
    assert refused.header("X-Content-Type-Options") == "nosniff"
    client = cache.client(login=("node", "client-secret"))
    client.pull(image)
    for path in (f"manifests/{image.digest}", f"blobs/{image.layer}"):
        got = client.get(f"/v2/project/app/{path}")
        assert got.header("X-Content-Type-Options") == "nosniff"
    cache.stop()


def test_environment_overrides_the_file(registry: FakeRegistry, start_cache: CacheStarter) -> None:
    """REGISTRY_PROXY_PASSWORD and the rest count for more than the file's."""
    image = registry.put_image("project/app")
    cache = start_cache(
        password="wrong", environment={"REGISTRY_PROXY_PASSWORD": "upstream-secret"}
    )
    cache.client().pull(image)


def test_no_secret_is_told_at_level_debug(
    registry: FakeRegistry, start_cache: CacheStarter, tmp_path: Path
) -> None:
    """Passwords, tokens and signatures are in no line of the log, whatever goes wrong."""
    hashed = bcrypt.hashpw(b"client-secret", bcrypt.gensalt(4)).decode()
    file = tmp_path / "htpasswd"
    file.write_text(f"node:{hashed}\n")
    auth = {"auth": {"htpasswd": {"realm": "region", "path": str(file)}}}
    registry.redirect_blobs = True
    image = registry.put_image("project/app", layers=(noise(5000),))
    cache = start_cache({"log": {"level": "debug"}, **auth})
    client = cache.client(login=("node", "client-secret"))
    client.pull(image)
    cache.client(login=("node", "client-secret-wrong")).get("/v2/")
    with registry.inject(Fault(path="/bucket/.*", status=403)):
        other = registry.put_image("project/other")
        client.blob("project/other", other.layer)
    with registry.inject(Fault(path="/service/token", status=500)):
        registry.desk.tokens.clear()
        client.manifest("project/app", "v2")
    registry.desk.password = "changed"
    registry.desk.tokens.clear()
    client.manifest("project/app", "v1")
    registry.refuse()
    client.manifest("project/app", "v1")
    cache.stop()
    log = cache.log_text()
    assert hashed not in log
    assert "upstream-secret" not in log
    assert "client-secret" not in log
    assert "a-presigned-secret" not in log
    for token in [seen.headers.get("Authorization", "") for seen in registry.seen]:
        assert not token or token.split()[1] not in log


@pytest.mark.parametrize("path", ["/livez", "/readyz"])
def test_health_says_where_it_comes_from(region: Region, path: str) -> None:
    """Cache-Status is on every answer."""
    assert region.client.get(path).cache_status == "pullthrough; hit"


def test_log_that_cannot_be_written_fails_no_pull(registry: FakeRegistry, tmp_path: Path) -> None:
    """With standard error on a full device everything is served as ever."""
    image = registry.put_image("project/app")
    cache = Cache(tmp_path, {})
    cache.configure(towards(registry.url))
    with Path("/dev/full").open("wb") as full:
        process = subprocess.Popen(
            [sys.executable, "-m", "pullthrough", "serve", str(tmp_path / "config.yml")],
            stderr=full,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
    try:
        client = cache.client()
        eventually(lambda: _answers(client), "an answer")
        client.pull(image)
        assert client.manifest("project/none", "v1").status in {403, 404}
        client.pull(image)
    finally:
        process.terminate()
        ended = process.wait(30)
        cache.close()
    assert ended == 0


def _answers(client: Client) -> bool:
    try:
        return client.get("/livez").status == 200
    except OSError:
        return False
