"""What the upstream side tells whoever counts: a narrow interface that metrics implement."""

from __future__ import annotations

from typing import Protocol


class Observer(Protocol):
    """Is told what happened, as it happens; must not raise and must not block."""

    def request(self, operation: str, outcome: str, seconds: float) -> None:
        """Count a call's end: ``outcome`` is "ok", "cancelled" or a failure's value."""

    def bytes_received(self, count: int) -> None:
        """Count the bytes of answers' bodies as they come."""

    def token_failure(self, reason: str) -> None:
        """Count a token that was asked for and not given; ``reason`` is a failure's value."""

    def credential_refused(self) -> None:
        """Say that the upstream refuses the credential itself: a person must look."""


class Unobserved:
    """An observer that nobody listens to."""

    def request(self, operation: str, outcome: str, seconds: float) -> None:
        """Count nothing."""

    def bytes_received(self, count: int) -> None:
        """Count nothing."""

    def token_failure(self, reason: str) -> None:
        """Count nothing."""

    def credential_refused(self) -> None:
        """Count nothing."""
