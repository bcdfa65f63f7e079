"""One upstream, one config file, and both caches to run from it."""

from __future__ import annotations

import base64
import secrets
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import bcrypt
import yaml

from bench.content import Blob, Image, image
from bench.link import Link, link
from bench.servers import Server, free_port, running
from bench.upstream import USERNAME, Upstream, upstream

REPOSITORY = Path(__file__).parent.parent
PULLTHROUGH: Final = "pullthrough"
REGISTRY: Final = "docker-registry"
PROGRAMS: Final = (PULLTHROUGH, REGISTRY)
COMMANDS: Mapping[str, Sequence[str]] = {
    PULLTHROUGH: (sys.executable, "-m", "pullthrough", "serve"),
    REGISTRY: ("docker-registry", "serve"),
}
BARE: Final = "bare"
USER = "node"
CACHED_LIMIT = 30.0


@dataclass(frozen=True, slots=True)
class Site:
    """What a scenario works with; ``images`` are at the upstream, ``login`` is what caches want."""

    directory: Path
    images: Sequence[Image]
    upstream: Upstream
    login: Mapping[str, str] = field(repr=False)
    _link: Link | None

    @property
    def link(self) -> Link:
        """The link between the upstream and the caches, of a site that was made with one."""
        if not self._link:
            raise RuntimeError("this site has no link")
        return self._link

    def log(self, program: str) -> Path:
        """Return the file that ``program`` logs to."""
        return self.directory / f"{program}.log"

    @contextmanager
    def running(self, program: str) -> Iterator[Server]:
        """Run ``program`` on a port of its own; what it caches lasts from one run to the next."""
        command = (*COMMANDS[program], str(self.directory / "config.yml"))
        own = {"REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY": str(self.root(program))}
        with self._running(program, command, own) as server:
            yield server

    @contextmanager
    def running_as(self, name: str, settings: Mapping[str, Any]) -> Iterator[Server]:
        """Run pullthrough as ``name``, which has a cache of its own; see :meth:`configure`."""
        command = (*COMMANDS[PULLTHROUGH], str(self.configure(name, settings)))
        with self._running(name, command, {}) as server:
            yield server

    def configure(self, name: str, settings: Mapping[str, Any]) -> Path:
        """Write the config of what runs as ``name``, and return its path.

        ``settings`` are sections that stand in place of the common ones. Where they name a bucket,
        what is at :meth:`root` is the local tier.
        """
        config = yaml.safe_load((self.directory / "config.yml").read_text())
        config["storage"]["filesystem"]["rootdirectory"] = str(self.root(name))
        path = self.directory / f"{name}.yml"
        path.write_text(yaml.safe_dump(config | dict(settings)))
        return path

    @contextmanager
    def _running(
        self, name: str, command: Sequence[str], own: Mapping[str, str]
    ) -> Iterator[Server]:
        port = free_port()
        environment = {"REGISTRY_HTTP_ADDR": f"127.0.0.1:{port}", **own}
        with running(command, port, self.log(name), environment, REPOSITORY) as server:
            yield server

    def wait_cached(self, program: str, blob: Blob) -> None:
        """Wait until ``blob`` is in the cache of ``program``: both use the same directory layout.

        Raises :class:`TimeoutError`.
        """
        root = self.root(program) / "docker/registry/v2"
        data = root / "blobs/sha256" / blob.hex[:2] / blob.hex / "data"
        link_file = (
            root / f"repositories/{self.images[0].repository}/_layers/sha256/{blob.hex}/link"
        )
        give_up = time.monotonic() + CACHED_LIMIT
        while not (data.exists() and data.stat().st_size == blob.size and link_file.exists()):
            if time.monotonic() > give_up:
                raise TimeoutError(f"{program} has not cached {blob} in {CACHED_LIMIT:.0f} s")
            time.sleep(0.02)  # a bounded poll: no program says that it has cached a blob

    def forget(self, program: str, blob: Blob) -> None:
        """Take a blob's content away from under ``program``, which is not asked for it again."""
        blobs = self.root(program) / "docker/registry/v2/blobs/sha256"
        (blobs / blob.hex[:2] / blob.hex / "data").unlink()

    def root(self, program: str) -> Path:
        """Return the directory in which ``program`` caches."""
        return self.directory / program


@contextmanager
def site(
    *layers: int,
    cost: int = 5,
    freshness: str = "{}",
    linked: bool = False,
    rate: float | None = None,
) -> Iterator[Site]:
    """Make a site with one image per entry of ``layers``, the size of its layer in bytes.

    ``cost`` is bcrypt's; ``freshness`` stands in the config; a ``linked`` site has a link between
    the upstream and the caches, of ``rate`` bytes/s.
    """
    with tempfile.TemporaryDirectory(prefix="pullthrough-bench-") as name:
        directory = Path(name)
        blobs = directory / "blobs"
        blobs.mkdir()
        images = [image(blobs, f"v{number}", size) for number, size in enumerate(layers, 1)]
        password = secrets.token_hex(12)
        hashed = bcrypt.hashpw(password.encode(), bcrypt.gensalt(cost)).decode()
        (directory / "htpasswd").write_text(f"{USER}:{hashed}\n")
        basic = base64.b64encode(f"{USER}:{password}".encode()).decode()
        login = {"Authorization": f"Basic {basic}"}
        with upstream(directory, blobs, images) as far:
            if linked:
                with link(far.server.port, rate) as between:
                    _configure(directory, between.port, far.password, freshness)
                    yield Site(directory, images, far, login, between)
            else:
                _configure(directory, far.server.port, far.password, freshness)
                yield Site(directory, images, far, login, None)


@contextmanager
def bare(place: Site, upstream: int, *path: str) -> Iterator[Server]:
    """Run the limit (bare.py) on ``upstream``, a port; with a ``path`` it fetches only that."""
    directory = place.directory / BARE
    directory.mkdir()
    port = free_port()
    command = (sys.executable, "-m", "bench.bare", str(port), str(upstream), str(directory), *path)
    with running(command, port, place.log(BARE), {}, REPOSITORY) as server:
        yield server


def _configure(directory: Path, port: int, password: str, freshness: str) -> None:
    # At log level error docker-registry writes an access line for each request and nothing else.
    (directory / "config.yml").write_text(f"""\
version: 0.1
log:
  level: error
  fields:
    service: registry
storage:
  cache:
    blobdescriptor: inmemory
  filesystem:
    rootdirectory: /var/lib/registry
http:
  addr: :5000
  workers: auto
  headers:
    X-Content-Type-Options: [nosniff]
health:
  storagedriver:
    enabled: true
    interval: 10s
    threshold: 3
auth:
  htpasswd:
    realm: bench
    path: {directory}/htpasswd
proxy:
  remoteurl: http://127.0.0.1:{port}
  username: {USERNAME}
  password: {password}
  freshness: {freshness}
""")
