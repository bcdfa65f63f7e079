"""The commands on a store, as processes beside a running cache or without one."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import subprocess
import time
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from pullthrough.store.index import connect
from tests.conftest import CacheStarter
from tests.fakes.cache import Cache, blob_file, layout, merged, towards
from tests.fakes.content import Image, Manifest, noise
from tests.fakes.faults import Fault, eventually, portal
from tests.fakes.logins import Login
from tests.fakes.registry import FakeRegistry
from tests.fakes.tool import Tool, pulled, pullthrough, rot, total


@pytest.fixture
def image(registry: FakeRegistry) -> Image:
    """Return an image upstream, in an index of one platform."""
    return registry.put_image("project/app", "v1", (noise(3000), noise(5000)), index=True)


# -- ls --------------------------------------------------------------------------------------------


def test_ls_says_what_is_complete(
    registry: FakeRegistry, start_cache: CacheStarter, image: Image
) -> None:
    """An image is complete when its last layer is here, and its size is that of all it needs."""
    single = registry.put_image("project/single", "v1", (noise(2000),))
    cache = start_cache()
    tool = Tool(cache)
    assert tool.images() == {}
    client = cache.client()
    for manifest in image.manifests:
        assert client.manifest(image.repository, manifest.digest).status == 200
    assert client.manifest(image.repository, "v1").status == 200
    first = tool.images()["project/app:v1"]
    assert first["complete"] is False
    assert [each["complete"] for each in first["platforms"]] == [False]
    before = time.time()
    pulled(cache, image, single)
    images = tool.images()
    assert sorted(images) == ["project/app:v1", "project/single:v1"]
    app = images["project/app:v1"]
    assert app["digest"] == image.digest
    assert app["size"] == total(image)
    assert app["platforms"] == [
        {
            "platform": "linux/amd64",
            "digest": image.manifests[1].digest,
            "size": total(image) - len(image.top.content),
            "complete": True,
        }
    ]
    assert images["project/single:v1"]["platform"] == "linux/amd64"
    assert images["project/single:v1"]["platforms"] == []
    assert time.strftime("%Y-%m-%dT%H", time.gmtime(before)) <= app["used"]
    assert list(tool.images("project/single")) == ["project/single:v1"]
    lines = tool("ls").splitlines()
    assert lines[0].split() == ["IMAGE", "PLATFORMS", "SIZE", "LAST", "USE", "COMPLETE"]
    assert lines[1].startswith("project/app:v1 ")
    assert "linux/amd64 yes" in lines[1]
    assert lines[1].endswith("yes")
    assert "nothing is here of project/none" in tool.complains("ls", "project/none")


def test_ls_of_a_stopped_cache(start_cache: CacheStarter, image: Image) -> None:
    """Without a server too, and a layer that was lost meanwhile is found out by reindex."""
    cache = start_cache()
    pulled(cache, image)
    cache.stop()
    tool = Tool(cache)
    assert tool.images()["project/app:v1"]["complete"]
    cache.blob_file(image.layer).unlink()
    tool("reindex")
    after = tool.images()["project/app:v1"]
    assert not after["complete"]
    assert after["size"] == total(image) - len(image.layer_content)
    assert "0 of 1" in tool("ls")


@pytest.mark.parametrize(
    "arguments", [("ls",), ("gc",), ("verify",), ("rm", "project/app"), ("reindex",)]
)
def test_no_store_yet(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """Where nothing was ever kept, every command says so, and makes nothing."""
    config = tmp_path / "config.yml"
    config.write_text(
        "version: 0.1\n"
        f"storage: {{filesystem: {{rootdirectory: {tmp_path / 'store'}}}}}\n"
        "proxy: {remoteurl: http://127.0.0.1:9}\n"
    )
    told = pullthrough(*arguments, config=config)
    assert (told.returncode, told.stdout) == (1, "")
    assert told.stderr == f"Error: there is no store at {tmp_path / 'store'} yet\n"
    assert not (tmp_path / "store").exists()


def test_no_configuration(tmp_path: Path) -> None:
    """A configuration that is not there, or not good, ends a command as it ends serve."""
    told = pullthrough("ls", config=tmp_path / "none.yml")
    assert (told.returncode, told.stdout) == (1, "")
    assert told.stderr.startswith("Error: no configuration at ")


def test_ls_cannot_steer_the_terminal(
    registry: FakeRegistry, start_cache: CacheStarter, image: Image
) -> None:
    """What an image's maker wrote is shown without what a terminal would obey."""
    document = json.loads(image.top.content)
    document["manifests"][0]["platform"]["os"] = "\x1b[2J\nlinux"
    evil = Manifest(json.dumps(document).encode(), image.top.media_type)
    registry.put_manifest(image.repository, evil, "evil")
    cache = start_cache()
    assert cache.client().manifest(image.repository, "evil").status == 200
    tool = Tool(cache)
    shown = eventually(lambda: [x for x in tool("ls").splitlines() if ":evil" in x], "the image")
    assert "?[2J?linux/amd64 no" in shown[0]


# -- gc --------------------------------------------------------------------------------------------


def test_gc_beside_a_running_cache(registry: FakeRegistry, start_cache: CacheStarter) -> None:
    """A dry run says what would go, the real one lets it go; the newest stays, and pulls go on."""
    old = registry.put_image("project/old", "v1", (noise(300_000),))
    new = registry.put_image("project/new", "v1", (noise(300_000),))
    cache = start_cache()
    pulled(cache, old)
    pulled(cache, new)
    cache.stop()  # its uses are written
    cache.configure({"cache": {"quota": "400kB"}})
    tool = Tool(cache)
    dry = tool.json("gc", "--dry-run")
    assert dry["dry_run"]
    assert dry["quota"] == 400_000
    assert dry["freed"] >= 300_000
    gone = {each["digest"]: each for each in dry["gone"]}
    assert old.layer in gone
    assert new.layer not in gone
    assert gone[old.layer]["reason"] == "room"
    assert gone[old.layer]["images"] == ["project/old:v1"]
    assert gone[old.layer]["size"] == 300_000
    assert gone[old.layer]["from"] == "store"
    assert cache.blob_file(old.layer).exists()
    assert "would go" in tool("gc", "--dry-run")
    cache.configure({"cache": {"quota": None}})
    cache.start()
    other = cache.directory / "bounded.yml"
    other.write_text(yaml.safe_dump(merged(cache.config, {"cache": {"quota": "400kB"}})))
    tool.config = other
    shown = tool("gc")
    assert "project/old:v1" in shown
    assert "to keep within the quota" in shown
    assert not cache.blob_file(old.layer).exists()
    assert cache.blob_file(new.layer).exists()
    assert list(tool.images()) == ["project/new:v1"]
    assert tool.json("gc")["gone"] == []
    registry.forget()
    cache.client().pull(new)
    assert registry.fetches(".*/blobs/.*") == []
    cache.client().pull(old)
    assert registry.fetches(f".*/blobs/{old.layer}")


def test_gc_of_what_expired(start_cache: CacheStarter, image: Image) -> None:
    """What nobody used for the ttl goes, and the reason says so."""
    cache = start_cache()
    pulled(cache, image)
    cache.stop()
    cache.configure({"proxy": {"ttl": "1ms"}})
    told = Tool(cache).json("gc")
    assert {each["reason"] for each in told["gone"]} == {"expired"}
    assert image.digest in {each["digest"] for each in told["gone"]}
    assert told["used"] == 0
    assert not list(layout(cache.store).glob("repositories/**/link"))


def test_gc_says_when_pins_exceed_the_quota(start_cache: CacheStarter, image: Image) -> None:
    """Nothing pinned goes; that it is too much is exit code 1."""
    cache = start_cache()
    pulled(cache, image)
    cache.stop()
    cache.configure({"cache": {"quota": "1kB", "pin": ["project/**"]}})
    for how in ((), ("--json",)):
        told = pullthrough("gc", *how, config=cache.directory / "config.yml")
        assert told.returncode == 1
        assert "what is pinned exceeds the quota" in told.stderr
    assert cache.blob_file(image.layer).exists()


# -- verify ----------------------------------------------------------------------------------------


def test_verify_finds_nothing_in_good_content(start_cache: CacheStarter, image: Image) -> None:
    """Everything is read, and all of it is right."""
    cache = start_cache()
    pulled(cache, image)
    told = Tool(cache).json("verify")
    assert told["rotten"] == []
    assert told["checked"] == len(image.blobs) + len(image.manifests)
    assert told["bytes"] == total(image)
    assert "0 rotten" in Tool(cache)("verify")


@pytest.mark.parametrize("running", [True, False])
def test_verify_repairs_a_layer(start_cache: CacheStarter, image: Image, running: bool) -> None:
    """A flipped byte is found and set aside; it counts until --repair has fetched it again."""
    cache = start_cache()
    pulled(cache, image)
    if not running:
        cache.stop()
    rot(cache, image.layer)
    tool = Tool(cache)
    (rotten,) = tool.json("verify", code=1)["rotten"]
    assert rotten["digest"] == image.layer
    assert rotten["size"] == len(image.layer_content)
    assert rotten["images"] == ["project/app:v1"]
    assert rotten["places"] == ["disk"]
    assert not rotten["mended"]
    assert not cache.blob_file(image.layer).exists()
    assert not tool.images()["project/app:v1"]["complete"]
    (still,) = tool.json("verify", code=1)["rotten"]
    assert still["places"] == ["set aside earlier"]
    shown = tool("verify", "--repair")
    assert image.layer in shown
    assert "fetched again" in shown
    assert cache.blob_file(image.layer).read_bytes() == image.layer_content
    assert tool.images()["project/app:v1"]["complete"]
    assert tool.json("verify")["rotten"] == []
    assert not list((cache.store / "pullthrough" / "quarantine").iterdir())
    if running:
        cache.client().pull(image)


@pytest.mark.parametrize("which", [0, 1])
def test_verify_repairs_a_manifest(
    registry: FakeRegistry, start_cache: CacheStarter, image: Image, which: int
) -> None:
    """An index or manifest is mended too, by the same digest, in one run."""
    cache = start_cache()
    pulled(cache, image)
    digest = image.manifests[which].digest
    rot(cache, digest)
    registry.forget()
    (rotten,) = Tool(cache).json("verify", "--repair")["rotten"]
    assert rotten["digest"] == digest
    assert rotten["mended"]
    assert cache.blob_file(digest).read_bytes() == image.manifests[which].content
    assert [seen.path for seen in registry.fetches("/v2/.*")] == [
        f"/v2/project/app/manifests/{digest}"
    ]
    cache.client().pull(image)


def test_verify_says_what_it_could_not_repair(
    registry: FakeRegistry, start_cache: CacheStarter, image: Image
) -> None:
    """With the upstream away a repair fails, says why, and can be made later."""
    cache = start_cache(retries=1)
    pulled(cache, image)
    cache.stop()
    rot(cache, image.layer)
    registry.refuse()
    tool = Tool(cache)
    (rotten,) = tool.json("verify", "--repair", code=1)["rotten"]
    assert not rotten["mended"]
    assert rotten["why"]
    registry.accept()
    (rotten,) = tool.json("verify", "--repair")["rotten"]
    assert rotten["mended"]
    assert tool.images()["project/app:v1"]["complete"]


def test_verify_at_a_terminal(start_cache: CacheStarter, image: Image) -> None:
    """The bar is drawn on a terminal only, beside the output and not in it."""
    cache = start_cache()
    pulled(cache, image)
    here, there = pty.openpty()
    try:
        told = pullthrough("verify", config=cache.directory / "config.yml", terminal=there)
        os.set_blocking(here, False)
        shown = os.read(here, 65536)
    finally:
        os.close(here)
        os.close(there)
    assert told.returncode == 0
    assert b"reading" in shown
    assert "reading" not in told.stdout
    assert "\x1b" not in told.stdout
    quiet = pullthrough("verify", config=cache.directory / "config.yml")
    assert quiet.stderr == ""


# -- rm --------------------------------------------------------------------------------------------


def test_rm_then_pull_again(registry: FakeRegistry, start_cache: CacheStarter) -> None:
    """What only this image needs goes, what another shares stays, and a pull brings it back."""
    shared = noise(4000)
    gone = registry.put_image("project/app", "v1", (noise(3000), shared), index=True)
    kept = registry.put_image("project/app", "v2", (shared, noise(2000)), index=True)
    cache = start_cache()
    pulled(cache, gone, kept)
    tool = Tool(cache)
    told = tool.json("rm", "project/app:v1")
    assert told["removed"] == ["project/app:v1"]
    assert set(told["gone"]) == {gone.digest, gone.manifests[1].digest, gone.config, gone.layer}
    assert told["freed"] == total(gone) - len(shared)
    images = tool.images()
    assert list(images) == ["project/app:v2"]
    assert images["project/app:v2"]["complete"]
    registry.forget()
    pulled(cache, gone)
    asked = {seen.path.rpartition("/")[2] for seen in registry.fetches(".*/blobs/.*")}
    assert asked == {gone.config, gone.layer}
    assert sorted(tool.images()) == ["project/app:v1", "project/app:v2"]


def test_rm_of_one_of_two_repositories(registry: FakeRegistry, start_cache: CacheStarter) -> None:
    """The same image elsewhere stays whole; of the one that is removed no link stays."""
    layer = noise(3000)
    one = registry.put_image("project/one", "v1", (layer,))
    repository = registry.repositories["project/two"] = registry.repositories["project/one"]
    assert repository.tags == {"v1": one.digest}
    two = Image("project/two", "v1", one.top, one.manifests, one.config, one.layers, one.blobs)
    cache = start_cache()
    pulled(cache, one, two)
    tool = Tool(cache)
    assert tool.json("rm", "project/one")["gone"] == []
    assert list(tool.images()) == ["project/two:v1"]
    assert tool.images()["project/two:v1"]["complete"]
    assert not (layout(cache.store) / "repositories" / "project" / "one").exists()
    registry.forget()
    cache.client().pull(two)
    assert registry.fetches("/v2/.*") == []
    tool("rm", "project/two")
    assert not list(layout(cache.store).glob("blobs/*/*/*/data"))


def test_rm_of_one_of_two_tags(registry: FakeRegistry, start_cache: CacheStarter) -> None:
    """Another tag keeps the manifest; by its digest both go."""
    image = registry.put_image("project/app", "v1", (noise(3000),))
    registry.tag("project/app", "latest", image.digest)
    cache = start_cache()
    pulled(cache, image)
    assert cache.client().manifest("project/app", "latest").status == 200
    tool = Tool(cache)
    assert tool.json("rm", "project/app:latest")["gone"] == []
    assert list(tool.images()) == ["project/app:v1"]
    assert cache.client().manifest("project/app", "latest").status == 200
    told = tool.json("rm", f"project/app@{image.digest}")
    assert sorted(told["removed"]) == ["project/app:latest", "project/app:v1"]
    assert len(told["gone"]) == 3
    assert tool.images() == {}


def test_rm_by_digest_of_what_has_no_tag(
    registry: FakeRegistry, start_cache: CacheStarter, image: Image
) -> None:
    """An image that was pulled by digest is listed and goes by it; a part of one does not."""
    single = registry.put_image("project/single", "v1", (noise(2000),))
    cache = start_cache()
    pulled(cache, image)
    client = cache.client()
    assert client.manifest("project/single", single.digest).status == 200
    tool = Tool(cache)
    name = f"project/single@{single.digest}"
    assert sorted(tool.images()) == ["project/app:v1", name]
    child = f"project/app@{image.manifests[1].digest}"
    assert f"{child} is a part of project/app:v1" in tool.complains("rm", child)
    assert "removed" in tool("rm", name)
    assert list(tool.images()) == ["project/app:v1"]


def test_rm_of_what_is_not_here(start_cache: CacheStarter, image: Image) -> None:
    """Nothing at all goes when one of the names is unknown; what is no name is wrong usage."""
    cache = start_cache()
    pulled(cache, image)
    tool = Tool(cache)
    said = tool.complains("rm", "project/app:v1", "project/app:v2", "project/none")
    assert "project/app:v2 is not here" in said
    assert "project/none is not here" in said
    assert tool.images()["project/app:v1"]["complete"]
    for wrong in ("UPPER", "project/app:", "project/app@sha256:12", "host:5000/project/app:v1"):
        assert "IMAGE" in tool.complains("rm", wrong, code=2)


def test_rm_of_a_pinned_image(start_cache: CacheStarter, image: Image) -> None:
    """Who names an image means it: a pin does not hold, and is said."""
    cache = start_cache({"cache": {"pin": ["project/app:v*"]}})
    pulled(cache, image)
    assert "removed project/app:v1, which is pinned" in Tool(cache)("rm", "project/app:v1")
    assert Tool(cache).images() == {}


def test_rm_of_what_is_being_read(start_cache: CacheStarter, image: Image) -> None:
    """What a client has open stays until the next time, and is said: exit code 1."""
    cache = start_cache()
    pulled(cache, image)
    tool = Tool(cache)
    with cache.blob_file(image.layer).open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        told = tool.json("rm", "project/app:v1", code=1)
        assert told["in_use"] == [image.layer]
        assert cache.blob_file(image.layer).exists()
    assert tool.json("rm", "project/app")["gone"] == [image.layer]
    assert not list(layout(cache.store).rglob("data"))


# -- reindex ---------------------------------------------------------------------------------------


def lose_all(store: Path) -> None:
    """Lose the index and what SQLite keeps beside it."""
    for path in (store / "pullthrough").glob("index.sqlite*"):
        path.unlink()


def lose_one(store: Path) -> None:
    """Lose the index alone: what stands beside it is of no use to a new one."""
    (store / "pullthrough" / "index.sqlite").unlink()


def damage(store: Path) -> None:
    """Overwrite the index with something else."""
    (store / "pullthrough" / "index.sqlite").write_bytes(b"not a database" * 1000)


@pytest.mark.parametrize(
    ("running", "lose"),
    [(True, lose_all), (True, lose_one), (False, lose_all), (False, lose_one), (False, damage)],
)
def test_reindex_after_the_index_was_lost(
    registry: FakeRegistry,
    start_cache: CacheStarter,
    image: Image,
    running: bool,
    lose: Callable[[Path], None],
) -> None:
    """All that is here is known again, from the files; a running cache goes on."""
    cache = start_cache()
    pulled(cache, image)
    tool = Tool(cache)
    if not running:
        cache.stop()
    lose(cache.store)
    told = tool.json("reindex")
    assert (told["images"], told["tags"], told["repositories"]) == (1, 1, 1)
    assert told["on_disk"] == {
        "count": len(image.blobs) + len(image.manifests),
        "bytes": total(image),
    }
    assert told["in_bucket"] is None
    app = tool.images()["project/app:v1"]
    assert app["complete"]
    assert app["platforms"][0]["platform"] == "linux/amd64"
    assert "1 image in 1 repository" in tool("reindex")
    if running:
        # It goes on with the index that it has open, whole: a new one shares nothing with that.
        cache.client().pull(image)
        cache.client().pull(registry.put_image("project/other", "v1", (noise(2000),)))
        cache.stop()
        assert "index failed" not in cache.log_text()
        assert "disk I/O error" not in cache.log_text()
    cache.start()
    cache.client().pull(image)
    assert tool.images()["project/app:v1"]["complete"]


def test_reindex_while_the_lost_index_is_open(start_cache: CacheStarter, image: Image) -> None:
    """What a process has open of the lost index is kept apart from the new one."""
    cache = start_cache()
    pulled(cache, image)
    cache.stop()
    lose_all(cache.store)
    with closing(connect(cache.store / "pullthrough" / "index.sqlite")) as opened:
        lose_one(cache.store)
        assert Tool(cache).json("reindex")["images"] == 1
        assert Tool(cache).images()["project/app:v1"]["complete"]
        assert opened.execute("SELECT count(*) FROM blob").fetchone() == (0,)


def test_store_that_another_program_filled(start_cache: CacheStarter, image: Image) -> None:
    """Without anything of ours beside registry:2's layout, the first command makes the index."""
    cache = start_cache()
    pulled(cache, image)
    cache.stop()
    for path in sorted((cache.store / "pullthrough").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    assert Tool(cache).images()["project/app:v1"]["complete"]
    assert Tool(cache).json("verify")["rotten"] == []
    assert blob_file(cache.store, image.layer).exists()


# -- check --connect -------------------------------------------------------------------------------


def check(cache: Cache) -> subprocess.CompletedProcess[str]:
    return pullthrough("check", "--connect", str(cache.directory / "config.yml"))


@pytest.mark.parametrize("login", list(Login))
def test_check_of_a_good_upstream(tmp_path: Path, login: Login) -> None:
    """An upstream that lets us in is good, whichever way it wants to be logged in to."""
    with FakeRegistry(login=login) as registry:
        cache = unstarted(tmp_path, registry)
        told = check(cache)
        cache.close()
    assert (told.returncode, told.stderr) == (0, "")
    assert told.stdout.splitlines()[1:] == [f"upstream {registry.url}: good"]


@pytest.mark.parametrize("login", [Login.BEARER, Login.BASIC])
def test_check_of_a_wrong_credential(tmp_path: Path, login: Login) -> None:
    """A wrong password is found out, though with a scope it would be given a token."""
    with FakeRegistry(login=login) as registry:
        cache = unstarted(tmp_path, registry, password="wrong-secret")
        told = check(cache)
        cache.close()
    assert told.returncode == 1
    assert told.stderr.startswith(f"upstream {registry.url}: refuses the credential")
    assert told.stderr.count("\n") == 1
    assert "wrong-secret" not in told.stderr


def test_check_of_an_upstream_without_our_login(tmp_path: Path, registry: FakeRegistry) -> None:
    """Who has no credential is not told that it is refused."""
    cache = unstarted(tmp_path, registry, username=None, password=None)
    assert check(cache).returncode == 0
    cache.close()


def test_check_of_an_upstream_that_is_away(tmp_path: Path, registry: FakeRegistry) -> None:
    """Nobody listens: one line with the system's word."""
    cache = unstarted(tmp_path, registry)
    registry.refuse()
    told = check(cache)
    cache.close()
    assert told.returncode == 1
    assert told.stderr.startswith(f"upstream {registry.url}: ")
    assert "Connect call failed" in told.stderr
    assert told.stderr.count("\n") == 1


def unstarted(directory: Path, registry: FakeRegistry, **proxy: Any) -> Cache:
    """Return a cache of ``registry`` that is configured, and not running."""
    cache = Cache(directory / "cache", {})
    cache.configure(towards(registry.url, **proxy))
    return cache


def test_check_of_a_clock_that_is_off(tmp_path: Path, registry: FakeRegistry) -> None:
    """An hour between the upstream's Date and ours is said in seconds."""
    cache = unstarted(tmp_path, registry)
    date = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
    registry.inject(Fault(status=200, body=b"{}", headers={"Date": date}))
    told = check(cache)
    cache.close()
    assert told.returncode == 1
    assert re.fullmatch(
        rf"upstream {registry.url}: the clock is off by 3(600|59.) s: ours is behind\n",
        told.stderr,
    )


@pytest.mark.parametrize("status", [200, 302])
def test_check_of_a_portal(tmp_path: Path, registry: FakeRegistry, status: int) -> None:
    """What answers for every host is no registry, whatever its status."""
    cache = unstarted(tmp_path, registry)
    registry.inject(portal(status))
    told = check(cache)
    cache.close()
    assert told.returncode == 1
    assert told.stderr.startswith(f"upstream {registry.url}: ")
    assert told.stderr.count("\n") == 1
