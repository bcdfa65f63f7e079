"""Connections, names, TLS, redirects and time limits, on real sockets."""

from __future__ import annotations

import asyncio
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web
from yarl import URL

from pullthrough.oci.digest import Digest
from pullthrough.upstream.base import Failure, UpstreamError
from pullthrough.upstream.client import RegistryClient
from pullthrough.upstream.resolver import Resolver
from pullthrough.upstream.transport import Transport
from tests.fakes.content import Image
from tests.fakes.faults import Fault, Gate
from tests.fakes.registry import FakeRegistry
from tests.upstream.kit import NAME, TAG, Bench, Connect, serving, until

HOST = "harbor.example.com"
MANIFEST = b'{"schemaVersion": 2}'


async def failure_of(client: RegistryClient) -> UpstreamError:
    with pytest.raises(UpstreamError) as raised:
        await client.get_manifest(NAME, TAG)
    return raised.value


async def blob(client: RegistryClient, digest: str, start: int = 0) -> bytes:
    content = b""
    async with client.get_blob(NAME, Digest.parse(digest), start=start) as body:
        while piece := await body.read():
            content += piece
    return content


RawHandler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def raw(handler: RawHandler) -> AsyncIterator[str]:
    """Serve bytes as ``handler`` writes them, and give the address."""
    connections: list[tuple[asyncio.Task[None], asyncio.StreamWriter]] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connections.append((task, writer))
        try:
            await handler(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client left
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    for task, writer in connections:
        task.cancel()
        writer.transport.abort()  # what it still wanted to send is of no use
        await asyncio.wait([task])


def plain(body: bytes, *headers: str) -> bytes:
    lines = ["HTTP/1.1 200 OK", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


class TestConnections:
    """Pooled, broken and refused ones."""

    async def test_a_kept_connection_that_was_closed(self, connect: Connect, bench: Bench) -> None:
        """A connection that the upstream closes as it is used again is replaced, unnoticed."""
        requests: list[int] = []
        connections: list[asyncio.StreamWriter] = []

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            connections.append(writer)
            mine = len(connections)
            while True:
                await reader.readuntil(b"\r\n\r\n")
                requests.append(mine)
                if requests.count(1) == 2 and mine == 1:
                    return
                writer.write(plain(MANIFEST))

        async with raw(handle) as url:
            client = await connect(url=url)
            await client.get_manifest(NAME, TAG)
            await client.get_manifest(NAME, TAG)
        assert requests == [1, 1, 2]
        assert bench.slept == []

    async def test_connections_are_kept(
        self, registry: FakeRegistry, client: RegistryClient, image: Image
    ) -> None:
        """Refusals and short answers are read to their end, so that one connection serves all."""
        opened = await _connections(client)
        for _ in range(3):
            await client.head_manifest(NAME, TAG)
            await client.get_manifest(NAME, TAG)
            await blob(client, image.layer)
        assert registry.count() > 9
        assert len(opened) == 1

    async def test_a_vanished_peer_breaks_the_connection(self) -> None:
        """The kernel gives up on a peer that acknowledges nothing within the connect limit."""
        transport = _transport("http://127.0.0.1")
        address = (socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", 1))
        with transport._socket(address) as made:
            limit = made.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
        assert limit == 5000

    @pytest.mark.parametrize("method", ["HEAD", "GET"])
    async def test_refused(
        self, registry: FakeRegistry, client: RegistryClient, bench: Bench, method: str
    ) -> None:
        """A refused connection is told as such; a tag check does not try again."""
        registry.refuse()
        with pytest.raises(UpstreamError) as raised:
            await (client.head_manifest if method == "HEAD" else client.get_manifest)(NAME, TAG)
        assert raised.value.failure is Failure.REFUSED
        assert "Connect call failed" in str(raised.value)
        assert len(bench.slept) == (0 if method == "HEAD" else 2)

    @pytest.mark.parametrize("method", ["HEAD", "GET"])
    async def test_back_at_the_second_try(
        self, registry: FakeRegistry, client: RegistryClient, image: Image, method: str
    ) -> None:
        """One failure that passes is not seen."""
        path = f"/v2/{NAME}/.*"
        registry.inject(Fault(path=path, methods=(method,), status=503, times=1))
        assert str((await client.head_manifest(NAME, TAG)).digest) == image.digest
        assert (await client.get_manifest(NAME, TAG)).content == image.top.content

    @pytest.mark.parametrize("method", ["HEAD", "GET"])
    async def test_cut_before_the_answer(
        self, registry: FakeRegistry, client: RegistryClient, method: str
    ) -> None:
        """A connection that breaks instead of an answer is CUT."""
        registry.inject(Fault(reset=True))
        with pytest.raises(UpstreamError) as raised:
            await (client.head_manifest if method == "HEAD" else client.get_manifest)(NAME, TAG)
        assert raised.value.failure is Failure.CUT

    async def test_not_http(self, connect: Connect) -> None:
        """Another service on the port is no registry."""

        async def handle(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n" * 3)
            await writer.drain()

        async with raw(handle) as url:
            client = await connect(url=url)
            assert (await failure_of(client)).failure is Failure.NOT_A_REGISTRY

    async def test_headers_without_an_end(self, connect: Connect) -> None:
        """Headers are bounded."""

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\n")
            while not writer.is_closing():
                writer.write(b"X-More: " + b"x" * 60_000 + b"\r\n")
                await writer.drain()

        async with raw(handle) as url:
            client = await connect(url=url)
            assert (await failure_of(client)).failure is Failure.NOT_A_REGISTRY

    async def test_cookies_are_not_kept(self, connect: Connect) -> None:
        """What an answer would have us remember is forgotten."""
        seen = []

        async def handle(request: web.Request) -> web.Response:
            seen.append(request.headers.get("Cookie"))
            return web.Response(body=MANIFEST, headers={"Set-Cookie": "a=b"})

        async with serving(handle) as url:
            client = await connect(url=url)
            await client.get_manifest(NAME, TAG)
            await client.get_manifest(NAME, TAG)
        assert seen == [None, None]


class TestTimes:
    """Every wait has its limit."""

    @pytest.mark.parametrize("method", ["HEAD", "GET"])
    async def test_a_silent_upstream(
        self, registry: FakeRegistry, connect: Connect, method: str
    ) -> None:
        """No answer at all is TIMEOUT, within the limit of the whole call."""
        registry.inject(Fault(silent=True))
        client = await connect(firstbyte=0.3)
        call = client.head_manifest if method == "HEAD" else client.get_manifest
        with pytest.raises(UpstreamError) as raised:
            await call(NAME, TAG)
        assert raised.value.failure is Failure.TIMEOUT

    async def test_a_silent_token_service(self, registry: FakeRegistry, connect: Connect) -> None:
        """The wait for a token is part of the wait for the answer."""
        registry.inject(Fault(path="/service/token", silent=True))
        client = await connect(firstbyte=0.3)
        assert (await failure_of(client)).failure is Failure.TIMEOUT

    @pytest.mark.usefixtures("image")
    async def test_a_manifest_that_stops(self, registry: FakeRegistry, connect: Connect) -> None:
        """A manifest's body is within the limit."""
        registry.inject(Fault(path="/v2/.*", hold=Gate(), hold_at=10))
        client = await connect(firstbyte=0.5)
        assert (await failure_of(client)).failure is Failure.TIMEOUT

    async def test_a_host_that_does_not_answer_the_connect(self, connect: Connect) -> None:
        """A connection that is not made within ``connect`` is TIMEOUT, and tried again."""
        with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
            port = full.getsockname()[1]
            crowd = [socket.socket() for _ in range(4)]
            for each in crowd:
                each.setblocking(False)
                each.connect_ex(("127.0.0.1", port))
            client = await connect(url=f"http://127.0.0.1:{port}", connect=0.1)
            error = await failure_of(client)
            for each in crowd:
                each.close()
        assert error.failure is Failure.TIMEOUT
        assert "no connection" in str(error)

    async def test_retry_after_beyond_the_limit(
        self, registry: FakeRegistry, client: RegistryClient, bench: Bench
    ) -> None:
        """A 429 that asks for more patience than there is raises at once, for GET as for HEAD."""
        registry.inject(Fault(status=429, headers={"Retry-After": "11"}))
        error = await failure_of(client)
        assert (error.failure, error.retry_after) == (Failure.RATE_LIMITED, 11)
        with pytest.raises(UpstreamError) as raised:
            await client.head_manifest(NAME, TAG)
        assert raised.value.retry_after == 11
        assert bench.slept == []

    @pytest.mark.usefixtures("image")
    async def test_retry_after_within_the_limit(
        self, registry: FakeRegistry, client: RegistryClient, bench: Bench
    ) -> None:
        """A 429's own pause is made where it fits; a HEAD has no time for it."""
        headers = {"Retry-After": "3"}
        registry.inject(Fault(path="/v2/.*", status=429, headers=headers, times=1))
        await client.get_manifest(NAME, TAG)
        assert bench.slept == [3]
        registry.inject(Fault(path="/v2/.*", status=429, headers=headers))
        with pytest.raises(UpstreamError):
            await client.head_manifest(NAME, TAG)
        assert bench.slept == [3]


class TestNames:
    """Where names lead."""

    @pytest.mark.usefixtures("image")
    async def test_resolve_keeps_the_host_header(
        self, registry: FakeRegistry, connect: Connect
    ) -> None:
        """The configured address is used for the name, and everything else stays the name's."""
        client = await connect(
            url=f"http://{HOST}:{registry.port}", resolve={"Harbor.Example.com": "127.0.0.1"}
        )
        await client.get_manifest(NAME, TAG)
        assert {seen.headers["Host"] for seen in registry.seen} == {f"{HOST}:{registry.port}"}
        assert "Authorization" in registry.requests(path="/service/token")[0].headers

    async def test_other_names_go_to_the_machines_resolver(self) -> None:
        """A name that is not configured is looked up as ever."""
        found = await Resolver({HOST: "10.0.0.8"}).resolve("localhost", 80)
        assert {"127.0.0.1", "::1"} >= {each["host"] for each in found}
        [own] = await Resolver({HOST: "10.0.0.8"}).resolve(HOST, 80)
        assert (own["host"], own["hostname"]) == ("10.0.0.8", HOST)

    async def test_no_such_name(self, connect: Connect) -> None:
        """A name that does not exist is REFUSED, with the reason."""
        client = await connect(url="http://nothing.invalid")
        error = await failure_of(client)
        assert error.failure is Failure.REFUSED
        assert "nothing.invalid" in str(error)

    async def test_a_name_that_is_none(self) -> None:
        """A name with an empty label fails like one that does not exist."""
        with pytest.raises(OSError, match="not a host name"):
            await Resolver({}).resolve("a..b", 80)

    async def test_a_lookup_that_nobody_awaits_any_more(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A resolver that hangs holds up neither a cancelled call nor the loop's end."""
        release = Gate()

        def hang(*_: object, **__: object) -> list[object]:
            release._opened.wait(20)
            return []

        monkeypatch.setattr(socket, "getaddrinfo", hang)
        lookup = asyncio.create_task(Resolver({}).resolve(HOST, 80))
        await asyncio.sleep(0)  # it begins
        lookup.cancel()
        await asyncio.wait([lookup])
        release.open()
        assert lookup.cancelled()


class TestRedirects:
    """To object stores, and to nowhere."""

    async def test_to_an_object_store(
        self, registry: FakeRegistry, client: RegistryClient, image: Image
    ) -> None:
        """Range and Accept go along, Authorization does not."""
        registry.redirect_blobs = True
        assert await blob(client, image.layer, start=7) == image.layer_content[7:]
        [asked] = registry.requests(path="/bucket/.*")
        assert "Authorization" not in asked.headers
        assert asked.headers["Range"] == "bytes=7-"
        assert asked.headers["Accept"] == "*/*"
        assert await client.head_blob(NAME, Digest.parse(image.layer)) == len(image.layer_content)

    @pytest.mark.parametrize("status", [400, 403, 404, 429, 500, 503])
    async def test_an_object_stores_refusal(
        self,
        registry: FakeRegistry,
        client: RegistryClient,
        image: Image,
        bench: Bench,
        status: int,
    ) -> None:
        """What the store refuses is an error of the server, and no verdict on the upstream."""
        registry.redirect_blobs = True
        registry.inject(Fault(path="/bucket/.*", status=status, body=b"<Error/>"))
        for _ in range(4):
            with pytest.raises(UpstreamError) as raised:
                await blob(client, image.layer)
            assert (raised.value.failure, raised.value.status) == (Failure.SERVER_ERROR, status)
            assert "a-presigned-secret" not in str(raised.value)
            with pytest.raises(UpstreamError) as raised:
                await client.head_blob(NAME, Digest.parse(image.layer))
            assert raised.value.failure is Failure.SERVER_ERROR
        assert not bench.breaker.down

    async def test_a_store_that_is_away(self, connect: Connect, bench: Bench) -> None:
        """No connection to the store leaves the upstream up, and the signature untold."""

        async def handle(_: web.Request) -> web.Response:
            return web.Response(status=307, headers={"Location": _NOWHERE})

        async with serving(handle) as url:
            client = await connect(url=url)
            for _ in range(4):
                error = await failure_of(client)
                assert error.failure is Failure.REFUSED
                assert "secret" not in f"{error} {error.__cause__}"
        assert not bench.breaker.down

    @pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
    async def test_within_the_upstream(self, connect: Connect, status: int) -> None:
        """On the same origin the login goes along, and HEAD stays HEAD."""
        seen = []

        async def handle(request: web.Request) -> web.Response:
            seen.append((request.method, request.path, "Authorization" in request.headers))
            if "Authorization" not in request.headers:
                return web.Response(status=401, headers={"WWW-Authenticate": "Basic"})
            if request.path.startswith("/v2/library/app"):
                location = request.path.replace("library/app", "moved/app")
                return web.Response(status=status, headers={"Location": location})
            digest = "sha256:" + "0" * 64
            return web.Response(body=MANIFEST, headers={"Docker-Content-Digest": digest})

        async with serving(handle) as url:
            client = await connect(url=url)
            await client.head_manifest(NAME, TAG)
        assert seen[-1] == ("HEAD", "/v2/moved/app/manifests/v1", True)

    async def test_away_and_back(self, connect: Connect) -> None:
        """A login that was left behind on the way is not taken up again."""
        seen = []

        async def far(_: web.Request) -> web.Response:
            return web.Response(status=302, headers={"Location": f"{near_url}/back"})

        async def near(request: web.Request) -> web.Response:
            seen.append((request.path, "Authorization" in request.headers))
            if "Authorization" not in request.headers and request.path != "/back":
                return web.Response(status=401, headers={"WWW-Authenticate": "Basic"})
            if request.path == "/back":
                return web.Response(body=MANIFEST)
            return web.Response(status=302, headers={"Location": f"{far_url}/away"})

        async with serving(far) as far_url, serving(near) as near_url:
            client = await connect(url=near_url)
            await client.get_manifest(NAME, TAG)
        assert seen[-1] == ("/back", False)

    async def test_in_circles(self, connect: Connect) -> None:
        """Five redirects are followed, not six."""
        asked = []

        async def handle(request: web.Request) -> web.Response:
            asked.append(request.path)
            return web.Response(status=302, headers={"Location": "/v2/again"})

        async with serving(handle) as url:
            client = await connect(url=url)
            assert (await failure_of(client)).failure is Failure.NOT_A_REGISTRY
        assert len(asked) == 6

    @pytest.mark.parametrize(
        "location",
        [
            "ftp://127.0.0.1/x",
            "file:///etc/passwd",
            "http://",
            "http://h:99999/",
            "http://h/a b",
            "http://h/ä",
            "http://h/" + "a" * 9000,
            "",
        ],
    )
    async def test_to_nowhere(self, connect: Connect, location: str) -> None:
        """A Location that is no http address is no registry's, and not told."""

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while True:
                await reader.readuntil(b"\r\n\r\n")
                head = f"HTTP/1.1 307 x\r\nContent-Length: 0\r\nLocation: {location}\r\n\r\n"
                writer.write(head.encode())

        async with raw(handle) as url:
            client = await connect(url=url)
            assert (await failure_of(client)).failure is Failure.NOT_A_REGISTRY

    async def test_a_signed_address_is_kept_as_it_is(self, connect: Connect) -> None:
        """Not a byte of a redirect's path or query is written anew; a login in it is dropped."""
        path = "/b%2fc/%7Ed?sig=a%2Bb+c%3d&x=%25&&e=/:@"
        seen = []

        async def store(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            seen.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(plain(MANIFEST))

        async def handle(_: web.Request) -> web.Response:
            location = store_url.replace("//", "//user:pass@") + path
            return web.Response(status=307, headers={"Location": location})

        async with raw(store) as store_url, serving(handle) as url:
            client = await connect(url=url)
            await client.get_manifest(NAME, TAG)
        assert seen[0].startswith(f"GET {path} HTTP/1.1\r\n".encode())
        assert b"authorization" not in seen[0].lower()


_NOWHERE = "http://127.0.0.1:9/b?signature=a-presigned-secret"


@pytest.fixture(scope="module")
def cafile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a certificate that vouches for itself, with its key."""
    made = tmp_path_factory.mktemp("tls") / "both.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-nodes", "-days", "2", "-subj", f"/CN={HOST}",
         "-addext", f"subjectAltName=DNS:{HOST}",
         "-keyout", made.with_name("key.pem"), "-out", made],
        check=True, capture_output=True,
    )  # fmt: skip
    return made


class TestTls:
    """Certificates and their names."""

    @pytest.fixture
    def server(self, cafile: Path) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(cafile, cafile.with_name("key.pem"))
        return context

    async def test_cafile_and_resolve(
        self, server: ssl.SSLContext, cafile: Path, connect: Connect
    ) -> None:
        """The certificate is checked for the name, though the address is the configured one."""
        with FakeRegistry(tls=server) as registry:
            image = registry.put_image(str(NAME))
            client = await connect(
                url=f"https://{HOST}:{registry.port}", resolve={HOST: "127.0.0.1"}, cafile=cafile
            )
            assert (await client.get_manifest(NAME, TAG)).content == image.top.content

    async def test_the_names_are_compared(
        self, server: ssl.SSLContext, cafile: Path, connect: Connect
    ) -> None:
        """Another name's certificate is REFUSED."""
        with FakeRegistry(tls=server) as registry:
            client = await connect(url=registry.url, cafile=cafile)
            error = await failure_of(client)
            assert registry.seen == []
        assert error.failure is Failure.REFUSED
        assert "certificate verify failed" in str(error)

    async def test_an_unknown_authority(self, server: ssl.SSLContext, connect: Connect) -> None:
        """Nobody vouches for the certificate: REFUSED."""
        with FakeRegistry(tls=server) as registry:
            client = await connect(
                url=f"https://{HOST}:{registry.port}", resolve={HOST: "127.0.0.1"}
            )
            assert "certificate verify failed" in str(await failure_of(client))

    async def test_skipverify(self, server: ssl.SSLContext, connect: Connect) -> None:
        """Who wants it so is served by anyone."""
        with FakeRegistry(tls=server) as registry:
            registry.put_image(str(NAME))
            client = await connect(url=registry.url, skipverify=True)
            await client.get_manifest(NAME, TAG)

    async def test_no_way_down(
        self, server: ssl.SSLContext, connect: Connect, bench: Bench
    ) -> None:
        """From https, no redirect leads to http, and no login goes to a token service there."""
        with FakeRegistry(tls=server) as registry:
            image = registry.put_image(str(NAME))
            registry.redirect_blobs = True
            client = await connect(url=registry.url, skipverify=True)
            with pytest.raises(UpstreamError, match="https to http"):
                await blob(client, image.layer)
            assert registry.count(path="/bucket/.*") == 0
            with FakeRegistry() as tokens:
                registry.desk.realm = f"{tokens.url}/service/token"
                client = await connect(url=registry.url, skipverify=True)
                await client.get_manifest(NAME, TAG)
                assert registry.requests()[-1].headers["Authorization"].startswith("Basic ")
                assert all("Authorization" not in seen.headers for seen in tokens.seen)
                assert tokens.count(path="/service/token") > 0
        assert not bench.breaker.down

    async def test_leaving_early_over_tls(self, server: ssl.SSLContext, connect: Connect) -> None:
        """A blob that nobody wants any more is not drained, with TLS either."""
        with FakeRegistry(tls=server) as registry:
            image = registry.put_image(str(NAME), layers=(bytes(64 * 1024 * 1024),))
            client = await connect(url=registry.url, skipverify=True)
            async with client.get_blob(NAME, Digest.parse(image.layer)) as body:
                await body.read()
            await until(lambda: not _acquired(client), "the connection is given up")
            sent = registry.requests(path=".*/blobs/.*")[-1]
            assert not sent.finished

    def test_a_cafile_that_is_none(self, tmp_path: Path) -> None:
        """A file that cannot be used stops the start, not the first pull."""
        with pytest.raises(OSError, match="No such file"):
            _transport("https://h", cafile=tmp_path / "missing.pem")
        (tmp_path / "empty.pem").touch()
        with pytest.raises(ssl.SSLError):
            _transport("https://h", cafile=tmp_path / "empty.pem")


def _transport(url: str, cafile: Path | None = None) -> Transport:
    return Transport(
        URL(url),
        resolve={},
        cafile=cafile,
        skipverify=False,
        connect=5.0,
        user_agent="x",
        received=lambda _: None,
    )


def _acquired(client: RegistryClient) -> set[object]:
    session = client._transport._session
    assert session is not None
    assert session.connector is not None
    return set(session.connector._acquired)


async def _connections(client: RegistryClient) -> list[object]:
    """Return a list that grows with each connection that the client opens."""
    opened: list[object] = []
    session = client._transport._session
    assert session is not None
    connector = session.connector
    assert connector is not None
    original = connector._create_connection

    async def create(*args: object) -> object:
        opened.append(args)
        return await original(*args)  # type: ignore[arg-type]

    connector._create_connection = create  # type: ignore[method-assign, assignment]
    return opened
