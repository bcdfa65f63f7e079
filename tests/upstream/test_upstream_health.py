"""Down and up again: who is asked, when, and what a person is told."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import pytest
from structlog.testing import LogCapture

from pullthrough.oci.reference import Repository, Tag
from pullthrough.upstream.base import Failure, UpstreamError
from pullthrough.upstream.client import RegistryClient
from tests.fakes.content import Image
from tests.fakes.faults import Fault, Gate, portal
from tests.fakes.registry import FakeRegistry
from tests.upstream.kit import NAME, TAG, WRONG, Bench, Connect, until

PING = "/v2/"
CONTENT = "/v2/.+"


async def failure_of(client: RegistryClient, tag: Tag = TAG) -> Failure:
    with pytest.raises(UpstreamError) as raised:
        await client.get_manifest(NAME, tag)
    return raised.value.failure


class TestGoingDown:
    """What counts as a failure of the upstream, and what as an answer."""

    @pytest.mark.parametrize(
        "fault",
        [
            Fault(reset=True),
            Fault(silent=True),
            Fault(status=503),
            Fault(status=404, body=b"no such page"),
            portal(),
            portal(403),
        ],
        ids=["reset", "silent", "503", "404", "portal", "portal-403"],
    )
    @pytest.mark.parametrize("call", ["head_manifest", "get_manifest"])
    async def test_failures(
        self, registry: FakeRegistry, connect: Connect, log: LogCapture, fault: Fault, call: str
    ) -> None:
        """Three calls that fail take it down, and a person is told once."""
        client = await connect(firstbyte=0.3)
        registry.inject(replace(fault))
        for number in range(3):
            assert client.up, number
            with pytest.raises(UpstreamError):
                await getattr(client, call)(NAME, TAG)
        assert not client.up
        assert [entry["event"] for entry in log.entries] == ["upstream is down"]

    async def test_refused(self, registry: FakeRegistry, client: RegistryClient) -> None:
        """Refused connections take it down too."""
        registry.refuse()
        for _ in range(3):
            assert await failure_of(client) is Failure.REFUSED
        assert not client.up

    @pytest.mark.parametrize(
        ("status", "body"),
        [
            (401, b""),
            (403, b"{}"),
            (404, json.dumps({"errors": [{"code": "NAME_UNKNOWN"}]}).encode()),
            (412, b"{}"),
            (429, b""),
        ],
    )
    async def test_answers(
        self, registry: FakeRegistry, client: RegistryClient, status: int, body: bytes
    ) -> None:
        """A registry that refuses is there: between failures it starts the count anew."""
        for _ in range(2):
            with registry.inject(Fault(path=CONTENT, status=500)):
                await failure_of(client)
                await failure_of(client)
            headers = {"Content-Type": "application/json"}
            with registry.inject(Fault(path=CONTENT, status=status, body=body, headers=headers)):
                await failure_of(client)
        assert client.up

    async def test_overdue(
        self, registry: FakeRegistry, client: RegistryClient, image: Image
    ) -> None:
        """Too late an answer takes it down at once; the call goes on, and its answer heals."""
        gate = Gate()
        registry.inject(Fault(path=f"{CONTENT}|{PING}", hold=gate))
        check = asyncio.create_task(client.head_manifest(NAME, TAG))
        await until(lambda: gate.arrived, "it waits")
        client.overdue()
        client.overdue()
        assert not client.up
        gate.open()
        assert str((await check).digest) == image.digest
        assert client.up

    async def test_a_rested_credential_is_no_outage(
        self, registry: FakeRegistry, connect: Connect, image: Image
    ) -> None:
        """What is not asked says nothing of the upstream."""
        client = await connect(credential=WRONG)
        for _ in range(6):
            await failure_of(client)
        assert client.up
        assert image.repository in registry.seen[0].path


class TestWhileDown:
    """Misses, and the watch."""

    async def test_a_miss_asks_whether_it_is_back(
        self, registry: FakeRegistry, client: RegistryClient, image: Image
    ) -> None:
        """A call never fails because of an old verdict."""
        client.overdue()
        assert (await client.get_manifest(NAME, TAG)).content == image.top.content
        assert client.up
        assert registry.seen[0].path == PING
        assert "Authorization" not in registry.seen[0].headers

    async def test_a_miss_while_it_is_down(
        self, registry: FakeRegistry, client: RegistryClient, bench: Bench
    ) -> None:
        """When it is not back, the call fails as DOWN, and nothing but the probe was sent."""
        registry.inject(Fault(status=503))
        client.overdue()
        assert await failure_of(client) is Failure.DOWN
        assert {seen.path for seen in registry.seen} == {PING}
        assert bench.observer.requests == {("get_manifest", "down"): 1}

    async def test_a_crowd_of_misses_is_one_probe(
        self, registry: FakeRegistry, client: RegistryClient
    ) -> None:
        """However many ask, there is one probe at a time, and a pause between two."""
        gate = Gate()
        registry.inject(Fault(status=503, hold=gate))
        client.overdue()
        calls = [asyncio.create_task(failure_of(client)) for _ in range(20)]
        await until(lambda: gate.arrived, "the probe is sent")
        gate.open()
        assert set(await asyncio.gather(*calls)) == {Failure.DOWN}
        assert registry.count() == 1
        assert await failure_of(client) is Failure.DOWN
        assert registry.count() == 2

    async def test_the_pause_between_two_probes(
        self, registry: FakeRegistry, client: RegistryClient, bench: Bench
    ) -> None:
        """A call that comes right after a probe waits a moment for the next."""
        registry.inject(Fault(status=503))
        client.overdue()
        await failure_of(client)
        bench.clock.now += 0.125
        await failure_of(client)
        assert registry.count() == 2
        assert bench.slept == [0.375]

    async def test_the_watch_brings_it_back(
        self, registry: FakeRegistry, client: RegistryClient, bench: Bench, log: LogCapture
    ) -> None:
        """Without any call, the upstream's return is noticed."""
        bench.watch.set()
        client.overdue()
        await until(lambda: client.up, "it is up again")
        assert {seen.path for seen in registry.seen} == {PING}
        assert [entry["event"] for entry in log.entries] == ["upstream is down", "upstream is back"]
        assert {entry["log_level"] for entry in log.entries} == {"warning"}

    async def test_the_watch_leaves_an_upstream_that_is_up_alone(
        self, registry: FakeRegistry, client: RegistryClient, bench: Bench
    ) -> None:
        """Nothing is asked at the start, and nothing while all is well."""
        rounds = 0
        original = bench.breaker.claim_probe

        def claim(now: float) -> bool:
            nonlocal rounds
            rounds += 1
            return original(now)

        bench.breaker.claim_probe = claim  # type: ignore[method-assign]
        bench.watch.set()
        await until(lambda: rounds > 5, "the watch went round")
        assert client.up
        assert registry.seen == []

    async def test_the_watch_survives_a_mistake(
        self, client: RegistryClient, bench: Bench, log: LogCapture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A probe that ends in an error nobody thought of is told, and the next one is made."""
        with monkeypatch.context() as patch:
            patch.setattr(client._transport, "send", None)
            bench.watch.set()
            client.overdue()
            await until(lambda: "probe failed" in str(log.entries), "it is told")
        bench.clock.now += 10
        await until(lambda: client.up, "it is up again")

    async def test_workers_share_the_verdict(
        self, registry: FakeRegistry, connect: Connect, image: Image, log: LogCapture
    ) -> None:
        """Another worker's verdict counts, and its probe brings all back."""
        one, other = await connect(), await connect()
        registry.inject(Fault(status=503))
        one.overdue()
        assert not other.up
        registry.heal()
        assert (await other.get_manifest(NAME, TAG)).content == image.top.content
        assert one.up
        assert len(log.entries) == 2

    @pytest.mark.parametrize(
        ("fault", "up"),
        [
            (Fault(status=200, body=b"{}"), True),
            (Fault(status=200, headers={"Docker-Distribution-Api-Version": "x"}), True),
            (Fault(status=401, headers={"WWW-Authenticate": 'Bearer realm="x"'}), True),
            (Fault(status=401, body=b'{"errors": []}'), True),
            (Fault(status=200, body=b""), False),
            (Fault(status=200, body=b"[1]"), False),
            (Fault(status=401, body=b"<html>"), False),
            (Fault(status=403, body=b"{}"), False),
            (Fault(status=404, body=b"{}"), False),
            (portal(), False),
            (portal(302), False),
            (Fault(status=500, body=b"{}"), False),
            (Fault(reset=True), False),
        ],
    )
    async def test_what_a_probe_believes(
        self, registry: FakeRegistry, client: RegistryClient, fault: Fault, *, up: bool
    ) -> None:
        """Only what looks like the registry API brings the upstream back."""
        registry.inject(replace(fault))
        client.overdue()
        await client._health._ping()
        assert client.up is up

    async def test_a_silent_probe_is_given_up(
        self, registry: FakeRegistry, connect: Connect
    ) -> None:
        """A probe has its own limit, shorter than a call's."""
        client = await connect()
        client._health._limit = 0.2
        registry.inject(Fault(silent=True))
        client.overdue()
        assert await failure_of(client) is Failure.DOWN

    async def test_closing_while_it_is_down(self, registry: FakeRegistry, connect: Connect) -> None:
        """A client that is closed leaves no task behind, whatever it waited for."""
        before = asyncio.all_tasks()
        client = await connect()
        gate = Gate()
        registry.inject(Fault(hold=gate))
        client.overdue()
        call = asyncio.create_task(client.tags(Repository("a")))
        await until(lambda: gate.arrived, "the probe is sent")
        call.cancel()
        await asyncio.wait([call])
        await client.__aexit__(None, None, None)
        assert asyncio.all_tasks() == before
