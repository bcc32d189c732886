# Two commands: `make demo` and `make test`. Each sets up .venv by itself; only a Python of at least 3.11 is needed.
PYTHON ?= $(shell for p in python3.11 python3 python3.12 python3.13; do \
  $$p -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV ?= .venv
VENV_XLA ?= .venv-xla
VENV_GPU ?= .venv-gpu
EXTRAS ?= dev,docs,openslide,fastslide,oct,onnx,wandb
PYTEST_FLAGS ?=
PIP_FLAGS ?= -q
# Processes of the tests. A file's tests stay in one process, for its fixtures; each process starts a Ray cluster when
# its first test asks for one. The files that take longest come first (tests/conftest.py).
TEST_PROCESSES ?= 2
SPREAD := -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder
BIN := $(VENV)/bin
XLA := $(VENV_XLA)/bin
GPU := $(VENV_GPU)/bin

# One thread per process: the tests and Ray's workers are processes, and torch would start a thread per core in each.
export OMP_NUM_THREADS ?= 1
export RAY_USAGE_STATS_ENABLED ?= 0
# Some container images set it; then every process of the tests would compile this repository again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test test-heavy test-xla test-gpu lint docs clean

help:
	@echo "make demo [SLIDES=folder [MPP=0.5]]   the main job on a generated cohort, or on your slides"
	@echo "make test                           lint, types and tests (make test-heavy: those that take minutes)"
	@echo "make test-xla                       the XLA tests on the CPU, in an environment of their own (9 GB)"
	@echo "make test-gpu                       what needs an NVIDIA GPU, in an environment of its own"
	@echo "make lint                           ruff, mypy over all packages, import contracts"
	@echo "make docs                           a reference of every module from its docstrings, in build/docs"
	@echo "make clean                          remove environments, caches and the demo's output"

demo: $(VENV)/.installed
	$(BIN)/python -m demo $(if $(SLIDES),slides="$(SLIDES)") $(if $(MPP),mpp=$(MPP)) $(DEMO_FLAGS)

test: lint
	$(BIN)/python -m pytest -m "not heavy" $(SPREAD) $(PYTEST_FLAGS)

test-heavy: $(VENV)/.installed
	$(BIN)/python -m pytest -m heavy $(SPREAD) $(PYTEST_FLAGS)

test-xla: $(if $(wildcard tests/xla/test_*.py),$(VENV_XLA)/.installed)
	@if ls tests/xla/test_*.py >/dev/null 2>&1; then \
	  PJRT_DEVICE=CPU $(XLA)/python -m pytest tests/xla $(PYTEST_FLAGS); \
	else echo "there are no XLA tests under tests/xla"; fi

# Tests that skip would read as a GPU that works, so a torch that sees none is an error.
test-gpu: $(VENV_GPU)/.installed
	@$(GPU)/python -c 'import sys, torch; sys.exit(0 if torch.cuda.is_available() else \
	  f"error: torch {torch.__version__} of $(VENV_GPU) sees no CUDA device")'
	$(GPU)/python -m pytest tests/gpu tests/pathray/nn/test_attention.py $(PYTEST_FLAGS)

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/.installed
	$(BIN)/python docs/build_reference.py

$(VENV)/.installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or newer on the PATH; set PYTHON=/path/to/python3" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(PIP_FLAGS) -c constraints.txt -e ".[$(EXTRAS)]"
	touch $@

$(VENV_XLA)/.installed: pyproject.toml constraints-xla.txt
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or newer on the PATH; set PYTHON=/path/to/python3" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV_XLA)
	$(XLA)/python -m pip install $(PIP_FLAGS) -c constraints-xla.txt torch torch_xla -e ".[dev]"
	touch $@

# Without constraints.txt, whose torch is built for CPUs.
$(VENV_GPU)/.installed: pyproject.toml
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or newer on the PATH; set PYTHON=/path/to/python3" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV_GPU)
	$(GPU)/python -m pip install $(PIP_FLAGS) -e ".[dev,cuda]"
	touch $@

clean:
	rm -rf $(VENV) $(VENV_XLA) $(VENV_GPU) build *.egg-info demo_output .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
