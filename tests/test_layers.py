"""The layer contracts of pyproject.toml hold, and would be seen to be broken."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.fakes.cache import ROOT

LINT = (
    "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
)


def lint(directory: Path) -> subprocess.CompletedProcess[str]:
    """Check the contracts that stand in ``directory`` on this package."""
    return subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); {LINT}"],
        cwd=directory,
        capture_output=True,
        text=True,
        check=False,
    )


def test_contracts_are_kept() -> None:
    """Imports go one way, oci is pure, the cache knows no HTTP library, the config few know."""
    told = lint(ROOT)
    assert told.returncode == 0, told.stdout + told.stderr
    assert "0 broken" in told.stdout


def test_broken_contract_is_seen(tmp_path: Path) -> None:
    """The same check fails where the layers stand the other way round."""
    (tmp_path / "pyproject.toml").write_text(
        '[tool.importlinter]\nroot_package = "pullthrough"\n'
        '[[tool.importlinter.contracts]]\nname = "upside down"\ntype = "layers"\n'
        'layers = ["pullthrough.oci", "pullthrough.server"]\n'
    )
    told = lint(tmp_path)
    assert told.returncode == 1, told.stdout + told.stderr
    assert "1 broken" in told.stdout
