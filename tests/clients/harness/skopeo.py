"""skopeo: every pull goes into a new directory."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from tests.clients.harness.client import Login, run
from tests.clients.harness.process import need


class Skopeo:
    """``skopeo copy`` into ``dir:``, which keeps the manifest as it came."""

    def __init__(self) -> None:
        self._skopeo = need("skopeo")

    def pull(self, image: str, login: Login) -> str:
        """Copy ``image``; skopeo verifies every blob's digest on the way."""
        with tempfile.TemporaryDirectory(prefix="pt-") as target:
            self._run(
                "copy", "--quiet", *_login("src", login), f"docker://{image}", f"dir:{target}"
            )
            manifest = json.loads((Path(target) / "manifest.json").read_bytes())
            return str(manifest["config"]["digest"])

    def push(self, image: str, target: str, login: Login) -> None:
        """Copy ``image`` within the registry; raises :class:`ClientFailed`."""
        logins = (*_login("src", login), *_login("dest", login))
        self._run("copy", "--quiet", *logins, f"docker://{image}", f"docker://{target}")

    def tags(self, repository: str, login: Login) -> list[str]:
        """Return the tags of ``host:port/name``."""
        creds = f"{login.user}:{login.password}"
        printed = self._run(
            "list-tags", "--tls-verify=false", "--creds", creds, f"docker://{repository}"
        )
        return list(json.loads(printed)["Tags"])

    def _run(self, *arguments: str) -> str:
        return run([self._skopeo, *arguments])


def _login(side: str, login: Login) -> tuple[str, ...]:
    return (f"--{side}-tls-verify=false", f"--{side}-creds", f"{login.user}:{login.password}")
