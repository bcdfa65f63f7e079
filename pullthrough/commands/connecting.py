"""``check --connect``: the upstream and the bucket asked, and what is wrong in one line each."""

from __future__ import annotations

import asyncio
from typing import Final

import click
from yarl import URL

from pullthrough import parts
from pullthrough.config import Config, ConfigError
from pullthrough.oci.digest import Digest
from pullthrough.telemetry import logs
from pullthrough.upstream import trial
from pullthrough.upstream.base import Failure, UpstreamError
from pullthrough.upstream.client import Settings

_APART: Final = 300.0
"""Seconds between two clocks that are too many: certificates, tokens and signatures have times."""
_REFUSALS: Final = frozenset({Failure.UNAUTHORIZED, Failure.FORBIDDEN})


def reachable(config: Config) -> bool:
    """Say of upstream and bucket whether they can be used; return whether both can."""
    # What is said in the log on the way is said here in a line.
    logs.configure("error", "text", {})
    problems = {f"upstream {config.proxy.remoteurl}": _upstream(config)}
    if config.storage.s3 is not None:
        problems[f"bucket {config.storage.s3.bucket}"] = _bucket(config)
    for what, problem in problems.items():
        click.echo(f"{what}: {problem or 'good'}", err=bool(problem))
    return not any(problems.values())


def _upstream(config: Config) -> str:
    """Return what is wrong with the upstream, "" for nothing."""
    host = URL(config.proxy.remoteurl).host
    try:
        return _clock(asyncio.run(trial.log_in(parts.upstream(config.proxy))))
    except UpstreamError as error:
        why = str(error).removeprefix(f"{host}: ").removeprefix(f"{host} ")
        refused = error.failure in _REFUSALS
        return f"refuses the credential ({why})" if refused else why
    except (ConfigError, OSError) as error:
        return str(error)


def _bucket(config: Config) -> str:
    """Return what is wrong with the bucket, "" for nothing."""
    from pullthrough.store.bucket import BucketError, Trouble  # boto3, only where there is a bucket

    s3 = config.storage.s3
    assert s3 is not None  # noqa: S101 - the caller looked
    address = ""
    try:
        bucket = parts.bucket(config)
        assert bucket is not None  # noqa: S101 - as there is s3
        address = str(URL(bucket.presign("GET", str(Digest.of(b"")), 60)).origin())
        bucket.diagnose()
    except BucketError as error:
        why = error.message.partition(": ")[2] or error.message
        if error.trouble is not Trouble.CLOCK or not address:
            return why
        return _clock(_ahead_of_bucket(address, skipverify=s3.skipverify)) or why
    return _clock(_ahead_of_bucket(address, skipverify=s3.skipverify))


def _ahead_of_bucket(address: str, *, skipverify: bool) -> float:
    try:
        return asyncio.run(trial.look(address, Settings(url=address, skipverify=skipverify)))
    except UpstreamError:
        return 0.0  # boto3 had its answer: there is only no Date to be had


def _clock(ahead: float) -> str:
    if abs(ahead) < _APART:
        return ""
    return f"the clock is off by {abs(ahead):.0f} s: ours is {'ahead' if ahead > 0 else 'behind'}"
