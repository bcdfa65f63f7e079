"""How far content is, for all who read it in this process."""

from __future__ import annotations

import asyncio

from pullthrough.oci.errors import RegistryError


class Unstored(Exception):
    """There is no room to store the rest: readers go on without the file."""


class Feed:
    """Content on its way: bytes before ``visible`` may be read, all once it is ``complete``.

    While it is not complete the last byte is never visible: nobody ends well before the digest is
    known to be right.
    """

    def __init__(self) -> None:
        self.size: int | None = None
        self.visible = 0
        self.complete = False
        self._error: Exception | None = None
        self._changed = asyncio.Event()

    def advance(self, present: int, size: int | None = None) -> None:
        """Say that ``present`` bytes are there, not yet verified."""
        if size is not None:
            self.size = size
        self.visible = max(self.visible, present - 1)
        self._wake()

    def finish(self, size: int) -> None:
        """Say that all ``size`` bytes are there and are what the digest says."""
        self.size = self.visible = size
        self.complete = True
        self._wake()

    def fail(self, error: Exception) -> None:
        """Say that no more will come."""
        self._error = error
        self._wake()

    @property
    def failed(self) -> bool:
        """Whether no more will come."""
        return self._error is not None

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def sized(self) -> None:
        """Wait until it has begun to come, so that an answer can be begun too.

        Raises what :meth:`fail` was told.
        """
        while self.size is None and not self.visible and not self.complete:
            self._check()
            await self._changed.wait()
        self._check()

    async def past(self, offset: int) -> int:
        """Wait for bytes after ``offset`` and return up to where; that is ``offset`` at the end.

        Raises what :meth:`fail` was told.
        """
        while self.visible <= offset and not self.complete:
            self._check()
            await self._changed.wait()
        if isinstance(self._error, RegistryError):
            self._check()  # wrong content: not even what is there is given out any more
        return self.visible

    def _check(self) -> None:
        if self._error is not None:
            raise self._error
