"""Logins of the region's clients: htpasswd, bcrypt, verified once and remembered.

What is remembered is an HMAC over user, password and stored hash under a key of this process: no
password is kept, and a changed htpasswd file counts at once.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
import os
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import bcrypt
import structlog
from cachetools import LRUCache, TTLCache
from passlib.apache import HtpasswdFile

from pullthrough.oci.errors import Unauthorized
from pullthrough.singleflight import SingleFlight

_log = structlog.get_logger()

_BCRYPT_LIMIT: Final = 72  # bytes; the rest of a password never counted, in registry:2 neither
_FILE_LIMIT: Final = 1 << 20
_LOOK_EVERY: Final = 1.0  # seconds between looks at the file
_REMEMBER: Final = 900.0  # seconds that a verified login is believed
_REFUSE: Final = 60.0  # seconds that a wrong one is not verified again
_LOGINS: Final = 10_000
_THREADS: Final = 2
_FREE_FAILURES: Final = 3
_LONGEST_DELAY: Final = 3.0  # seconds
_DEFAULT_COST: Final = 10
_SLOT = "." * 53  # a salt, and the hash of no password
_BCRYPT: Final = re.compile(rb"\$2[aby]\$\d\d\$[./A-Za-z0-9]{53}")


@dataclass(frozen=True, slots=True)
class Login:
    """Who asks, as far as Basic credentials say."""

    user: str
    password: bytes = field(repr=False)

    @classmethod
    def parse(cls, header: str | None) -> Login | None:
        """Return what an Authorization header says, None if it is not Basic (RFC 7617)."""
        scheme, _, value = (header or "").partition(" ")
        if scheme.lower() != "basic":
            return None
        try:
            user, colon, password = base64.b64decode(value, validate=True).partition(b":")
            return cls(user.decode(), password) if colon else None
        except ValueError:
            return None  # not base64, or not UTF-8


def read_htpasswd(path: Path) -> Mapping[str, bytes]:
    """Return the bcrypt hash of each user; raises :class:`OSError` or :class:`ValueError`."""
    with path.open("rb") as file:
        content = file.read(_FILE_LIMIT + 1)
    if len(content) > _FILE_LIMIT:
        raise ValueError(f"more than {_FILE_LIMIT} bytes")
    entries = HtpasswdFile.from_string(content)
    users = {user: entries.get_hash(user) for user in entries.users()}
    for user in [user for user, stored in users.items() if not _BCRYPT.fullmatch(stored)]:
        _log.warning("htpasswd entry ignored: not bcrypt", user=user)
        del users[user]
    return users


class Htpasswd:
    """Checks logins against a file, which it watches."""

    def __init__(
        self,
        path: Path,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._path, self._clock, self._sleep = path, clock, sleep
        self._users: Mapping[str, bytes] = {}
        self._nobody = b""
        self._stamp: tuple[int, int, int] | None = None
        self._looked = -_LOOK_EVERY
        self._key = secrets.token_bytes(32)
        self._verified: TTLCache[bytes, None] = TTLCache(_LOGINS, _REMEMBER, timer=clock)
        self._refused: TTLCache[bytes, None] = TTLCache(_LOGINS, _REFUSE, timer=clock)
        self._failures: TTLCache[str, int] = TTLCache(_LOGINS, _REFUSE, timer=clock)
        self._turns: LRUCache[str, asyncio.Semaphore] = LRUCache(_LOGINS)
        self._checks: SingleFlight[bytes, bool] = SingleFlight()
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="bcrypt")
        self.reload()

    def reload(self) -> None:
        """Read the file again; one that cannot be read leaves the users as they were."""
        try:
            self._stamp = _stamp(self._path)
            self._users = read_htpasswd(self._path)
        except (OSError, ValueError) as error:
            self._stamp = None
            _log.error("htpasswd not readable, users unchanged", why=str(error))
            return
        # An unknown user costs as long as a wrong password.
        cost = max((_cost(stored) for stored in self._users.values()), default=_DEFAULT_COST)
        self._nobody = f"$2b${cost:02d}${_SLOT}".encode()

    async def user(self, header: str | None, address: str) -> str:
        """Return whose login it is; raises :class:`Unauthorized`."""
        self._look()
        login = Login.parse(header)
        if login is None:
            raise Unauthorized("authentication required")
        stored = self._users.get(login.user, self._nobody)
        key = hmac.digest(
            self._key, b"\0".join((login.user.encode(), login.password, stored)), "sha256"
        )
        if key in self._verified:
            return login.user
        if key not in self._refused and await self._check(key, login, stored, address):
            self._verified[key] = None
            return login.user
        self._refused[key] = None
        failures = self._failures[address] = self._failures.get(address, 0) + 1
        # Only the answer to a wrong login is slow: a right one from the same address never waits.
        excess = min(failures - _FREE_FAILURES, 10)
        if excess > 0:
            await self._sleep(min(0.05 * 2**excess, _LONGEST_DELAY))
        raise Unauthorized("authentication required")

    async def _check(self, key: bytes, login: Login, stored: bytes, address: str) -> bool:
        known = login.user in self._users
        turn = self._turns.setdefault(address, asyncio.Semaphore(1))

        def verify() -> bool:
            # The dummy never matches; asking it costs what a wrong password costs.
            return bcrypt.checkpw(login.password[:_BCRYPT_LIMIT], stored) and known

        async def check() -> bool:
            # One at a time for an address: nobody fills the pool for the others.
            async with turn:
                return await asyncio.get_running_loop().run_in_executor(self._threads, verify)

        try:
            return await self._checks.run(key, check)
        except ValueError:
            return False  # a password with NUL, or a hash that is none

    def _look(self) -> None:
        now = self._clock()
        if now - self._looked < _LOOK_EVERY:
            return
        self._looked = now
        try:
            changed = _stamp(self._path) != self._stamp
        except OSError:
            changed = self._stamp is not None
        if changed:
            _log.info("htpasswd changed, read again")
            self.reload()

    def close(self) -> None:
        """Let the threads go."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _cost(stored: bytes) -> int:
    return int(stored[4:6])


def _stamp(path: Path) -> tuple[int, int, int]:
    status = os.stat(path)  # noqa: PTH116 - follows the symbolic link that a mounted secret is
    return status.st_ino, status.st_mtime_ns, status.st_size
