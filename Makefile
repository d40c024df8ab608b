# Everything sets itself up: all that is needed is Python 3.11 or later and make.

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && command -v $$p && break; done)
BIN := .venv/bin
READY := .venv/.ready

# Processes that run tests side by side: one more than processors, since tests of servers and of other processes wait.
WORKERS ?= $(shell n=$$(nproc); echo $$((n > 4 ? 5 : n + 1)))

# More words for pytest, as in: make test PYTEST=tests/models
PYTEST ?=

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test coverage lint docs bench soak wheel gpu-check clean

demo: $(READY)        ## the built-in model writes Python, every exact weight read from disk
	$(BIN)/understudy run --resident none --temperature 0.6 --top-p 0.9 --seed 3 --max-new-tokens 160 < /dev/null

# A process that crashes is not replaced: the next would run the test that it crashed in again, and then xdist may wait for ever.
test: $(READY)        ## the whole suite, torch on one thread in each of a few processes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --max-worker-restart=0 $(PYTEST)

coverage:             ## the whole suite, and the lines that no test runs: takes twice as long
	$(MAKE) test PYTEST='--cov --cov-report=term:skip-covered'

lint: $(READY)        ## style and types
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: $(READY)        ## the pages in docs/ as a site, with the Python API from docstrings: build/site/index.html
	$(BIN)/python tools/pages.py

bench: $(READY)       ## methods side by side on the built-in model
	$(BIN)/understudy bench --resident none

soak: $(READY)        ## 64 clients at a server for ten minutes, who leave, try again and send nonsense
	$(BIN)/python benchmarks/soak.py --json soak.json

wheel: $(READY)       ## a wheel with machine code of all kernels, for the instructions that this processor has
	$(BIN)/python tools/ready_kernels.py
	$(BIN)/pip wheel --quiet --no-deps --wheel-dir dist .

gpu-check:            ## all that needs a GPU, with the Python at hand: nothing is installed
	python3 benchmarks/gpu_check.py --json gpu-check.json

# torch comes first and by its exact version: a plain "torch" may pull gigabytes of accelerator libraries.
$(READY): pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or later is needed: set PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "Setting up .venv: PyTorch first, then the rest. This takes some minutes, once." >&2
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet -e '.[dev]'
	touch $(READY)

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache build dist
