# torchfault: every target makes what it needs, in a fresh clone, from Python 3.11 or later and make alone.

PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13 python3.14; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$p" && break; done)
VENV ?= .venv
WORKERS ?= 2
BIN := $(VENV)/bin
# A file is one worker's, so that no two make what its tests share.
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile
# Most of what is installed is never imported: Python compiles what is.
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check --no-compile
PIP_INSTALL := $(PIP) -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test test-all lint format docs clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' Makefile

demo: $(VENV)/.core ## train a small CNN on digits, strike it, write a report (under a minute after set-up)
	@$(BIN)/torchfault demo

test: lint $(VENV)/.ecosystem ## lint, then every test that is not slow
	$(PYTEST) -m "not slow"

test-all: lint $(VENV)/.ecosystem ## lint, then all tests
	$(PYTEST)

lint: $(VENV)/.dev ## ruff, mypy and codespell
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell

format: $(VENV)/.dev ## let ruff format and mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.dev ## build the documentation site into build/docs; a warning is an error
	@rm -rf docs/generated
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs build/docs
	@echo "open build/docs/index.html"

clean: ## remove the virtual environment, caches and builds
	rm -rf $(VENV) build dist docs/generated .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps are newer than pyproject.toml and constraints.txt exactly when the environment fits them.
# `venv` runs again with a stale stamp, which also mends an environment that was left half made.
define make_venv
@test -n "$(PYTHON)" || { echo "make: no Python 3.11 or later found; name one: make PYTHON=/path/to/python3.11" >&2; exit 2; }
@$(PYTHON) -m venv $(VENV)
@echo "installing into $(VENV): a minute or two, once"
endef

$(VENV)/.core: pyproject.toml constraints.txt
	$(make_venv)
	@$(PIP_INSTALL) -e .
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt
	$(make_venv)
	@$(PIP_INSTALL) -e ".[dev]"
	@touch $(VENV)/.core $@

# Without their dependencies: torchvision's would replace a CPU torch by gigabytes of CUDA.
$(VENV)/.ecosystem: ecosystem.txt $(VENV)/.dev
	@$(PIP) --no-deps --upgrade --target $(VENV)/ecosystem -r ecosystem.txt
	@touch $@
