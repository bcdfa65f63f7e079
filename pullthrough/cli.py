"""The commands. Exit codes: 0 well, 1 something to mend, 2 wrong usage."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click
from passlib.hash import bcrypt

from pullthrough import __version__, supervisor
from pullthrough.commands import store
from pullthrough.commands.opening import load

_COST = 10
_BCRYPT_LIMIT = 72

_CONFIG = click.argument(
    "config", required=False, type=click.Path(dir_okay=False, path_type=Path), metavar="[CONFIG]"
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="pullthrough")
def main() -> None:
    """Cache a container registry for a region, and go on serving when it is away.

    CONFIG is a config.yml as distribution (registry:2) reads it. Without it
    REGISTRY_CONFIGURATION_PATH is looked at, then ./config.yml, then
    /etc/pullthrough/config.yml. REGISTRY_* variables override it.
    """


@main.command()
@_CONFIG
def serve(config: Path | None) -> None:
    """Run the cache until SIGTERM. SIGHUP re-reads logins, credentials and log level."""
    path, loaded = load(config)
    if loaded is None:
        sys.exit(1)
    try:
        sys.exit(supervisor.serve(path, os.environ, loaded))
    except OSError as error:
        raise click.ClickException(str(error)) from error


@main.command()
@click.option("--connect", is_flag=True, help="Also ask the upstream and the bucket.")
@_CONFIG
def check(config: Path | None, connect: bool) -> None:
    """Say everything that is wrong with CONFIG; exit 1 if anything is.

    With --connect also whether the upstream and the bucket answer, take our logins, and have the
    same time.
    """
    path, loaded = load(config)
    if loaded is None:
        sys.exit(1)
    click.echo(f"{path}: good")
    if connect:
        from pullthrough.commands.connecting import reachable  # with what speaks HTTP

        if not reachable(loaded):
            sys.exit(1)


@main.command()
@click.argument("user")
def htpasswd(user: str) -> None:
    """Print a line for an htpasswd file; the password is asked for, or read from standard input."""
    if not user or ":" in user or user.startswith("#") or not user.isprintable():
        raise click.BadParameter("not a user name that htpasswd can hold", param_hint="USER")
    if sys.stdin.isatty():
        password = click.prompt("Password", hide_input=True, confirmation_prompt=True, err=True)
    else:
        try:
            password = sys.stdin.buffer.readline().decode().rstrip("\r\n")
        except UnicodeDecodeError:
            raise click.ClickException("the password is not UTF-8") from None
    if not password or "\0" in password:
        raise click.ClickException("no password, or one that holds NUL")
    if len(password.encode()) > _BCRYPT_LIMIT:
        raise click.ClickException(f"bcrypt reads no more than {_BCRYPT_LIMIT} bytes of a password")
    click.echo(f"{user}:{bcrypt.using(rounds=_COST, ident='2y').hash(password)}")


@main.command()
def demo() -> None:
    """Show the main job on this machine, with no network: cold, warm, moved tag, upstream gone."""
    from pullthrough import demo as demonstration

    sys.exit(demonstration.run())


for command in store.ALL:
    main.add_command(command)
