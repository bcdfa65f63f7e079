"""A private containerd, asked by ``ctr`` and by the CRI as the kubelet does it."""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.clients.harness import cri
from tests.clients.harness.client import ClientFailed, Login, run
from tests.clients.harness.process import Server, need, need_root, scratch

_CONFIG: Final = """\
version = 2
root = "{root}/root"
state = "{root}/state"
[grpc]
  address = "{root}/c.sock"
[ttrpc]
  address = "{root}/t.sock"
[plugins."io.containerd.grpc.v1.cri"]
  disable_cgroup = true
  disable_apparmor = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "{snapshotter}"
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "{root}/certs.d"
[plugins."io.containerd.internal.v1.opt"]
  path = "{root}/opt"
"""
# Copies each layer, and works where an overlay cannot be mounted on an overlay.
_SNAPSHOTTER: Final = "native"
_NAMESPACES: Final = ("default", "k8s.io")


class Containerd:
    """The daemon; content is shared by its namespaces, so all are emptied together."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.socket = root / "c.sock"
        self._ctr = [need("ctr"), "--address", str(self.socket)]

    def ctr(self, *arguments: str) -> str:
        """Return what ``ctr`` printed."""
        return run([*self._ctr, *arguments])

    def answers(self) -> bool:
        """Whether the daemon and its CRI plugin are up."""
        with contextlib.suppress(ClientFailed):
            self.ctr("version")
            cri.version(self.socket)
            return True
        return False

    def empty(self) -> None:
        """Remove every image, with its content and snapshots."""
        for namespace in _NAMESPACES:
            images = self.ctr("--namespace", namespace, "images", "ls", "--quiet").split()
            if images:
                self.ctr("--namespace", namespace, "images", "rm", "--sync", *images)
        for namespace in _NAMESPACES:
            content = self.ctr("--namespace", namespace, "content", "ls", "--quiet")
            assert not content, f"containerd kept {content}"

    def use_mirror(
        self, host: str, address: str, scheme: str = "http", *, login: Login | None = None
    ) -> None:
        """Have the CRI pull images named after ``host`` from ``address``, by hosts.toml.

        ``login`` goes along as a header, on every request there.
        """
        hosts = self.root / "certs.d" / host
        hosts.mkdir(parents=True, exist_ok=True)
        header = ""
        if login is not None:
            basic = base64.b64encode(f"{login.user}:{login.password}".encode()).decode()
            header = (
                f'  [host."{scheme}://{address}".header]\n    Authorization = ["Basic {basic}"]\n'
            )
        (hosts / "hosts.toml").write_text(
            # Nothing listens on port 9: what the mirror does not give, nobody does.
            'server = "http://127.0.0.1:9"\n'
            f'[host."{scheme}://{address}"]\n  capabilities = ["pull", "resolve"]\n{header}'
        )


class Ctr:
    """``ctr images pull``."""

    def __init__(self, daemon: Containerd) -> None:
        self._daemon = daemon

    def pull(self, image: str, login: Login) -> str:
        """Empty the daemon, pull and unpack, and read the config's digest from the manifest."""
        self._daemon.empty()
        self._daemon.ctr(
            *("images", "pull", "--plain-http", "--snapshotter", _SNAPSHOTTER),
            *("--user", f"{login.user}:{login.password}", image),
        )
        listed = self._daemon.ctr("images", "ls", f"name=={image}").splitlines()[1]
        digest = next(word for word in listed.split() if word.startswith("sha256:"))
        manifest = json.loads(self._daemon.ctr("content", "get", digest))
        if "manifests" in manifest:
            # Of an index only this machine's manifest was pulled: the first, by our making.
            here = manifest["manifests"][0]["digest"]
            manifest = json.loads(self._daemon.ctr("content", "get", here))
        return str(manifest["config"]["digest"])


class Cri:
    """PullImage of the CRI, the login in the request as from an imagePullSecret."""

    def __init__(self, daemon: Containerd) -> None:
        self._daemon = daemon

    def pull(self, image: str, login: Login) -> str:
        """Empty the daemon, then pull; the CRI's image reference is the image's id."""
        host = image.partition("/")[0]
        self._daemon.use_mirror(host, host)
        return self.pull_as_named(image, login)

    def pull_as_named(self, image: str, login: Login | None) -> str:
        """As :meth:`pull`, from wherever hosts.toml says; ``login`` may stand there instead."""
        self._daemon.empty()
        return cri.pull(self._daemon.socket, image, login)


@contextlib.contextmanager
def containerd() -> Iterator[Containerd]:
    """Start a containerd; stop it and remove its files after."""
    need_root()
    daemon = need("containerd")
    with scratch() as root:
        (root / "config.toml").write_text(_CONFIG.format(root=root, snapshotter=_SNAPSHOTTER))
        client = Containerd(root)
        server = Server([daemon, "--config", f"{root}/config.toml"], root / "log")
        server.wait_for(client.answers, "containerd answers")
        try:
            yield client
        finally:
            server.stop()
