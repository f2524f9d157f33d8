# Everything on a fresh machine with Python >= 3.11, make and git:
#
#   make demo              stabilize a shaky clip (CLIP=path; without one, a street scene is rendered)
#   make test              the whole CPU suite
#   make lint types        what CI checks beside it
#   make plugin            the plugins for editors, in build/ (Debian; installs what they need when run as root)
#   make plugin-test       builds and tests them, in melt and in an OpenFX host of the tests
#
# PYTHON=python3.12 chooses the interpreter, PIP_FLAGS=... is passed to pip.

PYTHON ?= python3
PIP_FLAGS ?=
CLIP ?=
DEMO_DIR ?= demo_out
TEST_FLAGS ?=
# By files, whose fixtures are made once; no more workers than have been seen to fit into memory.
TEST_WORKERS := -n auto --maxprocesses 4 --dist loadfile

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
STREET := $(DEMO_DIR)/street.mp4
SHAKY := $(or $(CLIP),$(STREET))
SOURCES := vs3r engine export kernels benchmarks tests

.PHONY: help install demo test lint types plugin plugin-packages plugin-test format clean

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

# The shaky clip of the demo, rendered once.
$(STREET): | $(STAMP)
	@mkdir -p $(@D)
	@echo 'no CLIP given: rendering a shaky walk through a street (a minute or two)'
	@$(BIN)/python -m benchmarks.demo_scene $(@D)/unfinished.mp4
	@mv $(@D)/unfinished.mp4 $@

demo: $(STAMP) $(if $(CLIP),,$(STREET))
	@mkdir -p '$(DEMO_DIR)'
	@echo 'stabilizing $(SHAKY)'
	@$(BIN)/vs3r stabilize '$(SHAKY)' '$(DEMO_DIR)/steady.mp4' --overwrite
	@$(BIN)/vs3r compare '$(SHAKY)' '$(DEMO_DIR)/steady.mp4' --output '$(DEMO_DIR)/side_by_side.mp4' --overwrite
	@$(BIN)/vs3r evaluate '$(SHAKY)' '$(DEMO_DIR)/steady.mp4' --quick --plot '$(DEMO_DIR)/path.png' --overwrite
	@echo
	@echo 'shaky         $(SHAKY)'
	@echo 'steady        $(DEMO_DIR)/steady.mp4'
	@echo 'side by side  $(DEMO_DIR)/side_by_side.mp4'
	@echo 'camera path   $(DEMO_DIR)/path.png'

test: $(STAMP)
	$(BIN)/python -m pytest $(TEST_WORKERS) $(TEST_FLAGS)

lint: $(STAMP)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)

types: $(STAMP)
	$(BIN)/mypy

PLUGIN_PACKAGES := cmake g++ pkg-config libgrpc++-dev libprotobuf-dev protobuf-compiler-grpc libmlt-dev melt

plugin-packages:
	@missing=; for name in $(PLUGIN_PACKAGES); do \
	  dpkg-query -W -f '$${Status}\n' "$$name" 2>/dev/null | grep -q 'ok installed' || missing="$$missing $$name"; done; \
	if [ -n "$$missing" ]; then \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends $$missing; \
	  else echo "the plugins need packages; on Debian: apt-get install$$missing" >&2; exit 1; fi; fi

plugin: plugin-packages
	cmake -S . -B build
	cmake --build build --parallel 2

plugin-test: plugin $(STAMP)
	ctest --test-dir build --output-on-failure
	VS3R_REQUIRE_PLUGIN=1 $(BIN)/python -m pytest tests/bridge $(TEST_FLAGS)

format: $(STAMP)
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache $(DEMO_DIR)
