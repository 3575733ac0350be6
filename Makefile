# Everything a newcomer runs. `make demo` and `make test` work from a fresh clone.
# The interpreter is selectable: make test PYTHON=python3.13
# The suite runs in two processes; in one after another: make test JOBS=1

PYTHON ?= python3
JOBS ?= 2
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
CODE := farflung bench tests docs
# The large one is installed first and alone, so that a slow or failing download is plain to see.
TORCH := torch==2.13.0

export HF_HUB_OFFLINE := 1
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

.PHONY: help setup demo test suite lint types chaos bench docs docs-test docs-images clean

help:  ## list these targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 13

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# Each stamp is newer than what decides the installed packages, so installing runs again only when that changes.
$(VENV)/.setup-%: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install -c constraints.txt $(TORCH)
	$(PIP) install -c constraints.txt -e '.[$*]'
	@touch $@

setup: $(VENV)/.setup-dev  ## make .venv with everything that development needs

demo: $(VENV)/.setup-demo  ## train a small model, serve it by several processes, kill one, compare
	$(BIN)/farflung demo

test: setup lint  ## all checks, and beside the types the whole suite but its slow part
	@$(MAKE) --no-print-directory --jobs 2 types suite

suite: setup  ## the tests alone, without the slow ones
	$(BIN)/python -m pytest -m "not slow and not network" --numprocesses $(JOBS)

lint: setup  ## style, format and the import contracts
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/lint-imports --no-logo

types: setup  ## static types
	$(BIN)/pyright

chaos: setup  ## crashes, loss and partitions under many seeds, and the slow tests
	$(BIN)/python -m pytest -m "(chaos or slow) and not network"

bench: setup  ## measure every claim against its baseline; results go to bench/RESULTS.md
	$(BIN)/python -m bench

docs: $(VENV)/.setup-docs  ## build the documentation into build/docs; a link that leads nowhere is an error
	NO_MKDOCS_2_WARNING=true $(BIN)/python -m mkdocs --quiet build --strict
	@echo "read it with: $(BIN)/python -m http.server --bind 127.0.0.1 --directory build/docs 8000"

docs-test: setup  ## type what the tutorials say, against real processes
	$(BIN)/python -m pytest tests/docs

docs-images: setup  ## have the tests in the browser take the pictures of the documentation
	mkdir -p docs/images
	FARFLUNG_PICTURES=docs/images $(BIN)/python -m pytest tests/browser -m "not slow"

clean:  ## remove what was built, the environment included
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find $(CODE) -type d -name __pycache__ -prune -exec rm -rf {} +
