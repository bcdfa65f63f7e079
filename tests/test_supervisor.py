"""The worker processes of a real ``serve``: started, replaced, told, ended."""

from __future__ import annotations

import os
import resource
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pullthrough import supervisor
from tests.conftest import CacheStarter
from tests.fakes.cache import ROOT, Cache, title, towards
from tests.fakes.faults import Fault, Gate, eventually
from tests.fakes.listener import hold_port
from tests.fakes.registry import FakeRegistry

TWO: dict[str, Any] = {"http": {"workers": 2}, "log": {"level": "debug"}}


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that ended and waits to be asked about does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def below(cache: Cache) -> list[int]:
    """Return the processes below the supervisor that run: the workers, and the keeper."""
    return [pid for pid in cache.pids()[1:] if is_alive(pid)]


def workers(cache: Cache) -> list[int]:
    return [pid for pid in cache.workers() if is_alive(pid)]


def keeper(cache: Cache) -> int:
    """Return the keeper, once there is one."""

    def find() -> list[int]:
        return [pid for pid in below(cache) if title(pid) == "pullthrough: keeper"]

    (found,) = eventually(find, "a keeper")
    return int(found)


def events(cache: Cache, event: str) -> list[dict[str, Any]]:
    return [line for line in cache.log_lines() if line.get("event") == event]


def accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except ConnectionRefusedError:
        return False
    return True


@pytest.fixture(name="temporary")
def _temporary(tmp_path: Path) -> Path:
    directory = tmp_path / "temporary"
    directory.mkdir()
    return directory


@pytest.fixture
def pair(start_cache: CacheStarter, temporary: Path) -> Iterator[Cache]:
    """Start a cache of two workers; none of its processes outlives the test."""
    cache = start_cache(TWO, environment={"TMPDIR": str(temporary)})
    eventually(lambda: len(events(cache, "worker ready")) == 2, "two workers")
    seen = cache.pids()
    yield cache
    for pid in {*seen, *cache.pids()} if cache._process is not None else seen:
        if is_alive(pid) and title(pid).startswith("pullthrough: "):
            os.kill(pid, signal.SIGKILL)


# -- running ---------------------------------------------------------------------------------------


def test_processes_have_names(pair: Cache) -> None:
    """Ps tells each from the others, and shows no path to a configuration."""
    assert title(pair.pid) == "pullthrough: supervisor"
    names = ["pullthrough: keeper", "pullthrough: worker 0", "pullthrough: worker 1"]
    eventually(lambda: sorted(map(title, below(pair))) == names, "their names")


@pytest.mark.parametrize(("number", "how"), [(0, signal.SIGKILL), (1, signal.SIGSEGV)])
def test_killed_worker_is_replaced(pair: Cache, number: int, how: signal.Signals) -> None:
    """Whichever worker dies, however: another takes its place and name, the other goes on."""
    before = workers(pair)
    (victim,) = (pid for pid in before if title(pid) == f"pullthrough: worker {number}")
    (other,) = set(before) - {victim}
    os.kill(victim, how)
    eventually(lambda: len(set(workers(pair)) - {victim}) == 2, "another worker")
    assert other in workers(pair)
    (new,) = set(workers(pair)) - {other}
    assert title(new) == f"pullthrough: worker {number}"
    (line,) = events(pair, "worker ended, starting another")
    assert (line["worker"], line["status"], line["level"]) == (number, -how, "error")
    eventually(lambda: pair.client(timeout=5).get("/livez").status == 200, "an answer")
    pair.stop()


def test_killed_keeper_is_replaced(pair: Cache) -> None:
    """Another takes its place, and no worker notices."""
    before, victim = workers(pair), keeper(pair)
    os.kill(victim, signal.SIGKILL)
    eventually(lambda: not is_alive(victim), "its end")
    assert keeper(pair) != victim
    assert workers(pair) == before
    (line,) = events(pair, "worker ended, starting another")
    assert (line["status"], line["level"]) == (-signal.SIGKILL, "error")
    pair.stop()


@pytest.mark.parametrize("how", [signal.SIGHUP, signal.SIGINT])
def test_keeper_passes_over_what_is_not_for_it(pair: Cache, how: signal.Signals) -> None:
    """A reload, or a terminal's Ctrl-C that the supervisor hears too, does not end it."""
    before = keeper(pair)
    os.kill(before, how)
    pair.reload()
    eventually(lambda: len(events(pair, "reloaded")) == 2, "two reloads")
    assert keeper(pair) == before
    pair.stop()
    assert events(pair, "worker ended, starting another") == []


def test_keeper_holds_no_port(pair: Cache) -> None:
    """Clients' ports are the workers' alone: none lives on with a keeper that ends late."""
    listening = {
        line.split()[9]
        for table in ("tcp", "tcp6")
        for line in Path("/proc/net", table).read_text().splitlines()[1:]
        if line.split()[3] == "0A"
    }

    def held(pid: int) -> set[str]:
        links = (str(each.readlink()) for each in Path(f"/proc/{pid}/fd").iterdir())
        return {link.removeprefix("socket:[").rstrip("]") for link in links} & listening

    assert held(workers(pair)[0])
    eventually(lambda: not held(keeper(pair)), "a keeper without them")


def test_keeper_that_was_stopped_for_a_while(pair: Cache) -> None:
    """SIGSTOP and SIGCONT, as a debugger or a container runtime sends them, end nothing."""
    victim = keeper(pair)
    for _ in range(3):
        os.kill(victim, signal.SIGSTOP)
        time.sleep(1.2)  # longer than it waits for a signal at a time
        os.kill(victim, signal.SIGCONT)
    assert keeper(pair) == victim


def test_keeper_told_to_end(pair: Cache) -> None:
    """It ends by itself, with exit code 0; the service goes on with another."""
    before = keeper(pair)
    ready = pair.client(timeout=5)
    eventually(lambda: "stored_bytes" in ready.get("/readyz").json(), "its first word")
    os.kill(before, signal.SIGTERM)
    eventually(lambda: events(pair, "worker ended, starting another"), "its end")
    (line,) = events(pair, "worker ended, starting another")
    assert line["status"] == 0
    assert keeper(pair) != before


def test_as_many_descriptors_as_it_may_have(start_cache: CacheStarter) -> None:
    """The soft limit, usually meant for select(2), is raised to the hard one in every process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert hard != 256, "nothing to raise it to"
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))  # inherited
    try:
        cache = start_cache(TWO)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    eventually(lambda: len(events(cache, "worker ready")) == 2, "two workers")
    limits = [resource.prlimit(pid, resource.RLIMIT_NOFILE) for pid in cache.pids()]
    assert limits == [(hard, hard)] * 4


@pytest.mark.parametrize("chosen", [False, True])
def test_where_the_metrics_are(
    start_cache: CacheStarter, temporary: Path, monkeypatch: pytest.MonkeyPatch, *, chosen: bool
) -> None:
    """Workers' numbers are files in memory, which no full disk touches, unless TMPDIR is set."""
    monkeypatch.delenv("TMPDIR", raising=False)
    cache = start_cache(TWO, environment={"TMPDIR": str(temporary)} if chosen else {})
    eventually(lambda: len(events(cache, "worker ready")) == 2, "two workers")
    parents = {path.parent.parent for pid in workers(cache) for path in mapped_metrics(pid)}
    assert parents == {temporary if chosen else Path("/dev/shm")}  # noqa: S108 - looked at only


def mapped_metrics(pid: int) -> list[Path]:
    """Return the files of numbers that a process has mapped (proc_pid_maps)."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return [Path(line.split(maxsplit=5)[5]) for line in lines if "/pullthrough-metrics-" in line]


def test_metrics_without_memory_to_put_them_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where /dev/shm is not there, or not to be written to, they are with other such files."""
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert supervisor._in_memory({}) is None


def test_sighup_reaches_every_worker(pair: Cache) -> None:
    """Each worker reads again, and goes on."""
    before = workers(pair)
    pair.reload()
    eventually(lambda: len(events(pair, "reloaded")) == 2, "two reloads")
    pair.configure({"log": {"level": "error"}})
    pair.reload()
    pair.configure({"log": {"level": "loud"}})
    pair.reload()
    eventually(lambda: len(events(pair, "configuration not taken up")) >= 2, "a complaint of each")
    assert workers(pair) == before


def test_sighup_at_the_very_start(registry: FakeRegistry, tmp_path: Path) -> None:
    """A reload that comes before a worker is ready does not end it."""
    cache = Cache(tmp_path, TWO)
    cache.configure(towards(registry.url))
    with cache.log.open("ab") as log:
        cache._process = subprocess.Popen(
            [sys.executable, "-m", "pullthrough", "serve", str(tmp_path / "config.yml")],
            stdout=log,
            stderr=log,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
    try:
        eventually(lambda: len(cache.workers()) == 2, "two workers")

        def ready() -> bool:
            cache.reload()
            return len(events(cache, "worker ready")) >= 2

        eventually(ready, "two workers that are ready")
        cache.stop()
        assert events(cache, "worker ended, starting another") == []
    finally:
        cache.close()


@pytest.mark.parametrize("early", [signal.SIGHUP, signal.SIGINT])
def test_signal_before_a_worker_has_handlers(early: signal.Signals) -> None:
    """In a worker's first moment a signal neither ends it nor is lost: it waits for handlers."""

    def be_worker(_: int, reloaded: bool) -> None:
        assert reloaded
        os.kill(os.getpid(), early)
        assert early in signal.sigpending()

    before = signal.pthread_sigmask(signal.SIG_BLOCK, supervisor._SIGNALS)
    try:
        _, status = os.waitpid(supervisor._fork(be_worker, 0, reloaded=True), 0)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert os.waitstatus_to_exitcode(status) == 0


def test_replaced_worker_has_what_was_reloaded(pair: Cache) -> None:
    """A worker that takes another's place takes up what the others took up at SIGHUP."""
    pair.reload()
    eventually(lambda: len(events(pair, "reloaded")) == 2, "two reloads")
    os.kill(workers(pair)[0], signal.SIGKILL)
    eventually(lambda: len(events(pair, "reloaded")) == 3, "the new one's reload")
    pair.stop()


def test_lost_index_is_made_anew(registry: FakeRegistry, start_cache: CacheStarter) -> None:
    """The keeper reads from the files what they say: content, names, sizes, links and tags."""
    image = registry.put_image("project/app", index=True)
    cache = start_cache(TWO)
    cache.client().pull(image)
    index = cache.store / "pullthrough" / "index.sqlite"
    queries = (
        "SELECT digest, size, here, there FROM blob ORDER BY 1",
        "SELECT * FROM refers ORDER BY 1, 2",
        "SELECT * FROM link ORDER BY 1, 2, 3",
        "SELECT repository, tag, digest FROM tag",
    )

    def known() -> list[list[Any]]:
        connection = sqlite3.connect(f"file:{index}?mode=ro", uri=True)
        try:
            return [connection.execute(query).fetchall() for query in queries]
        except sqlite3.OperationalError:
            return []
        finally:
            connection.close()

    def all_is_known() -> bool:
        counts = [len(rows) for rows in known()]
        return counts == [len(image.manifests) + len(image.blobs), 3, 4, 1]

    eventually(all_is_known, "all that was pulled")
    before = known()
    for _ in range(3):
        cache.stop()
        for path in index.parent.glob("index.sqlite*"):
            path.unlink()
        cache.start()
        eventually(lambda: known() == before, "all that the files say")


def test_log_fields_with_any_name(start_cache: CacheStarter) -> None:
    """A field that distribution takes, with a space in its name, does not keep it from starting."""
    cache = start_cache({"log": {"formatter": "text", "fields": {"my key": "a value"}}})
    assert cache.client().get("/livez").status == 200
    assert "a value" in cache.log_text()


# -- stopping --------------------------------------------------------------------------------------


def test_told_to_stop(pair: Cache, temporary: Path) -> None:
    """It ends with exit code 0, its port closed, no process and no temporary file left."""
    every = pair.pids()
    assert [path.name.startswith("pullthrough-metrics-") for path in temporary.iterdir()] == [True]
    pair.terminate()
    assert pair.wait() == 0
    assert not accepts(pair.port)
    assert not accepts(pair.debug_port)
    assert [pid for pid in every if is_alive(pid)] == []
    assert list(temporary.iterdir()) == []


def test_interrupt_from_a_terminal(pair: Cache) -> None:
    """Ctrl-C, which every process of the group hears, is a clean stop."""
    os.killpg(pair.pid, signal.SIGINT)
    assert pair.wait() == 0
    assert events(pair, "worker ended, starting another") == []


def test_told_twice(registry: FakeRegistry, start_cache: CacheStarter) -> None:
    """A second SIGTERM, or a SIGHUP, does not cut short what is being drained."""
    image = registry.put_image("project/app")
    cache = start_cache({"http": {"workers": 2, "draintimeout": "20s"}})
    gate = Gate()
    with registry.inject(Fault(path=f".*{image.layer}", hold=gate, hold_at=0)):
        pending = cache.client().begin(f"/v2/project/app/blobs/{image.layer}")
        gate.wait_for()
        for each in (signal.SIGTERM, signal.SIGTERM, signal.SIGHUP, signal.SIGTERM):
            os.kill(cache.pid, each)
            eventually(lambda: not accepts(cache.port), "a closed port")
        gate.open()
        answer = pending.answer()
    assert (answer.status, answer.body) == (200, image.layer_content)
    assert cache.wait() == 0


def test_death_of_the_supervisor(pair: Cache) -> None:
    """Those whose supervisor was killed end by themselves, the keeper too, and free the port."""
    keeper(pair)
    left = below(pair)
    assert len(left) == 3
    os.kill(pair.pid, signal.SIGKILL)
    eventually(lambda: not any(map(is_alive, left)), "their end")
    assert not accepts(pair.port)


def test_worker_that_does_not_end(registry: FakeRegistry, tmp_path: Path) -> None:
    """One that hangs is killed after the drain and a little grace; the service ends then too."""
    cache = Cache(tmp_path, {"http": {"workers": 2, "draintimeout": "0s"}})
    cache.configure(towards(registry.url))
    code = (
        "from pullthrough import cli, supervisor\nsupervisor._GRACE = 0.3\n"
        f"cli.main(['serve', {str(tmp_path / 'config.yml')!r}])\n"
    )
    with cache.log.open("ab") as log:
        cache._process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdout=log,
            stderr=log,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
    try:
        eventually(cache._is_up, "an answer")
        hanging = workers(cache)[0]
        os.kill(hanging, signal.SIGSTOP)
        cache.terminate()
        assert cache.wait() == 0
        assert not is_alive(hanging)
        (line,) = events(cache, "workers did not end in time")
        assert (line["count"], line["level"]) == (1, "error")
    finally:
        cache.close()


# -- not starting ----------------------------------------------------------------------------------


def refused(directory: Path, config: dict[str, Any]) -> str:
    """Return the one line that a ``serve`` says that does not start."""
    file = directory / "config.yml"
    basis = {
        "version": 0.1,
        "log": {"level": "error"},
        "storage": {"filesystem": {"rootdirectory": str(directory / "store")}},
        "proxy": {"remoteurl": "http://127.0.0.1:9"},
    }
    file.write_text(yaml.safe_dump({**basis, **config}))
    told = subprocess.run(
        [sys.executable, "-m", "pullthrough", "serve", str(file)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(directory)},
    )
    assert told.returncode == 1, told
    assert told.stdout == ""
    assert told.stderr.count("\n") == 1, told.stderr
    assert told.stderr.startswith("Error: ")
    assert list(directory.glob("pullthrough-metrics-*")) == []
    return told.stderr


@pytest.mark.parametrize(("which", "reuse"), [("addr", True), ("debug", False)])
def test_port_in_use(tmp_path: Path, which: str, *, reuse: bool) -> None:
    """A port that another has is said in one line, also when that other would share it."""
    with socket.socket() as taken, hold_port() as free:
        if reuse:
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        busy = f"127.0.0.1:{taken.getsockname()[1]}"
        other = f"127.0.0.1:{free.getsockname()[1]}"
        http = (
            {"addr": busy, "workers": 2}
            if which == "addr"
            else {"addr": other, "debug": {"addr": busy}, "workers": 2}
        )
        said = refused(tmp_path, {"http": http})
    assert "in use" in said
    assert busy.rpartition(":")[2] in said


def test_directory_that_cannot_be_made(tmp_path: Path) -> None:
    """A root that cannot be one is said in one line, with its path."""
    (tmp_path / "file").touch()
    root = str(tmp_path / "file" / "store")
    assert root in refused(tmp_path, {"storage": {"filesystem": {"rootdirectory": root}}})


def test_address_that_is_not_here(tmp_path: Path) -> None:
    """An address of another machine is said in one line."""
    said = refused(tmp_path, {"http": {"addr": "192.0.2.1:5000"}})
    assert "192.0.2.1" in said
