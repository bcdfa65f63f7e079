"""Which file is the configuration."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from pullthrough.config.environment import CONFIGURATION_PATH

DEFAULTS: Final = (Path("config.yml"), Path("/etc/pullthrough/config.yml"))


class ConfigError(Exception):
    """There is no configuration, or what it names cannot be read any more. Holds no secret."""


def find(argument: Path | None, environ: Mapping[str, str]) -> Path:
    """Return the file that ``argument``, else REGISTRY_CONFIGURATION_PATH, names, else a default.

    Raises :class:`ConfigError` when there is none: what is named is not replaced by a default.
    """
    variable = environ.get(CONFIGURATION_PATH)
    if argument is not None:
        candidates = {argument: str(argument)}
    elif variable:
        candidates = {Path(variable): f"{variable} (from {CONFIGURATION_PATH})"}
    else:
        candidates = {path: str(path) for path in DEFAULTS}
    for candidate in candidates:
        if _exists(candidate):
            return candidate
    raise ConfigError(f"no configuration at {' or '.join(candidates.values())}")


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # may not be looked at, too long, or with a NUL
        return False
