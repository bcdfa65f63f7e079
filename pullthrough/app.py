"""The composition root of one worker: builds every part and says what wraps what.

listener -> edge (login, route, errors, access line) -> handlers
         -> manifests, blobs, listings (freshness, fills) -> store | upstream
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import structlog
from aiohttp import web

from pullthrough import parts
from pullthrough.board import Board, Fact
from pullthrough.cache.blobs import Blobs
from pullthrough.cache.download import Persistence
from pullthrough.cache.listings import Listings
from pullthrough.cache.manifests import Freshness, Manifests
from pullthrough.cache.mirrored import SIGNED_FOR, Mirrored, Redirecting
from pullthrough.config import Config, ConfigError, Loaded
from pullthrough.server.auth import Htpasswd
from pullthrough.server.edge import Access, Edge, Parts, listener
from pullthrough.server.health import Readiness
from pullthrough.store.filesystem import FileStore
from pullthrough.store.layout import Layout
from pullthrough.telemetry import logs, metrics
from pullthrough.upstream.breaker import Breaker
from pullthrough.upstream.bucket import BucketSource, Reading
from pullthrough.upstream.client import RegistryClient

_log = structlog.get_logger()

_FLUSH_EVERY: Final = 10.0  # seconds
_REFRESH_EVERY: Final = 1.0  # seconds
_BACKLOG: Final = 1024
_REDIRECT: Final = 307
_SWITCH_INTERVAL: Final = 0.0005
"""Seconds after which the event loop lets a waiting thread have its turn. Python's own is ten times
that, and a fill's disk thread waits for it at each batch: cold blobs came a quarter slower."""
_M_TRIM_THRESHOLD: Final = -1  # malloc.h
_M_MMAP_THRESHOLD: Final = -3


@dataclass(frozen=True, slots=True)
class Shared:
    """What the workers have in common, made before they are forked."""

    layout: Layout
    breaker: memoryview
    """The breaker's cell: one state of the upstream for all."""
    bucket: memoryview
    """The bucket's breaker's cell."""
    board: memoryview
    """What the keeper tells."""
    alive: int
    """The reading end of a pipe that ends with the supervisor."""


@dataclass(frozen=True, slots=True)
class Worker:
    """One worker's own."""

    sockets: tuple[socket.socket, ...]
    debug_sockets: tuple[socket.socket, ...]
    reloaded: bool
    """Whether it takes the place of one that had reloaded."""


async def run(config: Config, shared: Shared, worker: Worker, reread: Callable[[], Loaded]) -> None:
    """Serve until SIGTERM or the supervisor's end; ``reread`` loads the configuration anew."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_signal_handler(
        signal.SIGINT, lambda: None
    )  # the supervisor hears it too, and says stop
    loop.add_reader(shared.alive, stop.set)
    async with contextlib.AsyncExitStack() as stack:
        store = FileStore(
            shared.layout,
            make_room=parts.making_room(config, shared.layout),
            mirrored=config.storage.s3 is not None,
        )
        stack.push_async_callback(store.close)
        await store.open()
        source = await stack.enter_async_context(
            RegistryClient(
                parts.upstream(config.proxy),
                breaker=Breaker(shared.breaker),
                observe=metrics.UpstreamMetrics(),
            )
        )
        freshness = Freshness(
            config.proxy.freshness.maxage,
            config.proxy.freshness.deadline,
            time.time,
            config.proxy.timeouts.firstbyte,
        )
        manifests = Manifests(store, store.locks, source, freshness)
        blobs = Blobs(
            store,
            source,
            Persistence(config.proxy.retries, patience=config.proxy.timeouts.firstbyte),
            await _mirrored(config, shared, store, stack),
        )
        listings = Listings(store, source, freshness)
        for part in (manifests, blobs, listings):
            stack.push_async_callback(part.close)
        htpasswd = None
        if config.auth is not None:
            htpasswd = Htpasswd(config.auth.path)
            stack.callback(htpasswd.close)
        readiness = Readiness(lambda: source.up, _keeping(config, Board(shared.board)))
        served = Parts(
            manifests, blobs, listings, readiness, htpasswd,
            config.auth.realm if config.auth is not None else "pullthrough",
        )  # fmt: skip
        edge = Edge(served, _Recorder(config), config.http.headers)
        loop.add_signal_handler(signal.SIGHUP, lambda: _reload(reread, source, htpasswd))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP, signal.SIGINT})
        if worker.reloaded:
            _reload(reread, source, htpasswd)
        refresh = metrics.watch(lambda: source.up, lambda: blobs.filling)
        async with asyncio.TaskGroup() as tasks:
            chores = [_every(_FLUSH_EVERY, store.flush), _refreshing(refresh)]
            health = config.health.storagedriver
            if health.enabled:
                chores.append(
                    readiness.watch(
                        store.healthy, interval=health.interval, threshold=max(1, health.threshold)
                    )
                )
            running = [tasks.create_task(chore) for chore in chores]
            async with (
                _listening(
                    web.Server(_debug(config, readiness, refresh)), worker.debug_sockets, 1.0
                ),
                _listening(listener(edge), worker.sockets, config.http.draintimeout),
            ):
                _log.debug("worker ready")
                await stop.wait()
                loop.remove_reader(shared.alive)
                readiness.draining = True
            for chore in running:
                chore.cancel()


async def _mirrored(
    config: Config, shared: Shared, store: FileStore, stack: contextlib.AsyncExitStack
) -> Mirrored | None:
    """Return what is known of the bucket, if there is one."""
    s3 = config.storage.s3
    # boto3 makes its client of files.
    bucket = await asyncio.to_thread(parts.usable_bucket, config)
    if bucket is None or s3 is None:
        return None
    reading = Reading(
        sign=parts.signing(bucket, shared.layout, SIGNED_FOR),
        secure=(s3.endpoint or "https:").startswith("https:"),
        cafile=parts.bucket_cas(),
        skipverify=s3.skipverify,
        stall=config.proxy.timeouts.stall,
        user_agent=parts.USER_AGENT,
    )
    try:
        source = BucketSource(reading, Breaker(shared.bucket), metrics.BUCKET_BYTES.inc)
    except OSError as error:  # certificates that are none
        _log.error("the bucket cannot be read, going on without", why=error.strerror or str(error))
        return None
    await stack.enter_async_context(source)
    redirect, redirecting = config.storage.redirect, None
    if not redirect.disable:
        redirecting = Redirecting(parts.bucket_host(s3, redirect.endpoint or s3.endpoint))
    return Mirrored(store, source, redirecting)


def _keeping(config: Config, board: Board) -> Callable[[], dict[str, object]]:
    """Return what says how the keeper does, for those who ask whether we are ready."""

    def details() -> dict[str, object]:
        if not board[Fact.KNOWN]:
            return {}
        told: dict[str, object] = {"stored_bytes": int(board[Fact.USED])}
        if quota := int(board[Fact.QUOTA]):
            told["quota_bytes"] = quota
            told["pinned"] = "exceeds the quota" if board[Fact.PINNED] > quota else "ok"
        if config.storage.s3 is not None:
            told["bucket"] = "failing" if board[Fact.MIRROR_FAILING] else "ok"
            told["upload_pending_bytes"] = int(board[Fact.PENDING])
        return told

    return details


def _reload(
    reread: Callable[[], Loaded], source: RegistryClient, htpasswd: Htpasswd | None
) -> None:
    """Take up log level, upstream credential and htpasswd; the rest wants a restart."""
    loaded = reread()
    if loaded.config is None:
        for problem in loaded.problems:
            _log.error("configuration not taken up", problem=str(problem))
        return
    config = loaded.config
    logs.configure(config.log.level, config.log.formatter, config.log.fields)
    try:
        source.set_credential(parts.credential(config.proxy))
    except ConfigError as error:
        _log.error("upstream credential not taken up", problem=str(error))
    if htpasswd is not None:
        htpasswd.reload()
    _log.info("reloaded")


async def _every(seconds: float, do: Callable[[], Awaitable[None]]) -> None:
    while True:
        await asyncio.sleep(seconds)
        await do()


async def _refreshing(refresh: Callable[[], None]) -> None:
    while True:
        refresh()
        await asyncio.sleep(_REFRESH_EVERY)


@contextlib.asynccontextmanager
async def _listening(
    server: web.Server, sockets: tuple[socket.socket, ...], drain: float
) -> AsyncIterator[None]:
    """Accept connections; at the end refuse new ones and give those in hand ``drain`` seconds."""
    runner = web.ServerRunner(server, shutdown_timeout=drain)
    await runner.setup()
    try:
        for each in sockets:
            # One accept a turn of the loop: of the workers that share the socket, who has time
            # takes the next connection. asyncio's own way is to take all there are.
            await web.SockSite(runner, each, backlog=1).start()
            each.listen(_BACKLOG)
        yield
    finally:
        await runner.cleanup()


class _Recorder:
    """Counts a request and writes its access line."""

    def __init__(self, config: Config) -> None:
        self._requests = metrics.Requests()
        self._log = (
            None
            if config.log.accesslog.disabled
            else logs.access_logger(config.log.formatter, config.log.fields)
        )

    def finished(self, access: Access) -> None:
        """Take note of one request."""
        served = access.served
        cache = "" if served is None else served.outcome.value
        self._requests.count(
            access.route, access.method, access.status, cache, access.bytes_sent, access.seconds
        )
        if served is not None and cache == "stale":
            metrics.STALE.labels(served.detail).inc()
        if access.status == _REDIRECT:
            metrics.REDIRECTS.inc()
        if self._log is not None:
            self._log.info(
                "request", request_id=access.request_id, address=access.address, user=access.user,
                method=access.method, path=access.path, route=access.route, status=access.status,
                bytes=access.bytes_sent, duration=round(access.seconds, 6), cache=cache,
                detail="" if served is None else served.detail,
            )  # fmt: skip


def _debug(
    config: Config, readiness: Readiness, refresh: Callable[[], None]
) -> Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]:
    """Return the handler of the operator's own port."""

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        path = request.path
        if path == config.http.debug.prometheus.path:
            refresh()
            body, content_type = await asyncio.to_thread(metrics.exposition)
            return web.Response(body=body, headers={"Content-Type": content_type})
        if path == "/livez":
            return web.Response(text="ok\n")
        if path == "/readyz":
            status = 200 if readiness.ready else 503
            return web.json_response(readiness.details(), status=status)
        return web.Response(status=404, text="not found\n")

    return handle


def _reuse_buffers() -> None:
    """Have malloc keep the memory of buffers (mallopt(3)), where it is glibc's.

    By default it gives every buffer of a download back to the kernel, and has the next one's pages
    zeroed anew: cold blobs came a quarter slower.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 4 << 20)
        mallopt(_M_TRIM_THRESHOLD, 16 << 20)


def work(config: Config, shared: Shared, worker: Worker, reread: Callable[[], Loaded]) -> None:
    """Be a worker: the forked process's whole life."""
    _reuse_buffers()
    sys.setswitchinterval(_SWITCH_INTERVAL)
    logs.configure(config.log.level, config.log.formatter, config.log.fields)
    asyncio.run(run(config, shared, worker, reread))
