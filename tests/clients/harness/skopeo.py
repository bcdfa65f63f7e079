"""skopeo: every copy goes into a new directory."""

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
            run(
                [
                    *(self._skopeo, "copy", "--quiet", "--src-tls-verify=false"),
                    *("--src-creds", f"{login.user}:{login.password}"),
                    *(f"docker://{image}", f"dir:{target}"),
                ]
            )
            manifest = json.loads((Path(target) / "manifest.json").read_bytes())
            return str(manifest["config"]["digest"])
