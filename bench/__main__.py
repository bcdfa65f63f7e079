"""``python -m bench [NAME...]``: run the scenarios; a run of all of them is kept in results/."""

from __future__ import annotations

import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import click

from bench import report
from bench.figures import Figures
from bench.scenarios import SCENARIOS
from tests.servers import rgw

# Debian's packages of the same names, but for nginx: nginx-light is enough.
PROGRAMS = ("docker-registry", "nginx", "wrk", "git")
DISK_BYTES = 12 << 30
# A store of very many files takes a minute to make, and another to take away.
SCENARIO_LIMIT = 600


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(list(SCENARIOS)), metavar="[NAME]...")
def main(names: tuple[str, ...]) -> None:
    """Measure pullthrough beside docker-registry in proxy mode and nginx.

    Without a NAME everything is measured and the results are written: only figures of one run go
    together. Exit 1 when a target is not met.
    """
    missing = [program for program in PROGRAMS if not shutil.which(program)] + rgw.missing()
    if missing:
        raise click.UsageError(f"not installed: {', '.join(missing)}")
    directory = tempfile.gettempdir()
    if shutil.disk_usage(directory).free < DISK_BYTES:
        raise click.UsageError(f"less than {DISK_BYTES >> 30} GiB free in {directory}")
    signal.signal(signal.SIGTERM, _terminate)
    machine = report.machine()
    outcomes = {}
    for name in names or SCENARIOS:
        click.echo(f"{name} ...", err=True)
        outcomes[name] = _run(SCENARIOS[name])
        click.echo(f"{name}: {outcomes[name].seconds:.0f} s", err=True)
    finished = report.report(machine, outcomes)
    click.echo(finished.markdown())
    if not names:
        click.echo(f"written: {report.write(finished)}", err=True)
    sys.exit(1 if finished.missed() or any(o.error for o in outcomes.values()) else 0)


def _run(scenario: Callable[[Figures], None]) -> report.Outcome:
    """Run a scenario; when it fails, what it measured before and the others still count."""
    started = time.monotonic()
    figures, error = Figures(), None
    try:
        with _limit(SCENARIO_LIMIT):
            scenario(figures)
    except Exception as failure:  # noqa: BLE001 - whatever it was, it goes into the report
        traceback.print_exc()
        error = f"{type(failure).__name__}: {failure}".partition("\n")[0]
    return report.Outcome(time.monotonic() - started, figures.series, error)


@contextmanager
def _limit(seconds: int) -> Iterator[None]:
    """Raise :class:`TimeoutError` in the block after ``seconds``."""

    def late(_signal: int, _frame: FrameType | None) -> None:
        raise TimeoutError(f"not done after {seconds} s")

    signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    """End as at Ctrl-C, so that every server is stopped and every directory removed."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
