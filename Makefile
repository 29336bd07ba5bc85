# Everything a contributor runs, by name. `make` alone lists the targets.

PYTHON ?= python3
VENV_FLAGS ?=
PYTEST_FLAGS ?=

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# A venv that sees the machine's own packages keeps the machine's torch: nothing is pinned, the
# tools are left out, and nothing is fetched that is already there.
BORROW := $(findstring --system-site-packages,$(VENV_FLAGS))
# Two at a time: most tests wait for ranks of their own. (A borrowed Python may not have what runs them so.)
WORKERS := $(if $(BORROW),,-n 2)
INSTALL := $(if $(BORROW),--no-build-isolation -e .,-c constraints-dev.txt -e '.[dev]')

.DEFAULT_GOAL := help
.PHONY: help dev demo test test-all lint format golden docs wheel clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

dev: $(STAMP) ## make .venv with epsc (editable) and every tool
# Bytecode ahead of time: the first command is as quick as the second, also where Python may not write it.
	@$(BIN)/python -m compileall -q epsc/*.py epsc/commands epsc/ir epsc/machine epsc/proof epsc/render grammar passes codegen

# If $(PYTHON) lives in a venv itself, --system-site-packages would look past it: the .pth does not.
# Python 3.11 puts a setuptools into each venv that is too old for pyproject.toml, and hides the borrowed one.
$(STAMP): pyproject.toml constraints-dev.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV_FLAGS) $(VENV)
	$(if $(BORROW),$(BIN)/python -m pip uninstall --quiet --yes setuptools)
	$(if $(BORROW),$(PYTHON) -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
		> $$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/borrowed.pth)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(INSTALL)
	@touch $@

demo: dev ## show what epsc does, on this machine
	$(BIN)/epsc demo

test: dev lint ## everything that must pass before a commit
	$(BIN)/python -m pytest $(WORKERS) $(PYTEST_FLAGS)

test-all: dev lint ## the same, and the tests that take long
	$(BIN)/python -m pytest -m "" $(WORKERS) $(PYTEST_FLAGS)

lint: dev ## ruff, mypy and the folder-import contracts
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: dev ## rewrite the code in the house style
	$(BIN)/ruff check --fix-only
	$(BIN)/ruff format

golden: dev ## rewrite the golden files; then read the diff
	$(BIN)/python -m pytest --update-golden $(PYTEST_FLAGS)

docs: dev ## build the documentation as a site, in minutes: build/site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet

wheel: dev ## build dist/*.whl from a clean tree
	rm -rf build dist
	$(BIN)/python -m build --wheel --no-isolation --outdir dist
	rm -rf build

clean: ## remove what was built; .venv too
	rm -rf build dist .venv *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
