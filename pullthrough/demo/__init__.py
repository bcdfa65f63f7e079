"""The main job, shown with no network: ``pullthrough demo``."""

from __future__ import annotations


def run() -> int:
    """Show it, and return the exit code: 0 only if every step did what it should, else 1.

    Ctrl-C or SIGTERM end what it started, and the code is then a shell's: 128 and the signal.
    """
    # Late: the upstream runs as a module of this package, which must not have imported it before.
    from pullthrough.demo.report import show

    return show()
