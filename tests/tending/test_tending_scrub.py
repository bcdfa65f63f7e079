"""Content read again, slowly: what is rotten is set aside, and a restart goes on where it was."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from pullthrough.oci.digest import Digest
from pullthrough.store.catalogue import Catalogue
from pullthrough.store.layout import Layout
from pullthrough.store.reconcile import reconcile
from pullthrough.tending import scrub as module
from pullthrough.tending.scrub import scrub
from tests.store.conftest import layout
from tests.tending.kit import lay, of, on_disk

__all__ = ["layout"]

CONTENTS = [bytes([number]) * 3000 for number in range(5)]
RATE = 1 << 30


class Stop(threading.Event):
    """A stop that never takes time, notes each wait, and comes after so many of them."""

    def __init__(self, after: int = 1_000_000) -> None:
        super().__init__()
        self.waits: list[float] = []
        self._after = after

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.waits.append(timeout)
        if len(self.waits) >= self._after:
            self.set()
        return self.is_set()


@pytest.fixture
def catalogue(layout: Layout) -> Iterator[Catalogue]:
    """Open the index."""
    with Catalogue(layout.index) as opened:
        yield opened


@pytest.fixture
def digests(layout: Layout, catalogue: Catalogue) -> list[Digest]:
    """Have content that nobody has verified, in the order in which it is read."""
    made = sorted((lay(layout, content) for content in CONTENTS), key=str)
    reconcile(layout, catalogue)
    return made


def verified(catalogue: Catalogue) -> set[str]:
    return {row.digest for row in catalogue.rows() if row.verified}


def test_sound_content_is_verified(
    layout: Layout, catalogue: Catalogue, digests: list[Digest]
) -> None:
    """What is right stays, is known to be right, and is read again the next time."""
    assert scrub(layout, catalogue, RATE, Stop()) == []
    assert verified(catalogue) == on_disk(layout).keys() == of(digests)
    stop = Stop()
    assert scrub(layout, catalogue, RATE, stop) == []
    assert len(stop.waits) == len(digests)


@pytest.mark.parametrize("how", ["flipped", "short", "long", "empty"])
def test_rotten_content_is_set_aside(
    layout: Layout, catalogue: Catalogue, digests: list[Digest], how: str
) -> None:
    """What is wrong is not served any more, but kept to be looked at; the rest is read too."""
    rotten = digests[1]
    content = layout.blob(rotten).read_bytes()
    wrong = {
        "flipped": content[:-1] + bytes([content[-1] ^ 1]),
        "short": content[:-1],
        "long": content + b"!",
        "empty": b"",
    }[how]
    layout.blob(rotten).write_bytes(wrong)
    catalogue.set_verified(rotten, verified=True)
    assert scrub(layout, catalogue, RATE, Stop()) == [str(rotten)]
    rest = of(digests) - {str(rotten)}
    assert verified(catalogue) == on_disk(layout).keys() == rest
    assert catalogue.row(rotten) is None
    aside = layout.quarantine / f"{rotten.algorithm}-{rotten.hex}"
    assert aside.read_bytes() == wrong


def test_rotten_content_of_which_the_bucket_has_a_copy(
    layout: Layout, catalogue: Catalogue, digests: list[Digest]
) -> None:
    """It is only no longer here."""
    layout.blob(digests[0]).write_bytes(b"wrong")
    catalogue.uploaded(digests[0])
    assert scrub(layout, catalogue, RATE, Stop()) == [str(digests[0])]
    row = catalogue.row(digests[0])
    assert row is not None
    assert (row.here, row.there, row.verified) == (False, True, False)


def test_rate(layout: Layout, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every block is waited for as long as the rate says, less what reading it took."""
    monkeypatch.setattr(module, "_BLOCK", 1000)
    lay(layout, b"x" * 2500)
    reconcile(layout, catalogue)
    stop = Stop()
    scrub(layout, catalogue, 100, stop)
    assert stop.waits == [
        pytest.approx(10, abs=1),
        pytest.approx(10, abs=1),
        pytest.approx(5, abs=1),
    ]
    slow = iter(range(0, 1000, 4))
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: next(slow)))
    stop = Stop()
    scrub(layout, catalogue, 100, stop)
    assert stop.waits == [6, 6, 1]
    stop = Stop()
    scrub(layout, catalogue, 1000, stop)
    assert stop.waits == [0, 0, 0]


def test_goes_on_after_a_restart(
    layout: Layout, catalogue: Catalogue, digests: list[Digest]
) -> None:
    """Stopped in the middle it begins with what it had not finished, and later with the first."""
    assert scrub(layout, catalogue, RATE, Stop(after=3)) == []
    assert verified(catalogue) == of(digests[:2])
    with Catalogue(layout.index) as another:
        stop = Stop()
        scrub(layout, another, RATE, stop)
    assert len(stop.waits) == 3
    assert verified(catalogue) == of(digests)
    stop = Stop()
    scrub(layout, catalogue, RATE, stop)
    assert len(stop.waits) == 5


def test_stop_is_not_rot(layout: Layout, catalogue: Catalogue, digests: list[Digest]) -> None:
    """What was read in part is not called wrong."""
    stop = Stop(after=1)
    assert scrub(layout, catalogue, RATE, stop) == []
    assert on_disk(layout).keys() == of(digests)
    assert verified(catalogue) == set()


def test_what_went_meanwhile(layout: Layout, catalogue: Catalogue, digests: list[Digest]) -> None:
    """Content that is gone is passed over; what came anew in its place is not set aside."""
    layout.blob(digests[0]).unlink()
    wrong = layout.blob(digests[1])
    right = wrong.read_bytes()
    wrong.write_bytes(b"wrong")

    class Meanwhile(Stop):
        def wait(self, timeout: float | None = None) -> bool:
            if not self.waits:  # it is open, and read: then another has it replaced
                wrong.unlink()
                wrong.write_bytes(right)
            return super().wait(timeout)

    assert scrub(layout, catalogue, RATE, Meanwhile()) == []
    assert wrong.read_bytes() == right
    assert not layout.quarantine.exists() or not list(layout.quarantine.iterdir())
