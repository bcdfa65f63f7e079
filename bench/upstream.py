"""The upstream: nginx that answers like a registry with Harbor's Bearer login.

It serves plain files and nothing else, so that it takes as little as it can of the machine that it
shares with what is measured. The same nginx is the limit: the files stand open under ``/static/``.
"""

from __future__ import annotations

import base64
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.content import OCI_MANIFEST, Image
from bench.servers import Server, free_port, running

USERNAME = "robot$region"


@dataclass(frozen=True, slots=True)
class Upstream:
    """A running upstream and the password of its robot."""

    server: Server
    password: str


@contextmanager
def upstream(directory: Path, blobs: Path, images: Sequence[Image]) -> Iterator[Upstream]:
    """Serve ``images``, whose content lies in ``blobs``."""
    password = secrets.token_hex(12)
    port = free_port()
    config = directory / "nginx.conf"
    config.write_text(_config(directory, blobs, images, password, port))
    command = ("nginx", "-c", config, "-p", directory, "-e", directory / "nginx.error.log")
    with running(command, port, directory / "nginx.log", {}, directory) as server:
        yield Upstream(server, password)


def _config(directory: Path, blobs: Path, images: Sequence[Image], password: str, port: int) -> str:
    basic = base64.b64encode(f"{USERNAME}:{password}".encode()).decode()
    token = secrets.token_hex(24)
    manifests = "".join(
        f"""
    location = {path} {{
      if ($refused) {{ return 401 '{{"errors":[{{"code":"UNAUTHORIZED"}}]}}'; }}
      default_type {OCI_MANIFEST};
      add_header Docker-Content-Digest {image.manifest.digest};
      add_header WWW-Authenticate $challenge always;
      alias {blobs}/{image.manifest.hex};
    }}"""
        for image in images
        for path in (image.by_tag, image.by_digest)
    )
    temporary = "\n  ".join(
        f"{kind}_temp_path {directory}/nginx-{kind};"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    # Started as root, its workers would change to a user who may not read the bench's directory.
    user = "user root;" if os.geteuid() == 0 else ""
    return f"""
{user}
daemon off;
pid {directory}/nginx.pid;
worker_processes 2;
events {{ worker_connections 1024; }}
http {{
  {temporary}
  access_log off;
  sendfile on;
  etag off;
  keepalive_requests 1000000;
  map_hash_bucket_size 256;
  default_type application/octet-stream;
  map $http_authorization $refused {{ default 1; "Bearer {token}" 0; }}
  map $http_authorization $stranger {{ default 1; "Basic {basic}" 0; }}
  map $refused $challenge {{
    default "";
    1 'Bearer realm="http://$http_host/service/token",service="harbor-registry"';
  }}
  server {{
    listen 127.0.0.1:{port} backlog=1024;
    add_header Docker-Distribution-Api-Version registry/2.0 always;
    location = /service/token {{
      default_type application/json;
      if ($stranger) {{ return 401 '{{"errors":[{{"code":"UNAUTHORIZED"}}]}}'; }}
      return 200 '{{"token":"{token}","expires_in":1800}}';
    }}
    location /static/ {{ alias {blobs}/; }}
    location ~ ^/v2/[a-z/]+/blobs/sha256:([0-9a-f]+)$ {{
      if ($refused) {{ return 401 '{{"errors":[{{"code":"UNAUTHORIZED"}}]}}'; }}
      add_header Docker-Content-Digest sha256:$1;
      add_header WWW-Authenticate $challenge always;
      alias {blobs}/$1;
    }}{manifests}
    location = /v2/ {{
      default_type application/json;
      add_header WWW-Authenticate $challenge always;
      if ($refused) {{ return 401 '{{"errors":[{{"code":"UNAUTHORIZED"}}]}}'; }}
      return 200 '{{}}';
    }}
  }}
}}
"""
