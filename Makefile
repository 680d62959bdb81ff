# Everything runs in .venv, made here; nothing outside the repository is touched.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
WORKERS ?= 2
RUST := Cargo.toml Cargo.lock $(shell find data_rs -name '*.rs' -o -name 'Cargo.toml' 2>/dev/null)

# The models of the demo and the tests are too small to gain from a second thread.
export OMP_NUM_THREADS ?= 1
export PATH := $(CURDIR)/$(BIN):$(PATH)

.DEFAULT_GOAL := help
.PHONY: help setup setup-dev demo check pytest test test-all bench-train bench-policy bench-data fuzz wheel clean

help: ## show this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

$(VENV)/.made:
	@command -v cargo >/dev/null || { echo "cargo is missing: install Rust (rustup.rs), then run make again"; exit 1; }
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "Python 3.11 or later is needed; set PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --constraint constraints.txt 'pip>=25.1' 'maturin>=1.9.4,<2'
	@touch $@

$(VENV)/.runtime: $(VENV)/.made pyproject.toml constraints.txt $(RUST)
	@echo "installing (a few minutes the first time)"
	$(PIP) install --quiet --no-build-isolation --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.development: $(VENV)/.runtime
	$(PIP) install --quiet --constraint constraints.txt --group dev
	@touch $@

setup: $(VENV)/.runtime ## make .venv, build the Rust extension, install pinned dependencies

setup-dev: $(VENV)/.development ## the same with the development tools

demo: setup ## train a GRM on the embedded world
	$(BIN)/grmlight fit --config configs/grm.yaml

check: setup-dev ## formatting, linters, types, Rust tests
	cargo fmt --all --check
	cargo clippy --locked --all-targets --all-features --quiet -- -D warnings
	cargo test --locked --quiet
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports
	$(BIN)/python -m mypy.stubtest grmlight._data_rs --mypy-config-file pyproject.toml

pytest: setup-dev ## the Python tests that are not slow
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

test: check pytest ## every check and the tests that are not slow

test-all: check ## the slow tests too
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m 'slow or not slow'

bench-train: setup-dev ## the training engine against TRL and padding: about an hour
	$(BIN)/python -m benchmarks.train

bench-policy: setup-dev ## policy optimization against its peers
	$(BIN)/python -m benchmarks.policy

bench-data: setup-dev ## the data engine against TRL and Python compositions: about half an hour
	$(BIN)/python -m benchmarks.data

fuzz: ## 15 seconds of each fuzz target
	bash fuzz/run 15

wheel: setup-dev ## build sdist and wheel, install the wheel into an empty environment, train 5 steps with it
	bash scripts/check_wheel.sh "$(PYTHON)" $(BIN)/maturin

clean: ## remove what was built
	rm -rf $(VENV) target dist grmlight/*.so
