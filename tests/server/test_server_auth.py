"""Logins: verified once, remembered under what they were verified against, slowed when wrong."""

from __future__ import annotations

import asyncio
import base64
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import bcrypt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import LogCapture

from pullthrough.oci.errors import Unauthorized
from pullthrough.server import auth
from pullthrough.server.auth import Htpasswd, Login, read_htpasswd
from tests.fakes.client import basic
from tests.upstream.kit import Clock

HOME, AWAY = "10.0.0.1", "10.0.0.2"
SECRETS = ("client-secret", "new-secret", "wrong-secret")


def header(user: bytes, password: bytes) -> str:
    return "Basic " + base64.b64encode(user + b":" + password).decode()


def entry(user: str, password: bytes, *, cost: int = 4, prefix: str = "2b") -> str:
    hashed = bcrypt.hashpw(password, bcrypt.gensalt(cost)).decode()
    return f"{user}:${prefix}{hashed[3:]}\n"


GOOD = basic("node", "client-secret")
WRONG = basic("node", "wrong-secret")


class Checks:
    """Every run of bcrypt: what it was asked, and a gate that holds it."""

    def __init__(self) -> None:
        self.asked: list[tuple[bytes, bytes]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.threads: set[int] = set()
        self.real: Callable[[bytes, bytes], bool] = bcrypt.checkpw

    def __call__(self, password: bytes, stored: bytes) -> bool:
        self.asked.append((password, stored))
        self.threads.add(threading.get_ident())
        assert self.gate.wait(30)
        return self.real(password, stored)


class Sleeps:
    """Every pause, and a gate that holds those who pause."""

    def __init__(self) -> None:
        self.slept: list[float] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self, seconds: float) -> None:
        self.slept.append(seconds)
        await self.gate.wait()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Write a file with one user."""
    file = tmp_path / "htpasswd"
    file.write_text(entry("node", b"client-secret"))
    return file


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def sleeps() -> Sleeps:
    return Sleeps()


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> Iterator[Checks]:
    counted = Checks()
    monkeypatch.setattr(bcrypt, "checkpw", counted)
    yield counted
    counted.gate.set()


@pytest.fixture
def htpasswd(
    path: Path, clock: Clock, sleeps: Sleeps, checks: Checks, log: LogCapture
) -> Iterator[Htpasswd]:
    """Check logins against the file; at the end no log line has a secret."""
    made = Htpasswd(path, clock=clock, sleep=sleeps)
    yield made
    checks.gate.set()
    made.close()
    told = str(log.entries)
    assert [secret for secret in (*SECRETS, "$2b$", "$2y$") if secret in told] == []


async def refused(htpasswd: Htpasswd, login: str | None, address: str = HOME) -> None:
    """Assert that ``login`` is not let in, and that what is said holds no secret."""
    with pytest.raises(Unauthorized) as raised:
        await htpasswd.user(login, address)
    assert str(raised.value) == "authentication required"
    assert raised.value.detail == ""


async def until(condition: Callable[[], Any]) -> None:
    """Wait for what another thread does."""
    for _ in range(4000):
        if condition():
            return
        await asyncio.sleep(0.005)  # a bounded poll: a thread sets no event of the loop's
    raise AssertionError("never")


# -- the header ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (GOOD, ("node", b"client-secret")),
        ("basic bm9kZTpw", ("node", b"p")),
        ("BASIC bm9kZTpw", ("node", b"p")),
        (header(b"node", b"with:colons:"), ("node", b"with:colons:")),
        (header(b"node", b""), ("node", b"")),
        (header(b"", b"p"), ("", b"p")),
        (header("ümlaut".encode(), "pässword".encode()), ("ümlaut", "pässword".encode())),
        (header(b"node", b"\xff\xfe\x00"), ("node", b"\xff\xfe\x00")),
        (None, None),
        ("", None),
        ("Basic", None),
        ("Basic ", None),
        ("Bearer bm9kZTpw", None),
        ("Basic bm9kZQ==", None),  # no colon
        ("Basic bm9kZTpw!", None),
        ("Basic bm9kZTp", None),  # cut
        ("Basic bm9k ZTpw", None),
        ("Basic  bm9kZTpw", None),
        (header(b"\xff\xfe", b"p"), None),
        ("Basic é", None),
        ("Basic \udcff", None),
        ("Basic bm9kZTpw\udcff", None),
    ],
)
def test_what_a_header_says(value: str | None, expected: tuple[str, bytes] | None) -> None:
    """RFC 7617: scheme without case, the first colon parts; all else is no login."""
    login = Login.parse(value)
    assert (login and (login.user, login.password)) == expected


@given(st.text() | st.binary().map(lambda raw: "Basic " + base64.b64encode(raw).decode()))
def test_no_header_breaks_it(value: str) -> None:
    """Whatever stands in the header, it is a login or it is none."""
    for each in (value, "Basic " + value):
        login = Login.parse(each)
        assert login is None or ":" not in login.user


def test_login_does_not_show_its_password() -> None:
    """A login in a traceback's or a debugger's repr tells who, not with what."""
    login = Login.parse(GOOD)
    assert "node" in repr(login)
    assert "client-secret" not in repr(login)


# -- the file --------------------------------------------------------------------------------------


def test_users_with_bcrypt_hashes_are_read(tmp_path: Path, log: LogCapture) -> None:
    """All three prefixes are bcrypt; an entry of another kind is left out, and said so."""
    file = tmp_path / "htpasswd"
    file.write_text(
        "# a comment\n\n"
        + entry("a", b"client-secret", prefix="2a")
        + entry("b", b"client-secret", prefix="2b")
        + entry("y", b"client-secret", prefix="2y")
        + "md5:$apr1$salt$0123456789abcdefghijkl\nplain:client-secret\n"
    )
    assert list(read_htpasswd(file)) == ["a", "b", "y"]
    assert [entry["user"] for entry in log.entries] == ["md5", "plain"]
    assert "client-secret" not in str(log.entries)


@pytest.mark.parametrize("prefix", ["2a", "2b", "2y"])
async def test_each_prefix_lets_in(path: Path, htpasswd: Htpasswd, prefix: str) -> None:
    """A file of any age and tool: its users come in with the right password."""
    path.write_text(entry("node", b"client-secret", prefix=prefix))
    htpasswd.reload()
    assert await htpasswd.user(GOOD, HOME) == "node"
    await refused(htpasswd, WRONG)


def test_file_is_bounded(tmp_path: Path) -> None:
    """A file that cannot be one is not parsed."""
    file = tmp_path / "htpasswd"
    file.write_bytes(b"# " + b"x" * (1 << 20))
    with pytest.raises(ValueError, match="more than"):
        read_htpasswd(file)


# -- bcrypt ----------------------------------------------------------------------------------------


async def test_bcrypt_runs_once_a_credential(htpasswd: Htpasswd, checks: Checks) -> None:
    """A hundred requests with the same login cost one bcrypt, beside the event loop."""
    for number in range(100):
        assert await htpasswd.user(GOOD, f"10.0.0.{number}") == "node"
    assert len(checks.asked) == 1
    assert threading.get_ident() not in checks.threads


async def test_login_is_believed_for_a_bounded_time(
    htpasswd: Htpasswd, checks: Checks, clock: Clock
) -> None:
    """After fifteen minutes it is verified once more."""
    await htpasswd.user(GOOD, HOME)
    clock.now += 899
    await htpasswd.user(GOOD, HOME)
    assert len(checks.asked) == 1
    clock.now += 2
    await htpasswd.user(GOOD, HOME)
    assert len(checks.asked) == 2


async def test_verified_login_lets_in_no_other(htpasswd: Htpasswd) -> None:
    """Neither another password, nor another user, nor a part of it goes with the one verified."""
    await htpasswd.user(GOOD, HOME)
    for wrong in (
        WRONG,
        basic("node", ""),
        basic("node", "client-secre"),
        basic("node", "client-secret "),
        basic("Node", "client-secret"),
        basic("other", "client-secret"),
        basic("", "client-secret"),
        None,
    ):
        await refused(htpasswd, wrong)


async def test_concurrent_verifications_are_one(htpasswd: Htpasswd, checks: Checks) -> None:
    """A node that opens fifty connections at once costs one bcrypt, right or wrong."""
    checks.gate.clear()
    good = [asyncio.create_task(htpasswd.user(GOOD, HOME)) for _ in range(50)]
    wrong = [asyncio.create_task(htpasswd.user(WRONG, AWAY)) for _ in range(50)]
    await until(lambda: len(checks.asked) >= 2)
    checks.gate.set()
    assert await asyncio.gather(*good) == ["node"] * 50
    answers = await asyncio.gather(*wrong, return_exceptions=True)
    assert all(isinstance(answer, Unauthorized) for answer in answers)
    assert len(checks.asked) == 2


async def test_client_that_leaves_ends_nobody_elses_wait(
    htpasswd: Htpasswd, checks: Checks
) -> None:
    """The first of several leaves while bcrypt runs: the others have their answer."""
    checks.gate.clear()
    first = asyncio.create_task(htpasswd.user(GOOD, HOME))
    await until(lambda: checks.asked)
    second = asyncio.create_task(htpasswd.user(GOOD, HOME))
    await asyncio.sleep(0)  # the second joins
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    checks.gate.set()
    assert await second == "node"
    assert len(checks.asked) == 1


async def test_unknown_user_costs_as_much(htpasswd: Htpasswd, path: Path, checks: Checks) -> None:
    """Time tells nobody which users there are: an unknown one costs a bcrypt of the same cost."""
    path.write_text(entry("node", b"client-secret", cost=5) + entry("cheap", b"x", cost=4))
    htpasswd.reload()
    await refused(htpasswd, basic("nobody", "client-secret"))
    await refused(htpasswd, WRONG)
    (_, dummy), (_, stored) = checks.asked
    assert (dummy[:7], stored[:7]) == (b"$2b$05$", b"$2b$05$")
    assert len(dummy) == len(stored)
    assert checks.real(b"client-secret", dummy) is False  # bcrypt took it for a hash, and ran


async def test_wrong_login_is_not_verified_again(
    htpasswd: Htpasswd, checks: Checks, clock: Clock
) -> None:
    """Within a minute the same wrong login is refused without bcrypt, later it is looked at."""
    await refused(htpasswd, WRONG)
    clock.now += 59
    await refused(htpasswd, WRONG)
    assert len(checks.asked) == 1
    clock.now += 61
    await refused(htpasswd, WRONG)
    assert len(checks.asked) == 2


async def test_no_login_costs_nothing(htpasswd: Htpasswd, checks: Checks, sleeps: Sleeps) -> None:
    """The first request of every client has none: no bcrypt, no pause."""
    for _ in range(50):
        await refused(htpasswd, None)
        await refused(htpasswd, "Basic %%%")
    assert (checks.asked, sleeps.slept) == ([], [])


async def test_one_address_does_not_take_the_pool(htpasswd: Htpasswd, checks: Checks) -> None:
    """While one address has many wrong logins under way, another's is verified."""
    held = threading.Event()
    real = checks.real

    def hold_the_wrong(password: bytes, stored: bytes) -> bool:
        if password.startswith(b"wrong"):
            assert held.wait(30)
        return real(password, stored)

    checks.real = hold_the_wrong
    wrong = [
        asyncio.create_task(htpasswd.user(basic("node", f"wrong-secret {n}"), AWAY))
        for n in range(20)
    ]
    await until(lambda: checks.asked)
    assert await asyncio.wait_for(htpasswd.user(GOOD, HOME), 20) == "node"
    held.set()
    await asyncio.gather(*wrong, return_exceptions=True)
    assert len(checks.asked) == 21


# -- passwords of all kinds ------------------------------------------------------------------------


async def test_password_beyond_bcrypts_limit(path: Path, htpasswd: Htpasswd) -> None:
    """Of a long password the first 72 bytes count, as in registry:2; bcrypt 5 would raise."""
    long = b"client-secret" * 20
    path.write_text(entry("node", long[:72]))
    htpasswd.reload()
    assert await htpasswd.user(header(b"node", long), HOME) == "node"
    assert await htpasswd.user(header(b"node", long[:72]), HOME) == "node"
    await refused(htpasswd, header(b"node", long[:71]))


@pytest.mark.parametrize(
    "login",
    [
        header(b"node", b"client-secret\0"),
        header(b"node", b"\0"),
        header(b"node\0", b"client-secret"),
        header(b"node", b"\xff" * 100),
        header(b"node", b""),
        header(b"n" * 100_000, b"p"),
        header(b"node", b"p" * 5_000_000),
        "Basic " + "A" * 5_000_000,
    ],
)
async def test_odd_logins_are_refused(htpasswd: Htpasswd, checks: Checks, login: str) -> None:
    """NUL, bytes of no charset, any length: a refusal like any other, and no more for bcrypt."""
    await refused(htpasswd, login)
    assert all(len(password) <= 72 for password, _ in checks.asked)
    assert await htpasswd.user(GOOD, HOME) == "node"


async def test_password_outside_utf_8(path: Path, htpasswd: Htpasswd) -> None:
    """A password is bytes: one that another charset made is right if its bytes are."""
    path.write_text(entry("node", "pässword".encode("latin-1")))
    htpasswd.reload()
    assert await htpasswd.user(header(b"node", "pässword".encode("latin-1")), HOME) == "node"
    await refused(htpasswd, header(b"node", "pässword".encode()))


@pytest.mark.parametrize(
    "stored", ["$2b$04$short", "$2b$99$" + "x" * 53, "$2b$xx$" + "x" * 53, "$2b$", "$2x$04$abc"]
)
async def test_hash_that_is_none(path: Path, htpasswd: Htpasswd, stored: str) -> None:
    """A line that somebody cut or mistyped lets nobody in, and takes nobody else out."""
    path.write_text(f"broken:{stored}\n" + entry("node", b"client-secret"))
    htpasswd.reload()
    await refused(htpasswd, basic("broken", "client-secret"))
    await refused(htpasswd, basic("nobody", "client-secret"))
    assert await htpasswd.user(GOOD, HOME) == "node"


@settings(max_examples=30, deadline=None)
@given(st.binary(max_size=30), st.binary(max_size=30))
async def test_no_login_breaks_it(
    tmp_path_factory: pytest.TempPathFactory, user: bytes, password: bytes
) -> None:
    """Any user and password but the right one is refused, whatever the bytes."""
    file = tmp_path_factory.getbasetemp() / "htpasswd"
    if not file.exists():
        file.write_text(entry("node", b"client-secret"))
    htpasswd = Htpasswd(file)
    await refused(htpasswd, header(user, password))
    htpasswd.close()


# -- a file that changes ---------------------------------------------------------------------------


async def test_changed_file_is_seen_after_a_second(
    path: Path, htpasswd: Htpasswd, clock: Clock
) -> None:
    """The file is looked at once a second: a new password counts then, and the old one no more."""
    assert await htpasswd.user(GOOD, HOME) == "node"
    path.write_text(entry("node", b"new-secret") + entry("another", b"client-secret"))
    assert await htpasswd.user(GOOD, HOME) == "node"
    clock.now += 1.5
    await refused(htpasswd, GOOD)
    assert await htpasswd.user(basic("node", "new-secret"), HOME) == "node"
    assert await htpasswd.user(basic("another", "client-secret"), HOME) == "another"


async def test_changed_file_counts_at_once_when_told(path: Path, htpasswd: Htpasswd) -> None:
    """After a reload (SIGHUP) no remembered login outlives its hash, nor its user."""
    path.write_text(entry("node", b"client-secret") + entry("another", b"client-secret"))
    htpasswd.reload()
    assert await htpasswd.user(GOOD, HOME) == "node"
    assert await htpasswd.user(basic("another", "client-secret"), HOME) == "another"
    path.write_text(entry("node", b"new-secret"))
    htpasswd.reload()
    await refused(htpasswd, GOOD)
    await refused(htpasswd, basic("another", "client-secret"))


async def test_refused_login_that_became_right(
    path: Path, htpasswd: Htpasswd, clock: Clock
) -> None:
    """A password that was refused a moment ago is right once the file says so."""
    await refused(htpasswd, basic("node", "new-secret"))
    await refused(htpasswd, basic("late", "new-secret"))
    path.write_text(entry("node", b"new-secret") + entry("late", b"new-secret"))
    clock.now += 1.5
    assert await htpasswd.user(basic("node", "new-secret"), HOME) == "node"
    assert await htpasswd.user(basic("late", "new-secret"), HOME) == "late"


async def test_unchanged_file_is_not_read_again(
    htpasswd: Htpasswd, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look costs a stat: a file that did not change is not parsed."""
    reads: list[Path] = []
    real = auth.read_htpasswd

    def noted(path: Path) -> Any:
        reads.append(path)
        return real(path)

    monkeypatch.setattr(auth, "read_htpasswd", noted)
    for _ in range(5):
        clock.now += 1.5
        await refused(htpasswd, None)
    assert reads == []


async def test_file_replaced_by_one_of_the_same_size_and_time(
    path: Path, htpasswd: Htpasswd, clock: Clock
) -> None:
    """An orchestrator's rename is seen even if size and time are the old file's."""
    before = path.stat()
    new = path.with_name("new")
    new.write_text(entry("node", b"new-secret"))
    os.utime(new, ns=(before.st_mtime_ns, before.st_mtime_ns))
    assert new.stat().st_size == before.st_size
    new.rename(path)
    clock.now += 1.5
    assert await htpasswd.user(basic("node", "new-secret"), HOME) == "node"


async def test_link_that_is_pointed_elsewhere(tmp_path: Path, clock: Clock) -> None:
    """A mounted secret is a symbolic link to a link: what it points to counts."""
    for name, password in (("old", b"client-secret"), ("new", b"new-secret")):
        (tmp_path / name).write_text(entry("node", password))
    (tmp_path / "htpasswd").symlink_to("current")
    (tmp_path / "current").symlink_to("old")
    htpasswd = Htpasswd(tmp_path / "htpasswd", clock=clock)
    assert await htpasswd.user(GOOD, HOME) == "node"
    (tmp_path / "next").symlink_to("new")
    (tmp_path / "next").rename(tmp_path / "current")
    clock.now += 1.5
    await refused(htpasswd, GOOD)
    assert await htpasswd.user(basic("node", "new-secret"), HOME) == "node"
    htpasswd.close()


@pytest.mark.parametrize("how", ["gone", "a directory", "garbage", "too large", "half a line"])
async def test_unreadable_file_keeps_the_users(
    path: Path, htpasswd: Htpasswd, clock: Clock, log: LogCapture, how: str
) -> None:
    """While the file cannot be read its last users come in, and the log says what is wrong."""
    path.unlink()
    match how:
        case "a directory":
            path.mkdir()
        case "garbage":
            path.write_bytes(b"\xff\xfe\x00binary:\xff\n" * 10)
        case "too large":
            path.write_bytes(entry("late", b"new-secret").encode() + b"#" * (1 << 20))
        case "half a line":
            path.write_text("late")
    clock.now += 1.5
    assert await htpasswd.user(GOOD, HOME) == "node"
    await refused(htpasswd, basic("late", "new-secret"))
    assert "error" in {entry["log_level"] for entry in log.entries}
    if path.is_dir():
        path.rmdir()
    path.write_text(entry("late", b"new-secret"))
    clock.now += 1.5
    assert await htpasswd.user(basic("late", "new-secret"), HOME) == "late"
    await refused(htpasswd, GOOD)


async def test_empty_file_lets_nobody_in(path: Path, htpasswd: Htpasswd, clock: Clock) -> None:
    """A file whose users were all taken out has none."""
    assert await htpasswd.user(GOOD, HOME) == "node"
    path.write_text("")
    clock.now += 1.5
    await refused(htpasswd, GOOD)
    await refused(htpasswd, basic("nobody", "client-secret"))


async def test_file_missing_from_the_start(tmp_path: Path, clock: Clock) -> None:
    """Nobody comes in until it is there; then its users do."""
    htpasswd = Htpasswd(tmp_path / "htpasswd", clock=clock)
    await refused(htpasswd, GOOD)
    (tmp_path / "htpasswd").write_text(entry("node", b"client-secret"))
    clock.now += 1.5
    assert await htpasswd.user(GOOD, HOME) == "node"
    htpasswd.close()


# -- guessing --------------------------------------------------------------------------------------


async def guess(htpasswd: Htpasswd, count: int, address: str) -> None:
    for number in range(count):
        await refused(htpasswd, basic("node", f"wrong-secret {number}"), address)


async def test_failures_are_slowed(htpasswd: Htpasswd, sleeps: Sleeps) -> None:
    """A few mistakes cost nothing; from then on each answer is later, up to a bound."""
    await guess(htpasswd, 3, HOME)
    assert sleeps.slept == []
    await guess(htpasswd, 20, HOME)
    assert len(sleeps.slept) == 20
    assert sleeps.slept == sorted(sleeps.slept)
    assert 0 < sleeps.slept[0] <= 0.2
    assert sleeps.slept[-1] == 3.0


async def test_same_wrong_login_is_slowed_too(htpasswd: Htpasswd, sleeps: Sleeps) -> None:
    """A node with an old password is told so late, though bcrypt is not asked again."""
    for _ in range(10):
        await refused(htpasswd, WRONG)
    assert len(sleeps.slept) == 7


async def test_failures_are_of_an_address(htpasswd: Htpasswd, sleeps: Sleeps, clock: Clock) -> None:
    """One address' mistakes are not another's, and are forgotten after a minute."""
    await guess(htpasswd, 3, AWAY)
    await refused(htpasswd, WRONG, HOME)
    assert sleeps.slept == []
    clock.now += 61
    await guess(htpasswd, 3, AWAY)
    assert sleeps.slept == []


async def test_good_login_from_the_same_address_does_not_wait(
    htpasswd: Htpasswd, sleeps: Sleeps
) -> None:
    """While wrong ones of an address are made to wait, a right one is let in at once."""
    await guess(htpasswd, 10, HOME)
    sleeps.gate.clear()
    before = len(sleeps.slept)
    waiting = [
        asyncio.create_task(htpasswd.user(basic("node", f"wrong-secret, later {n}"), HOME))
        for n in range(5)
    ]
    await until(lambda: len(sleeps.slept) == before + 5)
    assert await asyncio.wait_for(htpasswd.user(GOOD, HOME), 20) == "node"
    assert len(sleeps.slept) == before + 5
    assert not any(task.done() for task in waiting)
    sleeps.gate.set()
    await asyncio.gather(*waiting, return_exceptions=True)


async def test_logins_that_are_remembered_are_bounded(
    htpasswd: Htpasswd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guesses take a bounded amount of memory, whatever their number and addresses."""
    monkeypatch.setattr(bcrypt, "checkpw", lambda *_: False)
    for number in range(10_200):
        with pytest.raises(Unauthorized):
            await htpasswd.user(basic("node", str(number)), f"address {number}")
    for kept in (htpasswd._refused, htpasswd._failures, htpasswd._turns):
        assert len(kept) <= 10_000
    assert htpasswd._checks._tasks == {}
