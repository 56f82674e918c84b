# make demo    install what is missing, generate the data, train five classifiers, print a table, draw a picture    (about 4 minutes, CPU)
# make test    install what is missing, lint, unit tests, end-to-end tests
# make docs    build/api/index.html, a page for each module from its docstrings
# JOBS=N       unit tests that run side by side (2)
# VENV=PATH uses (and completes) another virtual environment; a torch or Detectron2 that it has is kept.

PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
PY := $(VENV)/bin/python
STAMP := $(VENV)/.eql_d2_installed

.PHONY: setup demo test test-unit test-end-to-end lint lint-style lint-imports lint-types docs bench soak

setup: $(STAMP)

$(STAMP): setup.py pyproject.toml requirements/torch.txt eql_d2/detectron2.txt
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -c "import torch, torchvision" 2>/dev/null || $(PY) -m pip install -r requirements/torch.txt
	$(PY) -m pip install -e '.[dev]'
	$(PY) -m eql_d2 install-detectron2
	touch $@

demo: setup
	$(PY) -m eql_d2 demo --output output/demo

lint: lint-style lint-imports lint-types

lint-style: setup
	$(VENV)/bin/ruff check .

lint-imports: setup
	$(VENV)/bin/lint-imports

lint-types: setup
	$(VENV)/bin/mypy

docs: setup
	$(PY) tools/make_api_pages.py --output build/api

test: lint test-unit test-end-to-end

test-unit: setup
	$(PY) -m pytest -n $(JOBS) --dist worksteal -m "not end_to_end"

test-end-to-end: setup
	$(PY) -m pytest -m end_to_end

bench: setup
	$(PY) benchmarks/run_all.py --output docs/performance.md

soak: setup
	$(PY) benchmarks/soak.py
