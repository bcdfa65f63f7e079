"""The demo as it is seen on a terminal."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from pullthrough.demo.story import Step, Story

_LOG_TAIL = 4000  # characters of the processes' output that are shown after a failure


def show() -> int:
    """Tell the story and print what was measured; return the exit code."""
    # What is printed holds paths and servers' answers: none of it is markup.
    console = Console(markup=False, highlight=False)
    story = Story()
    with (
        TemporaryDirectory(prefix="pullthrough-demo-") as directory,
        (Path(directory) / "log").open("wb+", buffering=0) as log,
    ):
        telling = story.tell(Path(directory), log, console.print)
        interrupted = asyncio.run(_interruptible(telling))
        if interrupted is not None:
            console.print(f"Ended by {interrupted.name}.")
            return 128 + interrupted
        if story.steps:
            console.print(table(story.steps))
        if not story.failures:
            console.print(closing(story.steps))
            return 0
        for failure in story.failures:
            console.print(f"FAILED: {failure}", soft_wrap=True)
        console.print(f"The last words of its processes:\n{_tail(log)}", soft_wrap=True)
        return 1


async def _interruptible(telling: Coroutine[None, None, None]) -> signal.Signals | None:
    """Await ``telling``; on a signal end it in order, and return which it was."""
    task = asyncio.create_task(telling)
    received: list[signal.Signals] = []

    def interrupt(number: signal.Signals) -> None:
        # Only the first: an impatient second one must not cut the clean-up short, which is bounded.
        if not received:
            task.cancel()
        received.append(number)

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, interrupt, number)
    try:
        await task
    except asyncio.CancelledError:
        return received[0]
    return None


def table(steps: Sequence[Step]) -> Table:
    """Return what each step took and cost."""
    drawn = Table()
    drawn.add_column("step")
    for heading in ("time", "upstream\nrequests", "upstream\nbytes"):
        drawn.add_column(heading, justify="right")
    drawn.add_column("Cache-Status\nof the tags")
    for step in steps:
        statuses = dict.fromkeys(image.cache_status for image in step.pulled.values())
        drawn.add_row(
            step.name,
            f"{step.seconds * 1000:,.0f} ms",
            f"{step.cost.requests:,}",
            decimal(step.cost.sent),
            "\n".join(statuses),
        )
    return drawn


def closing(steps: Sequence[Step]) -> str:
    """Return what it comes to, in a sentence."""
    pulled = sum(sum(image.blobs.values()) for step in steps for image in step.pulled.values())
    sent = sum(step.cost.sent for step in steps)
    dead = sum(not step.alive for step in steps)
    return (
        f"{len(steps)} pulls brought {decimal(pulled)}, every byte verified, and cost the link "
        f"{decimal(sent)}; {dead} of them came while the upstream was dead."
    )


def _tail(log: IO[bytes]) -> str:
    log.seek(0)
    return log.read().decode(errors="replace")[-_LOG_TAIL:]
