"""The demo's client takes an image only whole and right, whatever the registry does."""

from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from pullthrough.demo.client import Login, PullFailed, pull
from pullthrough.demo.images import app, tools
from pullthrough.demo.processes import free_port
from pullthrough.demo.registry import Registry
from pullthrough.oci.digest import Digest


async def test_pulls_dockers_manifest_with_a_bearer_token(far: str, robot: Login) -> None:
    """The login that /v2/ asks for is found, and every blob of the image comes."""
    pulled = await pull(far, robot, "demo/tools:1.0")
    assert pulled.digest == tools().digest
    assert pulled.blobs == {Digest.of(blob): len(blob) for blob in tools().blobs}


async def test_pulls_its_own_platform_from_an_index(
    far: str, robot: Login, content: Registry
) -> None:
    """Of two platforms, one's config and layers come."""
    image = app(1)
    content.push(image)
    pulled = await pull(far, robot, "demo/app:stable")
    assert pulled.digest == image.digest
    assert list(pulled.blobs) == [Digest.of(blob) for blob in image.blobs[:3]]


async def test_a_wrong_password_fails(far: str, robot: Login) -> None:
    """A token that opens nothing ends the pull with the registry's status."""
    with pytest.raises(PullFailed, match="401"):
        await pull(far, Login(robot.username, "wrong"), "demo/tools:1.0")


async def test_an_absent_tag_fails(far: str, robot: Login) -> None:
    """The registry's 404 ends the pull."""
    with pytest.raises(PullFailed, match="404"):
        await pull(far, robot, "demo/tools:none")


@pytest.mark.parametrize("wrong", ["other", "short", "long"])
async def test_a_wrong_blob_fails(far: str, robot: Login, content: Registry, wrong: str) -> None:
    """Other bytes, fewer or more, each under a 200: the pull fails."""
    layer = tools().blobs[1]
    bytes_of = {"other": layer[:-1] + b"?", "short": layer[:-1], "long": layer + b"?"}
    content._blobs["demo/tools", str(Digest.of(layer))] = bytes_of[wrong]
    with pytest.raises(PullFailed, match=r"another digest|more than"):
        await pull(far, robot, "demo/tools:1.0")


async def test_no_registry_fails(robot: Login) -> None:
    """A refused connection is a failed pull, not a foreign exception."""
    with pytest.raises(PullFailed, match="ClientConnectorError"):
        await pull(f"http://127.0.0.1:{free_port()}", robot, "demo/tools:1.0")


@pytest.fixture
async def open_door() -> AsyncIterator[str]:
    """Run a server that wants no login."""

    async def ping(_: web.Request) -> web.Response:
        return web.Response()

    application = web.Application()
    application.add_routes([web.get("/v2/", ping)])
    async with TestServer(application) as server:
        yield str(server.make_url("")).rstrip("/")


async def test_a_registry_that_asks_for_no_login_fails(open_door: str, robot: Login) -> None:
    """The demo's cache has a login: one that is not asked for is a fault."""
    with pytest.raises(PullFailed, match="200, not 401"):
        await pull(open_door, robot, "demo/tools:1.0")


def test_a_password_is_in_no_repr(robot: Login) -> None:
    """A login can be shown in an error."""
    assert robot.password not in repr(robot)
