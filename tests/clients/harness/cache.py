"""The cache under test, or distribution in proxy mode, started from the field's configuration."""

from __future__ import annotations

import http.client
import sys
from pathlib import Path
from typing import Final

import bcrypt

from tests.clients.harness.client import Login
from tests.clients.harness.process import Server, need
from tests.clients.harness.registry import PASSWORD, ROBOT

LOGIN: Final = Login("node", "node-password")
_PROJECT: Final = Path(__file__).parents[3]

# From the field, with a place of its own on this machine and keys of ours beside distribution's.
_CONFIG: Final = """\
version: 0.1
log:
  fields:
    service: registry
storage:
  cache:
    blobdescriptor: inmemory
  filesystem:
    rootdirectory: {storage}
http:
  addr: {address}
  headers:
    X-Content-Type-Options: [nosniff]
  workers: 2
health:
  storagedriver:
    enabled: true
    interval: 10s
    threshold: 3
proxy:
  remoteurl: http://{upstream}
  username: {robot}
  password: {password}
  freshness: {{maxage: 0s, deadline: 1.5s}}
"""


def write_htpasswd(directory: Path) -> Path:
    """Write a file that lets ``LOGIN`` in, and return its path."""
    file = directory / "htpasswd"
    # Cost 4, bcrypt's least: this is no test of its speed.
    line = bcrypt.hashpw(LOGIN.password.encode(), bcrypt.gensalt(4)).decode()
    file.write_text(f"{LOGIN.user}:{line}\n")
    return file


class Cache:
    """A registry in front of ``upstream``; its content in ``root/storage`` outlives a restart."""

    def __init__(self, root: Path, address: str, upstream: str) -> None:
        self.root = root
        self.storage = root / "storage"
        self.address = address
        self._server: Server | None = None
        (root / "config.yml").write_text(
            _CONFIG.format(
                storage=self.storage,
                address=address,
                upstream=upstream,
                robot=ROBOT,
                password=PASSWORD,
            )
        )
        write_htpasswd(root)

    def start(self) -> None:
        """Start this project's cache and wait until it is alive."""
        self._start([sys.executable, "-m", "pullthrough", "serve"], "/livez", 200)

    def start_distribution(self) -> None:
        """Start docker-registry from the same file and wait until it asks for a login."""
        self._start([need("docker-registry"), "serve"], "/v2/", 401)

    def _start(self, command: list[str], path: str, status: int) -> None:
        self._server = Server(
            [*command, str(self.root / "config.yml")],
            self.root / "log",
            extra_environment={
                "REGISTRY_AUTH": "htpasswd",
                "REGISTRY_AUTH_HTPASSWD_REALM": "registry",
                "REGISTRY_AUTH_HTPASSWD_PATH": str(self.root / "htpasswd"),
            },
            cwd=_PROJECT,
        )
        self._server.wait_for(lambda: self._status(path) == status, f"{path} answers {status}")

    def stop(self) -> None:
        """Stop what was started, and see that nothing fell over in it."""
        if self._server is not None:
            self._server.stop()
            self._server = None
            assert "Traceback" not in (self.root / "log").read_text()

    def _status(self, path: str) -> int:
        connection = http.client.HTTPConnection(self.address, timeout=5)
        try:
            connection.request("GET", path)
            return connection.getresponse().status
        except OSError:
            return 0
        finally:
            connection.close()
