"""The counter that all processes see."""

from __future__ import annotations

from pathlib import Path

import pytest

from pullthrough.store.generation import Generation
from tests.store.kit import child

CODE = """
import sys
from pathlib import Path
from pullthrough.store.generation import Generation
counter = Generation(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
for _ in range(5_000):
    counter.advance()
print(counter.number, flush=True)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "generation"


def test_every_process_sees_it(path: Path) -> None:
    """What one advances the others see at once, those that had it open too."""
    mine, other = Generation(path), Generation(path)
    assert (mine.number, other.number) == (0, 0)
    mine.advance()
    assert (mine.number, other.number) == (1, 1)
    with child(CODE, str(path)) as process:
        assert process.says() == "ready"
        process.go_on()
        assert process.says() == "5001"
        assert mine.number == 5_001
    mine.close()
    other.close()
    later = Generation(path)
    assert later.number == 5_001
    later.close()


def test_none_is_lost(path: Path) -> None:
    """Processes that advance it at the same time are all counted."""
    with child(CODE, str(path)) as one, child(CODE, str(path)) as other:
        for process in (one, other):
            assert process.says() == "ready"
        for process in (one, other):
            process.go_on()
        assert max(int(one.says()), int(other.says())) == 10_000
    counter = Generation(path)
    assert counter.number == 10_000
    counter.close()


@pytest.mark.parametrize("left", [b"", b"\x01\x02"])
def test_file_that_was_cut(path: Path, left: bytes) -> None:
    """What a full disk left of it is no number, and is begun anew."""
    path.write_bytes(left)
    counter = Generation(path)
    counter.advance()
    assert counter.number == 1
    counter.close()
