"""What the tests ask of a container client, whichever it is."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from tests.clients.harness.process import environment


@dataclass(frozen=True)
class Login:
    """A user of the cache."""

    user: str
    password: str


class ClientFailed(Exception):
    """The client gave up; the message is what it said."""


class Client(Protocol):
    """A real client, with a store of its own."""

    def pull(self, image: str, login: Login) -> str:
        """Pull ``image`` (``host:port/name:tag``) as a node does that has nothing yet.

        Returns the image's id, the digest of its config, once the client has unpacked it.
        Raises :class:`ClientFailed`.
        """


def run(command: Sequence[str], *, timeout: float = 60) -> str:
    """Return what ``command`` printed; raises :class:`ClientFailed` where it fails or hangs."""
    try:
        done = subprocess.run(
            list(command),
            check=True,
            capture_output=True,
            text=True,
            timeout=timeout,
            env=environment(),
            stdin=subprocess.DEVNULL,
        )
    except subprocess.CalledProcessError as error:
        raise ClientFailed(f"{command[0]}: {error.stdout}{error.stderr}") from None
    except subprocess.TimeoutExpired:
        raise ClientFailed(f"{command[0]}: not done after {timeout} s") from None
    return done.stdout.strip()
