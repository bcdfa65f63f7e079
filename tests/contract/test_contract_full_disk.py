"""A disk that fills up (section 5): what is not kept is passed through, and nothing falls over."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.harness.process import need, need_root
from tests.conftest import CacheStarter
from tests.contract.test_contract_fill import assert_whole, blob_path
from tests.fakes.content import MIB, noise
from tests.fakes.registry import FakeRegistry


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of 3 MiB.

    Without root, or without mount(8), the test fails in CI and is skipped elsewhere. It is skipped
    in CI too where the kernel lets not even root mount, as in many containers.
    """
    need_root()
    directory = tmp_path / "small"
    directory.mkdir()
    mount = [need("mount"), "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(directory)]
    told = subprocess.run(
        mount, check=False, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"}
    )
    if "permission denied" in told.stderr:
        pytest.skip("this machine lets nobody mount a file system")
    assert told.returncode == 0, told.stderr
    yield directory
    subprocess.run([need("umount"), "--lazy", str(directory)], check=True)


def fill_up(directory: Path) -> Path:
    """Leave not a byte free; return the file that takes all the room."""
    junk = directory / "junk"
    with junk.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
        file.writelines([b"x" * 4096] * 1000)
    return junk


@pytest.mark.root
def test_full_disk_lets_the_pull_through(
    registry: FakeRegistry, start_cache: CacheStarter, small_disk: Path
) -> None:
    """A blob larger than the disk reaches its clients whole, unstored, and the log warns."""
    large = registry.put_image("project/large", layers=(noise(6 * MIB),))
    small = registry.put_image("project/small", layers=(noise(100_000),))
    cache = start_cache({"storage": {"filesystem": {"rootdirectory": str(small_disk)}}})
    client = cache.client()
    client.pull(small)
    client.manifest("project/large", "v1")
    for _ in range(2):
        pending = [client.begin(blob_path(large)) for _ in range(2)]
        for each in pending:
            assert_whole(each.answer(), large)
    assert not cache.blob_file(large.layer).exists()
    levels = ("warning", "error")
    warnings = [str(line) for line in cache.log_lines() if line.get("level") in levels]
    assert any("space" in text or "disk" in text or "full" in text for text in warnings), warnings
    # What went through has given its room back.
    next_image = registry.put_image("project/next", layers=(noise(MIB),))
    client.pull(next_image)
    registry.refuse()
    client.pull(small)
    client.pull(next_image)


@pytest.mark.root
def test_not_a_byte_free_lets_the_pull_through(
    registry: FakeRegistry, start_cache: CacheStarter, small_disk: Path
) -> None:
    """With no room for as much as a manifest, images are still pulled, and cached ones served."""
    before = registry.put_image("project/before", layers=(noise(100_000),))
    image = registry.put_image("project/app", layers=(noise(300_000),), index=True)
    cache = start_cache({"storage": {"filesystem": {"rootdirectory": str(small_disk)}}})
    cache.client().pull(before)
    junk = fill_up(small_disk)
    for _ in range(2):
        cache.client().pull(image)
        cache.client().pull(before)
    junk.unlink()
    cache.client().pull(image)
    registry.refuse()
    cache.client().pull(image)


@pytest.mark.root
def test_full_temporary_directory_ends_no_worker(
    registry: FakeRegistry,
    start_cache: CacheStarter,
    small_disk: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Numbers that grow are in memory: on a full disk a store to a mapped file is a SIGBUS."""
    monkeypatch.delenv("TMPDIR", raising=False)
    images = [registry.put_image(f"project/app{number}") for number in range(3)]
    # TEMP is where temporary files would go; TMPDIR would be the operator's word for these too.
    cache = start_cache({"http": {"workers": 2}}, environment={"TEMP": str(small_disk)})
    before = cache.pids()
    fill_up(small_disk)
    client = cache.client()
    for image in images:
        client.pull(image)
        client.pull(image)
        client.manifest(image.repository, "none").assert_error({404})
    assert client.get("/nowhere").status == 404
    assert cache.metric("requests", "'miss'") >= len(images)
    assert cache.pids() == before
