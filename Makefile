# Every target sets up .venv by itself; a stamp says which versions of the two files it was made from.

VENV := .venv
BIN := $(VENV)/bin
STALE_IF := pyproject.toml constraints.txt

# The first of these that runs and is new enough: a name on the path may be a shim without a Python.
PYTHON ?= $(shell for python in python3.11 python3 python; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& command -v $$python && break; done)

UV := $(shell command -v uv 2>/dev/null)
# uv does not read pip's variables; a folder of wheels named there (CPU builds of torch, say) counts.
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
ifdef UV
CREATE = uv venv --quiet --allow-existing --python "$(PYTHON)" $(VENV)
INSTALL = uv pip install --quiet --python $(BIN)/python
else
CREATE = "$(PYTHON)" -m venv $(VENV)
INSTALL = $(BIN)/python -m pip install --quiet --no-compile
endif

# Tests start Python by the hundred: without bytecode of torch each start takes two seconds more.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test check coverage check-deep trials format docs clean

demo: $(VENV)/run.stamp
	$(BIN)/peerformer demo

# Three at a time also on two cores: many tests wait for processes of their own.
test: $(VENV)/dev.stamp
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3

# Of the protocol, by its own tests and those of the simulator; the other tests only add to it.
coverage: $(VENV)/dev.stamp
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 tests/protocol tests/simulate -k "not memory" \
		--cov=peerformer.protocol --cov-branch --cov-report=term-missing:skip-covered

check: $(VENV)/dev.stamp
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/deptry .

check-deep: $(VENV)/dev.stamp
	$(BIN)/peerformer simulate --seeds 2000
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m deep
	$(MAKE) trials

# Real swarms, maltreated; all of them run, whatever the first ones find. `make trials SIZE=--quick`
# takes some ten minutes, the full size some three hours, of which the soak is one. Those that make
# network namespaces need root and are left out without it (exit code 77, said on the terminal).
TRIALS := kill partition sync strangers nodes slow_link soak
SIZE :=
trials: $(VENV)/dev.stamp
	@failed=; for trial in $(TRIALS); do \
	echo "benchmarks/$$trial.py $(SIZE)"; \
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/$$trial.py --json $(SIZE); code=$$?; \
	[ $$code -eq 0 ] || [ $$code -eq 77 ] || failed="$$failed $$trial"; done; \
	[ -z "$$failed" ] || { echo "error: these trials did not pass:$$failed" >&2; exit 1; }

format: $(VENV)/dev.stamp
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

# The commands and paths named in README.md and docs/ are real.
docs: $(VENV)/dev.stamp
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/test_docs.py tests/test_tidy.py

clean:
	rm -rf $(VENV) build dist site .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .hypothesis
	find peerformer tests -name __pycache__ -prune -exec rm -rf {} +

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "error: Python 3.11 or newer is needed." >&2; \
	echo "  try: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	$(CREATE)

$(VENV)/run.stamp: $(STALE_IF) | $(BIN)/python
	$(INSTALL) --constraint constraints.txt --editable .
	touch $@

$(VENV)/dev.stamp: $(STALE_IF) | $(BIN)/python
	$(INSTALL) --constraint constraints.txt --editable '.[dev]'
	$(INSTALL) --no-deps byzfl==0.0.11  # of its needs the tests want scipy only, which is there
	touch $(VENV)/run.stamp $@
