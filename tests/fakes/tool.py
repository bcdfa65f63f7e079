"""The operator's commands, run as their users do on a cache's store."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

from tests.fakes.cache import ROOT, Cache
from tests.fakes.content import Image
from tests.fakes.faults import eventually


def pullthrough(
    *arguments: str, config: Path | None = None, terminal: int | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command as its users do."""
    chosen = [] if config is None else ["--config", str(config)]
    return subprocess.run(
        [sys.executable, "-m", "pullthrough", *arguments, *chosen],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=terminal if terminal is not None else subprocess.PIPE,
        text=True,
        check=False,
        timeout=60,
        env={
            **{key: value for key, value in os.environ.items() if not key.startswith("REGISTRY_")},
            "PYTHONPATH": str(ROOT),
            "TZ": "UTC",
        },
    )


class Tool:
    """The commands on one cache's store."""

    def __init__(self, cache: Cache) -> None:
        self.config = cache.directory / "config.yml"

    def __call__(self, *arguments: str, code: int = 0) -> str:
        """Return what a command prints."""
        told = pullthrough(*arguments, config=self.config)
        assert told.returncode == code, (told.stdout, told.stderr)
        assert "Traceback" not in told.stderr
        return told.stdout

    def json(self, *arguments: str, code: int = 0) -> dict[str, Any]:
        """Return what a command prints as JSON."""
        told: dict[str, Any] = json.loads(self(*arguments, "--json", code=code))
        return told

    def complains(self, *arguments: str, code: int = 1) -> str:
        """Return what a command that has nothing to print says on standard error, in one line."""
        told = pullthrough(*arguments, config=self.config)
        assert (told.returncode, told.stdout) == (code, ""), (told.stdout, told.stderr)
        assert code == 2 or told.stderr.count("\n") == 1
        return told.stderr

    def images(self, *arguments: str) -> dict[str, dict[str, Any]]:
        """Return what ``ls`` lists, by name."""
        return {image["image"]: image for image in self.json("ls", *arguments)["images"]}


def pulled(cache: Cache, *images: Image) -> None:
    """Pull images, and wait until all of them is known to be here."""
    for each in images:
        cache.client().pull(each)
    wanted = {
        digest
        for each in images
        for digest in (*each.blobs, *(manifest.digest for manifest in each.manifests))
    }
    eventually(lambda: wanted <= known(cache.store), "all of it in the index")


def known(store: Path) -> set[str]:
    """Return what the index knows to be on the disk, and to be right."""
    with closing(sqlite3.connect(store / "pullthrough" / "index.sqlite")) as index:
        return {digest for (digest,) in index.execute("SELECT digest FROM blob WHERE verified")}


def rot(cache: Cache, digest: str) -> None:
    """Flip a byte, as a disk does."""
    with cache.blob_file(digest).open("r+b") as file:
        first = file.read(1)
        file.seek(0)
        file.write(bytes([first[0] ^ 1]))


def total(image: Image) -> int:
    """Return the bytes of an image, its manifests too."""
    manifests = sum(len(manifest.content) for manifest in image.manifests)
    return manifests + sum(map(len, image.blobs.values()))
