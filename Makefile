# Needs make and Python 3.11, 3.12 or 3.13, nothing else: the first target makes .venv and installs into it.
#   make reproduce          run every notebook, write executed HTML and figures to results/
#   make test               lint, format check, unit tests, notebooks
#   make bench              measure against TRL; results in benchmarks/results/
#   make gpu                measure on a GPU, in blocks that go on where they were stopped (BLOCKS="step-1.5B seeds")
#   make gpu-pack           the folder gpu_pack/, for a GPU machine without a package index
#   make test PYTHON=...    make .venv from this Python (only where there is no .venv yet: make clean first)

.DEFAULT_GOAL := test
.PHONY: reproduce test bench gpu gpu-pack lint clean
PYTHON ?=
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/installed

# One thread: two OpenMP threads on a busy machine were ten times slower. The kernel named python3 must be
# this .venv's, even where the user has another of that name.
export OMP_NUM_THREADS := 1
export JUPYTER_PATH := $(CURDIR)/$(VENV)/share/jupyter

# A Python fits if its version does and if it can make a virtual environment with pip in it.
FITS := -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))'

reproduce: $(STAMP)
	$(PY) -m gtpo_mini reproduce

# Every step runs, so that one run shows all that is wrong; the last line and the exit status say whether any failed.
test: $(STAMP)
	@failed=; \
	step() { name=$$1; shift; echo; echo "== $$name"; "$$@" || failed="$$failed [$$name]"; }; \
	step "ruff check" $(PY) -m ruff check .; \
	step "ruff format" $(PY) -m ruff format --check .; \
	step "unit tests" $(PY) -m pytest; \
	step "notebooks" $(PY) -m pytest --nbmake --nbmake-kernel=python3 notebooks/; \
	echo; \
	if [ -n "$$failed" ]; then echo "make test: FAILED:$$failed"; exit 1; fi; \
	echo "make test: lint, format, unit tests and notebooks all passed"

bench: $(STAMP)
	$(PY) benchmarks/vs_trl.py

gpu: $(STAMP)
	$(PY) benchmarks/gpu.py $(BLOCKS)

gpu-pack: $(STAMP)
	$(PY) benchmarks/gpu_pack.py

lint: $(STAMP)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

clean:
	rm -rf $(VENV) results gpu_pack build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is written last: an install that failed or was stopped is done again at the next call.
$(STAMP): pyproject.toml
	@rm -f $(STAMP); \
	if ! $(PY) $(FITS) 2>/dev/null || ! $(PY) -m pip --version >/dev/null 2>&1; then \
	  found=; \
	  for candidate in $(or $(PYTHON),python3.13 python3.12 python3.11 python3); do \
	    if "$$candidate" $(FITS) 2>/dev/null; then found=$$candidate; break; fi; \
	  done; \
	  if [ -z "$$found" ]; then \
	    echo "make: no usable Python among: $(or $(PYTHON),python3.13 python3.12 python3.11 python3)." >&2; \
	    echo "      Install Python 3.11, 3.12 or 3.13 with its venv module (Debian: apt install python3-venv)," >&2; \
	    echo "      or name one: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12" >&2; \
	    exit 1; \
	  fi; \
	  echo "Making $(VENV) with $$found ($$("$$found" --version))"; \
	  "$$found" -m venv --clear $(VENV) || { echo "make: $$found could not make $(VENV)" >&2; exit 1; }; \
	fi; \
	echo "Installing gtpo-mini and its tools into $(VENV): several minutes the first time"; \
	if ! $(PY) -m pip install --disable-pip-version-check -e '.[dev]'; then \
	  echo "make: the install failed (see above). Check the network and the disk, then run make again." >&2; \
	  exit 1; \
	fi; \
	touch $(STAMP)
