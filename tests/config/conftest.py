"""A configuration file that a test writes and loads."""

from __future__ import annotations

from pathlib import Path

import pytest

from pullthrough.config import Config, Loaded, load
from tests.config.examples import Accept, Load, Reject


@pytest.fixture(name="load_text")
def _load_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Load a text as ./config.yml, with the environment given."""
    monkeypatch.chdir(tmp_path)

    def load_text(text: str | bytes, environ: dict[str, str] | None = None) -> Loaded:
        content = text if isinstance(text, bytes) else text.encode()
        (tmp_path / "config.yml").write_bytes(content)
        return load(Path("config.yml"), environ or {})

    return load_text


@pytest.fixture
def accept(load_text: Load) -> Accept:
    """Load a text that has no problem."""

    def accept(text: str, environ: dict[str, str] | None = None) -> Config:
        loaded = load_text(text, environ)
        assert loaded.problems == ()
        assert loaded.config is not None
        return loaded.config

    return accept


@pytest.fixture
def reject(load_text: Load) -> Reject:
    """Load a text that has problems, and return them as they are shown."""

    def reject(text: str | bytes, environ: dict[str, str] | None = None) -> list[str]:
        loaded = load_text(text, environ)
        assert loaded.config is None
        assert loaded.problems
        return [str(problem) for problem in loaded.problems]

    return reject
