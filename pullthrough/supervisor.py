"""Worker processes: started, restarted, reloaded, drained. No event loop, no thread of its own."""

from __future__ import annotations

import mmap
import os
import resource
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import setproctitle
import structlog

from pullthrough import config as configuration
from pullthrough.config import Address, Config, Loaded, local_root

if TYPE_CHECKING:
    from pullthrough.app import Shared
    from pullthrough.keeper import Keeping

_log = structlog.get_logger()

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
_GRACE: Final = 5.0
"""Seconds beyond the drain timeout before a worker that does not end is killed."""
_RESTART_PAUSE: Final = 1.0
"""Seconds before a worker that died is started again."""
_BACKLOG: Final = 1024
_CELL: Final = 512
"""Bytes of shared memory for each of the upstream's state, the bucket's and the keeper's word."""


def serve(path: Path, environ: Mapping[str, str], config: Config) -> int:
    """Run the service until SIGTERM or SIGINT; return the exit code. Raises :class:`OSError`."""
    with ExitStack() as stack:
        # Before prometheus_client is first imported, and so before the rest of the program is.
        # In memory: the numbers are mapped files, and a store to one on a full disk is a SIGBUS.
        directory = tempfile.mkdtemp(prefix="pullthrough-metrics-", dir=_in_memory(environ))
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = directory

        from pullthrough import app, keeper

        if config.storage.s3 is not None:
            # boto3 is large: imported before the forks it is there once for all.
            import pullthrough.store.bucket  # noqa: F401 - for its memory
        from pullthrough.store.filesystem import prepare
        from pullthrough.telemetry import logs, metrics

        logs.configure(config.log.level, config.log.formatter, config.log.fields)
        # A reader takes three descriptors, and the usual soft limit is meant for select(2).
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        if config.auth is None:
            _log.warning("no auth section: everyone who reaches this port may pull everything")
        store = prepare(local_root(config))
        stack.callback(os.close, store.in_use)
        workers = config.http.workers
        listening = [_listen(config.http.addr)]
        debug = config.http.debug.addr
        debugging = [_listen(debug)] if debug is not None else []

        def stop_listening() -> None:
            for each in (*listening, *debugging):
                each.close()

        stack.callback(stop_listening)
        alive, still_here = os.pipe()
        page = memoryview(mmap.mmap(-1, mmap.PAGESIZE))
        cells = [page[start : start + _CELL] for start in range(0, 3 * _CELL, _CELL)]
        shared = app.Shared(store.layout, cells[0], cells[1], cells[2], alive)

        def reread() -> Loaded:
            return configuration.load(path, environ)

        def be_worker(number: int, reloaded: bool) -> None:
            os.close(still_here)
            if number == workers:
                setproctitle.setproctitle("pullthrough: keeper")
                stop_listening()  # or the port would live as long as this process
                keeper.work(_keeping(config, shared), alive)
                return
            setproctitle.setproctitle(f"pullthrough: worker {number}")
            worker = app.Worker(
                tuple(listening),
                tuple(debugging),
                reloaded=reloaded,
            )
            app.work(config, shared, worker, reread)

        setproctitle.setproctitle("pullthrough: supervisor")
        host, port = config.http.addr
        _log.info(
            "listening", addr=f"{host}:{port}", workers=workers, upstream=config.proxy.remoteurl
        )
        return _keep_running(
            workers + 1, be_worker,  # and the keeper
            forget=metrics.forget_process, stopping=stop_listening, drain=config.http.draintimeout,
        )  # fmt: skip


def _keeping(config: Config, shared: Shared) -> Keeping:
    from pullthrough import parts
    from pullthrough.board import Board
    from pullthrough.keeper import Keeping
    from pullthrough.upstream.breaker import Breaker

    return Keeping(
        layout=shared.layout,
        bounds=parts.bounds(config),
        board=Board(shared.board),
        scrub_rate=config.cache.scrub.rate,
        breaker=Breaker(shared.bucket),
        mirrored=config.storage.s3 is not None,
        bucket=partial(parts.usable_bucket, config),
    )


def _in_memory(environ: Mapping[str, str]) -> str | None:
    """Return a directory that no full disk touches, unless the operator chose one."""
    memory = "/dev/shm"  # noqa: S108 - mkdtemp makes a name of its own in it
    return memory if "TMPDIR" not in environ and os.access(memory, os.W_OK) else None


def _listen(address: Address) -> socket.socket:
    """Return the listening socket that the workers share; raises :class:`OSError`."""
    host, port = address
    dual = not host and socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual or ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, dualstack_ipv6=dual, backlog=_BACKLOG)


def _keep_running(
    size: int,
    be_worker: Callable[[int, bool], None],
    *,
    forget: Callable[[int], None],
    stopping: Callable[[], None],
    drain: float,
) -> int:
    """Keep ``size`` workers running until told to stop; return the exit code."""
    # Taken one by one from here on, so that no handler runs in the middle of anything.
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    running: dict[int, int] = {}
    due = dict.fromkeys(range(size), 0.0)
    deadline: float | None = None
    reloaded = False
    while running or deadline is None:
        now = time.monotonic()
        for number in [number for number, when in due.items() if when <= now]:
            del due[number]
            running[_fork(be_worker, number, reloaded=reloaded)] = number
        ends = [deadline] if deadline is not None else list(due.values())
        received = signal.sigtimedwait(_SIGNALS, max(0.0, min(ends, default=now + 3600) - now))
        number = 0 if received is None else received.si_signo
        if number in (signal.SIGTERM, signal.SIGINT) and deadline is None:
            _log.info("stopping", drain=drain)
            deadline = time.monotonic() + drain + _GRACE
            due.clear()
            stopping()
            _tell(running, signal.SIGTERM)
        elif number == signal.SIGHUP:
            reloaded = True
            _tell(running, signal.SIGHUP)
        elif deadline is not None and time.monotonic() >= deadline:
            _log.error("workers did not end in time", count=len(running))
            _tell(running, signal.SIGKILL)
            deadline += _GRACE
        for pid, status in _reap():
            worker = running.pop(pid, None)
            forget(pid)
            if worker is not None and deadline is None:
                _log.error("worker ended, starting another", worker=worker, status=status)
                due[worker] = time.monotonic() + _RESTART_PAUSE
    return 0


def _fork(be_worker: Callable[[int, bool], None], number: int, *, reloaded: bool) -> int:
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        # SIGHUP and SIGINT wait until the worker has handlers of its own: see app.run.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGCHLD})
        be_worker(number, reloaded)
        code = 0
    except Exception:  # noqa: BLE001 - the process ends here, whatever it was
        _log.exception("worker failed", worker=number)
    finally:
        # Not sys.exit: what the supervisor has open is not the worker's to clean up.
        os._exit(code)


def _tell(running: Mapping[int, int], number: int) -> None:
    for pid in running:
        os.kill(pid, number)


def _reap() -> Iterator[tuple[int, int]]:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        yield pid, os.waitstatus_to_exitcode(status)
