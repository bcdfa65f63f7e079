"""podman and buildah: every pull goes into a new store."""

from __future__ import annotations

from tests.clients.harness.client import Login, run
from tests.clients.harness.process import need, need_root, scratch


class Podman:
    """``podman pull``."""

    # No systemd, no journal: neither is on a machine that only builds.
    _options: tuple[str, ...] = ("--cgroup-manager", "cgroupfs", "--events-backend", "none")

    def __init__(self, tool: str = "podman") -> None:
        need_root()
        self._tool = need(tool)

    def pull(self, image: str, login: Login) -> str:
        """Pull into a store that has nothing; both tools print the image's id."""
        with scratch() as root:
            printed = run(
                [
                    *(self._tool, *self._options, "--storage-driver", "vfs"),
                    *("--root", f"{root}/root", "--runroot", f"{root}/run"),
                    *("pull", "--quiet", "--tls-verify=false"),
                    *("--creds", f"{login.user}:{login.password}", image),
                ]
            )
        return f"sha256:{printed.splitlines()[-1]}"


class Buildah(Podman):
    """``buildah pull``, which has most of podman's options."""

    _options = ()

    def __init__(self) -> None:
        super().__init__("buildah")
