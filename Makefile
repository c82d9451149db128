# bootflow: everything is done through these targets; `make` alone lists them.

SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTHON ?= $(firstword $(foreach p,python3.11 python3.12 python3.13 python3.14 python3,$(shell command -v $(p))))
HOST ?= 127.0.0.1
PORT ?= 8000
PYTEST := $(BIN)/python -m pytest

# What the tests use beside Python: command, and the Debian package that has it.
TOOLS := powerpc64-linux-gnu-as=binutils-powerpc64-linux-gnu \
         powerpc64le-linux-gnu-as=binutils-powerpc64le-linux-gnu \
         dtc=device-tree-compiler qemu-system-ppc64=qemu-system-ppc chromium=chromium lynx=lynx

.DEFAULT_GOAL := help
.PHONY: help setup run test test-qemu test-symbols check fmt bench golden lock tools debian-pair clean

help: ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## create .venv and install what requirements.lock names

$(STAMP): requirements.lock pyproject.toml
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	    || { echo 'bootflow needs Python 3.11 or later; name one: make PYTHON=/path/to/python3' >&2; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip' 2>/dev/null || { [ "$$(id -u)" = 0 ] && apt-get -qq install -y python3-venv; } \
	    || { echo 'this Python cannot make environments; on Debian: apt install python3-venv' >&2; exit 1; }
	test -x $(BIN)/pip || "$(PYTHON)" -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --no-index --editable .
	@touch $@

run: $(STAMP) ## start the web page and its worker, with runs of the sample pair to look at
	$(BIN)/bootflow serve --samples --host $(HOST) --port $(PORT)

test: $(STAMP) tools debian-pair ## run every test: the real Debian pair and the browser included
	$(PYTEST) -m "not symbols"

test-symbols: $(STAMP) ## compare source lines with addr2line on Debian's debug kernel (fetches 700 MB)
	$(BIN)/bootflow fetch-debian --debug-symbols
	$(PYTEST) -m symbols

test-qemu: $(STAMP) tools debian-pair ## compare with a running QEMU, instruction by instruction
	$(PYTEST) -m qemu

check: $(STAMP) ## ruff, mypy --strict and the fast tests; offline
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(PYTEST)

fmt: $(STAMP) ## format the source
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP) debian-pair ## measure; prints tables, judges nothing
	@for bench in tests/bench/bench_*.py; do \
	    echo "== $$bench"; PYTHONPATH=. $(BIN)/python "$$bench" || exit 1; \
	done

golden: $(STAMP) ## write the golden files anew; review them with git diff
	$(PYTEST) --update-golden -m golden

lock: $(STAMP) ## resolve requirements.lock anew from pyproject.toml
	$(BIN)/python .ci/lock > requirements.lock.new
	mv requirements.lock.new requirements.lock

# Where it may (root, apt), it installs what is missing; elsewhere it says what is missing and the
# tests that need it are skipped with their reason.
tools:
	@missing=""; for pair in $(TOOLS); do \
	    command -v "$${pair%%=*}" >/dev/null || missing="$$missing $${pair#*=}"; \
	done; \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo "installing:$$missing"; \
	    export DEBIAN_FRONTEND=noninteractive; \
	    install="apt-get -qq install -y --no-install-recommends"; \
	    $$install $$missing >/dev/null 2>&1 || { apt-get -qq update; for package in $$missing; do \
	        $$install $$package >/dev/null || echo "could not install $$package" >&2; done; }; \
	else \
	    echo "missing, their tests will be skipped:$$missing" >&2; \
	fi

# Idempotent; without a network the tests of the real pair are skipped with their reason.
debian-pair: $(STAMP)
	@$(BIN)/bootflow fetch-debian || echo "the Debian pair is not there: its tests will be skipped" >&2

clean: ## remove what the targets above made, but not the cache of the Debian pair
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis tests/artefacts
