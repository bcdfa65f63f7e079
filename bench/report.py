"""The results: JSON with every sample, and tables to read."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import orjson

from bench.figures import TARGETS, Series, Target
from bench.site import REPOSITORY

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("aiohttp", "bcrypt", "orjson", "pydantic", "structlog", "prometheus-client", "boto3")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a scenario gave: its figures by name, or the ``error`` that ended it."""

    seconds: float
    figures: Mapping[str, Series]
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """A run: what was measured, and on what."""

    commit: str
    dirty: bool
    date: str
    machine: Mapping[str, str]
    outcomes: Mapping[str, Outcome]

    def missed(self) -> int:
        """Return how many targets of the scenarios that were run are not met, or not measured."""
        return sum(not met for _, _, met in self._judged())

    def document(self) -> dict[str, Any]:
        """Return everything, for JSON."""
        targets = [
            asdict(target) | {"measured": measured, "met": met}
            for target, measured, met in self._judged()
        ]
        return asdict(self) | {"targets": targets}

    def markdown(self) -> str:
        """Return the tables."""
        return "\n".join(self._lines()) + "\n"

    def _judged(self) -> Iterator[tuple[Target, float | None, bool]]:
        for target in TARGETS:
            if outcome := self.outcomes.get(target.scenario):
                series = outcome.figures.get(target.figure)
                if series:
                    yield target, target.measured(series), target.met(series)
                else:
                    yield target, None, False

    def _lines(self) -> Iterator[str]:
        dirty = ", with uncommitted changes" if self.dirty else ""
        yield f"# Bench of {self.date}, commit {self.commit}{dirty}"
        yield ""
        yield from (f"- {name}: {value}" for name, value in self.machine.items())
        yield ""
        yield "| scenario | figure | target | measured | met |"
        yield "|---|---|---|---|---|"
        for target, measured, met in self._judged():
            series = self.outcomes[target.scenario].figures.get(target.figure)
            unit = series.unit if series else ""
            bound = f"{target.bound} {target.limit:g} {unit}"
            value = "not measured" if measured is None else f"{_number(measured)} {unit}"
            which = " (worst)" if target.judged == "worst" else ""
            verdict = "yes" if met else "**no**"
            yield f"| {target.scenario} | {target.figure} | {bound} | {value}{which} | {verdict} |"
        for name, outcome in self.outcomes.items():
            yield ""
            yield f"## {name} ({outcome.seconds:.0f} s)"
            if outcome.error:
                yield ""
                yield f"**Failed:** {outcome.error}"
            if outcome.figures:
                yield ""
                yield "| figure | unit | min | median | max | samples |"
                yield "|---|---|---:|---:|---:|---:|"
            for figure, series in outcome.figures.items():
                values = (min(series.samples), series.median, max(series.samples))
                cells = " | ".join(map(_number, values))
                yield f"| {figure} | {series.unit} | {cells} | {len(series.samples)} |"


def machine() -> dict[str, str]:
    """Return what the run is made on."""
    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {
        "load before the run": f"{os.getloadavg()[0]:.2f}",
        "processor": f"{len(models)} x {models[0]}" if models else platform.machine(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "packages": ", ".join(f"{name} {metadata.version(name)}" for name in PACKAGES),
        "docker-registry": _said("docker-registry", "--version"),
        "nginx": _said("nginx", "-v"),
        "wrk": _said("wrk", "-v"),
        "radosgw": _said("radosgw", "--version"),
        "logs": "level error and the access log as by default, to a file, in both",
    }


def report(machine: Mapping[str, str], outcomes: Mapping[str, Outcome]) -> Report:
    """Return the report of a run that has just ended; ``machine`` as it was before."""
    changes = _git("status", "--porcelain", "--", ".", ":!bench/results")
    return Report(
        commit=_git("rev-parse", "--short", "HEAD"),
        dirty=bool(changes),
        date=datetime.now(UTC).date().isoformat(),
        machine=machine,
        outcomes=outcomes,
    )


def write(finished: Report) -> Path:
    """Write the JSON under its own name and the tables as the latest; return the JSON's path."""
    RESULTS.mkdir(exist_ok=True)
    dirty = "-dirty" if finished.dirty else ""
    path = RESULTS / f"{finished.date}-{finished.commit}{dirty}.json"
    path.write_bytes(orjson.dumps(finished.document(), option=orjson.OPT_INDENT_2))
    (RESULTS / "latest.md").write_text(finished.markdown())
    return path


def _number(value: float) -> str:
    """Three significant digits, and whole numbers from 100 on."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _said(*command: str) -> str:
    # wrk ends with an error after printing its version; nginx prints it to stderr.
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=10, cwd=REPOSITORY
    )
    return (done.stdout or done.stderr).partition("\n")[0].strip()


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ("git", *arguments), check=True, capture_output=True, text=True, timeout=10, cwd=REPOSITORY
    )
    return done.stdout.strip()
