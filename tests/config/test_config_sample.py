"""The sample config.yml: complete, true to the defaults, and good for both programs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import yaml

from pullthrough.config import Config, Proxy, load, local_root
from pullthrough.config.model import Health, Http, Log, StorageDriver
from pullthrough.config.schema import ACTED_ON
from tests.clients.harness.process import Server, need
from tests.config.examples import FIELD

SAMPLE = Path(__file__).parents[2] / "config.yml"


def _with_options() -> str:
    """Return the sample with every option in it that is commented out."""
    return re.sub(r"(?m)^( *)#(?=\S)", r"\1", SAMPLE.read_text())


def _paths(document: Any, at: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if isinstance(document, dict):
        for key, below in document.items():
            yield (*at, key)
            yield from _paths(below, (*at, key))


def test_the_sample_shows_the_defaults() -> None:
    """It loads without a word, and differs from what is left out only where it says something."""
    loaded = load(SAMPLE, {})
    assert (loaded.problems, loaded.notices) == ((), ())
    assert loaded.config == Config(
        proxy=Proxy(remoteurl="https://harbor.example.com"),
        log=Log(fields={"service": "registry"}),
        http=Http(headers={"X-Content-Type-Options": ("nosniff",)}),
        health=Health(storagedriver=StorageDriver(enabled=True)),
    )


def test_the_sample_lists_every_key() -> None:
    """A key that is acted on stands in it, if only as an option that is commented out."""
    listed = set(_paths(yaml.safe_load(_with_options())))
    assert set(ACTED_ON) - listed == set()


def test_the_samples_options_are_known(tmp_path: Path) -> None:
    """What is commented out is right when it is put in, but for a choice of two and for files."""
    (tmp_path / "config.yml").write_text(_with_options())
    loaded = load(tmp_path / "config.yml", {})
    assert {(p.key, p.message.partition(":")[0]) for p in loaded.problems} == {
        ("storage", "several drivers, where only one can be"),
        ("proxy.passwordfile", "stands beside proxy.password"),
        ("proxy.passwordfile", "cannot be read"),
        ("proxy.cafile", "cannot be read"),
        ("auth.htpasswd.path", "cannot be read"),
    }


_EMPTY = b"<ListBucketResult/>"


class _Registry(BaseHTTPRequestHandler):
    """An upstream that is there, and an empty bucket: all that registry:2 asks for at its start."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Docker-Distribution-Api-Version", "registry/2.0")
        self.send_header("Content-Length", str(len(_EMPTY)))
        self.end_headers()
        self.wfile.write(_EMPTY)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Say nothing."""


@contextmanager
def _upstream() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Registry) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


BUCKET = """\
version: 0.1
storage:
  s3: {region: eu-1, regionendpoint: "http://bucket", bucket: b, accesskey: a, secretkey: b,
       forcepathstyle: true, rootdirectory: /a, chunksize: 10485760, storageclass: STANDARD}
  redirect: {disable: false, endpoint: https://s3.example.com}
cache:
  quota: 500GiB
  local: {rootdirectory: /l, quota: 80%}
  pin: [prod/**, 'base/python:3.*']
  scrub: {rate: 20MiB/s}
proxy: {remoteurl: https://harbor.example.com, ttl: 168h}
"""


@pytest.mark.parametrize(
    ("text", "store"),
    [
        (SAMPLE.read_text(), "STORAGE_FILESYSTEM_ROOTDIRECTORY"),
        (FIELD, "STORAGE_FILESYSTEM_ROOTDIRECTORY"),
        (BUCKET, "CACHE_LOCAL_ROOTDIRECTORY"),
    ],
    ids=["sample", "field", "bucket"],
)
def test_the_same_file_and_environment_start_both_programs(
    tmp_path: Path, text: str, store: str
) -> None:
    """docker-registry serves from it, and so could we, with the same variables over it."""
    config = tmp_path / "config.yml"
    (tmp_path / "htpasswd").touch()
    with _upstream() as upstream:
        config.write_text(text.replace("http://bucket", upstream))
        environ = {
            f"REGISTRY_{store}": str(tmp_path / "store"),
            "REGISTRY_HTTP_ADDR": "127.0.0.1:0",
            "REGISTRY_HTTP_DRAINTIMEOUT": "1s",
            "REGISTRY_PROXY_REMOTEURL": upstream,
            "REGISTRY_AUTH": "htpasswd",
            "REGISTRY_AUTH_HTPASSWD_REALM": "Registry Realm",
            "REGISTRY_AUTH_HTPASSWD_PATH": str(tmp_path / "htpasswd"),
        }
        loaded = load(config, environ)
        assert loaded.problems == ()
        assert loaded.config
        assert loaded.config.proxy.remoteurl == upstream
        assert loaded.config.auth
        assert local_root(loaded.config) == tmp_path / "store"
        server = Server(
            [need("docker-registry"), "serve", str(config)],
            tmp_path / "log",
            extra_environment=environ,
        )
        server.wait_for(
            lambda: "listening on 127.0.0.1:" in server.tail(), "docker-registry listens"
        )
        server.stop()
