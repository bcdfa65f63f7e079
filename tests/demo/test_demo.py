"""``pullthrough demo``, run as a new user runs it."""

import asyncio
import signal
import sys
from asyncio.subprocess import PIPE, STDOUT, Process
from contextlib import suppress
from pathlib import Path

import pytest

from pullthrough.demo import report, story

REPOSITORY = Path(__file__).parents[2]
STEPS = [
    "first pull",
    "second pull",
    "new version pushed",
    "upstream killed",
    "cache restarted",
]


async def _demo(tmp_path: Path) -> Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "pullthrough",
        "demo",
        stdout=PIPE,
        stderr=STDOUT,
        cwd=REPOSITORY,
        # A wide terminal, so that no cell is wrapped, and all its files where they can be seen.
        env={"PATH": "", "COLUMNS": "200", "TMPDIR": str(tmp_path)},
    )


def _left_behind(tmp_path: Path) -> list[str]:
    """Return the files of a demo with this TMPDIR, and the processes that write to its log."""
    found = [str(path) for path in tmp_path.iterdir()]
    for stderr in Path("/proc").glob("[0-9]*/fd/2"):
        # It may have ended meanwhile, or be another user's.
        with suppress(OSError):
            if str(tmp_path) in str(stderr.readlink()):
                found.append((stderr.parents[1] / "cmdline").read_text())
    return found


async def test_the_demo_shows_the_main_job(tmp_path: Path) -> None:
    """Every step behaves, each is a row of the table, and nothing is left behind."""
    demo = await _demo(tmp_path)
    output, _ = await demo.communicate()
    text = output.decode()
    assert demo.returncode == 0, text
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines()]
    # A row without a name is the second line of the one above: tags that were answered differently.
    measured = {row[0]: row[1:] for row in rows if len(row) == 5 and row[0]}
    assert list(measured) == STEPS
    requests = {step: int(row[1]) for step, row in measured.items()}
    # Two tags are asked for, and by a worker process that has no token yet, two tokens.
    assert 2 <= requests["second pull"] <= 4
    for step in STEPS[-2:]:
        assert measured[step][1:3] == ["0", "0 bytes"]
        assert "fwd=stale" in measured[step][3]
    assert "2 of them came while the upstream was dead." in text
    assert "assword" not in text
    assert _left_behind(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_an_interrupted_demo_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    """With the upstream and the cache running, Ctrl-C or SIGTERM end them both."""
    demo = await _demo(tmp_path)
    assert demo.stdout is not None
    output = b""
    while b"The cache: " not in output:
        line = await demo.stdout.readline()
        assert line, output.decode()
        output += line
    # The directory, the upstream and the cache: the look below could find them.
    assert len(_left_behind(tmp_path)) >= 3
    demo.send_signal(number)
    rest, _ = await demo.communicate()
    assert demo.returncode == 128 + number, rest.decode()
    assert _left_behind(tmp_path) == []


def test_a_demo_that_fails_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The time limit ends the story, the reason is printed, and the exit code is 1."""
    monkeypatch.setattr(story, "TIME_LIMIT", 0.01)
    assert report.show() == 1
    assert "FAILED: it took longer than" in capsys.readouterr().out
