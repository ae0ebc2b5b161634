# `make demo` and `make test` do all their own set-up, in .venv, with nothing but Python 3.11+ and a package registry.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Where Python keeps no bytecode, every one of the tests' many processes compiles PyTorch's sources again: 12 seconds each.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup demo test test-floors docs fuzz export-matrix check format clean

help:
	@echo "make demo    set up, train on generated scenes, show pictures and figures (minutes on a laptop)"
	@echo "make test    set up and run the tests"
	@echo "make test-floors  run the tests with the oldest supported packages, and exported graphs without PyTorch"
	@echo "make docs    run the notebooks and build the documentation site, docs/_build/html/index.html"
	@echo "make fuzz    malformed inputs by random seeds, for MINUTES=10 (CASE='coco 17' repeats one)"
	@echo "make export-matrix  export every family, format and precision, for docs/export.md"
	@echo "make check   formatting, lint, types and the order of imports"
	@echo "make format  put the formatting right"
	@echo "make setup   only set up $(VENV)"

setup: $(VENV)/.ready

# uv where it is there, otherwise fetched into .uv: by pip, or where the system's Python has none, inside a venv.
$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed: make setup PYTHON=/path/to/python3.11"; exit 1; }
	@set -e; UV=$$(command -v uv || echo .uv/bin/uv); \
	if ! [ -x "$$UV" ]; then \
		rm -rf .uv; \
		$(PYTHON) -m pip install --quiet --disable-pip-version-check --target .uv uv 2>/dev/null \
			|| { rm -rf .uv; $(PYTHON) -m venv .uv && .uv/bin/python -m pip install --quiet uv; } \
			|| { echo "Neither pip nor venv works here: install uv, or the packages python3-pip or python3-venv."; exit 1; }; \
	fi; \
	[ -x $(BIN)/python ] || "$$UV" venv --quiet --python "$$($(PYTHON) -c 'import sys; print(sys.executable)')" $(VENV); \
	"$$UV" pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[focus,dev]' uv
	@touch $@

# Keeps freed memory, in huge pages, instead of mapping it again in every step: docs/training.md, "Time".
demo: export GLIBC_TUNABLES := glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=8000000000:glibc.malloc.top_pad=500000000
demo: setup
	$(BIN)/vitsplit demo

# One thread per test process: the tests are small, and two processes of two threads would fight over two cores.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal $(ARGS)

# A constraint at the floor is only true while something runs there. The second environment has no PyTorch at all.
FLOORS := .venv-floors
WITHOUT_TORCH := .venv-without-torch
OLDEST := --quiet --resolution lowest-direct
test-floors: setup
	$(BIN)/uv venv --quiet --allow-existing --python $(BIN)/python $(FLOORS)
	$(BIN)/uv pip install $(OLDEST) --python $(FLOORS)/bin/python --editable '.[focus,dev]'
	$(BIN)/uv pip install --quiet --upgrade --python $(FLOORS)/bin/python uv
	$(BIN)/uv venv --quiet --allow-existing --python $(BIN)/python $(WITHOUT_TORCH)
	$(BIN)/uv pip install $(OLDEST) --python $(WITHOUT_TORCH)/bin/python 'numpy>=2.0' 'pillow>=10.4' 'onnxruntime>=1.25' 'openvino>=2025.4'
	$(BIN)/uv pip install --quiet --python $(WITHOUT_TORCH)/bin/python --no-deps --editable .
	OMP_NUM_THREADS=1 VITSPLIT_WITHOUT_TORCH=$(CURDIR)/$(WITHOUT_TORCH)/bin/python $(FLOORS)/bin/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal $(ARGS)

docs: setup
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going -b html docs docs/_build/html

MINUTES ?= 10
fuzz: setup
	OMP_NUM_THREADS=1 $(BIN)/python tests/robustness/fuzz.py --minutes $(MINUTES) $(if $(CASE),--case '$(CASE)')

export-matrix: setup
	PYTHONPATH=tests/backbone:tests/exporting OMP_NUM_THREADS=1 $(BIN)/python benchmarks/export_matrix.py

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) $(FLOORS) $(WITHOUT_TORCH) .uv demo docs/_build .pytest_cache .mypy_cache .ruff_cache
