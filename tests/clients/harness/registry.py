"""The upstream: CNCF distribution behind an nginx with Harbor's kind of login."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import re
import socket
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Final

from tests.clients.harness.images import Image, push
from tests.clients.harness.link import Link
from tests.clients.harness.process import Server, need, scratch, wait_until

ROBOT: Final = "robot$region"
PASSWORD: Final = "Harbor12345"


@dataclass(frozen=True)
class Request:
    """A request that the front answered; ``sent`` is in bytes, the body alone."""

    method: str
    path: str
    status: int
    sent: int


@dataclass(frozen=True)
class Upstream:
    """A running upstream: ``registry`` takes pushes, with no login; ``front`` is nginx's socket."""

    registry: str
    front: Path
    access_log: Path

    def push(self, repository: str, tag: str, image: Image) -> None:
        """Put ``image`` there; under a tag that exists this moves it."""
        push(self.registry, repository, tag, image)

    @contextlib.contextmanager
    def link(self) -> Iterator[Link]:
        """Give a way to the front that can be cut."""
        link = Link(self.front)
        try:
            yield link
        finally:
            link.close()

    def requests(self, repository: str) -> list[Request]:
        """Return what was asked of ``repository`` so far and allowed, the login's own apart."""
        # One worker writes the log in order: once the mark is in it, so is all that came before.
        mark = f"/mark/{uuid.uuid4()}"
        _get(self.front, mark)
        wait_until(lambda: mark in self.access_log.read_text(), "the access log is written")
        lines = [json.loads(line) for line in self.access_log.read_text().splitlines()]
        found = [Request(**line) for line in lines]
        return [r for r in found if r.path.startswith(f"/v2/{repository}/") and r.status != 401]


@contextlib.contextmanager
def upstream() -> Iterator[Upstream]:
    """Start docker-registry and the front before it; stop both after."""
    registry, nginx = need("docker-registry"), need("nginx")
    with scratch() as root, contextlib.ExitStack() as stack:
        server, address = start_plain(registry, root, root / "storage")
        stack.callback(server.stop)
        (root / "nginx.conf").write_text(_nginx_config(root, address))
        front = Server(
            [nginx, "-p", f"{root}", "-c", f"{root}/nginx.conf", "-e", f"{root}/nginx.err"],
            root / "nginx.log",
        )
        stack.callback(front.stop)
        up = Upstream(address, root / "front.sock", root / "access.log")
        front.wait_for(lambda: _answers(up.front), "nginx answers")
        yield up


def start_plain(registry: str, root: Path, storage: Path) -> tuple[Server, str]:
    """Start a plain docker-registry on the directory ``storage``; return it and its address."""
    (root / "plain.yml").write_text(
        f"version: 0.1\nstorage: {{filesystem: {{rootdirectory: {storage}}}}}\n"
        "http: {addr: '127.0.0.1:0'}\n"
    )
    server = Server([registry, "serve", f"{root}/plain.yml"], root / "plain.log")
    # Port 0 is the system's choice; the log says which it was.
    port = re.compile(r"listening on 127\.0\.0\.1:(\d+)")
    server.wait_for(lambda: bool(port.search(server.tail())), "docker-registry listens")
    found = port.search(server.tail())
    assert found
    return server, f"127.0.0.1:{found[1]}"


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket, whose path stands in place of the host."""

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(10)
        self.sock.connect(self.host)


def _get(path_of_socket: Path, path: str) -> int:
    connection = _UnixConnection(str(path_of_socket))
    try:
        connection.request("GET", path, headers={"Host": "localhost"})
        return connection.getresponse().status
    finally:
        connection.close()


def _answers(path_of_socket: Path) -> bool:
    try:
        return _get(path_of_socket, "/mark/start") == http.HTTPStatus.NO_CONTENT
    except OSError:
        return False


def _nginx_config(root: Path, registry: str) -> str:
    basic = base64.b64encode(f"{ROBOT}:{PASSWORD}".encode()).decode()
    return _NGINX.substitute(root=root, registry=registry, basic=basic, token=uuid.uuid4().hex)


class _Percent(Template):
    """nginx has the dollar for its own variables."""

    delimiter = "%"


# As Harbor does it (its own front is nginx too): the realm has the request's host; a wrong login
# with a scope gets a token all the same, one that allows nothing; a refused Authorization gets a
# Basic challenge; what is not there is NOT_FOUND, none of the spec's codes. But Harbor takes the
# robot's Basic login under /v2/ too: not here, so that nothing works without the token.
_NGINX: Final = _Percent("""
daemon off;
worker_processes 1;
pid %root/nginx.pid;
error_log %root/nginx.err;
events { worker_connections 512; }
http {
  log_format json escape=json
    '{"method":"$request_method","path":"$uri","status":$status,"sent":$body_bytes_sent}';
  access_log %root/access.log json;
  client_body_temp_path %root/body;
  proxy_temp_path %root/proxy;
  fastcgi_temp_path %root/fastcgi;
  uwsgi_temp_path %root/uwsgi;
  scgi_temp_path %root/scgi;
  keepalive_requests 10000;

  map $http_authorization $login {
    default wrong;
    "" none;
    "Basic %basic" robot;
  }
  map "$login $arg_scope" $issued {
    default "";
    "~^robot " %token;
    "~^(wrong|none) ." anonymous;
  }
  map $uri $scope {
    default "";
    "~^/v2/(?<repository>.+)/(manifests|blobs|tags|referrers)/"
      ',scope="repository:$repository:pull"';
  }
  map $http_authorization $challenge {
    "Bearer %token" "";
    default 'Basic realm="harbor"';
    "" 'Bearer realm="http://$http_host/service/token",service="harbor-registry"$scope';
  }
  upstream registry { server %registry; keepalive 8; }

  server {
    listen unix:%root/front.sock;
    default_type application/json;

    location /mark/ { return 204; }

    location = /service/token {
      if ($request_method != GET) { return 405; }
      if ($issued = "") { return 401; }
      return 200
        '{"token":"$issued","access_token":"","expires_in":1800,"issued_at":"$time_iso8601"}';
    }

    location /v2/ {
      add_header WWW-Authenticate $challenge always;
      if ($challenge) {
        return 401 '{"errors":[{"code":"UNAUTHORIZED","message":"unauthorized"}]}';
      }
      proxy_pass http://registry;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_set_header Authorization "";
      proxy_set_header Host $http_host;
      proxy_max_temp_file_size 0;
      proxy_intercept_errors on;
      error_page 404 = @absent;
    }

    location @absent {
      return 404 '{"errors":[{"code":"NOT_FOUND","message":"not found"}]}';
    }
  }
}
""")
