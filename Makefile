# Every target makes what it needs; `make run` is the place to start.

PYTHON ?= python3
# processes that run tests at once; each of them computes with one thread
TESTERS ?= 2
# which tests `make test` runs
CHOSEN  ?= not slow and not long
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

# the environment's own kernel, even where the user has another one of the same name
export JUPYTER_PREFER_ENV_PATH = 1

.PHONY: run test test-slow test-long bench study results film lab app render clean help

help:  ## show the targets
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | expand -t 14

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "nofe_lab needs Python 3.11 or newer; name one: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,browser,timm,export,app,cluster,hub]'
	touch $(READY)

# chosen by measurement among others: docs/results.md, "The first run"
FIRST := -p K 10 -p dataset glyphs:200 -p backbone alexnet_quick_bn -p specialties balanced -p trunk base -p branch_start upcycled -p branch_width 0.5 -p trunk_epochs 3 -p epochs 1
run: $(READY)  ## train a network of experts on the embedded data set (2 minutes, once installed)
	$(BIN)/papermill --stdout-file - --log-level ERROR --no-progress-bar notebooks/03_finetune_nofe.ipynb out.ipynb $(FIRST)
	@echo "The executed notebook, with its figures: out.ipynb.  Above: what else to open."

# types are checked while some tests wait for browsers and disks
test: $(READY)  ## formatting, types and the fast tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy & types=$$!; \
	$(BIN)/python -m pytest -n $(TESTERS) --dist loadgroup -m '$(CHOSEN)'; tests=$$?; \
	wait $$types && exit $$tests

test-slow: $(READY)  ## the tests that need minutes, a browser or real data
	$(BIN)/python -m pytest -n $(TESTERS) --dist loadgroup -m 'slow and not long'

test-long: $(READY)  ## what `make test` and `make test-slow` try a part of: networks, kills, damaged files, sweeps
	$(BIN)/python -m pytest -n $(TESTERS) --dist loadgroup -m long

bench: $(READY)  ## measure speed against the alternatives (13 minutes) into data/results/bench.csv
	$(BIN)/nofe-lab dev bench --output data/results/bench.csv

ROWS ?= 1
study: $(READY)  ## make the next ROWS rows of the study (minutes each; needs NOFE_DATA) and commit them
	$(BIN)/nofe-lab dev study --rows $(ROWS) --commit

results: $(READY)  ## rebuild the tables and figures of README and docs from data/results
	$(BIN)/nofe-lab dev results

film: $(READY)  ## draw the README's film, of the generalist of notebook 01 with K = 10 (1 minute)
	$(BIN)/nofe-lab dev film --output data/figures

lab: $(READY)  ## JupyterLab, on this machine only; prints the address with its token
	$(BIN)/jupyter lab --ip=127.0.0.1 $(if $(filter 0,$(shell id -u)),--allow-root) .

APP := build/app
app: $(READY)  ## notebooks 02, 07 and 10 as apps without code, on this machine only; prints the address with its token
	mkdir -p $(APP)
	ln -sf $(CURDIR)/notebooks/02_*.ipynb $(CURDIR)/notebooks/07_*.ipynb $(CURDIR)/notebooks/10_*.ipynb $(APP)
	$(BIN)/jupyter server --config=notebooks/app_config.py --ip=127.0.0.1 $(if $(filter 0,$(shell id -u)),--allow-root) $(APP)

render: $(READY)  ## execute the notebooks into notebooks/rendered
	$(BIN)/python notebooks/render.py $(ONLY)

clean:  ## remove the virtual environment and caches; runs and data stay
	rm -rf $(VENV) build .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info
