"""The demo's upstream answers as Harbor does, and counts what it sends."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import ClientSession, encode_basic_auth

from pullthrough.demo import counters
from pullthrough.demo.client import Login
from pullthrough.demo.counters import Counters, Meter
from pullthrough.demo.images import tools
from pullthrough.demo.upstream import Link
from pullthrough.oci.digest import Digest

SCOPE = "repository:demo/tools:pull"
MANIFEST = "/v2/demo/tools/manifests/1.0"


@pytest.fixture
async def http(far: str) -> AsyncIterator[ClientSession]:
    async with ClientSession(far) as session:
        yield session


@pytest.fixture
def basic(robot: Login) -> dict[str, str]:
    return {"Authorization": encode_basic_auth(robot.username, robot.password)}


async def _token(http: ClientSession, scope: str, basic: dict[str, str]) -> str:
    query = {"service": "harbor-registry", "scope": scope}
    async with http.get("/service/token", params=query, headers=basic) as response:
        assert response.status == 200
        document = await response.json()
    assert document["expires_in"] == 1800
    return str(document["token"])


async def _status(http: ClientSession, path: str, token: str) -> int:
    async with http.get(path, headers={"Authorization": f"Bearer {token}"}) as response:
        return response.status


async def test_no_login_gets_a_challenge_that_names_the_host_asked(
    http: ClientSession, far: str
) -> None:
    """The realm is on the host that the client asked, and the scope is what it asked for."""
    async with http.get(MANIFEST) as response:
        assert response.status == 401
        assert response.headers["WWW-Authenticate"] == (
            f'Bearer realm="{far}/service/token",service="harbor-registry",scope="{SCOPE}"'
        )


async def test_a_token_opens_its_scope_alone(http: ClientSession, basic: dict[str, str]) -> None:
    """A token lets its bearer into the repository that it was asked for, and to the ping."""
    token = await _token(http, SCOPE, basic)
    other = await _token(http, "repository:demo/app:pull", basic)
    assert await _status(http, MANIFEST, token) == 200
    assert await _status(http, "/v2/", token) == 200
    assert await _status(http, MANIFEST, other) == 401


async def test_a_wrong_login_gets_a_token_that_opens_nothing(http: ClientSession) -> None:
    """Asked for a scope, Harbor answers 200 to anybody: only the next request shows it."""
    wrong = {"Authorization": encode_basic_auth("robot$demo", "wrong")}
    assert await _status(http, MANIFEST, await _token(http, SCOPE, wrong)) == 401
    async with http.get("/service/token", headers=wrong) as response:
        assert response.status == 401


async def test_tokens_are_not_given_to_post(http: ClientSession, basic: dict[str, str]) -> None:
    """Harbor has no OAuth2 endpoint."""
    async with http.post("/service/token", headers=basic) as response:
        assert response.status == 405


@pytest.mark.parametrize(
    "path",
    [
        "/v2/demo/tools/manifests/none",
        "/v2/demo/none/manifests/1.0",
        f"/v2/demo/tools/blobs/sha256:{'0' * 64}",
    ],
)
async def test_absent_things_have_harbors_own_code(
    http: ClientSession, basic: dict[str, str], path: str
) -> None:
    """The code is NOT_FOUND, which is none of the spec's; Basic opens /v2/ directly."""
    async with http.get(path, headers=basic) as response:
        assert response.status == 404
        assert (await response.json())["errors"][0]["code"] == "NOT_FOUND"


async def test_head_costs_a_request_and_no_bytes(
    http: ClientSession, basic: dict[str, str], meter_path: Path
) -> None:
    """HEAD has the headers of GET, and nothing after them."""
    image = tools().manifests[0]
    async with http.head(MANIFEST, headers=basic) as response:
        assert response.status == 200
        assert response.headers["Docker-Content-Digest"] == str(image.digest)
        assert response.headers["Content-Length"] == str(len(image.content))
        assert response.headers["Content-Type"] == image.media_type
        assert await response.read() == b""
    assert counters.read(meter_path) == Counters(requests=1)


async def test_bytes_are_counted_and_those_of_blobs_apart(
    http: ClientSession, basic: dict[str, str], meter_path: Path
) -> None:
    """What the counters say is what came."""
    async with http.get(MANIFEST, headers=basic) as response:
        manifest = len(await response.read())
    blob = tools().blobs[1]
    async with http.get(f"/v2/demo/tools/blobs/{Digest.of(blob)}", headers=basic) as response:
        assert await response.read() == blob
    assert counters.read(meter_path) == Counters(
        requests=2, sent=manifest + len(blob), blob_bytes=len(blob)
    )


def test_counters_start_at_zero_and_stay_when_the_meter_is_gone(meter_path: Path) -> None:
    """The file can be read from the first moment, and after its writer has ended."""
    meter = Meter(meter_path)
    assert counters.read(meter_path) == Counters()
    meter.add(Counters(requests=2, sent=30, blob_bytes=20))
    before = counters.read(meter_path)
    meter.add(Counters(requests=1, sent=5))
    meter.close()
    assert counters.read(meter_path) - before == Counters(requests=1, sent=5)


async def test_transfers_share_the_link() -> None:
    """Two transfers at once take as long as both after one another; a pause is not saved up."""
    now = 0.0
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    link = Link(delay=0.1, rate=100.0, clock=lambda: now, sleep=sleep)
    await link.travel()
    await link.carry(100)
    await link.carry(50)
    now = 10.0
    await link.carry(100)
    assert waits == [0.1, 1.0, 1.5, 1.0]
