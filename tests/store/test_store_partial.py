"""Unfinished content between processes: who fills, how far it is, and what becomes of it."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pullthrough.oci.digest import Digest
from pullthrough.store.files import out_of_room
from pullthrough.store.layout import Layout
from pullthrough.store.partial import Partial, Progress, State, hash_file
from tests.store.kit import CONTENT, DIGEST, child, write

HOLD = """
import sys
from pathlib import Path
from pullthrough.oci.digest import Digest
from pullthrough.store.layout import Layout
from pullthrough.store.partial import Partial, Progress
digest = Digest.parse(sys.argv[2])
partial = Partial.open(Layout(Path(sys.argv[1])), digest)
assert partial.acquire()
partial.append(0, [b"so far"], digest.hasher())
partial.record(Progress(100, 6))
print("holds", flush=True)
sys.stdin.readline()
partial.release()
print("released", flush=True)
sys.stdin.readline()
"""
SIZES = st.integers(min_value=0, max_value=1 << 40)

Open = Callable[[], Partial]


@pytest.fixture
def opened(layout: Layout) -> Iterator[Open]:
    """Open the partial of one digest, as often as wanted."""
    made: list[Partial] = []

    def open_one() -> Partial:
        made.append(Partial.open(layout, DIGEST))
        return made[-1]

    yield open_one
    for partial in made:
        if not partial.data.closed:
            partial.close()


def files(layout: Layout) -> set[str]:
    return {path.name for path in layout.partials.iterdir()}


def descriptors() -> set[str]:
    return {str(path.readlink()) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()}


# -- who fills -------------------------------------------------------------------------------------


def test_one_fills(opened: Open) -> None:
    """The lock excludes a second opener until it is released."""
    one, other = opened(), opened()
    assert one.acquire()
    assert one.acquire()
    assert not other.acquire()
    assert (one.owned, other.owned) == (True, False)
    one.release()
    assert not one.owned
    assert other.acquire()
    assert not one.acquire()


def test_releasing_what_is_not_held(opened: Open) -> None:
    """Whoever does not hold the lock cannot take it from the one who does."""
    one, other, third = opened(), opened(), opened()
    assert one.acquire()
    other.release()
    assert not third.acquire()


def test_closing_releases(opened: Open) -> None:
    """A fill that is ended in any way leaves its place to another."""
    one, other = opened(), opened()
    assert one.acquire()
    one.close()
    assert other.acquire()


def test_death_releases(layout: Layout, opened: Open) -> None:
    """A kill -9 of the process that fills is seen, and its bytes are gone on from."""
    follower = opened()
    with child(HOLD, str(layout.root), str(DIGEST)) as process:
        assert process.says() == "holds"
        assert not follower.acquire()
        assert follower.progress() == Progress(100, 6)
        process.kill()
        assert follower.acquire()
    assert follower.named()
    hasher = DIGEST.hasher()
    assert follower.rehash(hasher) == 6
    assert hasher.hexdigest() == Digest.of(b"so far").hex


def test_release_is_seen_by_other_processes(layout: Layout, opened: Open) -> None:
    """A process that lets go, and lives on, lets another one fill."""
    follower = opened()
    with child(HOLD, str(layout.root), str(DIGEST)) as process:
        assert process.says() == "holds"
        process.go_on()
        assert process.says() == "released"
        assert follower.acquire()


# -- how far it is ---------------------------------------------------------------------------------


def test_new_one_knows_nothing(opened: Open) -> None:
    """Before the first record nothing may be read and no size is known."""
    assert opened().progress() == Progress(None, 0, State.FILLING)


@settings(deadline=None)
@given(st.none() | SIZES, SIZES, st.sampled_from(State))
def test_record_comes_back(
    tmp_path_factory: pytest.TempPathFactory, size: int | None, visible: int, state: State
) -> None:
    """What the one who fills recorded last is what everybody else reads."""
    layout = Layout(tmp_path_factory.getbasetemp() / "records")
    layout.partials.mkdir(parents=True, exist_ok=True)
    one, other = Partial.open(layout, DIGEST), Partial.open(layout, DIGEST)
    one.data.truncate(0)
    one.record(Progress(123, 45))
    one.record(Progress(size, visible, state))
    one.data.truncate(max(size or 0, visible))  # as much as is said; sparse, it takes no room
    assert other.progress() == Progress(size, visible, state)
    one.discard(State.FILLING)
    one.close()
    other.close()


def test_torn_record_says_nothing(layout: Layout, opened: Open) -> None:
    """A progress file that a crash cut short is as good as none."""
    partial = opened()
    partial.record(Progress(10, 5))
    os.truncate(layout.partials / f"sha256-{DIGEST.hex}.progress", 20)
    assert partial.progress() == Progress()


# -- bytes -----------------------------------------------------------------------------------------


def test_resume_after_close(opened: Open) -> None:
    """What was written is hashed again after a restart, and the rest is put behind it."""
    first = opened()
    write(first, CONTENT[:999])
    first.close()
    second = opened()
    assert second.acquire()
    hasher = DIGEST.hasher()
    length = second.rehash(hasher)
    assert length == 999
    assert second.append(length, [CONTENT[999:2000], CONTENT[2000:]], hasher) == len(CONTENT)
    assert hasher.hexdigest() == DIGEST.hex
    assert second.data.read() == CONTENT


@pytest.mark.parametrize(
    "chunks",
    [
        [],
        [b""],
        [b"", b"a", b"", b"b", b""],
        [b"x" * 100] * 3,
        [b"y"] * 2000,  # more than one call of the system takes
    ],
)
def test_append_writes_every_chunk(opened: Open, chunks: list[bytes]) -> None:
    """Chunks of any number and size follow one another from the offset on, hashed as written."""
    partial, hasher = opened(), DIGEST.hasher()
    whole = b"".join(chunks)
    partial.append(0, [b"begin"], DIGEST.hasher())
    assert partial.append(5, chunks, hasher) == 5 + len(whole)
    assert partial.data.read() == b"begin" + whole
    assert hasher.hexdigest() == Digest.of(whole).hex


@pytest.mark.parametrize("most", [1, 3, 7, 1000])
def test_short_writes(opened: Open, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """A system that takes a few bytes at a time gets all of them in the end, each once."""
    real = os.pwritev

    def few(descriptor: int, buffers: Sequence[Any], offset: int) -> int:
        return real(descriptor, [b"".join(buffers)[:most]], offset)

    monkeypatch.setattr(os, "pwritev", few)
    chunks = [b"first", b"", b"second chunk", b"3"] * 20
    partial, hasher = opened(), DIGEST.hasher()
    assert partial.append(2, chunks, hasher) == 2 + len(b"".join(chunks))
    monkeypatch.undo()
    assert partial.data.read() == b"\0\0" + b"".join(chunks)
    assert hasher.hexdigest() == Digest.of(b"".join(chunks)).hex


def test_disk_that_fills_up_in_the_middle(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some bytes fit, the rest does not: that is an error, and what is there is a right prefix."""
    real, room = os.pwritev, 10

    def nearly_full(descriptor: int, buffers: Sequence[Any], offset: int) -> int:
        left = room - offset
        if left <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, [b"".join(buffers)[:left]], offset)

    monkeypatch.setattr(os, "pwritev", nearly_full)
    partial = opened()
    with pytest.raises(OSError, match="No space") as raised:
        partial.append(0, [CONTENT[:8], CONTENT[8:16]], DIGEST.hasher())
    assert out_of_room(raised.value)
    assert partial.data.read() == CONTENT[:10]


def test_truncate_begins_anew(opened: Open) -> None:
    """What the upstream does not have is thrown away, for everybody who has it open."""
    one, other = opened(), opened()
    write(one, CONTENT)
    one.record(Progress(len(CONTENT), 0))
    one.truncate()
    assert other.progress() == Progress()
    assert other.data.read() == b""
    assert one.named()


def test_hash_file_stops_at_the_end_given(opened: Open) -> None:
    """A prefix is hashed, and as many bytes as there are where fewer are."""
    partial = opened()
    write(partial, CONTENT)
    descriptor = partial.data.fileno()
    for end in (0, 1, 500, len(CONTENT), len(CONTENT) + 1):
        hasher = DIGEST.hasher()
        assert hash_file(descriptor, hasher, end=end) == min(end, len(CONTENT))
        assert hasher.hexdigest() == Digest.of(CONTENT[:end]).hex


def test_hash_file_tells_how_far_it_is(opened: Open) -> None:
    """Each block's end is told once it is hashed; the last one is the length."""
    size = (2 << 20) + 5
    partial, told = opened(), list[int]()
    write(partial, b"z" * size)
    hash_file(partial.data.fileno(), DIGEST.hasher(), progressed=told.append)
    assert told == sorted(set(told))
    assert told[-1] == size
    assert len(told) > 1


# -- names -----------------------------------------------------------------------------------------


def test_named_while_it_is_the_one_that_others_open(opened: Open) -> None:
    """An open partial has its names until they are taken away."""
    assert opened().named()


@pytest.mark.parametrize("suffix", ["", ".progress"])
def test_not_named_after_unlink(layout: Layout, opened: Open, suffix: str) -> None:
    """Either file's name gone, it is nobody's any more."""
    partial = opened()
    (layout.partials / f"sha256-{DIGEST.hex}{suffix}").unlink()
    assert not partial.named()


@pytest.mark.parametrize("suffix", ["", ".progress"])
def test_not_named_after_it_was_replaced(layout: Layout, opened: Open, suffix: str) -> None:
    """A new file under the name is another fill's."""
    partial = opened()
    path = layout.partials / f"sha256-{DIGEST.hex}{suffix}"
    path.unlink()
    path.touch()
    assert not partial.named()


def test_publish_gives_the_content_its_name(layout: Layout, opened: Open) -> None:
    """The content is under its digest, and the partial's names are free."""
    partial, follower = opened(), opened()
    write(partial, CONTENT)
    partial.record(Progress(len(CONTENT), len(CONTENT), State.DONE))
    partial.publish(layout.blob(DIGEST))
    assert layout.blob(DIGEST).read_bytes() == CONTENT
    assert files(layout) == set()
    assert not partial.named()
    # Whoever follows has all of it still open, and hears that it is done.
    assert follower.progress() == Progress(len(CONTENT), len(CONTENT), State.DONE)
    assert follower.data.read() == CONTENT


def test_publish_that_fails_loses_nothing(
    layout: Layout, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that refuses the name leaves the partial as it was, and nothing under the digest."""
    partial = opened()
    write(partial, CONTENT)

    def refuse(self: Path, target: Path) -> Path:
        raise OSError(errno.EIO, "Input/output error", str(self), None, str(target))

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OSError, match="Input/output"):
        partial.publish(layout.blob(DIGEST))
    assert not layout.blob(DIGEST).exists()
    assert partial.named()
    assert partial.data.read() == CONTENT


@pytest.mark.parametrize("state", [State.DONE, State.BROKEN, State.UNSTORED])
def test_discard_leaves_word(layout: Layout, opened: Open, state: State) -> None:
    """Who follows learns what became of it; who comes later begins anew and learns nothing."""
    partial, follower = opened(), opened()
    write(partial, CONTENT)
    partial.record(Progress(len(CONTENT), 100))
    partial.discard(state)
    assert follower.progress().state is state
    assert not follower.named()
    assert files(layout) == set()
    later = opened()
    assert later.progress() == Progress()
    assert later.data.read() == b""
    assert later.acquire()


def test_discarding_what_is_already_gone(layout: Layout, opened: Open) -> None:
    """Files that somebody took away do not stop the word being left."""
    partial, follower = opened(), opened()
    for path in layout.partials.iterdir():
        path.unlink()
    partial.discard(State.BROKEN)
    assert follower.progress().state is State.BROKEN


def test_opening_while_a_fill_ends(
    layout: Layout, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the opening of the two files a fill ends: the pair that is opened is a whole one."""
    filling, real = opened(), os.open
    write(filling, CONTENT)
    ended: list[str] = []

    def open_slowly(path: Any, *arguments: Any, **keywords: Any) -> int:
        descriptor = real(path, *arguments, **keywords)
        if str(path).endswith(".progress") and not ended:
            ended.append("once")
            filling.publish(layout.blob(DIGEST))
        return descriptor

    monkeypatch.setattr(os, "open", open_slowly)
    late = opened()
    assert ended
    assert late.named()
    assert late.data.read() == b""
    assert files(layout) == {f"sha256-{DIGEST.hex}", f"sha256-{DIGEST.hex}.progress"}


def test_open_that_fails_keeps_nothing_open(layout: Layout) -> None:
    """No descriptor is lost where one of the two files cannot be opened."""
    layout.partial(DIGEST).mkdir()
    before = descriptors()
    with pytest.raises(IsADirectoryError):
        Partial.open(layout, DIGEST)
    assert descriptors() == before


def test_close_keeps_nothing_open(layout: Layout) -> None:
    """No descriptor outlives a partial."""
    before = descriptors()
    partial = Partial.open(layout, DIGEST)
    assert descriptors() != before
    partial.close()
    assert descriptors() == before


def test_record_that_outlived_its_content(layout: Layout, opened: Open) -> None:
    """A kill between publishing's rename and unlink leaves a record: it is not the next fill's."""
    partial = opened()
    write(partial, CONTENT)
    partial.record(Progress(len(CONTENT), len(CONTENT), State.DONE))
    partial.close()
    layout.partial(DIGEST).unlink()
    filling, follower = opened(), opened()
    assert filling.acquire()
    assert follower.data.read() == b""
    assert follower.progress().state is State.FILLING
    assert follower.progress().visible == 0
