# One desk for everything. Needs Python 3.11 or newer and nothing else; all of it lives in .venv.
#   make PYTHON=/path/to/python3 test     another Python (only when .venv is made; `make clean-venv` to make it anew)
#   make test ARGS="-k lease -x"          ARGS reach pytest, the demo, the bench
#   make test ENGINE=sqlite               only this engine
#   make test TEST_POSTGRES_BIN=/usr/lib/postgresql/16/bin    this PostgreSQL beside the wheel's, in place of the one that is found

.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
ARGS ?=
ENGINE ?=
PYTHON ?=
export TEST_POSTGRES_BIN ?=
BIN := .venv/bin
PY := $(BIN)/python

# A finished .venv looks after itself. Else the first Python that is new enough and can make a virtual environment; else the first that is new enough (tools/venv.py then says
# what to install). Each is tried by running it: a version manager's stand-in exists on PATH and still may not start.
define find_python
if [ -e .venv/beltline-stamp.json ] && $(PY) -c '' >/dev/null 2>&1; then exec $(PY) $(1); fi; \
found=; for name in $(or $(PYTHON),python3.13 python3.12 python3.11 python3); do \
	"$$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 || continue; \
	if "$$name" -c 'import venv, ensurepip' >/dev/null 2>&1; then found=$$name; break; fi; \
	found=$${found:-$$name}; \
done; \
if [ -z "$$found" ]; then \
	echo 'Beltline needs Python 3.11 or newer, and none of $(or $(PYTHON),python3.13 python3.12 python3.11 python3) is.' >&2; \
	echo 'Debian, Ubuntu: sudo apt install python3 python3-venv    macOS: brew install python3' >&2; \
	echo 'Or name one:    make PYTHON=/path/to/python3 $(MAKECMDGOALS)' >&2; \
	exit 1; \
fi; exec "$$found" $(1)
endef

.PHONY: help demo test check format bench docs services lock chaos clean clean-venv .venv-base .venv-test

help: ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: .venv-base ## photos through a line of three stages, with a live picture
	@$(BIN)/beltline demo $(ARGS)

# One process per core, up to four: each starts the servers it needs for itself. ARGS="-n 0" runs them one after the other.
test: .venv-test ## all tests (ENGINE=sqlite narrows, ARGS="-k lease" reach pytest)
	@TEST_ENGINE="$(ENGINE)" $(PY) -m pytest -n logical --maxprocesses=4 --dist=worksteal $(ARGS)

check: .venv-test ## format, lint, types, import floors, links and code blocks of the docs
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/basedpyright
	$(BIN)/lint-imports
	@$(MAKE) docs

format: .venv-test ## let ruff format and repair what it can
	$(BIN)/ruff check --fix-only
	$(BIN)/ruff format

bench: .venv-test ## measure on this machine (ENGINE=postgres, ENGINE=postgresql://…; ARGS="--only drain")
	@$(PY) -m bench $(if $(ENGINE),--engine '$(ENGINE)') $(ARGS)

chaos: .venv-test ## kill real processes for a while and check the history
	@$(PY) -m tests.system.chaos $(ARGS)

# pytest leaves with 5 when it found nothing to run: pages without a code block are no failure.
docs: .venv-test ## every relative link leads somewhere, every Python block runs
	$(PY) tools/check_docs.py
	$(PY) -m pytest -q README.md docs || [ $$? -eq 5 ]

services: .venv-test ## start real servers, print their URLs, stop at Ctrl-C (make test starts its own)
	@exec $(PY) -m tests.services

lock: .venv-test ## choose newest versions again and write requirements/*.txt
	@$(PY) tools/lock.py

clean: ## remove what tools left behind, keep .venv
	rm -rf build dist htmlcov .coverage .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -path ./.venv -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

clean-venv: ## remove .venv as well
	rm -rf .venv .venv.lock

.venv-base:
	@$(call find_python,tools/venv.py base)

.venv-test:
	@$(call find_python,tools/venv.py test)
