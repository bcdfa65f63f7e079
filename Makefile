# On a fresh machine `make demo` and `make test` do all the set-up themselves; it stays in .venv.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: test lint demo bench venv packages clean

test: packages venv lint
	$(BIN)/pytest -n auto --maxprocesses 4 --dist worksteal

lint: venv
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

demo: venv
	$(BIN)/pullthrough demo

# Side by side with docker-registry and nginx; takes minutes, and wants the machine for itself.
bench: packages venv
	$(BIN)/python -m bench

venv: .venv/installed

# Installed again when pyproject.toml changes.
.venv/installed: pyproject.toml
	@# Debian has the half of venv that brings pip in a package of its own.
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { $(call apt_install,python3-venv); }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

# Debian's packages for the tests with real clients, as far as they are missing and may be installed.
# Elsewhere those tests say themselves what they miss, so only CI needs this to succeed.
packages:
	@missing=$$(sed 's/ *#.*//' tests/packages.txt | while read -r name; do \
	    [ -z "$$name" ] || dpkg-query -W -f '$${Status}' "$$name" 2>/dev/null | grep -q ' installed$$' \
	    || printf ' %s' "$$name"; done); \
	if [ -n "$$missing" ]; then { $(call apt_install,$$missing); } || [ -z "$$CI" ]; fi

# A shell command: install the packages $(1), or say that somebody should.
define apt_install
if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
    export DEBIAN_FRONTEND=noninteractive; \
    apt-get update -qq && apt-get install -qq --no-install-recommends $(1); \
else echo "not installed (needs root, and Debian):" $(1); fi
endef

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
