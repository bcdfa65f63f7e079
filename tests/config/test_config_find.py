"""Which file is the configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

from pullthrough.config import ConfigError, find, search

VARIABLE = "REGISTRY_CONFIGURATION_PATH"


@pytest.fixture(autouse=True)
def _defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(search, "DEFAULTS", (Path("config.yml"), tmp_path / "etc.yml"))


def test_the_argument_comes_before_all_others(tmp_path: Path) -> None:
    """CONFIG is taken even where the variable and the defaults name files that exist."""
    for name in ("argument.yml", "variable.yml", "config.yml", "etc.yml"):
        (tmp_path / name).touch()
    environ = {VARIABLE: str(tmp_path / "variable.yml")}
    assert find(tmp_path / "argument.yml", environ) == tmp_path / "argument.yml"
    assert find(None, environ) == tmp_path / "variable.yml"
    assert find(None, {}) == Path("config.yml")
    assert find(None, {VARIABLE: ""}) == Path("config.yml")
    (tmp_path / "config.yml").unlink()
    assert find(None, {}) == tmp_path / "etc.yml"


@pytest.mark.parametrize(
    ("argument", "environ", "named"),
    [
        (Path("nowhere.yml"), {}, "nowhere.yml"),
        (None, {VARIABLE: "nowhere.yml"}, VARIABLE),
        (Path("\0"), {}, "no configuration"),
        (Path("x" * 5000), {}, "no configuration"),
    ],
)
def test_what_is_named_and_missing_is_not_replaced_by_a_default(
    tmp_path: Path, argument: Path | None, environ: dict[str, str], named: str
) -> None:
    """A mistyped path is an error that says where it came from, not another file's start."""
    (tmp_path / "config.yml").touch()
    with pytest.raises(ConfigError, match=named):
        find(argument, environ)


def test_without_any_file_all_places_are_named(tmp_path: Path) -> None:
    """The error says everywhere that was looked."""
    with pytest.raises(ConfigError) as raised:
        find(None, {})
    assert "config.yml" in str(raised.value)
    assert str(tmp_path / "etc.yml") in str(raised.value)


def test_the_defaults_are_the_documented_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the working directory's file there is /etc/pullthrough's."""
    monkeypatch.undo()
    assert (Path("config.yml"), Path("/etc/pullthrough/config.yml")) == search.DEFAULTS
