"""Files are whole or not there, wherever writing them is broken off."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import pytest

from pullthrough.store import files


@pytest.fixture
def temporary(tmp_path: Path) -> Path:
    """Make a directory for files on their way."""
    directory = tmp_path / "tmp"
    directory.mkdir()
    return directory


def fails(error: BaseException) -> Callable[..., Any]:
    """Return a function that does nothing but raise."""

    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


def test_writes_all_of_it(tmp_path: Path, temporary: Path) -> None:
    """The content is there under its name, directories are made, and nothing else is left."""
    path = tmp_path / "a" / "b" / "file"
    files.write_whole(path, b"content", temporary=temporary)
    assert path.read_bytes() == b"content"
    assert list(temporary.iterdir()) == []


def test_others_may_read_it(tmp_path: Path, temporary: Path) -> None:
    """registry:2 under another user can serve what was written here."""
    path = tmp_path / "file"
    files.write_whole(path, b"content", temporary=temporary)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


@pytest.mark.parametrize("there", [b"old content", None])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
@pytest.mark.parametrize(
    ("where", "what"),
    [
        (os, "fsync"),
        (Path, "chmod"),
        (Path, "rename"),
    ],
)
def test_whole_or_not_there(
    tmp_path: Path,
    temporary: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    where: Any,
    what: str,
    error: BaseException,
    there: bytes | None,
) -> None:
    """Broken off at any step, the name has what it had before, and no leftover takes room."""
    path = tmp_path / "file"
    if there is not None:
        path.write_bytes(there)
    with monkeypatch.context() as broken:
        broken.setattr(where, what, fails(error))
        with pytest.raises(type(error)):
            files.write_whole(path, b"new content", temporary=temporary)
    assert (path.read_bytes() if path.exists() else None) == there
    assert list(temporary.iterdir()) == []


def test_disk_that_fills_up(
    tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write that the disk refuses in the middle leaves nothing of it."""
    real = os.fdopen

    class Full:
        def __init__(self, descriptor: int, mode: str) -> None:
            self._file = real(descriptor, mode)

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None:
            self._file.close()

        def write(self, content: bytes) -> None:
            self._file.write(content[:3])
            self._file.flush()
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fdopen", Full)
    with pytest.raises(OSError, match="No space") as raised:
        files.write_whole(tmp_path / "file", b"content", temporary=temporary)
    assert files.out_of_room(raised.value)
    assert not (tmp_path / "file").exists()
    assert list(temporary.iterdir()) == []


def _steps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return what is synced and renamed, in order, as it happens."""
    steps: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def noted_fsync(descriptor: int) -> None:
        is_directory = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        steps.append("sync directory" if is_directory else "sync file")
        fsync(descriptor)

    def noted_rename(self: Path, target: Path) -> Path:
        steps.append("rename")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "rename", noted_rename)
    return steps


def test_durable_syncs_content_before_its_name(
    tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a power cut the name has all the content or is not there: content first, name last."""
    steps = _steps(monkeypatch)
    files.write_whole(tmp_path / "file", b"content", temporary=temporary)
    assert steps == ["sync file", "rename", "sync directory"]


def test_not_durable_waits_for_no_disk(
    tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What can be made anew does not wait for the disk."""
    steps = _steps(monkeypatch)
    files.write_whole(tmp_path / "file", b"content", temporary=temporary, durable=False)
    assert steps == ["rename"]


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.ENOSPC, True),
        (errno.EDQUOT, True),
        (errno.EFBIG, True),
        (errno.EIO, False),
        (errno.EROFS, False),
        (errno.EACCES, False),
    ],
)
def test_what_counts_as_full(number: int, *, expected: bool) -> None:
    """A full disk and a used up quota are no room; a broken or read-only disk is something else."""
    assert files.out_of_room(OSError(number, "")) is expected


@pytest.mark.parametrize(
    ("size", "expected"), [(0, b""), (9, b"x" * 9), (10, b"x" * 10), (11, None)]
)
def test_reading_is_bounded(tmp_path: Path, size: int, expected: bytes | None) -> None:
    """A file of up to the limit is read, a longer one counts as not there."""
    path = tmp_path / "file"
    path.write_bytes(b"x" * size)
    assert files.read_bounded(path, 10) == expected


def test_reading_what_is_not_there(tmp_path: Path) -> None:
    """Neither a missing file, nor a missing directory, nor a file in a directory's place raises."""
    (tmp_path / "file").write_bytes(b"")
    for path in ("missing", "missing/file", "file/below"):
        assert files.read_bounded(tmp_path / path, 10) is None
