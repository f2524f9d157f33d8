# Everything on a fresh machine with Python >= 3.11, make and git:
#
#   make demo              stabilize a shaky clip (CLIP=path; without one, a street scene is rendered)
#   make test              the whole CPU suite
#   make lint types        what CI checks beside it
#
# PYTHON=python3.12 chooses the interpreter, PIP_FLAGS=... is passed to pip.

PYTHON ?= python3
PIP_FLAGS ?=
CLIP ?=
DEMO_DIR ?= demo_out
TEST_FLAGS ?=

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SOURCES := vs3r engine kernels benchmarks tests

.PHONY: help install demo test lint types format clean

help:
	@sed -n '1,/^$$/s/^# \{0,1\}//p' Makefile

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo 'expected Python 3.11 or newer as "$(PYTHON)"; install it or name one: make PYTHON=python3.12 ...' >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo 'this Python cannot make virtual environments; on Debian and Ubuntu: apt-get install python3-venv' >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(PIP_FLAGS) -c constraints.txt 'setuptools>=77'
	$(BIN)/python -m pip install --quiet $(PIP_FLAGS) -c constraints.txt --no-build-isolation -e '.[dev]'
	@touch $@

demo: $(STAMP)
	@mkdir -p $(DEMO_DIR)
	@$(BIN)/python -m benchmarks.demo --out $(DEMO_DIR) $(if $(CLIP),--clip '$(CLIP)')

test: $(STAMP)
	$(BIN)/python -m pytest $(TEST_FLAGS)

lint: $(STAMP)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)

types: $(STAMP)
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache $(DEMO_DIR)
