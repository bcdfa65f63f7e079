"""The commands: what they print where, and their exit codes."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from passlib.apache import HtpasswdFile

from pullthrough import __version__
from pullthrough.cli import main
from tests.fakes.cache import ROOT

GOOD = "version: 0.1\nproxy:\n  remoteurl: https://harbor.example.com\n"
BAD = (
    "version: 0.1\n"
    "htttp:\n  addr: :5000\n"
    "log:\n  level: loud\n"
    "proxy:\n  remoteurl: ftp://harbor.example.com\n  username: robot\n  password: hunter2\n"
    "  tmeouts: {}\n"
)


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run in an empty directory, without a configuration in the environment."""
    for name in [name for name in os.environ if name.startswith("REGISTRY_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str, stdin: str | None = None) -> Result:
    """Run a command in this process."""
    return CliRunner().invoke(main, arguments, input=stdin)


def command(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run a command as its users do."""
    return subprocess.run(
        [sys.executable, "-m", "pullthrough", *arguments],
        input=stdin,
        capture_output=True,
        check=False,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"},
    )


# -- the whole -------------------------------------------------------------------------------------


def test_version() -> None:
    """--version names the program and its version."""
    told = run("--version")
    assert (told.exit_code, told.stderr) == (0, "")
    assert told.stdout == f"pullthrough, version {__version__}\n"


@pytest.mark.parametrize("option", ["--help", "-h"])
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), ("serve", "check", "htpasswd", "demo", "REGISTRY_CONFIGURATION_PATH")),
        (("serve",), ("[CONFIG]", "SIGTERM", "SIGHUP")),
        (("check",), ("[CONFIG]",)),
        (("htpasswd",), ("USER", "standard input")),
        (("demo",), ("no network",)),
    ],
)
def test_help(arguments: tuple[str, ...], expected: tuple[str, ...], option: str) -> None:
    """Each command says on standard output what it does and takes."""
    told = run(*arguments, option)
    assert (told.exit_code, told.stderr) == (0, "")
    for word in expected:
        assert word in told.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("no-such-command",),
        ("--no-such-option",),
        ("serve", "--no-such-option"),
        ("serve", "one.yml", "two.yml"),
        ("check", "one.yml", "two.yml"),
        ("htpasswd",),
        ("htpasswd", "user", "password"),
        ("serve", "."),
    ],
)
def test_wrong_usage(arguments: tuple[str, ...]) -> None:
    """What is no command of ours is exit code 2, said on standard error."""
    told = run(*arguments)
    assert (told.exit_code, told.stdout) == (2, "")
    assert told.stderr.startswith("Usage: ")


def test_as_a_module() -> None:
    """``python -m pullthrough`` is the command."""
    told = command("--version")
    assert (told.returncode, told.stderr) == (0, b"")
    assert __version__.encode() in told.stdout
    assert command("no-such-command").returncode == 2


# -- check and serve -------------------------------------------------------------------------------


def test_check_of_a_good_file(directory: Path) -> None:
    """A file without a problem is exit code 0, and its name is said."""
    (directory / "good.yml").write_text(GOOD)
    told = run("check", "good.yml")
    assert (told.exit_code, told.stdout, told.stderr) == (0, "good.yml: good\n", "")


@pytest.mark.parametrize("how", ["argument", "variable", "default"])
def test_check_finds_the_file(directory: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """The argument, else REGISTRY_CONFIGURATION_PATH, else ./config.yml."""
    (directory / "config.yml").write_text(GOOD if how == "default" else BAD)
    (directory / "variable.yml").write_text(GOOD if how == "variable" else BAD)
    (directory / "argument.yml").write_text(GOOD)
    if how != "default":
        monkeypatch.setenv("REGISTRY_CONFIGURATION_PATH", "variable.yml")
    told = run("check", *(["argument.yml"] if how == "argument" else []))
    assert told.exit_code == 0
    name = "config" if how == "default" else how
    assert told.stdout == f"{name}.yml: good\n"


@pytest.mark.parametrize("name", ["check", "serve"])
@pytest.mark.parametrize("arguments", [(), ("missing.yml",)])
def test_no_configuration(name: str, arguments: tuple[str, ...]) -> None:
    """Where there is none, one line says where it was looked for."""
    told = run(name, *arguments)
    assert (told.exit_code, told.stdout) == (1, "")
    assert told.stderr.startswith("Error: no configuration at ")
    assert (arguments[0] if arguments else "config.yml") in told.stderr
    assert told.stderr.count("\n") == 1


def test_check_says_every_problem(directory: Path) -> None:
    """All of them at once, each with its file and line, on standard error; and no secret."""
    (directory / "bad.yml").write_text(BAD)
    told = run("check", "bad.yml")
    assert (told.exit_code, told.stdout) == (1, "")
    for line, key in (
        (2, "htttp"),
        (5, "log.level"),
        (7, "proxy.remoteurl"),
        (10, "proxy.tmeouts"),
    ):
        assert any(
            said.startswith(f"bad.yml:{line}:") and key in said for said in told.stderr.splitlines()
        ), (line, key, told.stderr)
    assert "hunter2" not in told.stderr


def test_check_names_what_is_ignored(directory: Path) -> None:
    """A key of distribution's that nothing is done with is said, and is no problem."""
    (directory / "config.yml").write_text(GOOD + "storage:\n  maintenance:\n    x: 1\n")
    told = run("check")
    assert (told.exit_code, told.stdout) == (0, "config.yml: good\n")
    assert "config.yml:5" in told.stderr
    assert "storage.maintenance" in told.stderr


def test_environment_counts(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable that breaks a good file is told by its name."""
    (directory / "config.yml").write_text(GOOD)
    monkeypatch.setenv("REGISTRY_LOG_LEVEL", "loud")
    told = run("check")
    assert told.exit_code == 1
    assert "REGISTRY_LOG_LEVEL" in told.stderr


def test_serve_does_not_start_half_configured(directory: Path) -> None:
    """Serve says the very lines that check says, exits 1, and leaves nothing on the disk."""
    (directory / "bad.yml").write_text(BAD)
    checked, served = command("check", "bad.yml"), command("serve", "bad.yml")
    assert served.returncode == checked.returncode == 1
    assert served.stderr == checked.stderr
    assert served.stdout == b""
    assert [path.name for path in directory.iterdir()] == ["bad.yml"]


# -- htpasswd --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("user", "password"),
    [
        ("node", "correct horse"),
        ("robot$a+b", " with spaces "),
        ("ümlaut", "pässwörd:with:colons"),
        ("node", "p" * 72),
        ("node", "\tx"),
    ],
)
def test_htpasswd_makes_a_line_that_holds(user: str, password: str) -> None:
    """The line from standard input is bcrypt of registry:2's kind, and verifies that password."""
    told = run("htpasswd", user, stdin=f"{password}\n")
    assert (told.exit_code, told.stderr) == (0, "")
    assert told.stdout.startswith(f"{user}:$2y$10$")
    assert told.stdout.count("\n") == 1
    entries = HtpasswdFile.from_string(told.stdout.encode())
    assert entries.check_password(user, password) is True
    assert entries.check_password(user, password[:-1]) is False


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
def test_htpasswd_from_a_pipe(end: bytes) -> None:
    """A file with or without a line's end, of any system, is the same password."""
    told = command("htpasswd", "node", stdin=b"correct horse" + end)
    assert (told.returncode, told.stderr) == (0, b"")
    assert HtpasswdFile.from_string(told.stdout).check_password("node", "correct horse")


def test_htpasswd_salts() -> None:
    """The same password twice makes two lines."""
    assert (
        run("htpasswd", "node", stdin="p\n").stdout != run("htpasswd", "node", stdin="p\n").stdout
    )


@pytest.mark.parametrize("user", ["", "a:b", ":", "a\nb", "a\x00b", "\x1b[31m", "#", "#x"])
def test_htpasswd_refuses_a_user(user: str) -> None:
    """A name that would break the file is wrong usage, and no password is asked for."""
    told = run("htpasswd", user, stdin="password\n")
    assert (told.exit_code, told.stdout) == (2, "")
    assert "not a user name that htpasswd can hold" in told.stderr


@pytest.mark.parametrize(
    "password", [b"", b"\n", b"\r\n", b"x" * 73, "ü".encode() * 37, b"a\0b", b"\xff\xfe"]
)
def test_htpasswd_refuses_a_password(password: bytes) -> None:
    """One that bcrypt would cut or not take is refused in one line, which does not show it."""
    told = command("htpasswd", "node", stdin=password)
    assert (told.returncode, told.stdout) == (1, b"")
    assert told.stderr.startswith(b"Error: ")
    assert told.stderr.count(b"\n") == 1
    assert password.strip() == b"" or password not in told.stderr


def test_htpasswd_at_a_terminal() -> None:
    """At a terminal it asks twice, on standard error, and shows nothing of what is typed."""
    here, there = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "pullthrough", "htpasswd", "node"],
        stdin=there,
        stdout=subprocess.PIPE,
        stderr=there,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
    ) as process:
        os.close(there)
        shown = b""
        for _ in range(2):
            while not shown.endswith(b": "):
                shown += os.read(here, 1000)
            os.write(here, b"correct horse\n")
            shown += os.read(here, 1000)
        out, _ = process.communicate(timeout=60)
    os.close(here)
    assert process.returncode == 0
    assert b"correct horse" not in shown
    assert HtpasswdFile.from_string(out).check_password("node", "correct horse")
