"""A private dockerd with the classic image store, and the docker command."""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

from tests.clients.harness.client import ClientFailed, Login, run
from tests.clients.harness.process import Server, need, need_root, scratch


class Docker:
    """``docker pull`` by a dockerd of the tests' own."""

    def __init__(self, root: Path) -> None:
        self._config = root / "client"
        self._config.mkdir()
        self._docker = [need("docker"), "--config", str(self._config)]
        self._docker += ["--host", f"unix://{root}/d.sock"]

    def answers(self) -> bool:
        """Whether the daemon is up."""
        with contextlib.suppress(ClientFailed):
            run([*self._docker, "version"])
            return True
        return False

    def pull(self, image: str, login: Login) -> str:
        """Remove every image, then pull with the login that ``docker login`` would have left."""
        if images := self._images():
            run([*self._docker, "rmi", "--force", *images])
        assert not self._images(), "dockerd kept an image"
        auth = base64.b64encode(f"{login.user}:{login.password}".encode()).decode()
        auths = {image.partition("/")[0]: {"auth": auth}}
        (self._config / "config.json").write_text(json.dumps({"auths": auths}))
        run([*self._docker, "pull", "--quiet", image])
        return run([*self._docker, "image", "inspect", "--format", "{{.Id}}", image])

    def _images(self) -> list[str]:
        return sorted(set(run([*self._docker, "images", "--all", "--quiet", "--no-trunc"]).split()))


@contextlib.contextmanager
def dockerd() -> Iterator[Docker]:
    """Start a dockerd without a network of its own; stop it and remove its files after."""
    need_root()
    daemon = need("dockerd")
    with scratch() as root:
        (root / "daemon.json").write_text("{}")
        client = Docker(root)
        server = Server(
            [
                *(
                    daemon,
                    "--config-file",
                    f"{root}/daemon.json",
                    "--host",
                    f"unix://{root}/d.sock",
                ),
                *("--data-root", f"{root}/root", "--exec-root", f"{root}/exec"),
                *("--pidfile", f"{root}/pid", "--storage-driver", "vfs", "--bridge", "none"),
                *("--iptables=false", "--ip6tables=false", "--ip-masq=false"),
            ],
            root / "log",
        )
        server.wait_for(client.answers, "dockerd answers")
        try:
            yield client
        finally:
            server.stop()
