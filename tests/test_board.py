"""The keeper's word: numbers that every process sees, and what is told of them."""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import Any

import pytest

from pullthrough.app import _keeping
from pullthrough.board import Board, Fact
from pullthrough.config import S3, Cache, Config, Local, Proxy, Storage


def config(*, bucket: bool) -> Config:
    proxy = Proxy(remoteurl="http://127.0.0.1:9")
    if not bucket:
        return Config(proxy=proxy)
    return Config(
        proxy=proxy,
        storage=Storage(s3=S3(bucket="b", regionendpoint="http://127.0.0.1:9")),
        cache=Cache(local=Local(rootdirectory=Path("/l"))),
    )


@pytest.fixture
def board() -> Board:
    """Make one as the supervisor does, in a part of a shared page."""
    return Board(memoryview(mmap.mmap(-1, mmap.PAGESIZE))[512:1024])


def test_other_processes_see_it(board: Board) -> None:
    """What a process that was forked later tells is seen by the one that forked it."""
    assert not any(board[fact] for fact in Fact)
    pid = os.fork()
    if not pid:
        board.tell(used=2.0**40, pending=7)
        os._exit(0)
    os.waitpid(pid, 0)
    told = {fact: board[fact] for fact in Fact if board[fact]}
    assert told == {Fact.KNOWN: 1, Fact.USED: 2.0**40, Fact.PENDING: 7}


def test_what_is_not_told_again_stays(board: Board) -> None:
    """Each who tells something tells only what he knows."""
    board.tell(used=1, pinned=5)
    board.tell(used=2, mirror_failing=1)
    assert (board[Fact.USED], board[Fact.PINNED], board[Fact.MIRROR_FAILING]) == (2, 5, 1)


@pytest.mark.parametrize(
    ("bucket", "facts", "details"),
    [
        (False, {}, {}),
        (True, {}, {}),
        (False, {"used": 5}, {"stored_bytes": 5}),
        (False, {"used": 5, "quota": 9, "pinned": 9},
         {"stored_bytes": 5, "quota_bytes": 9, "pinned": "ok"}),
        (False, {"used": 5, "quota": 9, "pinned": 10},
         {"stored_bytes": 5, "quota_bytes": 9, "pinned": "exceeds the quota"}),
        (True, {"used": 5, "pending": 3},
         {"stored_bytes": 5, "bucket": "ok", "upload_pending_bytes": 3}),
        (True, {"used": 5, "mirror_failing": 1},
         {"stored_bytes": 5, "bucket": "failing", "upload_pending_bytes": 0}),
    ],
)  # fmt: skip
def test_what_readiness_tells(
    board: Board, *, bucket: bool, facts: dict[str, float], details: dict[str, Any]
) -> None:
    """Nothing before the keeper's first word; then what there is, bounds and bucket if any."""
    tell = _keeping(config(bucket=bucket), board)
    if facts:
        board.tell(**facts)
    assert tell() == details
