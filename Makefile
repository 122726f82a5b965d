# Everything is reached from here, on a machine that has Python 3.11 or later and nothing else:
#   make train        train a small model through a pipeline
#   make test         run the tests
#   make pictures     draw the pictures of the docs anew
# The environment is made in .venv on first use, and again only when pyproject.toml or constraints.txt
# has changed. Arguments: make train ARGS="--help", make test ARGS="tests/test_ir.py -k placement".

VENV ?= .venv
PYTHON ?=
ARGS ?=
# Two workers: the tests that start processes of their own keep further cores busy.
WORKERS ?= 2

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check install --no-compile --constraint constraints.txt
# What pip leaves out, on all cores; files that no interpreter of this version reads are passed over.
COMPILE := $(BIN)/python -m compileall -qq -j 0 $(VENV)/lib > /dev/null 2>&1 || true
READY_TO_RUN := $(VENV)/.ready-to-run
READY_TO_CHECK := $(VENV)/.ready-to-check

.DEFAULT_GOAL := help
.PHONY: help train test docs pictures setup lint types imports format clean FORCE
.NOTPARALLEL:

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*## /  make \1 \t/p' Makefile | expand -t 20

train: $(READY_TO_RUN)  ## train on this machine; options in ARGS
	@$(BIN)/penstock train $(ARGS)

test: $(READY_TO_RUN)  ## run the tests; pytest's options in ARGS
	@$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

docs: $(READY_TO_RUN)  ## run every snippet of README.md and docs/
	@$(BIN)/python -m pytest -n $(WORKERS) tests/test_docs.py $(ARGS)

pictures: $(READY_TO_RUN)  ## draw the pictures of README.md and docs/ anew; names in ARGS
	@$(BIN)/python docs/draw.py $(ARGS)

setup: $(READY_TO_CHECK)  ## make the environment with every tool in it

lint: $(READY_TO_CHECK)  ## format, lint and spelling, changing nothing
	@failed=0; \
	$(BIN)/ruff format --check . || failed=1; \
	$(BIN)/ruff check . || failed=1; \
	$(BIN)/codespell || failed=1; \
	exit $$failed

types: $(READY_TO_CHECK)  ## type-check src
	@$(BIN)/mypy

imports: $(READY_TO_CHECK)  ## check that no layer imports upwards
	@$(BIN)/lint-imports

format: $(READY_TO_CHECK)  ## format, and repair what the linter can
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

clean:  ## remove build artefacts and caches (not .venv, not runs/)
	@rm -rf build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	@find src tests -name __pycache__ -type d -prune -exec rm -rf {} +


# ------------------------------------------------------------------------------------ the environment

# Exits 0 if the interpreter that runs it is new enough and can make an environment.
SUITABLE := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))

# An environment whose interpreter is gone or too old is made again.
ifneq ($(shell $(BIN)/python -c 'import sys; print(sys.version_info >= (3, 11))' 2>/dev/null),True)
$(VENV)/pyvenv.cfg: FORCE
endif

$(VENV)/pyvenv.cfg:
	@for python in $(or $(PYTHON),python3 python3.13 python3.12 python3.11 python3.14 python); do \
	  if "$$python" -c '$(SUITABLE)' 2>/dev/null; then \
	    echo "penstock: making $(VENV) with $$("$$python" --version)"; \
	    exec "$$python" -m venv --clear $(VENV); \
	  fi; \
	done; \
	echo "penstock needs Python 3.11 or later with its venv module;" \
	     "$(or $(PYTHON),python3) is $$($(or $(PYTHON),python3) --version 2>&1 | head -n 1)." \
	     "Name another: make PYTHON=/path/to/python3.11" >&2; \
	exit 1

# torch goes first and alone, so that the build already chosen for this machine is not resolved anew.
$(READY_TO_RUN): $(VENV)/pyvenv.cfg pyproject.toml constraints.txt
	@echo "penstock: installing into $(VENV) (about a minute, once)"
	@$(PIP) "$$(grep '^torch==' constraints.txt)"
	@$(PIP) --editable '.[test]'
	@$(COMPILE)
	@touch $@

$(READY_TO_CHECK): $(READY_TO_RUN)
	@echo "penstock: adding the tools that check the code to $(VENV)"
	@$(PIP) --editable '.[dev]'
	@touch $@
