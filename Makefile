# What a person types here; `make` alone lists it. Everything runs in .venv, which the first command makes.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.PHONY: help demo test slow lint sim sim-data chaos cluster docs bench clean

# Somebody else's environment must not decide what runs here.
unexport PYTHONPATH PYTHONHOME PYTHONSTARTUP PYTHONOPTIMIZE VIRTUAL_ENV PIP_USER PIP_TARGET PIP_PREFIX
unexport OBJMETA_HOME OBJMETA_ENDPOINTS OBJMETA_CONFIG
export PYTHONNOUSERSITE := 1

OLD_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON := $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	if $$python -c '$(OLD_ENOUGH)' 2>/dev/null; then echo $$python; break; fi; done)
BIN := .venv/bin
READY := .venv/.ready
SEEDS ?= 100
NODES ?= 3
CHAOS_SECONDS ?= 60

help:
	@echo 'make demo [SRC=DIR]     the main job on the embedded store: files, pandas, versions, SQL'
	@echo 'make test               lint, types, import contracts and all tests but the slow ones'
	@echo 'make slow               the slow tests: thousands of simulated runs, files of 2 GiB, real faults'
	@echo 'make sim SEED=N         replay one simulated run;  make sim SEEDS=N  run many (now $(SEEDS))'
	@echo 'make sim-data SEED=N    the same for data: blob nodes, placement and collection'
	@echo 'make chaos [SEED=N]     real processes, real faults, a checked history; also CHAOS_SECONDS, NODES, FAULTS'
	@echo 'make cluster [NODES=N]  start a local cluster; Ctrl-C stops it'
	@echo 'make docs               write docs/cli.md from the commands'
	@echo 'make bench              measure puts (beside etcd), listings, large files'
	@echo 'make clean              remove .venv and everything that was generated'

$(READY): pyproject.toml
	@test -n '$(PYTHON)' && $(PYTHON) -c '$(OLD_ENOUGH)' || \
		{ echo 'Python 3.11 or newer is needed; say where it is: make PYTHON=/path/to/python3.11' >&2; exit 1; }
	@$(BIN)/python -c '$(OLD_ENOUGH)' 2>/dev/null || $(PYTHON) -m venv --clear .venv || \
		{ rm -rf .venv; echo 'Python could not make .venv; on Debian: apt-get install python3-venv' >&2; exit 1; }
	@echo 'Setting up .venv ...'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable . --group dev
	@touch $@

demo: $(READY)
	@$(BIN)/python examples/demo.py $(if $(SRC),'$(SRC)')

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint
	$(BIN)/pytest -n 2 -m 'not slow'

slow: $(READY)
	$(BIN)/pytest -m slow

sim: $(READY)
	$(BIN)/python -m objmeta.testing.sim $(if $(SEED),--seed $(SEED),--seeds $(SEEDS))

sim-data: $(READY)
	$(BIN)/python -m gateway.testing.sim $(if $(SEED),--seed $(SEED),--seeds $(SEEDS))

chaos: $(READY)
	$(BIN)/python -m tests.chaos --seconds $(CHAOS_SECONDS) --nodes $(NODES) \
		$(if $(SEED),--seed $(SEED)) $(if $(FAULTS),--faults $(FAULTS))

cluster: $(READY)
	$(BIN)/gateway dev --nodes $(NODES)

docs: $(READY)
	$(BIN)/python -m gateway.cli.reference > docs/cli.md

bench: $(READY)
	$(BIN)/python -m bench

clean:
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
