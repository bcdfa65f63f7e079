"""Logging in at the upstream, and leaving it alone when it refuses."""

from __future__ import annotations

import asyncio
import base64
import json
from dataclasses import replace
from typing import Any

import pytest
from aiohttp import web
from structlog.testing import LogCapture

from pullthrough.oci.reference import Repository
from pullthrough.upstream.base import Credential, Failure, UpstreamError
from pullthrough.upstream.client import RegistryClient
from tests.fakes.faults import Fault, Gate
from tests.fakes.logins import Login
from tests.fakes.registry import FakeRegistry
from tests.upstream.kit import LOGIN, NAME, TAG, WRONG, Bench, Connect, serving, until

pytestmark = pytest.mark.usefixtures("image")

TOKENS = "/service/token"
CONTENT = "/v2/.*/manifests/.*"


async def failure_of(client: RegistryClient, name: Repository = NAME) -> Failure:
    with pytest.raises(UpstreamError) as raised:
        await client.get_manifest(name, TAG)
    return raised.value.failure


def schemes(registry: FakeRegistry, path: str = CONTENT) -> list[str]:
    """Return how each request for content was logged in."""
    return [
        seen.headers.get("Authorization", "none").partition(" ")[0]
        for seen in registry.requests(path=path)
    ]


class TestBearer:
    """Harbor's tokens."""

    async def test_the_flow(self, registry: FakeRegistry, client: RegistryClient) -> None:
        """One 401 teaches realm and service; the token is asked for with the login, and kept."""
        for _ in range(3):
            await client.get_manifest(NAME, TAG)
        assert schemes(registry) == ["none", "Bearer", "Bearer", "Bearer"]
        [asked] = registry.requests(path=TOKENS)
        assert asked.query == {"service": "harbor-registry", "scope": f"repository:{NAME}:pull"}
        login = base64.b64encode(f"{LOGIN.username}:{LOGIN.password}".encode()).decode()
        assert asked.headers["Authorization"] == f"Basic {login}"

    async def test_a_new_scope_costs_no_401(
        self, registry: FakeRegistry, client: RegistryClient
    ) -> None:
        """Once the realm is known, another repository's token is fetched without being asked."""
        registry.put_image("library/other")
        await client.get_manifest(NAME, TAG)
        registry.forget()
        await client.get_manifest(Repository("library/other"), TAG)
        assert schemes(registry) == ["Bearer"]

    @pytest.mark.parametrize(
        "row",
        [
            (("token", "expires_in", "issued_at"), 1800, 1769),
            (("access_token", "expires_in"), 300, 269),
            (("token", "expires_in"), 20, 17),
            (("token",), 1800, 53),
        ],
    )
    async def test_tokens_are_renewed_in_time(
        self,
        registry: FakeRegistry,
        client: RegistryClient,
        bench: Bench,
        row: tuple[tuple[str, ...], int, int],
    ) -> None:
        """A token serves until a bit before its end, by default 60 s after it came."""
        fields, lifetime, held = row
        registry.desk.token_fields, registry.desk.token_lifetime = fields, lifetime
        await client.get_manifest(NAME, TAG)
        bench.clock.now += held
        await client.get_manifest(NAME, TAG)
        assert registry.count(path=TOKENS) == 1
        bench.clock.now += 2
        await client.get_manifest(NAME, TAG)
        assert registry.count(path=TOKENS) == 2

    async def test_ha_401_once(self, registry: FakeRegistry, client: RegistryClient) -> None:
        """A replica that does not know a fresh token yet gets one new one."""
        challenge = {"WWW-Authenticate": 'Basic realm="harbor"'}
        await client.get_manifest(NAME, TAG)
        registry.forget()
        registry.inject(Fault(path=CONTENT, status=401, headers=challenge, times=1))
        await client.get_manifest(NAME, TAG)
        assert schemes(registry) == ["Bearer", "Bearer"]
        assert registry.count(path=TOKENS) == 1

    async def test_ha_basic_at_last(
        self, registry: FakeRegistry, client: RegistryClient, bench: Bench
    ) -> None:
        """When tokens do not work at all, the login itself is sent."""
        registry.desk.refuse_tokens = True
        await client.get_manifest(NAME, TAG)
        assert schemes(registry) == ["none", "Bearer", "Bearer", "Basic"]
        assert bench.observer.requests == {("get_manifest", "ok"): 1}

    async def test_a_token_that_was_revoked(
        self, registry: FakeRegistry, client: RegistryClient
    ) -> None:
        """A kept token that no longer opens is replaced, once for all who hold it."""
        await client.get_manifest(NAME, TAG)
        registry.desk.tokens.clear()
        registry.forget()
        await asyncio.gather(*(client.get_manifest(NAME, TAG) for _ in range(8)))
        assert registry.count(path=TOKENS) < 8
        assert "Basic" not in schemes(registry)

    async def test_an_anonymous_200_proves_nothing(
        self, registry: FakeRegistry, connect: Connect
    ) -> None:
        """A wrong password gets an anonymous token, and that the token opens nothing decides."""
        client = await connect(credential=WRONG)
        assert await failure_of(client) is Failure.UNAUTHORIZED
        assert schemes(registry) == ["none", "Bearer", "Bearer", "Basic"]

    async def test_a_missing_project(self, registry: FakeRegistry, client: RegistryClient) -> None:
        """A 401 without a challenge is final: neither a new token nor the login is tried."""
        assert await failure_of(client, Repository("nowhere/app")) is Failure.UNAUTHORIZED
        assert schemes(registry) == ["none", "Bearer"]

    async def test_the_realm_moves(self, registry: FakeRegistry, client: RegistryClient) -> None:
        """Another realm in a later 401 is learnt."""
        await client.get_manifest(NAME, TAG)
        registry.desk.tokens.clear()
        registry.desk.realm = f"{registry.url}/service/token?account=x"
        registry.forget()
        await client.get_manifest(NAME, TAG)
        assert schemes(registry) == ["Bearer", "Bearer"]
        [asked] = registry.requests(path=TOKENS)
        assert asked.query["account"] == "x"
        assert asked.query["service"] == "harbor-registry"


class TestOtherWays:
    """Basic, and no login."""

    async def test_basic(self, registry: FakeRegistry, client: RegistryClient) -> None:
        """Basic is sent once it was asked for, and from then on unasked."""
        registry.desk.login = Login.BASIC
        await client.get_manifest(NAME, TAG)
        await client.get_manifest(NAME, TAG)
        assert schemes(registry) == ["none", "Basic", "Basic"]

    async def test_wrong_basic(self, registry: FakeRegistry, connect: Connect) -> None:
        """A refused login is sent once a call."""
        registry.desk.login = Login.BASIC
        client = await connect(credential=WRONG)
        assert await failure_of(client) is Failure.UNAUTHORIZED
        assert schemes(registry) == ["none", "Basic"]

    async def test_from_basic_to_bearer(
        self, registry: FakeRegistry, client: RegistryClient
    ) -> None:
        """A registry that changes its mind is followed."""
        registry.desk.login = Login.BASIC
        await client.get_manifest(NAME, TAG)
        registry.desk.login = Login.BEARER
        registry.desk.username = "somebody-else"
        original = registry.desk.token
        registry.desk.token = lambda headers, query: original(  # type: ignore[method-assign]
            {**headers, "Authorization": _basic("somebody-else", registry.desk.password)}, query
        )
        await client.get_manifest(NAME, TAG)
        assert schemes(registry) == ["none", "Basic", "Basic", "Bearer"]

    async def test_none(self, registry: FakeRegistry, client: RegistryClient) -> None:
        """Nothing is sent to a registry that does not ask."""
        registry.desk.login = Login.NONE
        await client.get_manifest(NAME, TAG)
        assert schemes(registry) == ["none"]

    async def test_no_credential(self, registry: FakeRegistry, connect: Connect) -> None:
        """Without a login the token is asked for without one, and Basic is never sent."""
        client = await connect(credential=None)
        assert await failure_of(client) is Failure.UNAUTHORIZED
        assert schemes(registry) == ["none", "Bearer", "Bearer"]
        assert {"Authorization" in seen.headers for seen in registry.requests(path=TOKENS)} == {
            False
        }


def _basic(username: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode()


class TestForeignRealm:
    """Token services on other hosts, and whether they get to see the login."""

    @pytest.fixture
    def realm(self, registry: FakeRegistry) -> str:
        """Let the upstream name a token service on another host, which is the fake's own."""
        registry.desk.realm = f"http://tokens.example.com:{registry.port}/service/token"
        return "tokens.example.com"

    async def test_it_gets_no_login(
        self, registry: FakeRegistry, connect: Connect, realm: str, log: LogCapture
    ) -> None:
        """A realm on another host is asked for an anonymous token, and a person is told."""
        client = await connect(resolve={realm: "127.0.0.1"})
        await client.get_manifest(NAME, TAG)
        assert schemes(registry) == ["none", "Bearer", "Bearer", "Basic"]
        asked = registry.requests(path=TOKENS)
        assert {seen.headers["Host"] for seen in asked} == {f"{realm}:{registry.port}"}
        assert all("Authorization" not in seen.headers for seen in asked)
        assert [entry["log_level"] for entry in log.entries if "not sent" in entry["event"]] == [
            "warning"
        ]

    async def test_it_gets_one_where_the_config_names_it(
        self, registry: FakeRegistry, connect: Connect, realm: str
    ) -> None:
        """A host among ``tokenhosts`` is trusted with the login."""
        client = await connect(resolve={realm: "127.0.0.1"}, tokenhosts=frozenset({realm}))
        await client.get_manifest(NAME, TAG)
        [asked] = registry.requests(path=TOKENS)
        assert asked.headers["Authorization"].startswith("Basic ")

    async def test_an_unseen_login_never_rests(
        self, connect: Connect, realm: str, bench: Bench
    ) -> None:
        """A credential that the token service never saw is not blamed for what it refuses."""
        client = await connect(resolve={realm: "127.0.0.1"}, credential=WRONG)
        for _ in range(3):
            await failure_of(client)
        assert await failure_of(client) is Failure.RESTED
        assert await failure_of(client, Repository("library/other")) is not Failure.RESTED
        assert bench.observer.refusals == 0


class TestTokenAnswers:
    """What the token service may say instead of a token."""

    @pytest.mark.parametrize(
        ("fault", "expected"),
        [
            (Fault(status=401), Failure.UNAUTHORIZED),
            (Fault(status=403), Failure.FORBIDDEN),
            (Fault(status=404, body=b"nothing here"), Failure.NOT_A_REGISTRY),
            (Fault(status=500), Failure.SERVER_ERROR),
            (Fault(status=429, headers={"Retry-After": "99"}), Failure.RATE_LIMITED),
            (Fault(status=200, body=b"<html>"), Failure.NOT_A_REGISTRY),
            (Fault(status=200, body=b"{}"), Failure.NOT_A_REGISTRY),
            (Fault(status=200, body=b'{"token": 7}'), Failure.NOT_A_REGISTRY),
            (Fault(status=200, body=b'{"token": "a\\r\\nX: y"}'), Failure.NOT_A_REGISTRY),
            (Fault(status=200, body=b'{"token": "%s"}' % (b"x" * 20_000)), Failure.NOT_A_REGISTRY),
            (Fault(reset=True), Failure.CUT),
        ],
    )
    async def test_failures(
        self,
        registry: FakeRegistry,
        client: RegistryClient,
        bench: Bench,
        fault: Fault,
        expected: Failure,
    ) -> None:
        """Each is what the call raises, and is counted."""
        registry.inject(replace(fault, path=TOKENS))
        assert await failure_of(client) is expected
        assert set(bench.observer.token_failures) == {expected.value}

    @pytest.mark.parametrize("lifetime", [0, -5, "soon", None, 1e30])
    async def test_strange_lifetimes(
        self, registry: FakeRegistry, client: RegistryClient, bench: Bench, lifetime: Any
    ) -> None:
        """A lifetime that makes no sense is taken for the default, an endless one for a day."""
        original = registry.desk.token

        def token(headers: Any, query: Any) -> Any:
            reply = original(headers, query)
            body = json.dumps(json.loads(reply.body) | {"expires_in": lifetime}).encode()
            return type(reply)(reply.status, body, reply.headers)

        registry.desk.token = token  # type: ignore[method-assign]
        await client.get_manifest(NAME, TAG)
        bench.clock.now += 86400 if lifetime == 1e30 else 60
        await client.get_manifest(NAME, TAG)
        assert registry.count(path=TOKENS) == 2


class TestSingleFlight:
    """One token request, however many wait."""

    async def test_a_crowd(self, registry: FakeRegistry, client: RegistryClient) -> None:
        """Twenty calls that need a token cause one request for it."""
        await asyncio.gather(*(client.get_manifest(NAME, TAG) for _ in range(20)))
        assert registry.count(path=TOKENS) == 1

    async def test_the_one_that_asked_leaves(
        self, registry: FakeRegistry, client: RegistryClient
    ) -> None:
        """A waiter that is cancelled, be it the first, does not fail the others."""
        gate = Gate()
        registry.inject(Fault(path=TOKENS, hold=gate))
        calls = [asyncio.create_task(client.get_manifest(NAME, TAG)) for _ in range(3)]
        await until(lambda: registry.count(path=CONTENT) == 3 and gate.arrived, "all wait")
        calls[0].cancel()
        await asyncio.wait([calls[0]])
        gate.open()
        fetched = await asyncio.gather(*calls[1:])
        assert calls[0].cancelled()
        assert fetched[0] == fetched[1]
        assert registry.count(path=TOKENS) == 1

    async def test_all_leave(self, registry: FakeRegistry, client: RegistryClient) -> None:
        """A token that nobody waits for any more is kept for the next."""
        gate = Gate()
        registry.inject(Fault(path=TOKENS, hold=gate))
        call = asyncio.create_task(client.get_manifest(NAME, TAG))
        await until(lambda: gate.arrived, "it waits")
        call.cancel()
        await asyncio.wait([call])
        gate.open()
        await client.get_manifest(NAME, TAG)
        assert registry.count(path=TOKENS) == 1

    async def test_leaving_with_a_token_under_way(
        self, registry: FakeRegistry, connect: Connect
    ) -> None:
        """Closing the client ends the request and leaves no task behind."""
        before = asyncio.all_tasks()
        gate = Gate()
        registry.inject(Fault(path=TOKENS, hold=gate))
        client = await connect()
        call = asyncio.create_task(client.get_manifest(NAME, TAG))
        await until(lambda: gate.arrived, "it waits")
        call.cancel()
        await asyncio.wait([call])
        await client.__aexit__(None, None, None)
        assert asyncio.all_tasks() == before


class TestRest:
    """A refused credential is left alone, cached content goes on elsewhere."""

    async def test_a_bad_credential_rests_and_recovers(
        self, registry: FakeRegistry, client: RegistryClient, bench: Bench, log: LogCapture
    ) -> None:
        """After three refusals it is looked at once, then nothing is asked for a minute."""
        right, registry.desk.password = registry.desk.password, "changed"
        for _ in range(3):
            assert await failure_of(client) is Failure.UNAUTHORIZED
        assert [
            seen.query for seen in registry.requests(path=TOKENS) if "scope" not in seen.query
        ] == [{"service": "harbor-registry"}]
        assert bench.observer.refusals == 1
        assert [entry["log_level"] for entry in log.entries] == ["error"]
        registry.forget()
        for name in (NAME, Repository("other/app")):
            with pytest.raises(UpstreamError) as raised:
                await client.get_manifest(name, TAG)
            assert (raised.value.failure, raised.value.retry_after) == (Failure.RESTED, 60)
        assert registry.seen == []
        registry.desk.password = right
        bench.clock.now += 60
        await client.get_manifest(NAME, TAG)
        await client.get_manifest(NAME, TAG)

    async def test_a_longer_rest_after_a_trial(
        self, registry: FakeRegistry, client: RegistryClient, bench: Bench
    ) -> None:
        """One call tries when the rest is over; refused again, the rest is twice as long."""
        registry.desk.password = "changed"
        for _ in range(3):
            await failure_of(client)
        bench.clock.now += 60
        outcomes = await asyncio.gather(*(failure_of(client) for _ in range(5)))
        assert sorted(outcome.value for outcome in outcomes) == [
            *["credential-rested"] * 4,
            "unauthorized",
        ]
        bench.clock.now += 60
        assert await failure_of(client) is Failure.RESTED
        bench.clock.now += 60
        assert await failure_of(client) is Failure.UNAUTHORIZED

    @pytest.mark.parametrize("status", [401, 403])
    async def test_a_refused_login_at_the_token_service(
        self, registry: FakeRegistry, client: RegistryClient, bench: Bench, status: int
    ) -> None:
        """The token service's own refusal counts, and it is asked about the credential once."""
        registry.inject(Fault(path=TOKENS, status=status))
        for _ in range(3):
            assert await failure_of(client) in {Failure.UNAUTHORIZED, Failure.FORBIDDEN}
        assert await failure_of(client) is Failure.RESTED
        assert registry.count(path=TOKENS) == 4
        assert bench.observer.refusals == 1

    async def test_a_good_credential_goes_on_elsewhere(
        self, registry: FakeRegistry, client: RegistryClient, bench: Bench
    ) -> None:
        """What it may not see rests alone, for 30 s."""
        missing = Repository("nowhere/app")
        for _ in range(3):
            assert await failure_of(client, missing) is Failure.UNAUTHORIZED
        registry.forget()
        assert await failure_of(client, missing) is Failure.RESTED
        assert registry.seen == []
        await client.get_manifest(NAME, TAG)
        assert bench.observer.refusals == 0
        bench.clock.now += 30
        assert await failure_of(client, missing) is Failure.UNAUTHORIZED

    async def test_forbidden_content_is_not_the_credentials_fault(
        self, registry: FakeRegistry, client: RegistryClient, bench: Bench
    ) -> None:
        """Harbor's 401 for want of permission leads to a look, which finds the credential good."""
        registry.desk.forbid = True
        for _ in range(3):
            assert await failure_of(client) is Failure.UNAUTHORIZED
        assert bench.observer.refusals == 0
        registry.desk.forbid = False
        registry.put_image("library/other")
        await client.get_manifest(Repository("library/other"), TAG)

    async def test_an_unanswered_look_blames_nobody(
        self, registry: FakeRegistry, client: RegistryClient, bench: Bench
    ) -> None:
        """When the upstream fails while it is asked about the credential, only the scope rests."""
        missing = Repository("nowhere/app")
        await failure_of(client, missing)
        await failure_of(client, missing)
        registry.inject(Fault(path=TOKENS, status=500))
        await failure_of(client, missing)
        registry.heal()
        assert await failure_of(client, missing) is Failure.RESTED
        assert bench.observer.refusals == 0

    async def test_a_success_resets(self, client: RegistryClient) -> None:
        """Refusals count only in a row."""
        for _ in range(4):
            assert await failure_of(client, Repository("nowhere/app")) is Failure.UNAUTHORIZED
            await client.get_manifest(NAME, TAG)

    async def test_basic_rests_too(
        self, registry: FakeRegistry, connect: Connect, bench: Bench
    ) -> None:
        """With Basic the look is a GET of /v2/."""
        registry.desk.login = Login.BASIC
        client = await connect(credential=WRONG)
        for _ in range(3):
            await failure_of(client)
        assert schemes(registry, "/v2/") == ["Basic"]
        assert bench.observer.refusals == 1
        assert await failure_of(client) is Failure.RESTED

    async def test_a_new_credential_ends_it(self, registry: FakeRegistry, connect: Connect) -> None:
        """A renewed credential is used at once, and no token of the old one."""
        client = await connect(credential=WRONG)
        for _ in range(3):
            await failure_of(client)
        assert await failure_of(client) is Failure.RESTED
        client.set_credential(LOGIN)
        await client.get_manifest(NAME, TAG)
        registry.forget()
        client.set_credential(Credential("robot$region", "another"))
        assert await failure_of(client) is Failure.UNAUTHORIZED
        client.set_credential(None)
        assert await failure_of(client) is Failure.UNAUTHORIZED


async def test_a_login_with_umlauts_and_colons(connect: Connect) -> None:
    """A password may hold any character; it is sent as UTF-8 (RFC 7617)."""
    seen: list[str] = []

    async def handle(request: web.Request) -> web.StreamResponse:
        seen.append(request.headers.get("Authorization", ""))
        return web.Response(status=401, headers={"WWW-Authenticate": "Basic realm=x"})

    async with serving(handle) as url:
        client = await connect(url=url, credential=Credential("robot$ö", "pä:ß"))
        assert await failure_of(client) is Failure.UNAUTHORIZED
    assert seen == ["", _basic("robot$ö", "pä:ß")]
